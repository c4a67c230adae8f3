"""Traps: the guest's program meets the architecture. Causes as the specification numbers them.

A text raises `Trap(cause, tval)`; the engine then calls `kasou.isa.interrupts.take_trap`.
(Priv. 3.1.15 'Machine Cause')
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Cause(IntEnum):
    """Synchronous exception codes of mcause and scause."""

    INSTRUCTION_MISALIGNED = 0
    INSTRUCTION_ACCESS = 1
    ILLEGAL_INSTRUCTION = 2
    BREAKPOINT = 3
    LOAD_MISALIGNED = 4
    LOAD_ACCESS = 5
    STORE_MISALIGNED = 6
    STORE_ACCESS = 7
    ECALL_U = 8
    ECALL_S = 9
    ECALL_M = 11
    INSTRUCTION_PAGE = 12
    LOAD_PAGE = 13
    STORE_PAGE = 15


class Trap(Exception):
    """A synchronous exception. `tval` None: the bits of the instruction itself."""

    def __init__(self, cause: Any, tval: Any = 0) -> None:
        super().__init__(cause, tval)
        self.cause = cause
        self.tval = tval


def illegal() -> Trap:
    """An illegal-instruction trap whose tval is the instruction."""
    return Trap(Cause.ILLEGAL_INSTRUCTION, None)
