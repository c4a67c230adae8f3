"""Softfloat against QEMU's user-mode emulation of F and D: every operation and conversion, every
static rounding mode, corner and random operands, results and flags.

One C program is generated: a function for each (instruction, mode), which clears fflags, executes
the one instruction and reads fflags back. It reads records of four doublewords from stdin (which
function, three operands) and writes two for each (result, flags), so QEMU runs once.
"""

import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from kasou.isa.softfloat import (
    BINARY32,
    BINARY64,
    Format,
    RoundingMode,
    convert,
    from_int,
    operate,
    to_int,
)

COMPILER, EMULATOR = "riscv64-linux-gnu-gcc", "qemu-riscv64"
MODES = tuple(RoundingMode)
SUFFIX = {BINARY32: "s", BINARY64: "d"}
ARITY = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}
INTEGERS = {"w": (True, 32), "wu": (False, 32), "l": (True, 64), "lu": (False, 64)}
BOXED = 0xFFFFFFFF_00000000
RANDOM_OPERANDS = 150

Operands = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One instruction with one mode: how to run it, what softfloat says, what to feed it."""

    assembly: str  # operands in ft0..ft2 and a0, result in ft3 or a0
    result: str  # the instruction that brings the result to a0
    width: int
    judge: Callable[[Operands], tuple[int, int]]
    operands: list[Operands]
    box: int = 0  # what the FP registers hold above an operand


# ------------------------------------------------------------------ operands


def corners(fmt: Format) -> list[int]:
    one = fmt.bias << fmt.fraction_bits
    smallest_normal = 1 << fmt.fraction_bits
    half_ulp = (fmt.bias - fmt.precision) << fmt.fraction_bits
    positive = [
        *(0, 1, 2, 3, smallest_normal // 2, smallest_normal - 1),
        *(smallest_normal, smallest_normal + 1),
        *(half_ulp, half_ulp + 1, one - smallest_normal, one - 1, one, one + 1),
        *(one + smallest_normal // 2, one + smallest_normal, fmt.largest - 1, fmt.largest),
        *(fmt.infinity, fmt.infinity + 1, fmt.canonical_nan, fmt.canonical_nan + 5),
    ]
    return positive + [bits | fmt.sign_bit for bits in positive]


def random_datum(fmt: Format, rng: random.Random) -> int:
    """Any exponent, or one near 1; a fraction of random bits, or of long runs of ones and zeros."""
    near = fmt.bias + rng.randint(-3, 3)
    biased = rng.choice([near, near, rng.getrandbits(fmt.exponent_bits), rng.randint(0, 2)])
    fraction = rng.getrandbits(fmt.fraction_bits)
    if rng.random() < 0.5:
        cut = rng.randint(0, fmt.fraction_bits)
        fraction = (1 << fmt.fraction_bits) - (1 << cut) if rng.random() < 0.5 else 1 << cut
        fraction = (fraction + rng.randint(-1, 1)) & ((1 << fmt.fraction_bits) - 1)
    return rng.getrandbits(1) << (fmt.width - 1) | biased << fmt.fraction_bits | fraction


def tuples(fmt: Format, arity: int, rng: random.Random) -> list[Operands]:
    edge = corners(fmt)
    if arity == 3:
        edge = edge[:: len(edge) // 11]
    chosen: list[Operands] = list(product(edge, repeat=arity))
    for _ in range(RANDOM_OPERANDS * arity):
        operands = [random_datum(fmt, rng) for _ in range(arity)]
        chosen.append(tuple(operands))
        if arity == 3:  # cancellation: c is about -(a * b), so the product's low half shows
            about, _ = operate("mul", fmt, (operands[0], operands[1]), rng.choice(MODES))
            chosen.append((operands[0], operands[1], about ^ fmt.sign_bit))
        elif arity == 2:  # tiny quotients and products, near the smallest normal
            scale = rng.randint(1, fmt.precision + 2) << fmt.fraction_bits
            chosen.append((scale | operands[0] & (1 << fmt.fraction_bits) - 1, operands[1]))
        else:  # squares, exact ones of half the bits among them, and their neighbours
            root = operands[0] & ~rng.choice([0, (1 << fmt.precision // 2) - 1])
            square, _ = operate("mul", fmt, (root, root), RoundingMode.RTZ)
            chosen.extend((bits,) for bits in (square, square + 1, square ^ 1))
    return chosen


def near_integers(fmt: Format, rng: random.Random) -> list[Operands]:
    """Halves and quarters, and what lies around the limits of the integer types."""
    data = corners(fmt)
    for value in (1, 2, 3, 5, 2**31, 2**32, 2**63, 2**64):
        for quarters in range(-6, 7):
            if 4 * value + quarters != 0:
                bits, _ = from_int(fmt, 4 * value + quarters, RoundingMode.RNE)
                data.append(bits - (2 << fmt.fraction_bits))
    for power in (0, 31, 32, 63, 64):
        limit = (fmt.bias + power) << fmt.fraction_bits
        data.extend(limit + step for step in range(-3, 4))
    data.extend(random_datum(fmt, rng) for _ in range(RANDOM_OPERANDS))
    for _ in range(RANDOM_OPERANDS):
        biased = fmt.bias + rng.randint(-2, 65)
        data.append(biased << fmt.fraction_bits | rng.getrandbits(fmt.fraction_bits))
    return [(bits ^ sign,) for bits in data for sign in (0, fmt.sign_bit)]


def integers(rng: random.Random) -> list[Operands]:
    values = [sign * 2**power + step for power in range(65) for step in range(-2, 3)
              for sign in (1, -1)]  # fmt: skip
    values += [rng.getrandbits(64) >> rng.randint(0, 63) for _ in range(RANDOM_OPERANDS)]
    values += [  # ties of either format, and their neighbours
        ((rng.getrandbits(p) | 1 << (p - 1)) * 2 + 1 << shift) + step
        for p in (24, 53) for shift in range(64 - p) for step in (-1, 0, 1)
    ]  # fmt: skip
    return [(value % 2**64,) for value in values]


# ------------------------------------------------------------------ the cases


def arithmetic(fmt: Format, rng: random.Random) -> Iterator[Case]:
    suffix = SUFFIX[fmt]
    bring = "fmv.x.w a0, ft3" if fmt is BINARY32 else "fmv.x.d a0, ft3"
    box = BOXED if fmt is BINARY32 else 0
    for name, arity in ARITY.items():
        operands = tuples(fmt, arity, rng)
        registers = ", ".join(f"ft{i}" for i in range(arity))
        for rm in MODES:

            def judge(operands: Operands, name: str = name, rm: int = rm) -> tuple[int, int]:
                return operate(name, fmt, operands, rm)

            mnemonic = "fmadd" if name == "fma" else f"f{name}"
            text = f"{mnemonic}.{suffix} ft3, {registers}, {rm.name.lower()}"
            yield Case(text, bring, fmt.width, judge, operands, box)


def integer_conversions(fmt: Format, rng: random.Random) -> Iterator[Case]:
    suffix = SUFFIX[fmt]
    bring = "fmv.x.w a0, ft3" if fmt is BINARY32 else "fmv.x.d a0, ft3"
    box = BOXED if fmt is BINARY32 else 0
    floats, ints = near_integers(fmt, rng), integers(rng)
    for (name, (signed, width)), rm in product(INTEGERS.items(), MODES):

        def judge_to(
            operands: Operands, rm: int = rm, signed: bool = signed, width: int = width
        ) -> tuple[int, int]:
            return to_int(fmt, operands[0], rm, signed, width)

        def judge_from(
            operands: Operands, rm: int = rm, signed: bool = signed, width: int = width
        ) -> tuple[int, int]:
            value = operands[0] % 2**width
            if signed and value >> (width - 1):
                value -= 2**width
            return from_int(fmt, value, rm)

        mode = f", {rm.name.lower()}"
        yield Case(f"fcvt.{name}.{suffix} a0, ft0{mode}", "nop", width, judge_to, floats, box)
        if fmt is BINARY64 and width == 32:
            mode = ""  # always exact, and the assembler takes no mode
        yield Case(f"fcvt.{suffix}.{name} ft3, a0{mode}", bring, fmt.width, judge_from, ints)


def format_conversions(rng: random.Random) -> Iterator[Case]:
    singles: list[Operands] = [(bits,) for bits in corners(BINARY32)]
    singles += [(random_datum(BINARY32, rng),) for _ in range(RANDOM_OPERANDS)]

    def judge_widening(operands: Operands) -> tuple[int, int]:
        return convert(BINARY32, BINARY64, operands[0], RoundingMode.RNE)

    yield Case("fcvt.d.s ft3, ft0", "fmv.x.d a0, ft3", 64, judge_widening, singles, BOXED)
    doubles = list(corners(BINARY64))
    doubles += [random_datum(BINARY64, rng) for _ in range(RANDOM_OPERANDS)]
    for (single,) in singles:  # singles, the ties between them, and what lies around
        wide, _ = convert(BINARY32, BINARY64, single, RoundingMode.RNE)
        for step in (0, 1, 1 << 28, (1 << 28) - 1, (1 << 28) + 1, 1 << 29):
            doubles.append((wide + step) % 2**64)
    for _ in range(RANDOM_OPERANDS):  # around the smallest and the largest single
        biased = 1023 + rng.choice([rng.randint(-152, -124), rng.randint(125, 129)])
        doubles.append(biased << 52 | rng.choice([rng.getrandbits(52), 2**52 - 1, 0]))
    for rm in MODES:

        def judge_narrowing(operands: Operands, rm: int = rm) -> tuple[int, int]:
            return convert(BINARY64, BINARY32, operands[0], rm)

        text = f"fcvt.s.d ft3, ft0, {rm.name.lower()}"
        yield Case(text, "fmv.x.w a0, ft3", 32, judge_narrowing, [(bits,) for bits in doubles])


def cases() -> list[Case]:
    rng = random.Random(754)
    return [
        *arithmetic(BINARY32, rng),
        *arithmetic(BINARY64, rng),
        *integer_conversions(BINARY32, rng),
        *integer_conversions(BINARY64, rng),
        *format_conversions(rng),
    ]


# ------------------------------------------------------------------ the oracle

FUNCTION = """
static void case_{number}(const uint64_t *in, uint64_t *out) {{
    register uint64_t a0 asm("a0") = in[1];
    uint64_t flags;
    asm volatile("fmv.d.x ft0, a0; fmv.d.x ft1, %2; fmv.d.x ft2, %3; fsflags zero;"
                 "{assembly}; frflags %1; {result}"
                 : "+r"(a0), "=&r"(flags) : "r"(in[2]), "r"(in[3]) : "ft0", "ft1", "ft2", "ft3");
    out[0] = a0, out[1] = flags;
}}"""
MAIN = """
static void (*const table[])(const uint64_t *, uint64_t *) = {{ {table} }};
int main(void) {{
    uint64_t in[4], out[2];
    while (fread(in, sizeof in, 1, stdin) == 1) {{
        table[in[0]](in, out);
        fwrite(out, sizeof out, 1, stdout);
    }}
    return 0;
}}
"""


def program(chosen: list[Case]) -> str:
    functions = [
        FUNCTION.format(number=number, assembly=case.assembly, result=case.result)
        for number, case in enumerate(chosen)
    ]
    table = ", ".join(f"case_{number}" for number in range(len(chosen)))
    head = "#include <stdint.h>\n#include <stdio.h>\n"
    return head + "\n".join(functions) + MAIN.format(table=table)


def answers(chosen: list[Case], directory: Path) -> Iterator[tuple[int, int]]:
    """What QEMU makes of every operand tuple of every case, in order: (a0, fflags)."""
    source, binary = directory / "oracle.c", directory / "oracle"
    source.write_text(program(chosen))
    subprocess.run([COMPILER, "-O1", "-static", "-o", binary, source], check=True)
    records = bytearray()
    for number, case in enumerate(chosen):
        for operands in case.operands:
            registers = [case.box | operand for operand in operands] + [0] * (3 - len(operands))
            records += struct.pack("<4Q", number, *registers)
    run = subprocess.run([EMULATOR, binary], input=records, stdout=subprocess.PIPE, check=True)
    assert len(run.stdout) == len(records) // 2, "the oracle stopped early"
    return struct.iter_unpack("<2Q", run.stdout)


def test_softfloat_agrees_with_qemu(tmp_path: Path) -> None:
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"not compared: {tool} is not installed")
    chosen = cases()
    oracle = answers(chosen, tmp_path)
    compared, differences = 0, []
    for case in chosen:
        for operands in case.operands:
            register, flags = next(oracle)
            bits = register % 2**case.width
            if case.judge(operands) != (bits, flags):
                shown = " ".join(f"{operand:#x}" for operand in operands)
                mine, my_flags = case.judge(operands)
                differences.append(
                    f"{case.assembly}: {shown}: softfloat {mine:#x} flags {my_flags:#x},"
                    f" qemu {bits:#x} flags {flags:#x}"
                )
            compared += 1
    assert not differences, f"{len(differences)} of {compared}:\n" + "\n".join(differences[:20])
