"""M: multiplication and division.

Division never traps: by zero the quotient is all ones and the remainder the dividend; the most
negative number by -1 is itself, with remainder 0. Both cases divide by 1 and choose the result,
so that a text has one path.
"""

from __future__ import annotations

from typing import Any

from kasou.isa.rv64.i import alu
from kasou.isa.word import select

_MOST_NEGATIVE = 1 << 63


def _divisor(a: Any, b: Any) -> Any:
    """`b`, or 1 where b divides nothing or the quotient would overflow."""
    return select((b == 0) | ((a == _MOST_NEGATIVE) & (b == -1)), 1, b)


def _div(a: Any, b: Any) -> Any:
    return select(b == 0, -1, a.sdiv(_divisor(a, b)))


def _rem(a: Any, b: Any) -> Any:
    return select(b == 0, a, a.srem(_divisor(a, b)))


def _divu(a: Any, b: Any) -> Any:
    return select(b == 0, -1, a.udiv(select(b == 0, 1, b)))


def _remu(a: Any, b: Any) -> Any:
    return select(b == 0, a, a.urem(select(b == 0, 1, b)))


def _divw(a: Any, b: Any) -> Any:
    a, b = a.sext(32), b.sext(32)  # in 64 bits nothing overflows
    return select(b == 0, -1, a.sdiv(select(b == 0, 1, b)).sext(32))


def _remw(a: Any, b: Any) -> Any:
    a, b = a.sext(32), b.sext(32)
    return select(b == 0, a, a.srem(select(b == 0, 1, b)).sext(32))


def _divuw(a: Any, b: Any) -> Any:
    a, b = a.zext(32), b.zext(32)
    return select(b == 0, -1, a.udiv(select(b == 0, 1, b)).sext(32))


def _remuw(a: Any, b: Any) -> Any:
    a, b = a.zext(32), b.zext(32)
    return select(b == 0, a, a.urem(select(b == 0, 1, b))).sext(32)


_M, _W = "0000001", "0111011"
_X, _MUL, _DIV = "0110011", '"M", Multiplication Operations', '"M", Division Operations'
# fmt: off
alu("mul",    _M, "000", lambda a, b: a * b,              "low 64 bits of rs1 * rs2", _X, _MUL)
alu("mulh",   _M, "001", lambda a, b: a.mulhs(b),         "high 64 bits of rs1 * rs2, both signed", _X, _MUL)
alu("mulhsu", _M, "010", lambda a, b: a.mulhsu(b),        "high 64 bits of rs1 * rs2, rs1 signed, rs2 not", _X, _MUL)
alu("mulhu",  _M, "011", lambda a, b: a.mulhu(b),         "high 64 bits of rs1 * rs2, both unsigned", _X, _MUL)
alu("mulw",   _M, "000", lambda a, b: (a * b).sext(32),   "32 bits of rs1 * rs2, sign-extended", _W, _MUL)
alu("div",    _M, "100", _div,   "rs1 / rs2, signed, rounded to zero", _X, _DIV)
alu("divu",   _M, "101", _divu,  "rs1 / rs2, unsigned", _X, _DIV)
alu("rem",    _M, "110", _rem,   "rs1 % rs2, signed, with the sign of rs1", _X, _DIV)
alu("remu",   _M, "111", _remu,  "rs1 % rs2, unsigned", _X, _DIV)
alu("divw",   _M, "100", _divw,  "rs1[31:0] / rs2[31:0], signed, sign-extended", _W, _DIV)
alu("divuw",  _M, "101", _divuw, "rs1[31:0] / rs2[31:0], unsigned, sign-extended", _W, _DIV)
alu("remw",   _M, "110", _remw,  "rs1[31:0] % rs2[31:0], signed, sign-extended", _W, _DIV)
alu("remuw",  _M, "111", _remuw, "rs1[31:0] % rs2[31:0], unsigned, sign-extended", _W, _DIV)
# fmt: on
