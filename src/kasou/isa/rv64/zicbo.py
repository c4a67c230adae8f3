"""Zicbom and Zicboz: cache-block management and zeroing. (Unpriv. "CMO")

Memory is coherent, so the management instructions only check: that the mode may use them, and that
the block may be accessed. `menvcfg` speaks for S and U, `senvcfg` for U besides.
(Priv. 3.1.18, 12.1)
The prefetches of Zicbop are `ori` to x0, which does nothing already.
"""

from __future__ import annotations

from typing import Any

from kasou.isa.encoding import insn
from kasou.isa.trap import illegal
from kasou.isa.word import negate

CBIE, CBCFE, CBZE = 3 << 4, 1 << 6, 1 << 7
"""The fields of menvcfg and senvcfg that allow cbo.inval; cbo.clean and cbo.flush; cbo.zero."""


def require(hart: Any, allowed_by: int) -> None:
    """Trap unless the mode may use what the field `allowed_by` of the envcfg registers allows."""
    below_machine = (hart.menvcfg & allowed_by) != 0
    user = (hart.priv != 0) | ((hart.senvcfg & allowed_by) != 0)
    if negate((hart.priv == 3) | (below_machine & user)):
        raise illegal()


def _management(number: str, name: str, allowed_by: int, meaning: str) -> None:
    def cbo(hart: Any, rs1: Any) -> None:
        require(hart, allowed_by)
        hart.cache_block_check(hart.x[rs1])

    cbo.__doc__ = f'{meaning} the cache block that holds rs1. (Unpriv. "CMO", Zicbom)'
    insn(f"{number} rs1 010 00000 0001111", asm="({rs1})", name=name, extension="zicbom")(cbo)


_management("000000000000", "cbo.inval", CBIE, "Invalidate (here as allowed: flush)")
_management("000000000001", "cbo.clean", CBCFE, "Clean")
_management("000000000010", "cbo.flush", CBCFE, "Flush")


@insn("000000000100 rs1 010 00000 0001111", asm="({rs1})", extension="zicboz")
def cbo_zero(hart: Any, rs1: Any) -> None:
    """Store zeros to the 64-byte cache block that holds rs1. (Unpriv. "CMO", Zicboz)"""
    require(hart, CBZE)
    hart.cache_block_zero(hart.x[rs1])
