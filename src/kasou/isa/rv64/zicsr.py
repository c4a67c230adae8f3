"""Zicsr: read, write, set and clear bits of control and status registers. (Unpriv. 6)

A write that would change nothing because its source is x0 or 0 does not happen at all, so that
read-only registers can be read. All checks come before any effect; rd is written last.
"""

from __future__ import annotations

from typing import Any

from kasou.isa.csr import check_csr_access, modified, read_csr, write_csr
from kasou.isa.encoding import insn


def exchange(hart: Any, rd: Any, csr: Any, source: Any) -> None:
    """Rd = csr; csr = source."""
    number = hart.word(0) + csr
    check_csr_access(hart, number, hart.word(1))
    old = read_csr(hart, number)
    write_csr(hart, number, hart.word(0) + source)
    hart.x[rd] = old
    hart.end_block()


def change(hart: Any, rd: Any, csr: Any, source: Any, sets: bool) -> None:
    """Rd = csr; the bits of `source` in csr become 1, or 0."""
    number = hart.word(0) + csr
    check_csr_access(hart, number, hart.word(1))
    old = read_csr(hart, number)
    bits = hart.word(0) + source
    start = modified(hart, number, old)
    write_csr(hart, number, start | bits if sets else start & ~bits)
    hart.x[rd] = old
    hart.end_block()


def inspect(hart: Any, rd: Any, csr: Any) -> None:
    """Rd = csr, with no write."""
    number = hart.word(0) + csr
    check_csr_access(hart, number, hart.word(0))
    hart.x[rd] = read_csr(hart, number)


@insn("csr rs1 001 rd 1110011", asm="{rd}, {csr}, {rs1}")
def csrrw(hart: Any, rd: Any, csr: Any, rs1: Any) -> None:
    """Exchange: rd = csr; csr = rs1. (Unpriv. 6.1)"""
    exchange(hart, rd, csr, hart.x[rs1])


@insn("csr rs1 010 rd 1110011", asm="{rd}, {csr}, {rs1}")
def csrrs(hart: Any, rd: Any, csr: Any, rs1: Any) -> None:
    """Set: rd = csr; set the bits of rs1 in csr unless rs1 is x0. (Unpriv. 6.1)"""
    if rs1 == 0:
        inspect(hart, rd, csr)
    else:
        change(hart, rd, csr, hart.x[rs1], True)


@insn("csr rs1 011 rd 1110011", asm="{rd}, {csr}, {rs1}")
def csrrc(hart: Any, rd: Any, csr: Any, rs1: Any) -> None:
    """Clear: rd = csr; clear the bits of rs1 in csr unless rs1 is x0. (Unpriv. 6.1)"""
    if rs1 == 0:
        inspect(hart, rd, csr)
    else:
        change(hart, rd, csr, hart.x[rs1], False)


@insn("csr zimm 101 rd 1110011", asm="{rd}, {csr}, {zimm}")
def csrrwi(hart: Any, rd: Any, csr: Any, zimm: Any) -> None:
    """Exchange: rd = csr; csr = zimm. (Unpriv. 6.1)"""
    exchange(hart, rd, csr, zimm)


@insn("csr zimm 110 rd 1110011", asm="{rd}, {csr}, {zimm}")
def csrrsi(hart: Any, rd: Any, csr: Any, zimm: Any) -> None:
    """Set: rd = csr; set the bits of zimm in csr unless zimm is 0. (Unpriv. 6.1)"""
    if zimm == 0:
        inspect(hart, rd, csr)
    else:
        change(hart, rd, csr, zimm, True)


@insn("csr zimm 111 rd 1110011", asm="{rd}, {csr}, {zimm}")
def csrrci(hart: Any, rd: Any, csr: Any, zimm: Any) -> None:
    """Clear: rd = csr; clear the bits of zimm in csr unless zimm is 0. (Unpriv. 6.1)"""
    if zimm == 0:
        inspect(hart, rd, csr)
    else:
        change(hart, rd, csr, zimm, False)
