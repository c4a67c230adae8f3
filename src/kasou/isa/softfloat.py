"""Binary floating point on the bits, exact by construction: the judge of F and D.

How it works
    `unpack` turns bits into a `Number`, whose value is exactly (-1)**sign * significand *
    2**exponent with unbounded ints. The operations compute on Numbers without any rounding
    (quotients and roots carry a sticky bit instead of their endless tail). `pack` rounds once, at
    the end, and is the only place that knows modes, overflow and underflow.

Rules (RISC-V Unprivileged, chapters "F" and "D"; IEEE 754-2019)
    * A NaN result is always the canonical one: positive, quiet, payload zero.
    * A signaling NaN operand raises NV, as does an operation without a meaning (inf - inf,
      0 * inf, 0 / 0, sqrt(-1)). Both are one thing here: an operation without a meaning gives a
      signaling Number, and packing one raises NV. So inf * 0 + quiet NaN raises NV too, as
      "F", section "Single-Precision Floating-Point Computational Instructions" asks.
    * Tininess is detected after rounding, and UF is raised only if the result is also inexact.
    * Operands and results are bare bits of their format. NaN boxing, sign extension into x
      registers and the choice of the dynamic mode belong to the instruction.

Nothing here reads or writes state: every function returns (bits, flags), and the instruction ors
the flags into `fflags`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag, auto
from math import isqrt
from typing import Final


class RoundingMode(IntEnum):
    """The rounding modes, as encoded in `frm` and in an instruction's rm field."""

    RNE = 0  # to nearest, ties to even
    RTZ = 1  # towards zero
    RDN = 2  # down, towards -infinity
    RUP = 3  # up, towards +infinity
    RMM = 4  # to nearest, ties to max magnitude


class Flag(IntFlag):
    """The accrued exceptions, as encoded in `fflags`."""

    NX = 1  # inexact
    UF = 2  # underflow
    OF = 4  # overflow
    DZ = 8  # divide by zero
    NV = 16  # invalid operation


RNE, RTZ, RDN, RUP, RMM = (int(mode) for mode in RoundingMode)
NX, UF, OF, DZ, NV = (int(flag) for flag in Flag)


@dataclass(frozen=True, slots=True)
class Format:
    """An IEEE 754 binary interchange format.

    bits:  | sign 1 | biased exponent, `exponent_bits` | trailing significand, `fraction_bits` |
    """

    exponent_bits: int
    fraction_bits: int

    @property
    def width(self) -> int:
        """The number of bits of a datum."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def precision(self) -> int:
        """The number of significant bits, the hidden one included (IEEE 754's p)."""
        return self.fraction_bits + 1

    @property
    def bias(self) -> int:
        """What is added to an exponent to encode it; also the largest exponent (emax)."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def quantum(self) -> int:
        """The exponent of the lowest bit of a subnormal; no result has a finer bit."""
        return 1 - self.bias - self.fraction_bits

    @property
    def sign_bit(self) -> int:
        """-0: only the sign bit set."""
        return 1 << (self.width - 1)

    @property
    def infinity(self) -> int:
        """+infinity: the exponent field all ones."""
        return ((1 << self.exponent_bits) - 1) << self.fraction_bits

    @property
    def largest(self) -> int:
        """The largest finite number: one less than infinity, as bits."""
        return self.infinity - 1

    @property
    def canonical_nan(self) -> int:
        """The one NaN that RISC-V arithmetic returns."""
        return self.infinity | 1 << (self.fraction_bits - 1)


BINARY16: Final = Format(exponent_bits=5, fraction_bits=10)
BINARY32: Final = Format(exponent_bits=8, fraction_bits=23)
BINARY64: Final = Format(exponent_bits=11, fraction_bits=52)


class Kind(Enum):
    """What a Number is."""

    FINITE = auto()  # zeros included: significand 0
    INFINITE = auto()
    POLE = auto()  # an exact infinity from finite operands: packs as infinity with DZ
    QUIET = auto()
    SIGNALING = auto()  # a signaling NaN, or an operation without a meaning: packs with NV


@dataclass(frozen=True, slots=True)
class Number:
    """A datum of no particular format: (-1)**sign * significand * 2**exponent if FINITE."""

    sign: int
    kind: Kind
    exponent: int = 0
    significand: int = 0

    @property
    def is_nan(self) -> bool:
        """Quiet or signaling."""
        return self.kind is Kind.QUIET or self.kind is Kind.SIGNALING

    @property
    def is_infinite(self) -> bool:
        """Infinite of either sign."""
        return self.kind is Kind.INFINITE

    @property
    def is_zero(self) -> bool:
        """Zero of either sign."""
        return self.kind is Kind.FINITE and self.significand == 0


MEANINGLESS: Final = Number(0, Kind.SIGNALING)


def unpack(fmt: Format, bits: int) -> Number:
    """Read `bits`, a datum of `fmt`; exact."""
    assert 0 <= bits < 1 << fmt.width, f"{bits:#x} is not {fmt.width} bits"
    sign = bits >> (fmt.width - 1)
    biased = bits >> fmt.fraction_bits & ((1 << fmt.exponent_bits) - 1)
    fraction = bits & ((1 << fmt.fraction_bits) - 1)
    if biased == (1 << fmt.exponent_bits) - 1:
        if fraction == 0:
            return Number(sign, Kind.INFINITE)
        is_quiet = fraction >> (fmt.fraction_bits - 1)
        return Number(sign, Kind.QUIET if is_quiet else Kind.SIGNALING)
    if biased == 0:
        return Number(sign, Kind.FINITE, fmt.quantum, fraction)
    return Number(sign, Kind.FINITE, fmt.quantum + biased - 1, fraction | 1 << fmt.fraction_bits)


# ------------------------------------------------------------------ rounding


def round_at(sign: int, exponent: int, significand: int, place: int, rm: int) -> tuple[int, bool]:
    """Round significand * 2**exponent to a multiple of 2**place: (the multiple, was it inexact)."""
    shift = place - exponent
    if shift <= 0:
        return significand << -shift, False
    kept = significand >> shift
    rest = significand & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    match rm:
        case RoundingMode.RNE:
            away = rest > half or (rest == half and kept & 1 == 1)
        case RoundingMode.RTZ:
            away = False
        case RoundingMode.RDN:
            away = rest != 0 and sign == 1
        case RoundingMode.RUP:
            away = rest != 0 and sign == 0
        case RoundingMode.RMM:
            away = rest >= half
        case _:
            raise AssertionError(f"rounding mode {rm}: reserved, or dynamic and not resolved")
    return kept + away, rest != 0


def round_pack(fmt: Format, sign: int, exponent: int, significand: int, rm: int) -> tuple[int, int]:
    """Round (-1)**sign * significand * 2**exponent to `fmt`, once: (bits, flags).

    The significand may have any length. If its lowest bit is sticky ("and then something more"),
    it must have at least precision + 2 bits, so that the sticky bit lies below every tie.
    """
    if significand == 0:
        return sign << (fmt.width - 1), 0
    top = exponent + significand.bit_length() - 1  # 2**top <= |value| < 2**(top + 1)
    place = max(top - fmt.fraction_bits, fmt.quantum)
    rounded, inexact = round_at(sign, exponent, significand, place, rm)
    flags = NX if inexact else 0
    if inexact and top < 1 - fmt.bias:
        # IEEE 754 7.5, after rounding: "a non-zero result computed as though the exponent range
        # were unbounded would lie strictly between +-b**emin". So round again, unbounded.
        unbounded_place = top - fmt.fraction_bits
        unbounded, _ = round_at(sign, exponent, significand, unbounded_place, rm)
        if unbounded_place + unbounded.bit_length() - 1 < 1 - fmt.bias:
            flags |= UF
    # The hidden bit of a normal number carries into the exponent field; a subnormal has none. So
    # a carry out of the fraction, even from subnormal to normal, needs no case of its own.
    magnitude = ((place - fmt.quantum) << fmt.fraction_bits) + rounded
    if magnitude >= fmt.infinity:
        flags = OF | NX
        towards_zero = rm == RTZ or (rm == RUP and sign == 1) or (rm == RDN and sign == 0)
        magnitude = fmt.largest if towards_zero else fmt.infinity
    return sign << (fmt.width - 1) | magnitude, flags


def pack(fmt: Format, number: Number, rm: int) -> tuple[int, int]:
    """Write `number` as a datum of `fmt`, rounded by `rm`: (bits, flags)."""
    match number.kind:
        case Kind.FINITE:
            return round_pack(fmt, number.sign, number.exponent, number.significand, rm)
        case Kind.INFINITE:
            return number.sign << (fmt.width - 1) | fmt.infinity, 0
        case Kind.POLE:
            return number.sign << (fmt.width - 1) | fmt.infinity, DZ
        case Kind.QUIET:
            return fmt.canonical_nan, 0
        case Kind.SIGNALING:
            return fmt.canonical_nan, NV


# ------------------------------------------------------------------ exact operations on Numbers


def nan_of(*numbers: Number) -> Number | None:
    """The NaN that these operands force as result, or None if none is a NaN."""
    nans = [number for number in numbers if number.is_nan]
    if not nans:
        return None
    return Number(0, Kind.SIGNALING if any(n.kind is Kind.SIGNALING for n in nans) else Kind.QUIET)


def negated(a: Number) -> Number:
    """-a, of NaNs too (whose sign no result shows)."""
    return Number(a.sign ^ 1, a.kind, a.exponent, a.significand)


def exact_sum(a: Number, b: Number, rm: int) -> Number:
    """A + b. The mode decides only the sign of an exact zero."""
    if nan := nan_of(a, b):
        return nan
    if a.is_infinite and b.is_infinite:
        return a if a.sign == b.sign else MEANINGLESS
    if a.is_infinite or b.is_infinite:
        return a if a.is_infinite else b
    exponent = min(a.exponent, b.exponent)
    total = sum(
        (-n.significand if n.sign else n.significand) << (n.exponent - exponent) for n in (a, b)
    )
    if total == 0:
        # IEEE 754 6.3: like signs keep their sign; otherwise "+0 ... under all rounding-direction
        # attributes except roundTowardNegative; under that attribute ... -0". It is about the
        # signs, so 0 + -0 follows the same sentence as x - x.
        return Number(a.sign if a.sign == b.sign else int(rm == RDN), Kind.FINITE)
    return Number(int(total < 0), Kind.FINITE, exponent, abs(total))


def exact_product(a: Number, b: Number) -> Number:
    """A * b."""
    if nan := nan_of(a, b):
        return nan
    sign = a.sign ^ b.sign
    if a.is_infinite or b.is_infinite:
        return MEANINGLESS if a.is_zero or b.is_zero else Number(sign, Kind.INFINITE)
    return Number(sign, Kind.FINITE, a.exponent + b.exponent, a.significand * b.significand)


def sticky_quotient(a: Number, b: Number, length: int) -> Number:
    """A / b to at least `length` bits, the last one sticky."""
    if nan := nan_of(a, b):
        return nan
    sign = a.sign ^ b.sign
    if a.is_infinite:
        return MEANINGLESS if b.is_infinite else Number(sign, Kind.INFINITE)
    if b.is_infinite:
        return Number(sign, Kind.FINITE)
    if b.is_zero:
        return MEANINGLESS if a.is_zero else Number(sign, Kind.POLE)
    if a.is_zero:
        return Number(sign, Kind.FINITE)
    # Of lengths m and n, a quotient has at least m - n bits; `length` with the sticky one.
    shift = max(0, length + b.significand.bit_length() - a.significand.bit_length())
    quotient, remainder = divmod(a.significand << shift, b.significand)
    exponent = a.exponent - b.exponent - shift - 1
    return Number(sign, Kind.FINITE, exponent, quotient << 1 | (remainder != 0))


def sticky_root(a: Number, length: int) -> Number:
    """The square root of a to at least `length` bits, the last one sticky; of -0, -0."""
    if nan := nan_of(a):
        return nan
    if a.is_zero:
        return a
    if a.sign:
        return MEANINGLESS
    if a.is_infinite:
        return a
    shift = 2 * length + (a.exponent & 1)  # an even exponent is left
    radicand = a.significand << shift
    root = isqrt(radicand)
    exponent = (a.exponent - shift) // 2 - 1
    return Number(0, Kind.FINITE, exponent, root << 1 | (root * root != radicand))


# ------------------------------------------------------------------ operations on bits


def add(fmt: Format, a: int, b: int, rm: int) -> tuple[int, int]:
    """A + b: (bits, flags)."""
    return pack(fmt, exact_sum(unpack(fmt, a), unpack(fmt, b), rm), rm)


def sub(fmt: Format, a: int, b: int, rm: int) -> tuple[int, int]:
    """A - b: (bits, flags)."""
    return pack(fmt, exact_sum(unpack(fmt, a), negated(unpack(fmt, b)), rm), rm)


def mul(fmt: Format, a: int, b: int, rm: int) -> tuple[int, int]:
    """A * b: (bits, flags)."""
    return pack(fmt, exact_product(unpack(fmt, a), unpack(fmt, b)), rm)


def div(fmt: Format, a: int, b: int, rm: int) -> tuple[int, int]:
    """A / b: (bits, flags)."""
    return pack(fmt, sticky_quotient(unpack(fmt, a), unpack(fmt, b), fmt.precision + 2), rm)


def sqrt(fmt: Format, a: int, rm: int) -> tuple[int, int]:
    """The square root of a: (bits, flags)."""
    return pack(fmt, sticky_root(unpack(fmt, a), fmt.precision + 2), rm)


def fma(fmt: Format, a: int, b: int, c: int, rm: int) -> tuple[int, int]:
    """A * b + c, rounded once: (bits, flags).

    The other three fused instructions flip sign bits first, NaN or not: FMSUB c, FNMSUB a,
    FNMADD a and c.
    """
    product = exact_product(unpack(fmt, a), unpack(fmt, b))
    return pack(fmt, exact_sum(product, unpack(fmt, c), rm), rm)


OPERATIONS: Final[Mapping[str, Callable[..., tuple[int, int]]]] = {
    "add": add,
    "sub": sub,
    "mul": mul,
    "div": div,
    "sqrt": sqrt,
    "fma": fma,
}


def operate(name: str, fmt: Format, operands: tuple[int, ...], rm: int) -> tuple[int, int]:
    """The operation of that name (a key of OPERATIONS) on bits of `fmt`: (bits, flags)."""
    return OPERATIONS[name](fmt, *operands, rm)


# ------------------------------------------------------------------ conversions


def convert(from_format: Format, to_format: Format, bits: int, rm: int) -> tuple[int, int]:
    """The same number in another format (FCVT.S.D, FCVT.D.S): (bits, flags)."""
    return pack(to_format, unpack(from_format, bits), rm)


def to_int(fmt: Format, bits: int, rm: int, signed: bool, width: int) -> tuple[int, int]:
    """Round to an integer of `width` bits (FCVT.W[U], FCVT.L[U]): (its two's complement, flags).

    Out of range is NV alone, with the nearest limit; a NaN counts as +infinity ("F", table
    "Domains of float-to-integer conversions"). The range is that of the rounded integer, so -0.5
    to unsigned is 0 and inexact in RTZ, invalid in RDN.
    """
    number = unpack(fmt, bits)
    low, high = (-1 << (width - 1), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
    mask = (1 << width) - 1
    if number.is_nan:
        return high, NV
    if number.is_infinite:
        return (low & mask if number.sign else high), NV
    magnitude, inexact = round_at(number.sign, number.exponent, number.significand, 0, rm)
    value = -magnitude if number.sign else magnitude
    if not low <= value <= high:
        return (low & mask if number.sign else high), NV
    return value & mask, NX if inexact else 0


def from_int(fmt: Format, value: int, rm: int) -> tuple[int, int]:
    """The number nearest to any int by `rm` (FCVT from W[U], L[U]); 0 gives +0: (bits, flags)."""
    return round_pack(fmt, int(value < 0), 0, abs(value), rm)
