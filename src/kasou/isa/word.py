"""The value protocol of the semantic texts, and `Word`: its implementation on ints.

A text is plain Python over 64-bit values. On `Word` it computes; staged (`kasou.engine.staging`)
the same text emits LLVM. The rules that make both work:

* A value is never used as a truth value: compare it (`a == 0`). A comparison may be used in `if`.
* Combine comparisons with `&`, `|` and `negate`; choose between values with `select`. Two `if`s in
  sequence multiply the paths of the staged text.
* `>>` is logical; `sra` is arithmetic. Shift amounts are below 64 (the text masks them): a larger
  one is undefined in LLVM. Divisors are not zero and `sdiv` does not overflow: the text branches
  around them.
* Constants are plain ints, on either side of an operator.
"""

from __future__ import annotations

from typing import Any, TypeVar

MASK = (1 << 64) - 1
T = TypeVar("T")


class Word:
    """A 64-bit value as a Python int in 0 .. 2**64-1."""

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value & MASK

    def __repr__(self) -> str:
        return f"Word({self.value:#x})"

    def __bool__(self) -> bool:
        raise TypeError("a Word is not a truth value: compare with 0")

    def __int__(self) -> int:
        return self.value

    def __add__(self, other: Word | int) -> Word:
        return Word(self.value + int(other))

    def __sub__(self, other: Word | int) -> Word:
        return Word(self.value - int(other))

    def __rsub__(self, other: int) -> Word:
        return Word(other - self.value)

    def __mul__(self, other: Word | int) -> Word:
        return Word(self.value * int(other))

    def __and__(self, other: Word | int) -> Word:
        return Word(self.value & int(other))

    def __or__(self, other: Word | int) -> Word:
        return Word(self.value | (int(other) & MASK))

    def __xor__(self, other: Word | int) -> Word:
        return Word(self.value ^ (int(other) & MASK))

    def __invert__(self) -> Word:
        return Word(~self.value)

    def __lshift__(self, other: Word | int) -> Word:
        return Word(self.value << int(other))

    def __rlshift__(self, other: int) -> Word:
        return Word(other << self.value)

    def __rshift__(self, other: Word | int) -> Word:
        return Word(self.value >> int(other))

    __radd__, __rmul__, __rand__, __ror__, __rxor__ = __add__, __mul__, __and__, __or__, __xor__

    @property
    def signed(self) -> int:
        """The value as a two's complement int (for ints only: texts use the methods below)."""
        return self.value - (1 << 64) if self.value >> 63 else self.value

    def sra(self, amount: Word | int) -> Word:
        """Shift right arithmetically by 0 .. 63."""
        return Word(self.signed >> int(amount))

    def sext(self, bits: int) -> Word:
        """The low `bits` bits, sign-extended."""
        low = self.value & ((1 << bits) - 1)
        return Word(low - (1 << bits) if low >> (bits - 1) else low)

    def zext(self, bits: int) -> Word:
        """The low `bits` bits, zero-extended."""
        return Word(self.value & ((1 << bits) - 1))

    def __eq__(self, other: object) -> bool:
        return self.value == int(other) & MASK  # type: ignore[call-overload, no-any-return]

    def __ne__(self, other: object) -> bool:
        return self.value != int(other) & MASK  # type: ignore[call-overload, no-any-return]

    def ltu(self, other: Word | int) -> bool:
        """Less than, unsigned."""
        return self.value < int(other) & MASK

    def geu(self, other: Word | int) -> bool:
        """Greater than or equal, unsigned."""
        return self.value >= int(other) & MASK

    def lts(self, other: Word | int) -> bool:
        """Less than, signed."""
        return self.signed < Word(int(other)).signed

    def ges(self, other: Word | int) -> bool:
        """Greater than or equal, signed."""
        return self.signed >= Word(int(other)).signed

    def udiv(self, other: Word | int) -> Word:
        """Quotient, unsigned; the divisor is not 0."""
        return Word(self.value // (int(other) & MASK))

    def urem(self, other: Word | int) -> Word:
        """Remainder, unsigned; the divisor is not 0."""
        return Word(self.value % (int(other) & MASK))

    def sdiv(self, other: Word | int) -> Word:
        """Quotient rounded to zero, signed; not by 0, and not -2**63 by -1."""
        a, b = self.signed, Word(int(other)).signed
        quotient = abs(a) // abs(b)
        return Word(-quotient if (a < 0) != (b < 0) else quotient)

    def srem(self, other: Word | int) -> Word:
        """Remainder with the sign of the dividend; not by 0, and not -2**63 by -1."""
        return self - self.sdiv(other) * other

    def mulhu(self, other: Word | int) -> Word:
        """High 64 bits of the unsigned product."""
        return Word((self.value * (int(other) & MASK)) >> 64)

    def mulhs(self, other: Word | int) -> Word:
        """High 64 bits of the signed product."""
        return Word((self.signed * Word(int(other)).signed) >> 64)

    def mulhsu(self, other: Word | int) -> Word:
        """High 64 bits of the product of self, signed, and other, unsigned."""
        return Word((self.signed * (int(other) & MASK)) >> 64)

    def clz(self) -> Word:
        """Count of leading zeros, 64 for 0."""
        return Word(64 - self.value.bit_length())

    def ctz(self) -> Word:
        """Count of trailing zeros, 64 for 0."""
        return Word(64 if self.value == 0 else (self.value & -self.value).bit_length() - 1)

    def cpop(self) -> Word:
        """Count of ones."""
        return Word(self.value.bit_count())

    def bswap(self) -> Word:
        """Bytes in reverse order."""
        return Word(int.from_bytes(self.value.to_bytes(8, "little"), "big"))


def select(condition: Any, if_true: Any, if_false: Any) -> Any:
    """Choose a value without making a path: both arms are computed."""
    if condition is True:
        return if_true
    if condition is False:
        return if_false
    return condition.select(if_true, if_false)


def flag(condition: Any) -> Any:
    """1 if the comparison holds, else 0, as a value."""
    if isinstance(condition, bool):
        return Word(int(condition))
    return condition.flag()


def negate(condition: Any) -> Any:
    """Not, for a comparison that is combined with others."""
    return not condition if isinstance(condition, bool) else condition.negate()
