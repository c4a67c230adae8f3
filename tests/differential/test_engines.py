"""Every instruction on the interpreter against the reference model, with random operands.

The engines run in a child process: an instruction that kills it is a failure with a name.
`KASOU_SEED` and `KASOU_CASES` choose others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from differential.pair import BASE, Pair

import kasou.isa.rv64  # noqa: F401
from kasou.isa.encoding import INSTRUCTIONS

SEED = os.environ.get("KASOU_SEED", "1")
CASES = os.environ.get("KASOU_CASES", "5")
EXTENSIONS = sorted({one.extension for one in INSTRUCTIONS.values()})


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_instruction(extension: str) -> None:
    names = [one.name for one in INSTRUCTIONS.values() if one.extension == extension]
    ended = subprocess.run(
        [sys.executable, "-m", "differential.every_instruction", SEED, CASES, *names],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    lines = ended.stdout.splitlines()
    reports = [line for line in lines if line.startswith("difference")]
    assert not reports, "\n".join(reports)
    last = lines[-1] if lines else "nothing"
    assert ended.returncode == 0, f"seed {SEED}: died at {last}: {ended.stderr[-2000:]}"
    assert sum(line.startswith("instruction") for line in lines) == len(names)


def test_the_comparison_sees_registers_and_memory() -> None:
    pair = Pair()
    assert pair.differences() == {}
    pair.cores[0].block.set("x", 1, 7)
    pair.memories[1].write(BASE + 5, b"\1")
    assert pair.differences() == {"x[7]": (1, 0), "RAM": (BASE + 5, 0)}


@pytest.mark.parametrize(
    "seed", [int(SEED), pytest.param(int(SEED) + 1000, marks=pytest.mark.slow)]
)
def test_random_programs(seed: int) -> None:
    """Branches, traps, modes and Sv39, compared every 60 instructions."""
    programs = os.environ.get("KASOU_PROGRAMS", "40" if seed == int(SEED) else "300")
    ended = subprocess.run(
        [sys.executable, "-m", "differential.random_programs", str(seed), programs],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    lines = ended.stdout.splitlines()
    reports = [line for line in lines if line.startswith("difference")]
    assert not reports, "\n".join(reports)
    last = lines[-1] if lines else "nothing"
    assert ended.returncode == 0, f"died at {last}: {ended.stderr[-2000:]}"
    assert sum(line.startswith("program") for line in lines) == int(programs)
