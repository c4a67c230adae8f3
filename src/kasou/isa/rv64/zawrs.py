"""Zawrs: wait on a reservation set. (Unpriv. "Zawrs")

Both may resume for any reason, so a hart that does not stall at all is right.
"""

from __future__ import annotations

from typing import Any

from kasou.isa.encoding import insn


@insn("000000001101 00000 000 00000 1110011")
def wrs_nto(hart: Any) -> None:
    """Wait until the reservation set may have been written. (Unpriv. "Zawrs")"""
    hart.wait_reserved()


@insn("000000011101 00000 000 00000 1110011")
def wrs_sto(hart: Any) -> None:
    """The same, for a short time only. (Unpriv. "Zawrs")"""
    hart.wait_reserved()
