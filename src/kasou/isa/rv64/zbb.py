"""Zbb: basic bit manipulation. (Unpriv. "B", Zbb)"""

from __future__ import annotations

from typing import Any

from kasou.isa.encoding import insn
from kasou.isa.rv64.i import alu, alu_immediate
from kasou.isa.word import select

_SECTION = '"B", Zbb'
_X, _W, _I, _IW = "0110011", "0111011", "0010011", "0011011"


def _unary(name: str, funct12: str, funct3: str, opcode: str, f: Any, meaning: str) -> None:
    def unary(hart: Any, rd: Any, rs1: Any) -> None:
        hart.x[rd] = f(hart.x[rs1])

    unary.__doc__ = f"rd = {meaning}. (Unpriv. {_SECTION})"
    insn(f"{funct12} rs1 {funct3} rd {opcode}", asm="{rd}, {rs1}", name=name)(unary)


def _rol(a: Any, b: Any) -> Any:
    return (a << (b & 63)) | (a >> ((0 - b) & 63))


def _ror(a: Any, b: Any) -> Any:
    return (a >> (b & 63)) | (a << ((0 - b) & 63))


def _rolw(a: Any, b: Any) -> Any:
    a, amount = a.zext(32), b & 31
    return ((a << amount) | (a >> (32 - amount))).sext(32)


def _rorw(a: Any, b: Any) -> Any:
    a, amount = a.zext(32), b & 31
    return ((a >> amount) | (a << (32 - amount))).sext(32)


def _orc_b(a: Any) -> Any:
    a = a | (a >> 4) & 0x0F0F0F0F0F0F0F0F
    a = a | (a >> 2) & 0x3333333333333333
    a = a | (a >> 1) & 0x5555555555555555
    return (a & 0x0101010101010101) * 0xFF


# fmt: off
alu("andn", "0100000", "111", lambda a, b: a & ~b,   "rs1 & ~rs2", _X, _SECTION)
alu("orn",  "0100000", "110", lambda a, b: a | ~b,   "rs1 | ~rs2", _X, _SECTION)
alu("xnor", "0100000", "100", lambda a, b: ~(a ^ b), "~(rs1 ^ rs2)", _X, _SECTION)
alu("min",  "0000101", "100", lambda a, b: select(a.lts(b), a, b), "the lesser of rs1 and rs2, signed", _X, _SECTION)
alu("minu", "0000101", "101", lambda a, b: select(a.ltu(b), a, b), "the lesser of rs1 and rs2, unsigned", _X, _SECTION)
alu("max",  "0000101", "110", lambda a, b: select(a.lts(b), b, a), "the greater of rs1 and rs2, signed", _X, _SECTION)
alu("maxu", "0000101", "111", lambda a, b: select(a.ltu(b), b, a), "the greater of rs1 and rs2, unsigned", _X, _SECTION)

_unary("clz",    "011000000000", "001", _I,  lambda a: a.clz(), "the count of leading zeros of rs1")
_unary("ctz",    "011000000001", "001", _I,  lambda a: a.ctz(), "the count of trailing zeros of rs1")
_unary("cpop",   "011000000010", "001", _I,  lambda a: a.cpop(), "the count of ones in rs1")
_unary("clzw",   "011000000000", "001", _IW, lambda a: a.zext(32).clz() - 32, "the count of leading zeros of rs1[31:0]")
_unary("ctzw",   "011000000001", "001", _IW, lambda a: (a | 1 << 32).ctz(), "the count of trailing zeros of rs1[31:0]")
_unary("cpopw",  "011000000010", "001", _IW, lambda a: a.zext(32).cpop(), "the count of ones in rs1[31:0]")
_unary("sext.b", "011000000100", "001", _I,  lambda a: a.sext(8), "rs1[7:0], sign-extended")
_unary("sext.h", "011000000101", "001", _I,  lambda a: a.sext(16), "rs1[15:0], sign-extended")
_unary("zext.h", "000010000000", "100", _W,  lambda a: a.zext(16), "rs1[15:0], zero-extended")
_unary("orc.b",  "001010000111", "101", _I,  _orc_b, "rs1 with every byte that is not 0 made 255")
_unary("rev8",   "011010111000", "101", _I,  lambda a: a.bswap(), "rs1 with its bytes reversed")

alu("rol",  "0110000", "001", _rol,  "rs1 rotated left by rs2[5:0]", _X, _SECTION)
alu("ror",  "0110000", "101", _ror,  "rs1 rotated right by rs2[5:0]", _X, _SECTION)
alu("rolw", "0110000", "001", _rolw, "rs1[31:0] rotated left by rs2[4:0], sign-extended", _W, _SECTION)
alu("rorw", "0110000", "101", _rorw, "rs1[31:0] rotated right by rs2[4:0], sign-extended", _W, _SECTION)
alu_immediate("rori",  "011000 shamt[5:0]",  "101", _ror,  "rs1 rotated right by shamt", _I, _SECTION)
alu_immediate("roriw", "0110000 shamt[4:0]", "101", _rorw, "rs1[31:0] rotated right by shamt, sign-extended", _IW, _SECTION)
# fmt: on
