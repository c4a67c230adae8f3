from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.cli import app, main, run
from kasou.cli.options import RunOptions, parse_plainly
from kasou.control.operations import Ended
from kasou.control.vm_config import DriveConfig
from kasou.errors import ConfigError

WORDS = r"""
    tiny x --cpus 2 --smp=3 -c 3 -c=3 -p 8080:80 -m 1G -n x -n=x -v .:/x --disk d --minimal
    --lockstep --lockstep=1 --memory 1G --drive a.img --drive=b,ro --json
    --append --append=console=ttyS0 --append= --timeout 1.5 --no-reboot --no_reboot --help -h --
    --seed 7 --seed=x --seed=-1 --smp=1_0 --timeout=inf --clock icount --bios none --unknown
    --max-instructions 100 --egress none --technique direct --network lab
"""
ARGUMENTS = st.lists(st.sampled_from(WORDS.split()), max_size=6)


@settings(deadline=None)
@given(ARGUMENTS)
def test_the_fast_reader_agrees_with_typer(arguments: list[str]) -> None:
    fast = parse_plainly(arguments)
    if fast is None:
        return
    seen: list[RunOptions] = []
    execute, run.execute = run.execute, lambda options: seen.append(options) or 0  # type: ignore
    try:
        assert app.invoke(["run", *arguments]) == 0
    finally:
        run.execute = execute
    assert seen == [fast]


def test_every_option_is_read_fast() -> None:
    assert parse_plainly([]) == RunOptions()
    for name in RunOptions._fields[1:]:
        flag = f"--{name.replace('_', '-')}"
        assert parse_plainly([flag]) or parse_plainly([flag, "1"]), name


class Machine:
    """Stands for the machine of a `RunningVm`."""

    def console_input(self, data: bytes) -> None: ...

    def statistics(self) -> dict[str, object]:
        return {"instructions": 7}


class FakeVm:
    """Stands for `RunningVm`: ends at once, as it is told."""

    zygote = None

    def __init__(self, board: Board, write: Callable[[bytes], None]) -> None:
        self.board, self.write, self.machine = board, write, Machine()

    def run(self, timeout: float | None) -> Ended:
        if isinstance(self.board.outcome, BaseException):
            raise self.board.outcome
        self.write(b"hello\n")
        return self.board.outcome

    def stop_now(self) -> None: ...

    def console_input(self, data: bytes) -> None: ...


@dataclass
class Board:
    """How the fake VM is to end, and what it was made of."""

    outcome: Ended | BaseException = field(default_factory=lambda: Ended("poweroff"))
    config: Any = None


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Board:
    made = Board()
    monkeypatch.setenv("KASOU_HOME", str(tmp_path / "home"))

    def running(directory: Any, config: Any, terminal: Any) -> FakeVm:
        made.config = config
        return FakeVm(made, terminal.write)

    monkeypatch.setattr(run, "running", running)
    return made


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Ended("poweroff"), 0),
        (Ended("exit", 7), 7),
        (Ended("exit", 0x100), 1),
        (Ended("exit", -1), 255),
        (Ended("reset"), 0),
        (Ended("budget"), 0),
        (Ended("timeout"), 124),
        (Ended("stopped"), 130),
        (ConfigError("prog: not for RISC-V"), 125),
        (RuntimeError("a bug"), 125),
        (MemoryError(), 125),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    board: Board, outcome: Any, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    board.outcome = outcome
    (tmp_path / "k").write_bytes(b"")
    assert command("run", "--kernel", str(tmp_path / "k"), "--timeout", "5") == code
    error = capfd.readouterr().err
    assert "Traceback" not in error and error.count("\n") == (code in (124, 125))


def test_configuration(board: Board, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kernel = tmp_path / "k"
    kernel.write_bytes(b"")
    line = f"--kernel {kernel} --initrd {kernel} --memory 1G --smp 2 --drive {kernel},ro"
    line += " --bios none --clock icount --seed 5 --no-reboot --json --append a=b"
    assert command("run", *line.split()) == 0
    config = board.config
    assert config.memory == 1 << 30 and config.cpus == 2 and config.bios == "none"
    assert config.clock == "icount" and config.seed == 5 and config.append == "a=b"
    assert config.kernel == config.initrd == str(kernel)
    assert config.drives == (DriveConfig(str(kernel), read_only=True),)
    assert not config.reboot and config.max_instructions is None and config.ephemeral
    out, error = capfd.readouterr()
    assert out == "hello\n"
    assert json.loads(error)["statistics"] == {"instructions": 7}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("run --smp 0", 2),
        ("run --smp 9", 2),
        ("run --smp many", 2),
        ("run --engine fast", 2),
        ("run --clock sun", 2),
        ("run --memory lots", 2),
        ("run --timeout 0", 2),
        ("run --bios none", 2),
        ("run --technique trap", 125),
        ("run -n ../x", 125),
        ("run tiny --minimal", 2),
        ("launch -n a b c", 2),
        ("info nobody", 125),
        ("exec nobody true", 125),
        ("exec -t -T nobody true", 2),
        ("run tiny --kernel x", 2),
        ("run --wat", 2),
        ("run a b", 2),
        ("wat", 2),
        ("explain adi", 2),
        ("run --kernel /nonexistent/kernel", 125),
        ("run --kernel /", 125),
        ("run --drive /nonexistent/disk", 125),
    ],
)
def test_bad_input_is_one_line(
    board: Board, line: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(*line.split()) == code
    out, error = capfd.readouterr()
    assert error.startswith("kasou: ") and error.count("\n") == 1 and not out


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("explain", "addi") == 0
    text = capsys.readouterr().out
    assert "| imm[11:0] |" in text and "addi rd, rs1, imm" in text and "rv64/i.py" in text
    assert command("explain", "LUI", "--json") == 0
    assert json.loads(capsys.readouterr().out)["match"] == 0b0110111


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    command("doctor", "--json")
    found = {one["what"]: one["state"] for one in json.loads(capsys.readouterr().out)}
    assert found["python"] == "ok" and set(found.values()) <= {"ok", "missing", "bad"}


def test_the_fast_way_imports_nothing_slow() -> None:
    code = (
        "import sys, kasou.cli.main, kasou.cli.run; "
        "print(*{'typer', 'rich', 'click', 'llvmlite', 'argparse', 'kasou.isa'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""
