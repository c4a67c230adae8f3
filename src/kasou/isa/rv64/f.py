"""F and D: single- and double-precision floating point, each instruction once for both formats.

How it works
    A register `hart.f[n]` holds 64 bits. A single is boxed: its upper half is all ones, and one
    that is not reads as the canonical NaN. Arithmetic that rounds is the hart's (`float_operation`,
    `float_convert`: it accrues the flags itself); all else is integer texts on the bits.

Rules (Unpriv. "F" and "D")
    * With mstatus.FS = Off every one of these instructions is illegal; one that writes an f
      register or may accrue flags leaves FS Dirty. `fp_insn` does both.
    * A reserved rounding mode is illegal, before anything is written.
    * A NaN result is the canonical NaN, except of moves, sign injection and loads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kasou.isa.encoding import Text, insn
from kasou.isa.function import function
from kasou.isa.trap import illegal
from kasou.isa.word import flag, negate, select

FS = 3 << 13
"""mstatus.FS; its value Dirty is all ones."""
NX, NV = 1, 16
"""Bits of fflags: inexact, invalid operation."""
RTZ, RDN, RUP, RMM, DYN = 1, 2, 3, 4, 7
"""Rounding modes, as in frm and in rm; 0 is RNE."""
BOX = 0xFFFFFFFF << 32


@dataclass(frozen=True, slots=True)
class Format:
    """A floating-point format and how instructions name it."""

    letter: str
    bits: int
    code: str
    """The `fmt` field of an encoding."""
    memory: str
    """The width field of its loads and stores."""
    precision: int
    """Significant bits, the hidden one included."""

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.bits - 1)

    @property
    def infinity(self) -> int:
        """+infinity: the exponent all ones."""
        return self.sign - (1 << (self.precision - 1))

    @property
    def quiet(self) -> int:
        """The fraction's top bit, set in quiet NaNs."""
        return 1 << (self.precision - 2)

    @property
    def nan(self) -> int:
        """The canonical NaN."""
        return self.infinity | self.quiet

    @property
    def bias(self) -> int:
        """What is added to an exponent to encode it."""
        return (1 << (self.bits - self.precision - 1)) - 1

    @property
    def extension(self) -> str:
        """F or D."""
        return "f" if self.bits == 32 else "d"


SINGLE = Format("s", 32, "00", "010", 24)
DOUBLE = Format("d", 64, "01", "011", 53)


def fp_insn(
    fmt: Format, encoding: str, name: str, asm: str, writes: bool = True
) -> Callable[[Text], Text]:
    """`insn` behind the check of mstatus.FS; `writes`: an f register or fflags may change."""

    def define(text: Text) -> Text:
        @functools.wraps(text)
        def guarded(hart: Any, *args: Any, **operands: Any) -> None:
            if hart.mstatus & FS == 0:
                raise illegal()
            text(hart, *args, **operands)
            if writes:
                hart.mstatus = hart.mstatus | FS

        return insn(encoding, asm, name, extension=fmt.extension)(guarded)

    return define


def rounding_mode(hart: Any, rm: Any) -> Any:
    """The mode that the field `rm` chooses, 0..4; the reserved ones are illegal.

    (Unpriv. "F", Floating-Point Control and Status Register)
    """
    mode = select(rm == DYN, hart.frm, hart.word(0) + rm)
    if mode.geu(5):
        raise illegal()
    return mode


def unbox(hart: Any, value: Any, fmt: Format) -> Any:
    """A register's value as an operand of `fmt`. (Unpriv. "D", NaN Boxing of Narrower Values)"""
    if fmt.bits == 64:
        return value
    return select(value.geu(BOX), value.zext(32), hart.word(fmt.nan))


def box(value: Any, fmt: Format) -> Any:
    """A result of `fmt`, zero-extended, as a register holds it."""
    return value if fmt.bits == 64 else value | BOX


def accrue(hart: Any, flags: Any) -> None:
    """Set bits of fflags."""
    hart.fflags = hart.fflags | flags


def is_nan(value: Any, fmt: Format) -> Any:
    """Is it a NaN? A comparison."""
    return (value & (fmt.sign - 1)).geu(fmt.infinity + 1)


def is_signaling(value: Any, fmt: Format) -> Any:
    """Is it a signaling NaN? A comparison."""
    return is_nan(value, fmt) & (value & fmt.quiet == 0)


def is_less(a: Any, b: Any, fmt: Format) -> Any:
    """Is a below b, where -0 is below +0? Not for NaNs. A comparison."""
    a, b = a.sext(fmt.bits), b.sext(fmt.bits)
    # Negative numbers have falling bits: invert all but the sign, then they order as integers.
    return (a ^ (a.sra(63) >> 1)).lts(b ^ (b.sra(63) >> 1))


# Loads, stores and moves ------------------------------------------------------------------------


def _memory(fmt: Format, letter: str) -> None:
    def load(hart: Any, fd: Any, rs1: Any, imm: Any) -> None:
        hart.f[fd] = box(hart.load(hart.x[rs1] + imm, fmt.bits // 8), fmt)

    def store(hart: Any, rs1: Any, fs2: Any, imm: Any) -> None:
        hart.store(hart.x[rs1] + imm, hart.f[fs2], fmt.bits // 8)

    section = f'"{fmt.extension.upper()}", Load and Store Instructions'
    load.__doc__ = f"fd = {fmt.bits} bits at rs1 + imm. (Unpriv. {section})"
    store.__doc__ = f"Store the low {fmt.bits} bits of fs2 at rs1 + imm. (Unpriv. {section})"
    encoding = f"imm[11:0] rs1 {fmt.memory} fd 0000111"
    fp_insn(fmt, encoding, f"fl{letter}", "{fd}, {imm}({rs1})")(load)
    encoding = f"imm[11:5] fs2 rs1 {fmt.memory} imm[4:0] 0100111"
    fp_insn(fmt, encoding, f"fs{letter}", "{fs2}, {imm}({rs1})", writes=False)(store)


def _moves(fmt: Format, letter: str) -> None:
    def to_integer(hart: Any, rd: Any, fs1: Any) -> None:
        hart.x[rd] = hart.f[fs1].sext(fmt.bits)

    def from_integer(hart: Any, fd: Any, rs1: Any) -> None:
        hart.f[fd] = box(hart.x[rs1].zext(fmt.bits), fmt)

    section = f'"{fmt.extension.upper()}", Conversion and Move Instructions'
    to_integer.__doc__ = f"rd = the low {fmt.bits} bits of fs1, sign-extended. (Unpriv. {section})"
    from_integer.__doc__ = f"fd = the low {fmt.bits} bits of rs1. (Unpriv. {section})"
    encoding = f"11100{fmt.code} 00000 fs1 000 rd 1010011"
    fp_insn(fmt, encoding, f"fmv.x.{letter}", "{rd}, {fs1}", writes=False)(to_integer)
    encoding = f"11110{fmt.code} 00000 rs1 000 fd 1010011"
    fp_insn(fmt, encoding, f"fmv.{letter}.x", "{fd}, {rs1}")(from_integer)


# Arithmetic that rounds -------------------------------------------------------------------------


def _arithmetic(fmt: Format, funct5: str, operation: str) -> None:
    def binary(hart: Any, fd: Any, fs1: Any, fs2: Any, rm: Any) -> None:
        mode = rounding_mode(hart, rm)
        operands = unbox(hart, hart.f[fs1], fmt), unbox(hart, hart.f[fs2], fmt)
        hart.f[fd] = box(hart.float_operation(operation, fmt.bits, operands, mode), fmt)

    section = f'"{fmt.extension.upper()}", Computational Instructions'
    sign = {"add": "+", "sub": "-", "mul": "*", "div": "/"}[operation]
    binary.__doc__ = f"fd = fs1 {sign} fs2, rounded. (Unpriv. {section})"
    encoding = f"{funct5}{fmt.code} fs2 fs1 rm fd 1010011"
    fp_insn(fmt, encoding, f"f{operation}.{fmt.letter}", "{fd}, {fs1}, {fs2}, {rm}")(binary)


def _square_root(fmt: Format) -> None:
    def fsqrt(hart: Any, fd: Any, fs1: Any, rm: Any) -> None:
        mode = rounding_mode(hart, rm)
        operand = unbox(hart, hart.f[fs1], fmt)
        hart.f[fd] = box(hart.float_operation("sqrt", fmt.bits, (operand,), mode), fmt)

    section = f'"{fmt.extension.upper()}", Computational Instructions'
    fsqrt.__doc__ = f"fd = the square root of fs1, rounded. (Unpriv. {section})"
    encoding = f"01011{fmt.code} 00000 fs1 rm fd 1010011"
    fp_insn(fmt, encoding, f"fsqrt.{fmt.letter}", "{fd}, {fs1}, {rm}")(fsqrt)


def _fused(fmt: Format, opcode: str, name: str, negate1: bool, negate3: bool) -> None:
    flip1, flip3 = fmt.sign * negate1, fmt.sign * negate3

    def fused(hart: Any, fd: Any, fs1: Any, fs2: Any, fs3: Any, rm: Any) -> None:
        mode = rounding_mode(hart, rm)
        a, b, c = (unbox(hart, hart.f[n], fmt) for n in (fs1, fs2, fs3))
        operands = a ^ flip1, b, c ^ flip3
        hart.f[fd] = box(hart.float_operation("fma", fmt.bits, operands, mode), fmt)

    section = f'"{fmt.extension.upper()}", Computational Instructions'
    signs = "-" if negate1 else "", "-" if negate3 else "+"
    fused.__doc__ = f"fd = {signs[0]}fs1 * fs2 {signs[1]} fs3, rounded once. (Unpriv. {section})"
    encoding = f"fs3 {fmt.code} fs2 fs1 rm fd {opcode}"
    asm = "{fd}, {fs1}, {fs2}, {fs3}, {rm}"
    fp_insn(fmt, encoding, f"f{name}.{fmt.letter}", asm)(fused)


# Signs, order and classes -----------------------------------------------------------------------


def _sign_injection(fmt: Format, funct3: str, suffix: str, sign: Any, meaning: str) -> None:
    def fsgnj(hart: Any, fd: Any, fs1: Any, fs2: Any) -> None:
        a, b = unbox(hart, hart.f[fs1], fmt), unbox(hart, hart.f[fs2], fmt)
        hart.f[fd] = box((a & (fmt.sign - 1)) | (sign(a, b) & fmt.sign), fmt)

    section = f'"{fmt.extension.upper()}", Conversion and Move Instructions'
    fsgnj.__doc__ = f"fd = fs1 with {meaning}. (Unpriv. {section})"
    encoding = f"00100{fmt.code} fs2 fs1 {funct3} fd 1010011"
    fp_insn(fmt, encoding, f"fsgnj{suffix}.{fmt.letter}", "{fd}, {fs1}, {fs2}")(fsgnj)


def _extreme(fmt: Format, funct3: str, name: str, largest: bool) -> None:
    def extreme(hart: Any, fd: Any, fs1: Any, fs2: Any) -> None:
        a, b = unbox(hart, hart.f[fs1], fmt), unbox(hart, hart.f[fs2], fmt)
        first = is_less(b, a, fmt) if largest else is_less(a, b, fmt)
        numbers = select(is_nan(b, fmt) | first, a, b)
        result = select(is_nan(a, fmt), select(is_nan(b, fmt), hart.word(fmt.nan), b), numbers)
        accrue(hart, flag(is_signaling(a, fmt) | is_signaling(b, fmt)) * NV)
        hart.f[fd] = box(result, fmt)

    section = f'"{fmt.extension.upper()}", Computational Instructions'
    extreme.__doc__ = f"""fd = the {"greater" if largest else "lesser"} of fs1 and fs2, -0 below +0.

    A NaN loses against a number. (Unpriv. {section})"""
    encoding = f"00101{fmt.code} fs2 fs1 {funct3} fd 1010011"
    fp_insn(fmt, encoding, f"f{name}.{fmt.letter}", "{fd}, {fs1}, {fs2}")(extreme)


def _compare(fmt: Format, funct3: str, name: str, less: bool, equal: bool) -> None:
    quiet = not less

    def compare(hart: Any, rd: Any, fs1: Any, fs2: Any) -> None:
        a, b = unbox(hart, hart.f[fs1], fmt), unbox(hart, hart.f[fs2], fmt)
        unordered = is_nan(a, fmt) | is_nan(b, fmt)
        zeros = (a | b) & (fmt.sign - 1) == 0
        same = (a == b) | zeros
        below = is_less(a, b, fmt) & negate(zeros)
        holds = (below | same if equal else below) if less else same
        invalid = is_signaling(a, fmt) | is_signaling(b, fmt) if quiet else unordered
        accrue(hart, flag(invalid) * NV)
        hart.x[rd] = flag(holds & negate(unordered))

    meaning = {"eq": "equals", "lt": "is less than", "le": "is less than or equals"}[name]
    section = f'"{fmt.extension.upper()}", Compare Instructions'
    compare.__doc__ = f"rd = 1 if fs1 {meaning} fs2, else 0. (Unpriv. {section})"
    encoding = f"10100{fmt.code} fs2 fs1 {funct3} rd 1010011"
    fp_insn(fmt, encoding, f"f{name}.{fmt.letter}", "{rd}, {fs1}, {fs2}")(compare)


def _classify(fmt: Format) -> None:
    def fclass(hart: Any, rd: Any, fs1: Any) -> None:
        value = unbox(hart, hart.f[fs1], fmt)
        magnitude = value & (fmt.sign - 1)
        negative = value & fmt.sign != 0
        # From the middle outwards: -0 is 3 and +0 is 4, up to the infinities, 0 and 7.
        distance = (
            flag(magnitude != 0)
            + flag(magnitude.geu(1 << (fmt.precision - 1)))
            + flag(magnitude == fmt.infinity)
        )
        number = select(negative, 3 - distance, distance + 4)
        nan = select(is_signaling(value, fmt), hart.word(8), hart.word(9))
        hart.x[rd] = 1 << select(is_nan(value, fmt), nan, number)

    fclass.__doc__ = f"""rd = one bit that tells what fs1 is, from -infinity (0) to quiet NaN (9).

    (Unpriv. "{fmt.extension.upper()}", Classify Instruction)"""
    encoding = f"11100{fmt.code} 00000 fs1 001 rd 1010011"
    fp_insn(fmt, encoding, f"fclass.{fmt.letter}", "{rd}, {fs1}", writes=False)(fclass)


# Conversions ------------------------------------------------------------------------------------


def round_up(mode: Any, negative: Any, odd: Any, rest: Any, half: int) -> Any:
    """Does a magnitude with `rest` cut off round away from zero? A comparison.

    `half` is half a unit of the last place that is kept; `odd` says that this place is 1.
    """
    to_nearest = (mode == 0) & (rest.geu(half + 1) | ((rest == half) & odd))
    to_away = (mode == RMM) & rest.geu(half)
    directed = ((mode == RDN) & negative) | ((mode == RUP) & negate(negative))
    return to_nearest | to_away | (directed & (rest != 0))


def _float_to_integer(fmt: Format) -> Callable[..., Any]:
    @function(name=f"float{fmt.bits}_to_integer")
    def float_to_integer(hart: Any, value: Any, mode: Any, greatest: Any, least: Any) -> Any:
        """A datum of `fmt` rounded to an integer within -least .. greatest; accrues flags.

        Out of range, and infinite, it is the nearest bound; a NaN is `greatest`.
        (Unpriv. "F", Table 'Domains of float-to-integer conversions')
        """
        fraction_bits = fmt.precision - 1
        magnitude = value & (fmt.sign - 1)
        nan = magnitude.geu(fmt.infinity + 1)
        negative = (value & fmt.sign != 0) & negate(nan)
        exponent = magnitude >> fraction_bits
        subnormal = flag(exponent == 0)
        hidden = (1 - subnormal) << fraction_bits
        significand = (magnitude & ((1 << fraction_bits) - 1)) | hidden
        # value = significand * 2**shift; a right shift by 63 or more leaves nothing but inexactness
        shift = exponent + subnormal - (fmt.bias + fraction_bits)
        right = 0 - shift
        right = select(right.ltu(63), right, hart.word(63))
        whole, rest = significand >> right, significand << ((64 - right) & 63)
        fractional = shift.lts(0)
        whole = select(fractional, whole, significand << (shift & 63))
        rest = select(fractional, rest, hart.word(0))
        rounded = whole + flag(round_up(mode, negative, whole & 1 != 0, rest, 1 << 63))
        limit = select(negative, least, greatest)
        huge = exponent.geu(fmt.bias + 64)  # infinities and NaNs too
        invalid = huge | limit.ltu(rounded)
        accrue(hart, select(invalid, hart.word(NV), flag(rest != 0) * NX))
        result = select(invalid, limit, rounded)
        return select(negative, 0 - result, result)

    return float_to_integer


def _integer_to_float(fmt: Format) -> Callable[..., Any]:
    @function(name=f"integer_to_float{fmt.bits}")
    def integer_to_float(hart: Any, value: Any, signed: Any, mode: Any) -> Any:
        """An integer, signed if `signed` is 1, as a datum of `fmt`; accrues NX."""
        negative = (value & (signed << 63)) != 0
        magnitude = select(negative, 0 - value, value)
        zeros = magnitude.clz()
        normal = magnitude << (zeros & 63)
        dropped = 64 - fmt.precision
        rest = normal & ((1 << dropped) - 1)
        kept = normal >> dropped
        up = flag(round_up(mode, negative, kept & 1 != 0, rest, 1 << (dropped - 1)))
        # The hidden bit of `kept` adds 1 to the exponent; so does a carry out of the fraction.
        biased = (fmt.bias + 62 - zeros) << (fmt.precision - 1)
        datum = select(magnitude == 0, magnitude, biased + kept + up)
        accrue(hart, flag(rest != 0) * NX)
        return datum | (flag(negative) << (fmt.bits - 1))

    return integer_to_float


def _integer_conversions(fmt: Format) -> None:
    convert_to, convert_from = _float_to_integer(fmt), _integer_to_float(fmt)
    for number, letters in enumerate(("w", "wu", "l", "lu")):
        width, signed = (64 if letters[0] == "l" else 32), not letters.endswith("u")
        _to_integer(fmt, f"{number:05b}", letters, width, signed, convert_to)
        _from_integer(fmt, f"{number:05b}", letters, width, signed, convert_from)


def _to_integer(
    fmt: Format, code: str, letters: str, width: int, signed: bool, convert: Callable[..., Any]
) -> None:
    greatest = (1 << (width - signed)) - 1
    least = 1 << (width - 1) if signed else 0

    def fcvt(hart: Any, rd: Any, fs1: Any, rm: Any) -> None:
        mode = rounding_mode(hart, rm)
        value = unbox(hart, hart.f[fs1], fmt)
        result = convert(hart, value, mode, hart.word(greatest), hart.word(least))
        hart.x[rd] = result.sext(width)

    kind = "signed" if signed else "unsigned"
    section = f'"{fmt.extension.upper()}", Conversion and Move Instructions'
    fcvt.__doc__ = f"rd = fs1 as a {width}-bit {kind} integer, saturating. (Unpriv. {section})"
    encoding = f"11000{fmt.code} {code} fs1 rm rd 1010011"
    fp_insn(fmt, encoding, f"fcvt.{letters}.{fmt.letter}", "{rd}, {fs1}, {rm}")(fcvt)


def _from_integer(
    fmt: Format, code: str, letters: str, width: int, signed: bool, convert: Callable[..., Any]
) -> None:
    exact = width < fmt.precision  # then assemblers leave rm 0

    def fcvt(hart: Any, fd: Any, rs1: Any, rm: Any) -> None:
        mode = rounding_mode(hart, rm)
        value = hart.x[rs1]
        value = value.sext(width) if signed else value.zext(width)
        hart.f[fd] = box(convert(hart, value, hart.word(int(signed)), mode), fmt)

    kind = "signed" if signed else "unsigned"
    section = f'"{fmt.extension.upper()}", Conversion and Move Instructions'
    fcvt.__doc__ = f"fd = the {width}-bit {kind} integer in rs1, rounded. (Unpriv. {section})"
    encoding = f"11010{fmt.code} {code} rs1 rm fd 1010011"
    asm = "{fd}, {rs1}" if exact else "{fd}, {rs1}, {rm}"
    fp_insn(fmt, encoding, f"fcvt.{fmt.letter}.{letters}", asm)(fcvt)


def _between_formats(target: Format, origin: Format) -> None:
    def fcvt(hart: Any, fd: Any, fs1: Any, rm: Any) -> None:
        mode = rounding_mode(hart, rm)
        value = unbox(hart, hart.f[fs1], origin)
        hart.f[fd] = box(hart.float_convert(origin.bits, target.bits, value, mode), target)

    fcvt.__doc__ = f"""fd = fs1, {origin.bits} bits, as {target.bits} bits, rounded.

    (Unpriv. "D", Conversion and Move Instructions)"""
    encoding = f"01000{target.code} 000{origin.code} fs1 rm fd 1010011"
    asm = "{fd}, {fs1}, {rm}" if target.bits < origin.bits else "{fd}, {fs1}"
    fp_insn(DOUBLE, encoding, f"fcvt.{target.letter}.{origin.letter}", asm)(fcvt)


# fmt: off
for _fmt, _width in ((SINGLE, "w"), (DOUBLE, "d")):
    _memory(_fmt, _width)
    _fused(_fmt, "1000011", "madd",  negate1=False, negate3=False)
    _fused(_fmt, "1000111", "msub",  negate1=False, negate3=True)
    _fused(_fmt, "1001011", "nmsub", negate1=True,  negate3=False)
    _fused(_fmt, "1001111", "nmadd", negate1=True,  negate3=True)
    _arithmetic(_fmt, "00000", "add")
    _arithmetic(_fmt, "00001", "sub")
    _arithmetic(_fmt, "00010", "mul")
    _arithmetic(_fmt, "00011", "div")
    _square_root(_fmt)
    _sign_injection(_fmt, "000", "",  lambda a, b: b,     "the sign of fs2")
    _sign_injection(_fmt, "001", "n", lambda a, b: ~b,    "the opposite of the sign of fs2")
    _sign_injection(_fmt, "010", "x", lambda a, b: a ^ b, "its sign flipped if fs2 is negative")
    _extreme(_fmt, "000", "min", largest=False)
    _extreme(_fmt, "001", "max", largest=True)
    _compare(_fmt, "010", "eq", less=False, equal=True)
    _compare(_fmt, "001", "lt", less=True,  equal=False)
    _compare(_fmt, "000", "le", less=True,  equal=True)
    _classify(_fmt)
    _moves(_fmt, _width)
    _integer_conversions(_fmt)
_between_formats(SINGLE, DOUBLE)
_between_formats(DOUBLE, SINGLE)
# fmt: on
