"""Virtual memory: three values of `Scheme` and the one walk, with Svadu, Svnapot and Svpbmt.

A table is 512 entries of 8 bytes; a virtual address is cut into 9-bit indexes, one a level.

     63  62 61  60    54  53          10  9 8  7 6 5 4 3 2 1 0
    +---+------+--------+--------------+-----+-+-+-+-+-+-+-+-+
    | N | PBMT |   0    |     PPN      | RSW |D|A|G|U|X|W|R|V|
    +---+------+--------+--------------+-----+-+-+-+-+-+-+-+-+

The access is 1 load, 2 store (or 3 AMO), 4 fetch. Faults carry the virtual address. A and D are
set by the walk if menvcfg.ADUE says so; else a missing bit is a page fault.
(Priv. 12.3.2 'Virtual Address Translation Process'; 12.4, 12.5, 'Svnapot', 'Svpbmt', 'Svadu')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kasou.isa.function import function
from kasou.isa.interrupts import Status
from kasou.isa.pmp import pmp_check
from kasou.isa.trap import Cause, Trap
from kasou.isa.word import flag, negate, select

V, R, W, X, U, G, A, D = (1 << bit for bit in range(8))
PPN = (1 << 44) - 1
RESERVED = 0x7F << 54
PBMT = 3 << 61
N = 1 << 63
NAPOT_64K = 1 << 16
PBMTE, ADUE = 1 << 62, 1 << 61
"""menvcfg."""
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Scheme:
    """A translation scheme: its satp.MODE and its number of levels."""

    name: str
    mode: int
    levels: int

    @property
    def va_bits(self) -> int:
        """Width of a virtual address; the bits above are copies of the highest one."""
        return 12 + 9 * self.levels


SV39 = Scheme("sv39", 8, 3)
SV48 = Scheme("sv48", 9, 4)
SV57 = Scheme("sv57", 10, 5)
SCHEMES = (SV39, SV48, SV57)


def page_fault(hart: Any, access: Any, va: Any) -> Trap:
    """A page fault of this access. (Priv. 3.1.15)"""
    load, store = hart.word(Cause.LOAD_PAGE), hart.word(Cause.STORE_PAGE)
    data = select((access & 2) != 0, store, load)
    return Trap(select(access == 4, hart.word(Cause.INSTRUCTION_PAGE), data), va)


def access_fault(hart: Any, access: Any, va: Any) -> Trap:
    """An access fault of this access. (Priv. 3.1.15)"""
    load, store = hart.word(Cause.LOAD_ACCESS), hart.word(Cause.STORE_ACCESS)
    data = select((access & 2) != 0, store, load)
    return Trap(select(access == 4, hart.word(Cause.INSTRUCTION_ACCESS), data), va)


def permitted(hart: Any, pte: Any, access: Any, priv: Any) -> Any:
    """1 if R, W, X, U, SUM and MXR let a leaf serve this access, else 0. (Priv. step 6)"""
    status = hart.mstatus
    load = (pte >> 1) | ((pte >> 3) & (status >> 19))
    data = select((access & 2) != 0, pte >> 2, load)
    kind = select(access == 4, pte >> 3, data)
    user = (pte >> 4) & 1
    supervisor = (user ^ 1) | ((status >> 18) & flag(access != 4))
    return kind & select(priv == 0, user, supervisor) & 1


def walk(
    hart: Any, scheme: Scheme, again: Callable[..., Any], va: Any, access: Any, priv: Any
) -> Any:
    """The physical address of `va`; `hart.walk_size` becomes the size of its page in bytes.

    Steps 1 to 10 of the specification's process. Raises a page fault, or an access fault if a page
    table is not in RAM that S-mode may read. `again` starts the walk anew when another hart changed
    the entry between the read and the update of its A and D bits ("return to step 2"). Page tables
    in devices do not exist here.
    """
    if va.sext(scheme.va_bits) != va:
        raise page_fault(hart, access, va)
    eight, one, two = hart.word(8), hart.word(1), hart.word(2)
    table = (hart.satp & PPN) << 12  # step 1
    for level in reversed(range(scheme.levels)):
        pte_pa = table + (((va >> (12 + 9 * level)) & 0x1FF) << 3)  # step 2
        readable = hart.is_ram(pte_pa, 8) & (pmp_check(hart, pte_pa, eight, one, one) != 0)
        if negate(readable):
            raise access_fault(hart, access, va)
        pte = hart.read_physical(pte_pa, 8)
        broken = (  # step 3
            ((pte & V) == 0) | ((pte & (R | W)) == W) | ((pte & RESERVED) != 0)
        )
        ppn = (pte >> 10) & PPN
        if (pte & (R | X)) == 0:  # step 4: a pointer
            if level == 0:
                raise page_fault(hart, access, va)
            if broken | ((pte & (N | PBMT | A | D | U)) != 0):
                raise page_fault(hart, access, va)
            table = ppn << 12
            continue
        low = (1 << (9 * level)) - 1
        pbmt = pte & PBMT
        wanted = select((access & 2) != 0, hart.word(A | D), hart.word(A))
        missing = (~pte & wanted) != 0
        broken = broken | ((ppn & low) != 0)  # step 7: misaligned superpage
        broken = broken | (
            (pbmt != 0) & (((hart.menvcfg & PBMTE) == 0) | (pbmt == PBMT))  # 'Svpbmt'
        )
        broken = broken | (missing & ((hart.menvcfg & ADUE) == 0))  # step 9, 'Svade'
        napot = (pte & N) != 0
        broken = broken | (napot & ((ppn & 15) != 8) if level == 0 else napot)  # 'Svnapot'
        if broken | (permitted(hart, pte, access, priv) == 0):  # steps 5, 6
            raise page_fault(hart, access, va)
        if missing:  # step 9, 'Svadu'
            if pmp_check(hart, pte_pa, eight, two, one) == 0:
                raise access_fault(hart, access, va)
            if negate(hart.compare_and_swap_physical(pte_pa, pte, pte | wanted)):
                return again(hart, va, access, priv)
        mask = (1 << (12 + 9 * level)) - 1  # step 10
        pa = ((ppn << 12) & ~mask) | (va & mask)
        size = hart.word(mask + 1)
        if level == 0:
            napot = (pte & N) != 0
            wide = ((ppn << 12) & ~(NAPOT_64K - 1)) | (va & (NAPOT_64K - 1))
            pa = select(napot, wide, pa)
            size = select(napot, hart.word(NAPOT_64K), size)
        hart.walk_size = size
        return pa
    raise AssertionError("the last level is a leaf or a fault")


@function(traps=True)
def walk_sv39(hart: Any, va: Any, access: Any, priv: Any) -> Any:
    """Walk of three levels. (Priv. 'Sv39')"""
    return walk(hart, SV39, walk_sv39, va, access, priv)


@function(traps=True)
def walk_sv48(hart: Any, va: Any, access: Any, priv: Any) -> Any:
    """Walk of four levels. (Priv. 'Sv48')"""
    return walk(hart, SV48, walk_sv48, va, access, priv)


@function(traps=True)
def walk_sv57(hart: Any, va: Any, access: Any, priv: Any) -> Any:
    """Walk of five levels. (Priv. 'Sv57')"""
    return walk(hart, SV57, walk_sv57, va, access, priv)


@function(traps=True)
def translate(hart: Any, va: Any, access: Any, priv: Any) -> Any:
    """The physical address of `va` for the effective privilege `priv`, by satp.MODE."""
    mode = hart.satp >> 60
    if (priv == 3) | (mode == 0):
        hart.walk_size = hart.word(PAGE)
        return va
    arms = {
        SV39.mode: partial(walk_sv39, hart, va, access, priv),
        SV48.mode: partial(walk_sv48, hart, va, access, priv),
    }
    return hart.switch(mode, arms, partial(walk_sv57, hart, va, access, priv))


def data_privilege(hart: Any) -> Any:
    """The effective privilege of loads and stores: MPP if MPRV is set. (Priv. 3.1.6.3)"""
    status = hart.mstatus
    return select((status & Status.MPRV) != 0, (status >> 11) & 3, hart.priv)


@function(traps=True)
def checked_translate(hart: Any, va: Any, access: Any, size: Any, priv: Any) -> Any:
    """Translate and check PMP for `size` bytes that lie in one page; the physical address.

    `hart.walk_whole` becomes 1 if the answer holds for the whole 4 KiB page and may be kept in a
    TLB, else 0. (Priv. 12.3.2, 3.7)
    """
    pa = translate(hart, va, access, priv)
    answer = pmp_check(hart, pa, size, access, priv)
    if answer == 0:
        raise access_fault(hart, access, va)
    hart.walk_whole = answer >> 1
    return pa
