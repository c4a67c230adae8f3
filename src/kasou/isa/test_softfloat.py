"""Softfloat against three judges: the standard's table of corners, a slow second opinion on
Fractions for every datum of a tiny format, and the host's float for binary64 in RNE."""

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.isa.softfloat import (
    BINARY32,
    BINARY64,
    DZ,
    NV,
    NX,
    OF,
    RDN,
    RMM,
    RNE,
    RTZ,
    RUP,
    UF,
    Format,
    RoundingMode,
    convert,
    from_int,
    operate,
    to_int,
)

MODES = tuple(int(mode) for mode in RoundingMode)


def bits_of(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


def float_of(bits: int) -> float:
    return float(struct.unpack("<d", bits.to_bytes(8, "little"))[0])


# ------------------------------------------------------------------ the corner table (binary32)

ZERO, MINUS_ZERO = 0x00000000, 0x80000000
ONE, MINUS_ONE, TWO, THREE = 0x3F800000, 0xBF800000, 0x40000000, 0x40400000
INF, MINUS_INF = 0x7F800000, 0xFF800000
NAN, PAYLOAD_NAN, SNAN = 0x7FC00000, 0xFFC12345, 0x7F800001
TINY, MIN_NORMAL, MAX = 0x00000001, 0x00800000, 0x7F7FFFFF

# fmt: off
CORNERS = [
    ("add",  (ONE, MINUS_ONE),              RNE, ZERO, 0),
    ("add",  (ONE, MINUS_ONE),              RDN, MINUS_ZERO, 0),
    ("sub",  (ONE, ONE),                    RUP, ZERO, 0),
    ("add",  (MINUS_ZERO, MINUS_ZERO),      RUP, MINUS_ZERO, 0),
    ("add",  (ZERO, MINUS_ZERO),            RDN, MINUS_ZERO, 0),
    ("sub",  (ZERO, ZERO),                  RDN, MINUS_ZERO, 0),
    ("sub",  (MINUS_ZERO, ZERO),            RNE, MINUS_ZERO, 0),
    ("add",  (INF, MINUS_INF),              RNE, NAN, NV),
    ("sub",  (INF, INF),                    RNE, NAN, NV),
    ("sub",  (INF, MINUS_INF),              RNE, INF, 0),
    ("add",  (PAYLOAD_NAN, ONE),            RNE, NAN, 0),
    ("add",  (ONE, SNAN),                   RNE, NAN, NV),
    ("add",  (NAN, SNAN),                   RNE, NAN, NV),
    ("add",  (ONE, TINY),                   RNE, ONE, NX),
    ("add",  (ONE, TINY),                   RUP, ONE + 1, NX),
    ("sub",  (ONE, TINY),                   RTZ, ONE - 1, NX),
    ("add",  (TINY, TINY),                  RNE, 2, 0),
    ("add",  (ONE, 0x33800000),             RNE, ONE, NX),          # 1 + half an ulp: a tie
    ("add",  (ONE, 0x33800000),             RMM, ONE + 1, NX),
    ("add",  (ONE + 1, 0x33800000),         RNE, ONE + 2, NX),
    ("add",  (MAX, MAX),                    RNE, INF, OF | NX),
    ("add",  (MAX, MAX),                    RTZ, MAX, OF | NX),
    ("add",  (MAX, MAX),                    RDN, MAX, OF | NX),
    ("add",  (MAX, MAX),                    RUP, INF, OF | NX),
    ("add",  (MAX, MAX),                    RMM, INF, OF | NX),
    ("mul",  (MAX, 0xC0000000),             RUP, 0xFF7FFFFF, OF | NX),
    ("mul",  (MAX, 0xC0000000),             RDN, MINUS_INF, OF | NX),
    ("add",  (MAX, TINY),                   RNE, MAX, NX),
    ("mul",  (ZERO, INF),                   RNE, NAN, NV),
    ("mul",  (MINUS_ZERO, ONE),             RNE, MINUS_ZERO, 0),
    ("mul",  (TINY, TINY),                  RNE, ZERO, UF | NX),
    ("mul",  (TINY, TINY),                  RUP, TINY, UF | NX),
    ("mul",  (TINY, 0x3F000000),            RNE, ZERO, UF | NX),    # a tie at the bottom
    ("mul",  (TINY, 0x3F000000),            RMM, TINY, UF | NX),
    ("mul",  (MIN_NORMAL, 0x3F000000),      RNE, 0x00400000, 0),    # tiny and exact: no UF
    # just under the smallest normal, rounds up to it: tiny only if 24 bits suffice to see it
    ("mul",  (MIN_NORMAL, 0x3F7FFFFF),      RNE, MIN_NORMAL, UF | NX),
    ("fma",  (MIN_NORMAL, ONE, 0x80000001), RNE, 0x007FFFFF, 0),
    ("fma",  (0x00000001, 0xBE000000, MIN_NORMAL), RNE, MIN_NORMAL, NX),
    ("div",  (ONE, ZERO),                   RNE, INF, DZ),
    ("div",  (ONE, MINUS_ZERO),             RNE, MINUS_INF, DZ),
    ("div",  (INF, ZERO),                   RNE, INF, 0),
    ("div",  (ZERO, ZERO),                  RNE, NAN, NV),
    ("div",  (INF, INF),                    RNE, NAN, NV),
    ("div",  (MINUS_ONE, INF),              RNE, MINUS_ZERO, 0),
    ("div",  (NAN, ZERO),                   RNE, NAN, 0),
    ("div",  (ONE, THREE),                  RNE, 0x3EAAAAAB, NX),
    ("div",  (ONE, THREE),                  RTZ, 0x3EAAAAAA, NX),
    ("sqrt", (MINUS_ZERO,),                 RNE, MINUS_ZERO, 0),
    ("sqrt", (MINUS_ONE,),                  RNE, NAN, NV),
    ("sqrt", (MINUS_INF,),                  RNE, NAN, NV),
    ("sqrt", (INF,),                        RNE, INF, 0),
    ("sqrt", (TWO,),                        RNE, 0x3FB504F3, NX),
    ("sqrt", (TINY,),                       RNE, 0x1A3504F3, NX),
    ("fma",  (INF, ZERO, NAN),              RNE, NAN, NV),
    ("fma",  (INF, ZERO, ONE),              RNE, NAN, NV),
    ("fma",  (INF, ONE, MINUS_INF),         RNE, NAN, NV),
    ("fma",  (NAN, ONE, ONE),               RNE, NAN, 0),
    ("fma",  (ONE, MINUS_ONE, ONE),         RDN, MINUS_ZERO, 0),
    ("fma",  (ZERO, MINUS_ONE, ZERO),       RNE, ZERO, 0),
    ("fma",  (ONE + 1, ONE + 1, 0xBF800002), RNE, 0x28800000, 0),   # the low half of a square
]
# fmt: on


@pytest.mark.parametrize(("name", "operands", "rm", "bits", "flags"), CORNERS)
def test_corner(name: str, operands: tuple[int, ...], rm: int, bits: int, flags: int) -> None:
    assert operate(name, BINARY32, operands, rm) == (bits, flags)


def test_the_formats_of_risc_v() -> None:
    assert (BINARY32.width, BINARY32.canonical_nan) == (32, 0x7FC00000)
    assert (BINARY64.width, BINARY64.canonical_nan) == (64, 0x7FF8000000000000)


def test_a_mode_that_is_not_resolved_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="rounding mode 7"):
        operate("div", BINARY32, (ONE, THREE), 7)


# fmt: off
TO_INT = [
    (1.5,             RNE, True,  32, 2, NX),
    (2.5,             RNE, True,  32, 2, NX),
    (2.5,             RMM, True,  32, 3, NX),
    (-2.5,            RMM, True,  32, 2**32 - 3, NX),
    (-0.5,            RTZ, False, 32, 0, NX),
    (-0.5,            RDN, False, 32, 0, NV),
    (-1.0,            RTZ, False, 64, 0, NV),
    (-0.0,            RDN, False, 64, 0, 0),
    (2.0**31 - 0.5,   RTZ, True,  32, 2**31 - 1, NX),
    (2.0**31 - 0.5,   RUP, True,  32, 2**31 - 1, NV),
    (-(2.0**31) - 0.5, RTZ, True, 32, 2**31, NX),
    (-(2.0**31) - 0.5, RDN, True, 32, 2**31, NV),
    (2.0**63,         RTZ, True,  64, 2**63 - 1, NV),
    (2.0**63,         RTZ, False, 64, 2**63, 0),
    (math.inf,        RTZ, True,  64, 2**63 - 1, NV),
    (-math.inf,       RTZ, True,  64, 2**63, NV),
    (-math.inf,       RTZ, False, 64, 0, NV),
    (math.nan,        RTZ, True,  32, 2**31 - 1, NV),
    (math.nan,        RTZ, False, 64, 2**64 - 1, NV),
    (5e-324,          RUP, True,  32, 1, NX),
]
# fmt: on


@pytest.mark.parametrize(("value", "rm", "signed", "width", "integer", "flags"), TO_INT)
def test_to_int(value: float, rm: int, signed: bool, width: int, integer: int, flags: int) -> None:
    assert to_int(BINARY64, bits_of(value), rm, signed, width) == (integer, flags)


def test_convert_corners() -> None:
    assert convert(BINARY32, BINARY64, SNAN, RNE) == (BINARY64.canonical_nan, NV)
    assert convert(BINARY32, BINARY64, PAYLOAD_NAN, RNE) == (BINARY64.canonical_nan, 0)
    assert convert(BINARY32, BINARY64, TINY, RNE) == (bits_of(2.0**-149), 0)
    assert convert(BINARY64, BINARY32, bits_of(1e300), RNE) == (INF, OF | NX)
    assert convert(BINARY64, BINARY32, bits_of(2.0**-150), RNE) == (ZERO, UF | NX)


def test_from_int_corners() -> None:
    assert from_int(BINARY32, 0, RDN) == (ZERO, 0)
    assert from_int(BINARY32, 2**24 + 1, RNE) == (0x4B800000, NX)
    assert from_int(BINARY32, 2**24 + 1, RMM) == (0x4B800001, NX)
    assert from_int(BINARY32, -1, RNE) == (MINUS_ONE, 0)
    assert from_int(BINARY32, 10**40, RTZ) == (MAX, OF | NX)


# ------------------------------------------------------------------ every datum of tiny formats


@cache
def line(fmt: Format) -> list[Fraction]:
    """Magnitudes of the finite data in order (index = bits), and after them what infinity would
    be were the exponent range one longer."""
    values = []
    for bits in range(fmt.infinity + 1):
        biased, fraction = divmod(bits, 1 << fmt.fraction_bits)
        steps = fraction + (1 << fmt.fraction_bits if biased else 0)
        values.append(steps * Fraction(2) ** (fmt.quantum + max(biased, 1) - 1))
    return values


def nearest(values: Sequence[Fraction], x: Fraction, negative: bool, rm: int) -> int:
    """The index of the member of a rising line to which the magnitude x rounds."""
    below = max(i for i, v in enumerate(values) if v <= x)
    if values[below] == x or below + 1 == len(values):
        return below
    middle = (values[below] + values[below + 1]) / 2
    even = below + (below & 1)
    nearest_or = {RNE: even, RMM: below + 1}
    if rm in nearest_or:
        return nearest_or[rm] if x == middle else below + (x > middle)
    return below + (rm == (RDN if negative else RUP))


def second_opinion(fmt: Format, x: Fraction, rm: int) -> tuple[int, int]:
    """What x, not zero, rounds to, by looking along the line."""
    negative, values = x < 0, line(fmt)
    sign = fmt.sign_bit if negative else 0
    index = nearest(values, abs(x), negative, rm)
    if index == fmt.infinity:
        to_limit = rm == RTZ or rm == (RUP if negative else RDN)
        return sign | (fmt.largest if to_limit else fmt.infinity), OF | NX
    if values[index] == abs(x):
        return sign | index, 0
    # Tininess: the same precision with a longer range, far below this one.
    scaled = abs(x)
    while scaled < values[1 << fmt.fraction_bits]:
        scaled *= 2
    normals = values[1 << fmt.fraction_bits : 3 << fmt.fraction_bits]
    tiny = abs(x) < values[1 << fmt.fraction_bits] and (
        normals[nearest(normals, scaled, negative, rm)] * (abs(x) / scaled)
        < values[1 << fmt.fraction_bits]
    )
    return sign | index, NX | (UF if tiny else 0)


def finite(fmt: Format) -> list[tuple[int, Fraction]]:
    positive = list(enumerate(line(fmt)[:-1]))
    return positive + [(bits | fmt.sign_bit, -value) for bits, value in positive]


SMALL = Format(exponent_bits=3, fraction_bits=2)
SMALLEST = Format(exponent_bits=2, fraction_bits=2)


@pytest.mark.parametrize("rm", MODES)
def test_every_pair_of_a_tiny_format(rm: int) -> None:
    for (a, x), (b, y) in product(finite(SMALL), repeat=2):
        exact = {"add": x + y, "sub": x - y, "mul": x * y}
        if y:
            exact["div"] = x / y
        for name, value in exact.items():
            if value:
                expected = second_opinion(SMALL, value, rm)
                assert operate(name, SMALL, (a, b), rm) == expected, (name, x, y)
            else:
                bits, flags = operate(name, SMALL, (a, b), rm)
                assert (bits & ~SMALL.sign_bit, flags) == (0, 0)


@pytest.mark.parametrize("rm", MODES)
def test_every_triple_of_a_tinier_format(rm: int) -> None:
    opinions: dict[Fraction, tuple[int, int]] = {}
    for (a, x), (b, y), (c, z) in product(finite(SMALLEST), repeat=3):
        value = x * y + z
        if value:
            if value not in opinions:
                opinions[value] = second_opinion(SMALLEST, value, rm)
            assert operate("fma", SMALLEST, (a, b, c), rm) == opinions[value], (x, y, z)


# ------------------------------------------------------------------ binary64 in RNE: the host

any_float = st.floats(allow_nan=False) | st.integers(0, 2**64 - 1).map(float_of)


def same(bits: int, expected: float) -> bool:
    canonical = BINARY64.canonical_nan if math.isnan(expected) else bits_of(expected)
    return bits == canonical


@given(any_float, any_float)
def test_add_sub_mul_div_are_the_hosts(x: float, y: float) -> None:
    pair = (bits_of(x), bits_of(y))
    assert same(operate("add", BINARY64, pair, RNE)[0], x + y)
    assert same(operate("sub", BINARY64, pair, RNE)[0], x - y)
    assert same(operate("mul", BINARY64, pair, RNE)[0], x * y)
    if y:
        assert same(operate("div", BINARY64, pair, RNE)[0], x / y)


@given(any_float)
def test_sqrt_is_the_hosts(x: float) -> None:
    if not x < 0:
        assert same(operate("sqrt", BINARY64, (bits_of(x),), RNE)[0], math.sqrt(x))


@given(st.integers() | st.integers(-(2**64), 2**64))
def test_from_int_is_the_hosts(value: int) -> None:
    assert same(from_int(BINARY64, value, RNE)[0], float(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_to_int_is_the_hosts(x: float) -> None:
    hosts = {RNE: round(x), RTZ: math.trunc(x), RDN: math.floor(x), RUP: math.ceil(x)}
    for rm, integer in hosts.items():
        if -(2**63) <= integer < 2**63:
            expected = (integer % 2**64, 0 if integer == x else NX)
            assert to_int(BINARY64, bits_of(x), rm, True, 64) == expected


@given(st.floats(width=32, allow_nan=False))
def test_a_single_survives_binary64(x: float) -> None:
    single = int.from_bytes(struct.pack("<f", x), "little")
    assert convert(BINARY32, BINARY64, single, RNE) == (bits_of(x), 0)
    for rm in MODES:
        assert convert(BINARY64, BINARY32, bits_of(x), rm) == (single, 0)


# ------------------------------------------------------------------ laws between the modes


@given(
    st.sampled_from(["add", "sub", "mul", "div"]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
def test_down_and_up_are_neighbours_and_mirror_each_other(name: str, a: int, b: int) -> None:
    down, flags = operate(name, BINARY32, (a, b), RDN)
    up, _ = operate(name, BINARY32, (a, b), RUP)
    if flags & NX:
        assert abs((down & 0x7FFFFFFF) - (up & 0x7FFFFFFF)) == 1
        assert {operate(name, BINARY32, (a, b), rm)[0] for rm in MODES} <= {down, up}
    if BINARY32.canonical_nan not in (down, up):
        minus_b = b if name in ("mul", "div") else b ^ BINARY32.sign_bit
        mirrored, _ = operate(name, BINARY32, (a ^ BINARY32.sign_bit, minus_b), RUP)
        assert mirrored == down ^ BINARY32.sign_bit
