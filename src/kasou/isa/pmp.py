"""Physical memory protection: sixteen entries, ranges derived once, one check.

`pmpcfg[i]` holds one configuration byte and `pmpaddr[i]` what was written. After a change
`pmp_update` derives each entry's range `pmp_low[i] <= pa < pmp_high[i]`, so that `pmp_check` is
comparisons only. The lowest-numbered entry that matches any byte of an access decides it.
(Priv. 3.7 'Physical Memory Protection'. The grain is 4 bytes.)
"""

from __future__ import annotations

from typing import Any

from kasou.isa.function import function
from kasou.isa.word import flag, select

ENTRIES = 16
READ, WRITE, EXECUTE, LOCKED = 1, 2, 4, 1 << 7
"""Bits of a configuration byte; the first three are also the kinds of access."""
OFF, TOR, NA4, NAPOT = 0, 1, 2, 3
"""The A field: bits 4:3. (Priv. 3.7.1.1 'Address Matching')"""
ADDRESS = (1 << 54) - 1
"""pmpaddr holds bits 55:2 of an address."""
PAGE = 4096


def legal_pmpcfg(old: Any, new: Any) -> Any:
    """The configuration byte after `new` is written over `old`.

    A locked entry ignores writes; W without R is reserved and leaves the byte as it was.
    (Priv. 3.7.1)
    """
    keep = ((old & LOCKED) != 0) | ((new & (READ | WRITE)) == WRITE)
    return select(keep, old, new & 0x9F)


def write_pmpaddr(hart: Any, index: int, value: Any) -> None:
    """Write pmpaddr unless the entry is locked, or is the base of a locked TOR entry above it."""
    locked = (hart.pmpcfg[index] & LOCKED) != 0
    if index + 1 < ENTRIES:
        locked = locked | ((hart.pmpcfg[index + 1] & (LOCKED | 3 << 3)) == (LOCKED | TOR << 3))
    hart.pmpaddr[index] = select(locked, hart.pmpaddr[index], value & ADDRESS)


@function()
def pmp_update(hart: Any) -> None:
    """Derive every entry's range from its address and configuration. (Priv. 3.7.1.1)"""
    below = hart.word(0)
    nothing = hart.word(0)
    for i in range(ENTRIES):
        address = hart.pmpaddr[i]
        mode = (hart.pmpcfg[i] >> 3) & 3
        ones = address ^ (address + 1)  # the trailing ones and the zero above them
        low = select(mode == TOR, below, select(mode == NA4, address, address & ~ones))
        high = select(
            mode == TOR, address, select(mode == NA4, address + 1, (address & ~ones) + ones + 1)
        )
        off = (mode == OFF) | low.geu(high)
        hart.pmp_low[i] = select(off, nothing, low << 2)
        hart.pmp_high[i] = select(off, nothing, high << 2)
        below = address
    first, second, rest = (any_on(hart, *span) for span in ((0, 4), (4, 8), (8, ENTRIES)))
    few = select(first != 0, hart.word(4), hart.word(0))
    some = select(second != 0, hart.word(8), few)
    hart.pmp_used = select(rest != 0, hart.word(ENTRIES), some)


@function()
def pmp_check(hart: Any, pa: Any, size: Any, access: Any, priv: Any) -> Any:
    """0: denied; 1: allowed; 3: allowed, and so is the same access to the whole 4 KiB page.

    `access` is 1 load, 2 store, 3 AMO, 4 fetch; `priv` the effective privilege mode. An access that
    an entry matches only in part is denied. Without a match M-mode may do all and the others
    nothing, but on a hart that starts below the board's monitor nobody is held back.
    (Priv. 3.7.1.2 'Locking and Privilege Mode', 3.7.1.3 'Priority and Matching Logic')

    Every step of a page walk asks, and few guests use many entries: so the highest ones that are
    off are left out. `decide` with all sixteen says the same.
    """
    used = hart.pmp_used
    if used == 0:
        return decide(hart, 0, pa, size, access, priv)
    if used == 4:
        return decide(hart, 4, pa, size, access, priv)
    if used == 8:
        return decide(hart, 8, pa, size, access, priv)
    return decide(hart, ENTRIES, pa, size, access, priv)


def any_on(hart: Any, start: int, stop: int) -> Any:
    """Not 0 if an entry of start .. stop-1 is on."""
    ends = hart.pmp_high[start]
    for i in range(start + 1, stop):
        ends = ends | hart.pmp_high[i]
    return ends


def decide(hart: Any, entries: int, pa: Any, size: Any, access: Any, priv: Any) -> Any:
    """The answer of `pmp_check` by the first `entries` entries: the lowest that matches wins."""
    end = pa + size
    page = pa & ~(PAGE - 1)
    page_end = page + PAGE
    machine = priv == 3
    allowed = flag(machine | (hart.monitor == 1))
    whole = hart.word(2)
    for i in reversed(range(entries)):
        low, high, config = hart.pmp_low[i], hart.pmp_high[i], hart.pmpcfg[i]
        permits = ((config & access) == access) | (machine & ((config & LOCKED) == 0))
        inside = pa.geu(low) & high.geu(end)
        page_inside = page.geu(low) & high.geu(page_end)
        on = high != 0
        allowed = select(on & low.ltu(end) & pa.ltu(high), flag(inside & permits), allowed)
        whole = select(on & low.ltu(page_end) & page.ltu(high), flag(page_inside) << 1, whole)
    return select(allowed != 0, allowed | whole, hart.word(0))
