"""Interrupts and traps: what is pending, what is taken, and where control goes.

`mip` has two parts: bits that software wrote (the cell `mip`) and bits that wires and clocks drive
(`line_*`, `mtimecmp`, `stimecmp`). `mip_value` is what a read of mip gives.
(Priv. 3.1.6 'Machine Status', 3.1.8 'Machine Trap Delegation', 3.1.9 'Machine Interrupt')
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

from kasou.isa.function import function
from kasou.isa.word import flag, select


class Status(IntFlag):
    """Fields of mstatus that this machine has. UXL and SXL read as 2, SD is derived from FS."""

    SIE = 1 << 1
    MIE = 1 << 3
    SPIE = 1 << 5
    MPIE = 1 << 7
    SPP = 1 << 8
    MPP = 3 << 11
    FS = 3 << 13
    MPRV = 1 << 17
    SUM = 1 << 18
    MXR = 1 << 19
    TVM = 1 << 20
    TW = 1 << 21
    TSR = 1 << 22
    UXL = 3 << 32
    SXL = 3 << 34
    SD = 1 << 63


class Interrupt(IntEnum):
    """Interrupt codes: bit numbers of mip and mie, and mcause without its top bit."""

    SSI = 1
    MSI = 3
    STI = 5
    MTI = 7
    SEI = 9
    MEI = 11


INTERRUPT = 1 << 63
"""The bit of mcause and scause that tells an interrupt from an exception."""
PRIORITY = (
    Interrupt.MEI, Interrupt.MSI, Interrupt.MTI, Interrupt.SEI, Interrupt.SSI, Interrupt.STI,
)  # fmt: skip
"""Highest first. (Priv. 3.1.9)"""
SUPERVISOR = 1 << Interrupt.SSI | 1 << Interrupt.STI | 1 << Interrupt.SEI
STCE = 1 << 63
"""menvcfg: stimecmp drives STIP. (Priv. 'Sstc')"""


@function()
def mip_value(hart: Any) -> Any:
    """Mip as software reads it: written bits, lines and timers. (Priv. 3.1.9, 'Sstc')"""
    time = hart.time
    timer = select((hart.menvcfg & STCE) != 0, flag(time.geu(hart.stimecmp)), (hart.mip >> 5) & 1)
    return (
        (hart.mip & (1 << Interrupt.SSI | 1 << Interrupt.SEI))
        | (timer << Interrupt.STI)
        | (hart.line_msip << Interrupt.MSI)
        | (flag(time.geu(hart.mtimecmp)) << Interrupt.MTI)
        | (hart.line_seip << Interrupt.SEI)
        | (hart.line_meip << Interrupt.MEI)
    )


@function()
def pending_interrupt(hart: Any) -> Any:
    """The interrupt to take before the next instruction, as its mcause; 0 if there is none.

    Interrupts to M-mode are enabled below M-mode, or in it with MIE; those delegated to S-mode
    below S-mode, or in it with SIE, never in M-mode. (Priv. 3.1.6.1, 3.1.9)
    """
    pending = mip_value(hart) & hart.mie
    to_m, to_s = pending & ~hart.mideleg, pending & hart.mideleg
    m_on = (hart.priv != 3) | ((hart.mstatus & Status.MIE) != 0)
    s_on = (hart.priv == 0) | ((hart.priv == 1) & ((hart.mstatus & Status.SIE) != 0))
    none = hart.word(0)
    taken = select(m_on & (to_m != 0), to_m, select(s_on, to_s, none))
    cause = none
    for code in reversed(PRIORITY):
        cause = select((taken & (1 << code)) != 0, hart.word(INTERRUPT | code), cause)
    return cause


@function()
def take_trap(hart: Any, cause: Any, tval: Any, epc: Any) -> None:
    """Enter the trap handler in M-mode, or in S-mode if delegated. (Priv. 3.1.6.1, 3.1.7, 3.1.8)

    `cause` has bit 63 set for an interrupt; `epc` is the pc to come back to.
    """
    code = cause & 63
    interrupt = (cause & INTERRUPT) != 0
    delegated = select(interrupt, hart.mideleg, hart.medeleg) >> code
    status = hart.mstatus
    if (hart.priv != 3) & ((delegated & 1) != 0):
        hart.scause = cause
        hart.stval = tval
        hart.sepc = epc
        hart.mstatus = (
            (status & ~int(Status.SIE | Status.SPIE | Status.SPP))
            | ((status & Status.SIE) << 4)
            | ((hart.priv & 1) << 8)
        )
        hart.pc = handler(hart.stvec, interrupt, code)
        hart.priv = hart.word(1)
    else:
        hart.mcause = cause
        hart.mtval = tval
        hart.mepc = epc
        hart.mstatus = (
            (status & ~int(Status.MIE | Status.MPIE | Status.MPP))
            | ((status & Status.MIE) << 4)
            | (hart.priv << 11)
        )
        hart.pc = handler(hart.mtvec, interrupt, code)
        hart.priv = hart.word(3)
    hart.translation_changed()


def handler(tvec: Any, interrupt: Any, code: Any) -> Any:
    """The handler's address: the base, plus 4 * code for vectored interrupts. (Priv. 3.1.7)"""
    vectored = interrupt & ((tvec & 1) != 0)
    return (tvec & ~3) + select(vectored, code << 2, code & 0)
