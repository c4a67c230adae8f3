"""A: load-reserved, store-conditional and the atomic memory operations (Zalrsc and Zaamo).

The orderings `aq` and `rl` are not operands of the meaning: every one of these accesses is
sequentially consistent on the host, which is at least as strong. The hart raises misaligned and
store faults before anything is written.
"""

from __future__ import annotations

from typing import Any

from kasou.isa.encoding import insn

_SECTION = '"A", Atomic Memory Operations'


def _load_reserved(funct3: str, letter: str, width: int) -> None:
    def lr(hart: Any, rd: Any, rs1: Any) -> None:
        hart.x[rd] = hart.load_reserved(hart.x[rs1], width).sext(8 * width)

    lr.__doc__ = f"""rd = {8 * width} bits at rs1, sign-extended; reserve them.

    (Unpriv. "A", Load-Reserved/Store-Conditional Instructions)"""
    encoding = f"00010 aq rl 00000 rs1 {funct3} rd 0101111"
    insn(encoding, asm="{rd}, ({rs1})", name=f"lr.{letter}")(lr)


def _store_conditional(funct3: str, letter: str, width: int) -> None:
    def sc(hart: Any, rd: Any, rs1: Any, rs2: Any) -> None:
        hart.x[rd] = hart.store_conditional(hart.x[rs1], hart.x[rs2], width)

    sc.__doc__ = f"""Store {8 * width} bits of rs2 at rs1 if reserved; rd = 0 if stored, else 1.

    (Unpriv. "A", Load-Reserved/Store-Conditional Instructions)"""
    encoding = f"00011 aq rl rs2 rs1 {funct3} rd 0101111"
    insn(encoding, asm="{rd}, {rs2}, ({rs1})", name=f"sc.{letter}")(sc)


def _amo(funct5: str, funct3: str, letter: str, width: int, op: str, meaning: str) -> None:
    def amo(hart: Any, rd: Any, rs1: Any, rs2: Any) -> None:
        hart.x[rd] = hart.atomic(op, hart.x[rs1], hart.x[rs2], width).sext(8 * width)

    amo.__doc__ = f"""rd = {8 * width} bits at rs1, sign-extended; store there {meaning}, at once.

    (Unpriv. {_SECTION})"""
    encoding = f"{funct5} aq rl rs2 rs1 {funct3} rd 0101111"
    insn(encoding, asm="{rd}, {rs2}, ({rs1})", name=f"amo{op}.{letter}")(amo)


# fmt: off
_OPERATIONS = (
    ("00001", "swap", "rs2"),
    ("00000", "add",  "their sum with rs2"),
    ("00100", "xor",  "their exclusive or with rs2"),
    ("01100", "and",  "their and with rs2"),
    ("01000", "or",   "their or with rs2"),
    ("10000", "min",  "the lesser of them and rs2, signed"),
    ("10100", "max",  "the greater of them and rs2, signed"),
    ("11000", "minu", "the lesser of them and rs2, unsigned"),
    ("11100", "maxu", "the greater of them and rs2, unsigned"),
)
# fmt: on
for _funct3, _letter, _width in (("010", "w", 4), ("011", "d", 8)):
    _load_reserved(_funct3, _letter, _width)
    _store_conditional(_funct3, _letter, _width)
    for _funct5, _op, _meaning in _OPERATIONS:
        _amo(_funct5, _funct3, _letter, _width, _op, _meaning)
