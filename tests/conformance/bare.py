"""Bare-metal programs on a whole machine: what they print and how they end."""

from __future__ import annotations

from pathlib import Path

from kasou.isa.asm import assemble
from kasou.machine.machine import Machine, MachineConfig

PASS = """
pass:
    li t0, 0x100000
    li t1, 0x5555
    sw t1, 0(t0)
1:  j 1b
fail:
    slli t1, gp, 16
    li t0, 0x3333
    or t1, t1, t0
    li t0, 0x100000
    sw t1, 0(t0)
1:  j 1b
"""
"""`pass` powers off; `fail` ends with the code in gp."""


def run(folder: Path, text: str, **fields: object) -> int:
    """Run `text` from 0x80000000 in M-mode; 0 for pass, or the failing code. 255: it never ended."""
    program = folder / "program.bin"
    program.write_bytes(assemble(text + PASS))
    config = MachineConfig(bios="none", kernel=program, memory=16 << 20, **fields)  # type: ignore[arg-type]
    outcome = Machine(config, lambda _data: None).run(60)
    return outcome.code if outcome.kind in ("poweroff", "exit") else 255
