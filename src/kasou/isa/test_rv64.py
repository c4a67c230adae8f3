"""The texts of rv64, on ints: every instruction that stays within registers and a few bytes of
memory against QEMU's user mode, and by hand what QEMU 7.2 or user mode cannot show.

One assembly program is generated, with a routine for each encoding tried. It reads records from
stdin (`RECORD`: which routine, the registers before), runs each record's routine on it and writes
all records back with the registers after, so QEMU runs once.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.isa import rv64  # noqa: F401
from kasou.isa.encoding import INSTRUCTIONS, Decoded, Instruction, decode, encode
from kasou.isa.rv64.zicbo import CBCFE, CBIE, CBZE
from kasou.isa.softfloat import BINARY32, BINARY64, Format, convert, operate
from kasou.isa.trap import Cause, Trap
from kasou.isa.word import Word

AS, LD, QEMU = "riscv64-linux-gnu-as", "riscv64-linux-gnu-ld", "qemu-riscv64"
FORMATS = {32: BINARY32, 64: BINARY64}
FS = 3 << 13


class Registers:
    """32 registers; with `zero`, the first reads 0 and ignores writes."""

    def __init__(self, zero: bool) -> None:
        self.values, self.zero = [0] * 32, zero

    def __getitem__(self, n: int) -> Word:
        return Word(self.values[n])

    def __setitem__(self, n: int, value: Any) -> None:
        if n or not self.zero:
            self.values[n] = Word(int(value)).value


class TextHart:
    """As much of a hart as these texts need, with a few bytes of memory at `BASE`."""

    staged = False
    BASE = 0x1000

    def __init__(self) -> None:
        self.x, self.f = Registers(zero=True), Registers(zero=False)
        self.memory = bytearray(16)
        self.pc, self.next_pc = Word(0x80000000), Word(0x80000004)
        self.mstatus, self.fflags, self.frm = Word(FS), Word(0), Word(0)
        self.priv, self.menvcfg, self.senvcfg = Word(3), Word(0), Word(0)
        self.taken: Word | None = None
        self.calls: list[tuple[str, int]] = []

    def run(self, decoded: Decoded) -> None:
        decoded.base.text(self, **decoded.operands)

    def word(self, value: int) -> Word:
        return Word(value)

    def branch(self, imm: Any) -> None:
        self.taken = self.pc + imm

    def fence(self) -> None:
        pass

    def fence_i(self) -> None:
        pass

    def wait_reserved(self) -> None:
        self.calls.append(("wait", 0))

    def cache_block_zero(self, va: Any) -> None:
        self.calls.append(("zero", int(va)))

    def cache_block_check(self, va: Any) -> None:
        self.calls.append(("check", int(va)))

    def load(self, va: Any, size: int) -> Word:
        at = int(va) - self.BASE
        return Word(int.from_bytes(self.memory[at : at + size], "little"))

    def store(self, va: Any, value: Any, size: int) -> None:
        at = int(va) - self.BASE
        self.memory[at : at + size] = int(Word(int(value)).zext(8 * size)).to_bytes(size, "little")

    def load_reserved(self, va: Any, size: int) -> Word:
        return self.load(va, size)

    def store_conditional(self, va: Any, value: Any, size: int) -> Word:
        return Word(1)  # nothing is reserved

    def atomic(self, op: str, va: Any, value: Any, size: int) -> Word:
        old, bits = self.load(va, size), 8 * size
        a, b = old.sext(bits), value.sext(bits)
        ua, ub = old, value.zext(bits)
        results = {
            "swap": b, "add": a + b, "and": a & b, "or": a | b, "xor": a ^ b,
            "min": a if a.lts(b) else b, "max": b if a.lts(b) else a,
            "minu": ua if ua.ltu(ub) else ub, "maxu": ub if ua.ltu(ub) else ua,
        }  # fmt: skip
        self.store(va, results[op], size)
        return old

    def float_operation(self, name: str, bits: int, operands: tuple[Any, ...], mode: Any) -> Word:
        result, flags = operate(name, FORMATS[bits], tuple(map(int, operands)), int(mode))
        self.fflags = self.fflags | flags
        return Word(result)

    def float_convert(self, origin: int, target: int, value: Any, mode: Any) -> Word:
        result, flags = convert(FORMATS[origin], FORMATS[target], int(value), int(mode))
        self.fflags = self.fflags | flags
        return Word(result)


# Against QEMU -----------------------------------------------------------------------------------

RECORD = struct.Struct("<10Q16s")
"""Routine, fcsr, a1, a2, a4, fa0, fa1, fa2, fa3, unused, and 16 bytes that a3 points to.

Operands come from a1, a2 (or a3), a4, fa0..fa2; results go to a4, fa3 and memory.
"""
A1, A2, A3, A4, FA0, FA1, FA2, FA3 = 11, 12, 13, 14, 10, 11, 12, 13
ELSEWHERE = {"jal", "jalr", "auipc", "ecall", "ebreak", "fence.i"}
"""They end the routine or depend on its address."""
NOT_IN_QEMU = {"zicond", "zicbom", "zicboz", "zawrs", "privileged", "zicsr"}
MEMORY = {"lr", "sc"} | {name.split(".")[0] for name in INSTRUCTIONS if name.startswith("amo")}


def uses_memory(one: Instruction) -> bool:
    base = INSTRUCTIONS[one.expands[0]] if one.expands else one
    return base.name.split(".")[0] in MEMORY or base.encoding.endswith(
        ("0000011", "0100011", "0000111", "0100111")
    )


def encodings(rng: random.Random) -> list[int]:
    """A few encodings of each instruction that is compared."""
    found = []
    for one in INSTRUCTIONS.values():
        base = one.expands[0] if one.expands else one.name
        if base in ELSEWHERE or one.extension in NOT_IN_QEMU or "sp" in one.name:
            continue
        for _ in range(10):
            fields = {"rd": A4, "rs1": A1, "rs2": A2, "fd": FA3, "fs1": FA0, "fs2": FA1, "fs3": FA2}
            if "rm" in one.fields:
                fields["rm"] = rng.choice((0, 1, 2, 3, 4, 7))
            if uses_memory(one):
                fields["rs1"] = A3
            for name in ("imm", "uimm", "shamt"):
                if (f := one.fields.get(name)) is None:
                    continue
                value = rng.choice((rng.getrandbits(f.bits), rng.getrandbits(4)))
                value = value >> f.scale << f.scale
                value -= (value >> (f.bits - 1)) << f.bits if f.signed else 0
                if uses_memory(one):
                    value = rng.choice([n for n in range(9) if n % (1 << f.scale) == 0])
                if one.flow == "branch":
                    value = one.length + 4
                fields[name] = value or (1 << f.scale)
            found.append(encode(one.name, **{n: v for n, v in fields.items() if n in one.fields}))
    return sorted(set(found))


def routine(number: int, bits: int) -> str:
    decoded = decode(bits)
    assert decoded is not None
    datum = ".word" if decoded.insn.length == 4 else ".half"
    skipped = "li a4, 99" if decoded.insn.flow == "branch" else ""
    return f"""
        .balign 4
routine{number}:
        {datum} {bits:#x}
        {skipped}
        .option rvc
        .balign 4
        .option norvc
        ret
"""


PROGRAM = """
        .option norvc
        .option norelax
        .globl _start
_start: la      s0, records
        la      s1, end
        mv      s2, s0
1:      li      a7, 63              # read(0, ...)
        li      a0, 0
        mv      a1, s2
        sub     a2, s1, s2
        ecall
        add     s2, s2, a0
        bgtz    a0, 1b
2:      ld      t0, 0(s0)
        la      t1, table
        slli    t0, t0, 3
        add     t0, t0, t1
        ld      t0, 0(t0)
        ld      t1, 8(s0)
        fscsr   t1
        ld      a1, 16(s0)
        ld      a2, 24(s0)
        ld      a4, 32(s0)
        fld     fa0, 40(s0)
        fld     fa1, 48(s0)
        fld     fa2, 56(s0)
        fld     fa3, 64(s0)
        addi    a3, s0, 80
        jalr    t0
        frcsr   t1
        sd      t1, 8(s0)
        sd      a4, 32(s0)
        fsd     fa3, 64(s0)
        addi    s0, s0, 96
        blt     s0, s1, 2b
        la      s0, records
3:      li      a7, 64              # write(1, ...)
        li      a0, 1
        mv      a1, s0
        sub     a2, s1, s0
        ecall
        add     s0, s0, a0
        blt     s0, s1, 3b
        li      a7, 93
        li      a0, 0
        ecall
"""

INTEGERS = [0, 1, 2, 31, 32, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000,
            0xFFFFFFFF, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip


def integer(rng: random.Random) -> int:
    value = rng.choice(INTEGERS) if rng.random() < 0.5 else rng.getrandbits(rng.randint(1, 64))
    return value ^ rng.choice((0, 0, (1 << 64) - 1))


def datum(fmt: Format, rng: random.Random) -> int:
    """A floating-point number of any kind, integers near the bounds of conversions among them."""
    bias = fmt.bias
    exponent = rng.choice(
        (
            *(0, 0, 1, 2 * bias + 1, 2 * bias + 1, 2 * bias, bias - 1, bias, bias + 1),
            *(bias + rng.randint(-3, 70), bias + 31, bias + 32, bias + 62, bias + 63),
            rng.getrandbits(fmt.exponent_bits),
        )
    )
    fraction = rng.getrandbits(fmt.fraction_bits)
    cut = rng.randint(0, fmt.fraction_bits)
    mask = (1 << fmt.fraction_bits) - 1
    fraction = rng.choice((0, 0, 1, 1 << cut & mask, mask, mask >> cut << cut, fraction))
    return rng.getrandbits(1) << (fmt.width - 1) | exponent << fmt.fraction_bits | fraction


def float_register(name: str, rng: random.Random) -> int:
    """A register for an instruction called so: its last format letter, or any."""
    single = ".s" in name or ".w" in name if ".d" not in name or ".s" in name else False
    if name == "fcvt.s.d":
        single = False
    if single:
        return datum(BINARY32, rng) | (0xFFFFFFFF << 32 if rng.random() < 0.95 else integer(rng))
    return datum(BINARY64, rng)


@pytest.mark.skipif(not all(map(shutil.which, (AS, LD, QEMU))), reason="no QEMU or no binutils")
def test_texts_against_qemu(tmp_path: Path) -> None:
    rng = random.Random(7)
    codes = encodings(rng)
    lines = [PROGRAM, *(routine(i, code) for i, code in enumerate(codes)), ".balign 8\ntable:"]
    lines += [f".dword routine{i}" for i in range(len(codes))]
    records = []
    for i, code in enumerate(codes):
        decoded = decode(code)
        assert decoded is not None
        name = decoded.insn.name
        for _ in range(200 if decoded.insn.extension in "fd" else 40):
            a1 = integer(rng)
            a2 = rng.choice((a1, integer(rng), integer(rng)))
            floats = [float_register(name, rng) for _ in range(3)]
            floats[1] = rng.choice(
                (*floats[:2], floats[0] ^ (1 << 63 if ".d" in name else 1 << 31))
            )
            fcsr = rng.choice(range(5)) << 5 | rng.getrandbits(5)
            memory = integer(rng).to_bytes(8, "little") + integer(rng).to_bytes(8, "little")
            state = (fcsr, a1, a2, integer(rng), *floats, integer(rng))
            records.append(RECORD.pack(i, *state, 0, memory))
    source = "\n".join(lines) + f"\n.bss\n.balign 8\nrecords: .space {len(records) * 96}\nend:\n"
    (tmp_path / "p.s").write_text(source)
    build = ([AS, "-march=rv64gc", "p.s", "-o", "p.o"], [LD, "--no-relax", "p.o", "-o", "p"])
    for command in build:
        subprocess.run(command, cwd=tmp_path, check=True)
    run = subprocess.run(
        [QEMU, str(tmp_path / "p")], input=b"".join(records), capture_output=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout) == len(records) * 96
    for at, record in enumerate(records):
        before = RECORD.unpack(record)
        after = RECORD.unpack(run.stdout[96 * at : 96 * at + 96])
        decoded = decode(codes[before[0]])
        assert decoded is not None
        if decoded.insn.name == "ctzw" and before[2] & 0xFFFFFFFF == 0:
            continue  # QEMU before 8.0 counts on into the upper half
        got = result_of_text(decoded, before)
        expected = (after[1], after[4], after[8], after[10])
        assert got == expected, f"{decoded.insn.name} {decoded.fields} on {before}"


def result_of_text(decoded: Decoded, before: tuple[Any, ...]) -> tuple[int, int, int, bytes]:
    """Fcsr, a4, fa3 and memory after the instruction."""
    hart = TextHart()
    _, fcsr, a1, a2, a4, *floats, _, memory = before
    hart.frm, hart.fflags = Word(fcsr >> 5), Word(fcsr & 31)
    hart.x[A1], hart.x[A2], hart.x[A3], hart.x[A4] = a1, a2, TextHart.BASE, a4
    hart.f[FA0], hart.f[FA1], hart.f[FA2], hart.f[FA3] = floats
    hart.memory[:] = memory
    hart.run(decoded)
    if decoded.insn.flow == "branch" and hart.taken is None:
        hart.x[A4] = 99
    fcsr = int(hart.frm) << 5 | int(hart.fflags)
    return fcsr, int(hart.x[A4]), int(hart.f[FA3]), bytes(hart.memory)


# By hand ----------------------------------------------------------------------------------------


def execute(hart: TextHart, name: str, **fields: int) -> None:
    decoded = decode(encode(name, **fields))
    assert decoded is not None
    hart.run(decoded)


@given(st.integers(0, (1 << 64) - 1), st.sampled_from((0, 1, 1 << 63)))
def test_zicond(a: int, b: int) -> None:
    hart = TextHart()
    hart.x[1], hart.x[2] = a, b
    execute(hart, "czero.eqz", rd=3, rs1=1, rs2=2)
    execute(hart, "czero.nez", rd=4, rs1=1, rs2=2)
    assert (int(hart.x[3]), int(hart.x[4])) == ((a, 0) if b else (0, a))


@pytest.mark.parametrize(("name", "bit"), [("zero", CBZE), ("clean", CBCFE), ("flush", CBCFE)])
@pytest.mark.parametrize("priv", [0, 1, 3])
@pytest.mark.parametrize("menvcfg", [0, 1])
@pytest.mark.parametrize("senvcfg", [0, 1])
def test_cache_blocks(name: str, bit: int, priv: int, menvcfg: int, senvcfg: int) -> None:
    hart = TextHart()
    hart.priv, hart.menvcfg, hart.senvcfg = Word(priv), Word(bit * menvcfg), Word(bit * senvcfg)
    hart.x[5] = 0x12345
    allowed = priv == 3 or (menvcfg and (priv == 1 or senvcfg))
    if allowed:
        execute(hart, f"cbo.{name}", rs1=5)
        assert hart.calls == [("zero" if name == "zero" else "check", 0x12345)]
    else:
        with pytest.raises(Trap) as trap:
            execute(hart, f"cbo.{name}", rs1=5)
        assert (trap.value.cause, trap.value.tval) == (Cause.ILLEGAL_INSTRUCTION, None)
        assert hart.calls == []


@pytest.mark.parametrize("field", [0, 1 << 4, 3 << 4])
def test_invalidation_as_flush_is_allowed_too(field: int) -> None:
    hart = TextHart()
    hart.priv, hart.menvcfg = Word(1), Word(field)
    if field & CBIE:
        execute(hart, "cbo.inval", rs1=5)
    else:
        with pytest.raises(Trap):
            execute(hart, "cbo.inval", rs1=5)


FLOATING = [one for one in INSTRUCTIONS.values() if one.extension in "fd"]


def operands_of(one: Instruction) -> dict[str, int]:
    """Registers that are not 0, whose address is that of the memory."""
    return {n: 7 if n == "rm" else 0 if n == "imm" else 5 for n in one.fields}


@pytest.mark.parametrize("one", FLOATING, ids=lambda one: one.name)
def test_floating_point_needs_mstatus_fs(one: Instruction) -> None:
    hart = TextHart()
    hart.mstatus = Word(~FS)
    with pytest.raises(Trap) as trap:
        execute(hart, one.name, **operands_of(one))
    assert trap.value.cause == Cause.ILLEGAL_INSTRUCTION


@pytest.mark.parametrize("one", FLOATING, ids=lambda one: one.name)
def test_writes_make_mstatus_fs_dirty(one: Instruction) -> None:
    hart = TextHart()
    hart.mstatus = Word(1 << 13)
    hart.x[5] = TextHart.BASE
    execute(hart, one.name, **operands_of(one))
    reads_only = one.name.startswith(("fclass", "fmv.x", "fsw", "fsd"))
    assert hart.mstatus == (1 << 13 if reads_only else FS)


@pytest.mark.parametrize(
    "one", [one for one in FLOATING if "rm" in one.fields], ids=lambda one: one.name
)
@pytest.mark.parametrize(("rm", "frm"), [(5, 0), (6, 0), (7, 5), (7, 6), (7, 7)])
def test_reserved_rounding_modes(one: Instruction, rm: int, frm: int) -> None:
    hart = TextHart()
    hart.frm = Word(frm)
    hart.mstatus = Word(1 << 13)
    before = list(hart.x.values), list(hart.f.values)
    with pytest.raises(Trap) as trap:
        execute(hart, one.name, **(operands_of(one) | {"rm": rm}))
    assert trap.value.cause == Cause.ILLEGAL_INSTRUCTION
    assert (hart.x.values, hart.f.values) == before
    assert hart.mstatus == 1 << 13
    assert hart.fflags == 0


def test_wait_on_reservation() -> None:
    hart = TextHart()
    execute(hart, "wrs.nto")
    execute(hart, "wrs.sto")
    assert hart.calls == [("wait", 0)] * 2
