"""Random programs with branches, traps and paging, on both engines in lock-step; a child process.

    python random_programs.py SEED PROGRAMS

A program is random instructions with branches within it; its trap handlers skip what trapped, and
it runs in M, S or U mode, with or without Sv39. The engines are compared every few instructions,
and at a difference the program is run again, one instruction a time, to find where.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from differential.every_instruction import DATA, floating, integer, operands
from differential.pair import BASE, SIZE, Pair

import kasou.isa.rv64  # noqa: F401
from kasou.isa.asm import assemble
from kasou.isa.csr import ENVCFG
from kasou.isa.encoding import INSTRUCTIONS, Instruction, encode

CODE = BASE + 0x1_0000
TABLES = BASE + 0x3_0000
MAPPED = 0x40_0000_0000 - (4 << 20)
"""Where Sv39 shows RAM again, in pages of 4 KiB; RAM's own addresses are a superpage."""
NEVER = (1 << 64) - 1
SKIP = """
    csrr t6, {m}epc
    {before}
    lhu t5, (t6)
    {after}
    andi t5, t5, 3
    addi t5, t5, -3
    seqz t5, t5
    slli t5, t5, 1
    addi t5, t5, 2
    add t6, t6, t5
    csrw {m}epc, t6
    {m}ret
"""
AS_BEFORE = "li t5, 0x20000\ncsrs mstatus, t5"
"""M-mode reads the instruction by the translation of whom it interrupted."""
AS_ITSELF = "li t4, 0x20000\ncsrc mstatus, t4"
FLOW = (
    "jal",
    "jalr",
    "beq",
    "bne",
    "blt",
    "bge",
    "bltu",
    "bgeu",
    "c.j",
    "c.beqz",
    "c.bnez",
    "c.jr",
    "c.jalr",
)
LEFT_OUT = (*FLOW, "wfi", "mret", "sret", "fence.i")
POOL = [one for one in INSTRUCTIONS.values() if one.name not in LEFT_OUT]
MEMORY = [one for one in POOL if one.fields.keys() & {"rs1"} and one.name.lstrip("cf.")[:1] in "ls"]
V, R, W, X, U, A, D = 1, 2, 4, 8, 16, 64, 128


def one_instruction(rng: random.Random) -> bytes:
    """A random instruction; a branch goes a few instructions ahead, seldom back."""
    if rng.random() < 0.15:
        name = rng.choice(("beq", "bne", "blt", "bgeu", "jal", "c.beqz", "c.bnez", "c.j"))
        jump = rng.choice((2, 4, 6, 8, 12, 20, 20, -4, -10))
        fields = operands(rng, INSTRUCTIONS[name])
        word = encode(name, **{**fields, "imm": jump})
        return word.to_bytes(INSTRUCTIONS[name].length, "little")
    one: Instruction = rng.choice(MEMORY if rng.random() < 0.3 else POOL)
    fields = operands(rng, one)
    for name in ("rd", "rs1"):  # x8..x11 hold addresses more often than not
        if (
            name in fields
            and name in one.fields
            and not one.fields[name].prime
            and rng.random() < 0.5
        ):
            fields[name] = (
                rng.choice((8, 9, 10, 11))
                if name == "rs1"
                else rng.choice((5, 6, 7, 12, 13, 14, 15))
            )
    if "csr" in fields:
        fields["csr"] = rng.choice(
            (
                1,
                2,
                3,
                0x100,
                0x104,
                0x140,
                0x141,
                0x142,
                0x143,
                0x144,
                0x340,
                0x342,
                0xC00,
                0xC02,
                0xF14,
            )
        )
    return encode(one.name, **fields).to_bytes(one.length, "little")


def page_tables(rng: random.Random, priv: int) -> dict[int, int]:
    """Sv39 entries by gpa: RAM at its own addresses, and again with random rights."""
    entries = {TABLES + 8 * 2: BASE >> 12 << 10 | V | R | W | X | A | D}
    entries[TABLES + 8 * (MAPPED >> 30 & 511)] = TABLES + 0x1000 >> 12 << 10 | V
    for half in range(2):
        entries[TABLES + 0x1000 + 8 * (MAPPED >> 21 & 511) + 8 * half] = (
            TABLES + 0x2000 + 0x1000 * half >> 12 << 10 | V
        )
        for page in range(512):
            flags = V | R | W | X | A | D | (U if priv == 0 else 0)
            target = BASE + half * (2 << 20) + page * 4096
            if rng.random() < 0.3 and target & ~0x1FFF != CODE:
                flags ^= rng.choice((V, R, W, X, A, D, U))
            entries[TABLES + 0x2000 + 0x1000 * half + 8 * page] = target >> 12 << 10 | flags
    return entries


def state_of(rng: random.Random, priv: int, paging: bool, at: int, shown: int) -> dict[str, int]:
    """Cells to begin with. `shown` is where the program sees RAM."""
    state: dict[str, int] = {f"x[{i}]": integer(rng) for i in range(1, 32)}
    state |= {f"f[{i}]": floating(rng) for i in range(32)}
    for i in (8, 9, 10, 11, 2):
        state[f"x[{i}]"] = (
            DATA
            - BASE
            + shown
            + rng.choice((0, 0x800, 0x1000 - 8, 0x1000 - 3, 0x1800, rng.randrange(0x2000)))
        )
    for i in (8, 9):
        state[f"x[{i}]"] &= ~7
    return state | {
        "pc": at, "priv": priv, "monitor": 0, "mtvec": BASE + 0x100, "stvec": BASE + 0x200,
        "mstatus": rng.choice((3, 3, 3, 0)) << 13 | rng.choice((1 << 18, 1 << 18 if priv == 0 else 0)) | rng.choice((0, 0, 1 << 19)),
        "satp": 8 << 60 | TABLES >> 12 if paging else 0, "frm": rng.choice((0, 0, 1, 2, 3, 4)), "fflags": 0,
        "medeleg": rng.choice((0, 0xB3FF)) if priv < 3 else 0, "mideleg": 0, "mie": 0, "mip": 0,
        "menvcfg": rng.choice((0, ENVCFG)) | rng.choice((0, 1 << 61)), "senvcfg": ENVCFG, "mcounteren": 7, "scounteren": 7,
        "reservation": NEVER, "reservation_value": 0, "minstret_base": 0, "mcycle_base": 0, "mcountinhibit": 0,
        "pmpcfg[0]": 0x1F, "pmpaddr[0]": (1 << 54) - 1, "pmp_low[0]": 0, "pmp_high[0]": 1 << 56, "pmp_used": 4,
        **dict.fromkeys(("mepc", "sepc", "mcause", "scause", "mtval", "stval", "mscratch", "sscratch"), 0),
    }  # fmt: skip


def prepare(pair: Pair, seed: str) -> None:
    """Put a program and its state into both engines."""
    rng = random.Random(seed)
    for memory in pair.memories:
        memory.write(BASE, bytes(0x4_0000))
    pair.memories[0].write(BASE, pair.memories[1].read(BASE, SIZE))
    pair.write(
        BASE + 0x100, assemble(SKIP.format(m="m", before=AS_BEFORE, after=AS_ITSELF), BASE + 0x100)
    )
    pair.write(BASE + 0x200, assemble(SKIP.format(m="s", before="", after=""), BASE + 0x200))
    count = rng.randrange(20, 200)
    code = b"".join(one_instruction(rng) for i in range(count))
    start = CODE + rng.choice((0, 0, 0x1000 - len(code) // 2 & ~1))  # some cross into the next page
    pair.write(start, code + assemble("1: j 1b", 0))
    pair.write(DATA, rng.randbytes(0x3000))
    priv, paging = rng.choice(
        ((3, False), (3, True), (1, True), (1, True), (0, True), (0, True), (0, False))
    )
    shown = MAPPED if paging and (priv == 0 or (priv == 1 and rng.random() < 0.8)) else BASE
    if paging:
        for gpa, entry in page_tables(rng, priv).items():
            for memory in pair.memories:
                memory.store(gpa, 8, entry)
    pair.set(state_of(rng, priv, paging, start - BASE + shown, shown))


def check(pair: Pair, seed: str, steps: int, stride: int) -> tuple[int, dict[str, Any]] | None:
    """Run; (steps done, differences) at the first look that finds some."""
    prepare(pair, seed)
    for done in range(stride, steps + 1, stride):
        pair.step(stride)
        if found := pair.differences():
            return done, found
    return None


def main(seed: int, programs: int) -> int:
    """Run so many programs; 1 if one differed."""
    pair, bad = Pair(), 0
    for number in range(programs):
        name = f"{seed}-{number}"
        print("program", name, flush=True)
        if check(pair, name, 240, 60) is None:
            continue
        bad += 1
        found = check(pair, name, 240, 1)
        if found is None:
            print("difference", name, "between services only: not when stepped", flush=True)
            continue
        check(pair, name, found[0] - 1, 1)
        pc = pair.cores[1].block.get("pc")
        at = pc - MAPPED + BASE if pc >= MAPPED else pc
        word = pair.memories[1].load(at, 4) if pair.memories[1].holds(at, 4) else 0
        shown = {k: tuple(hex(v) for v in values) for k, values in found[1].items()}
        print("difference", name, f"step {found[0]} pc {pc:#x} {word:#010x}: {shown}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
