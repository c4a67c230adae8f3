"""Zbs: single-bit instructions. (Unpriv. "B", Zbs)"""

from __future__ import annotations

from typing import Any

from kasou.isa.rv64.i import alu, alu_immediate


def _single_bit(name: str, funct6: str, funct3: str, f: Any, meaning: str) -> None:
    """Define `name`, whose bit is rs2[5:0], and `name`i, whose bit is shamt."""
    section = '"B", Zbs'
    register = meaning.format("rs2[5:0]")
    alu(name, funct6 + "0", funct3, f, register, "0110011", section)
    operand, immediate = f"{funct6} shamt[5:0]", meaning.format("shamt")
    alu_immediate(name + "i", operand, funct3, f, immediate, "0010011", section)


def _bit(b: Any) -> Any:
    return 1 << (b & 63)


# fmt: off
_single_bit("bclr", "010010", "001", lambda a, b: a & ~_bit(b),      "rs1 with bit {} cleared")
_single_bit("bext", "010010", "101", lambda a, b: (a >> (b & 63)) & 1, "bit {} of rs1")
_single_bit("binv", "011010", "001", lambda a, b: a ^ _bit(b),       "rs1 with bit {} inverted")
_single_bit("bset", "001010", "001", lambda a, b: a | _bit(b),       "rs1 with bit {} set")
# fmt: on
