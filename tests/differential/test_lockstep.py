"""Lock-step itself: it agrees where the engines do, and finds and reports a planted difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from kasou.errors import ConfigError
from kasou.isa.asm import assemble
from kasou.machine.lockstep import Lockstep
from kasou.machine.machine import MachineConfig

PROGRAM = """
    li a0, 0
    li a1, 100
loop:
    addi a0, a0, 3
    mul a2, a0, a0
    addi a1, a1, -1
    bnez a1, loop
    li t0, 0x100000
    li t1, 0x5555
    sw t1, 0(t0)
end: j end
"""


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    program = tmp_path / "program.bin"
    program.write_bytes(assemble(PROGRAM))
    return MachineConfig(bios="none", kernel=program, memory=8 << 20, max_instructions=10_000)


def test_the_engines_agree(config: MachineConfig) -> None:
    both = Lockstep(config, lambda _data: None)
    assert both.run().kind == "poweroff"
    assert both.difference is None
    assert both.steps > 400


def test_a_planted_difference_is_found_where_it_shows(config: MachineConfig) -> None:
    both = Lockstep(config, lambda _data: None)
    assert both.run_steps(50).kind == "budget"
    words = both.fast.cores[0].block
    words.set("x", words.get("x", 11) ^ 4, 11)
    both.run()
    assert both.difference is not None
    assert both.difference.step == 51
    assert [name for name, _, _ in both.difference.cells] == ["x[11]"]
    report = both.difference.report()
    assert "def test_lockstep_difference(run_on_both):" in report
    compile(report[report.index("def ") :], "report", "exec")


def test_several_harts_are_refused(config: MachineConfig) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="--smp 1"):
        Lockstep(replace(config, harts=2), lambda _data: None)


def test_a_reported_state_runs_on_both(run_on_both) -> None:
    run_on_both({"x[5]": 7, "x[6]": 9, "priv": 3}, instruction=0x006283B3, pc=0x12346)
