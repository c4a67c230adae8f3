"""The privileged instructions: trap returns, wfi, and the fences of address translation.

(Priv. 3.3 'Machine-Mode Privileged Instructions', 12.2 'Supervisor Instructions', 'Svinval')
"""

from __future__ import annotations

from typing import Any

from kasou.isa.encoding import insn
from kasou.isa.interrupts import Status
from kasou.isa.trap import illegal
from kasou.isa.word import select


def refuse_below(hart: Any, trapped_by: int) -> None:
    """Illegal in U-mode, and in S-mode if this bit of mstatus is set. (Priv. 3.1.6.5)"""
    trapped = (hart.priv == 1) & ((hart.mstatus & trapped_by) != 0)
    if (hart.priv == 0) | trapped:
        raise illegal()


@insn("0011000 00010 00000 000 00000 1110011")
def mret(hart: Any) -> None:
    """Return from a trap of M-mode: to mepc, in the mode of MPP. (Priv. 3.3.2, 3.1.6.1)"""
    if hart.priv != 3:
        raise illegal()
    status = hart.mstatus
    mode = (status >> 11) & 3
    kept = status & ~int(Status.MIE | Status.MPIE | Status.MPP)
    kept = select(mode == 3, kept, kept & ~int(Status.MPRV))
    hart.mstatus = kept | ((status & Status.MPIE) >> 4) | int(Status.MPIE)
    hart.priv = mode
    leave(hart, hart.mepc)


@insn("0001000 00010 00000 000 00000 1110011")
def sret(hart: Any) -> None:
    """Return from a trap of S-mode: to sepc, in the mode of SPP. (Priv. 3.3.2, 12.1.1)"""
    refuse_below(hart, Status.TSR)
    status = hart.mstatus
    kept = status & ~int(Status.SIE | Status.SPIE | Status.SPP | Status.MPRV)
    hart.mstatus = kept | ((status & Status.SPIE) >> 4) | int(Status.SPIE)
    hart.priv = (status >> 8) & 1
    leave(hart, hart.sepc)


def leave(hart: Any, target: Any) -> None:
    """Go on at `target` with the new privilege mode."""
    hart.jump(target)
    hart.translation_changed()
    hart.interrupts_changed()
    hart.end_block()


@insn("0001000 00101 00000 000 00000 1110011")
def wfi(hart: Any) -> None:
    """Wait for an interrupt; illegal in U-mode and, with TW, in S-mode. (Priv. 3.3.3)"""
    refuse_below(hart, Status.TW)
    hart.wait_for_interrupt()


def flush(hart: Any, rs1: Any, rs2: Any) -> None:
    """Forget translations: of an address (rs1) or all, of an ASID (rs2) or all."""
    refuse_below(hart, Status.TVM)
    if rs1 == 0:
        if rs2 == 0:
            hart.flush_translations(None, None)
        else:
            hart.flush_translations(None, hart.x[rs2] & 0xFFFF)
    else:
        if rs2 == 0:
            hart.flush_translations(hart.x[rs1], None)
        else:
            hart.flush_translations(hart.x[rs1], hart.x[rs2] & 0xFFFF)
    hart.end_block()


@insn("0001001 rs2 rs1 000 00000 1110011", asm="{rs1}, {rs2}")
def sfence_vma(hart: Any, rs1: Any, rs2: Any) -> None:
    """Order page-table stores before later translations. (Priv. 12.2.1)"""
    flush(hart, rs1, rs2)


@insn("0001011 rs2 rs1 000 00000 1110011", asm="{rs1}, {rs2}")
def sinval_vma(hart: Any, rs1: Any, rs2: Any) -> None:
    """Invalidate as sfence.vma does, ordered by the two fences below. (Priv. 'Svinval')"""
    flush(hart, rs1, rs2)


@insn("0001100 00000 00000 000 00000 1110011")
def sfence_w_inval(hart: Any) -> None:
    """Order earlier stores before later sinval.vma; TVM does not trap it. (Priv. 'Svinval')"""
    refuse_below(hart, 0)


@insn("0001100 00001 00000 000 00000 1110011")
def sfence_inval_ir(hart: Any) -> None:
    """Order earlier sinval.vma before later accesses; TVM does not trap it. (Priv. 'Svinval')"""
    refuse_below(hart, 0)
