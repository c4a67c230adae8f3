"""Zba: address generation. (Unpriv. "B", Zba)"""

from __future__ import annotations

from typing import Any

from kasou.isa.rv64.i import alu, alu_immediate


def _shift_add(n: int) -> None:
    def shift_add(a: Any, b: Any) -> Any:
        return (a << n) + b

    def shift_add_word(a: Any, b: Any) -> Any:
        return (a.zext(32) << n) + b

    meaning = f"(rs1 << {n}) + rs2"
    alu(f"sh{n}add", "0010000", f"{n:02b}0", shift_add, meaning, "0110011", _SECTION)
    meaning = f"(rs1[31:0] << {n}) + rs2"
    alu(f"sh{n}add.uw", "0010000", f"{n:02b}0", shift_add_word, meaning, _W, _SECTION)


_W, _IW, _SECTION = "0111011", "0011011", '"B", Zba'
for _n in (1, 2, 3):
    _shift_add(_n)
# fmt: off
alu("add.uw", "0000100", "000", lambda a, b: a.zext(32) + b, "rs1[31:0] + rs2", _W, _SECTION)
alu_immediate("slli.uw", "000010 shamt[5:0]", "001", lambda a, b: a.zext(32) << b, "rs1[31:0] << shamt", _IW, _SECTION)
# fmt: on
