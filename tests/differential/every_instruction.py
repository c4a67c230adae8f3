"""Run instructions with random and corner operands on both engines; a child process of the tests.

    python every_instruction.py SEED CASES NAME...

prints a line before each instruction, so that a crash names its cause, and a line for each
difference. Exit code 1 if there was one.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from differential.pair import BASE, Pair

import kasou.isa.rv64  # noqa: F401
from kasou.isa.encoding import INSTRUCTIONS, Instruction, decode, encode

CODE = BASE + 0x10000
DATA = BASE + 0x20000
CORNERS = (0, 1, 2, 31, 32, 63, 64, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63,
           (1 << 64) - 1, (1 << 64) - 2, 0xFFFFFFFF80000000)  # fmt: skip
SINGLES = (0, 1 << 31, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001,
           1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x4F000000, 0xCF000000, 0x5F000000, 0x3F000000)  # fmt: skip
DOUBLES = (0, 1 << 63, 0x3FF << 52, 0xBFF << 52, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48,
           (0x7FF << 52) + 1, 1, (1 << 52) - 1, 1 << 52, (0x7FF << 52) - 1, 0x41E << 52,
           0x43E << 52, 0xC3E << 52, 0x3FE << 52, 0x47EFFFFFE << 28, 0x36A << 52)  # fmt: skip


def integer(rng: random.Random) -> int:
    """A corner or a number of random length."""
    if rng.random() < 0.4:
        return rng.choice(CORNERS)
    return rng.getrandbits(rng.choice((4, 8, 16, 32, 48, 64)))


def floating(rng: random.Random) -> int:
    """A double, a boxed single, or neither."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(DOUBLES)
    if kind < 0.6:
        return 0xFFFFFFFF << 32 | rng.choice(SINGLES)
    if kind < 0.8:
        return (
            0xFFFFFFFF << 32
            | rng.getrandbits(1) << 31
            | rng.randrange(100, 160) << 23
            | rng.getrandbits(23)
        )
    if kind < 0.95:
        return rng.getrandbits(1) << 63 | rng.randrange(990, 1090) << 52 | rng.getrandbits(52)
    return rng.getrandbits(64)


def operands(rng: random.Random, one: Instruction) -> dict[str, int]:
    """Random values for every field of the encoding."""
    values: dict[str, int] = {}
    for name, field in one.fields.items():
        while True:
            if name == "csr":
                value = rng.choice(
                    (0x001, 0x002, 0x003, 0x300, 0x340, 0x341, 0x305, 0x100, 0x7C0, 0xB02)
                )
            else:
                raw = rng.getrandbits(field.bits) >> field.scale << field.scale
                value = raw + 8 if field.prime else raw
                if field.signed and value >> (field.bits - 1):
                    value -= 1 << field.bits
            if value not in field.excluded:
                break
        values[name] = value
    return values


def run(pair: Pair, rng: random.Random, one: Instruction) -> str | None:
    """One case; the report if the engines differ."""
    word = encode(one.name, **operands(rng, one))
    decoded = decode(word)
    assert decoded is not None
    assert decoded.insn is one, f"{one.name} decodes as {decoded.insn.name}"
    state: dict[str, int] = {f"x[{i}]": integer(rng) for i in range(1, 32)}
    state |= {f"f[{i}]": floating(rng) for i in range(32)}
    base = decoded.operands.get("rs1")
    if base is not None and rng.random() < 0.85:  # in case it is an address
        near = rng.choice((0, 0x1000 - 4, 0x1000 - 1, 0x800, rng.randrange(0x2000)))
        if rng.random() < 0.6:
            near &= ~7
        state[f"x[{base}]"] = DATA + near
    state.pop("x[0]", None)
    state |= {
        "pc": CODE, "priv": rng.choice((3, 3, 3, 1, 0)), "monitor": 0,
        "mstatus": rng.choice((0, 1, 2, 3)) << 13 | rng.choice((0, 0x1888)), "mtvec": BASE + 0x100,
        "frm": rng.choice((0, 0, 1, 2, 3, 4, 5)), "fflags": rng.choice((0, 0, 31, 1)),
        "mepc": CODE + 64, "sepc": CODE + 128, "menvcfg": rng.choice((0, 0xF0)), "senvcfg": 0xF0,
        "reservation": rng.choice(((1 << 64) - 1, DATA, DATA + 0x800)), "reservation_value": 0,
        "mie": 0, "mip": 0, "medeleg": 0, "mideleg": 0, "satp": 0, "minstret_base": 0,
        "mcycle_base": 0, "pmpcfg[0]": 0x1F, "pmpaddr[0]": (1 << 54) - 1, "pmp_low[0]": 0,
        "pmp_high[0]": 1 << 56, "pmp_used": 4, "mcause": 0, "mtval": 0, "mscratch": 0,
        "mcountinhibit": 0, "mcounteren": 0, "scounteren": 0,
    }  # fmt: skip
    if rng.random() < 0.7:
        state["mstatus"] |= 3 << 13
    pair.write(DATA, rng.randbytes(0x40) + bytes(0x1FC0))
    pair.write(DATA + 0x7F8, rng.randbytes(0x20))
    pair.write(CODE, word.to_bytes(4, "little"))
    pair.set(state)
    pair.step()
    found: dict[str, Any] = pair.differences()
    if not found:
        return None
    shown = {k: tuple(f"{v:#x}" for v in values) for k, values in found.items()}
    used = decoded.operands
    inputs = {
        o: hex(state.get(f"{'f' if o[0] == 'f' else 'x'}[{v}]", 0))
        for o, v in used.items()
        if o[:2] in ("rs", "fs")
    }
    for memory in pair.memories:
        memory.write(BASE, bytes(0x100))
    pair.memories[0].write(BASE, pair.memories[1].read(BASE, pair.memories[1].size))
    modes = f"priv {state['priv']} frm {state['frm']} mstatus {state['mstatus']:#x}"
    return f"{word:#010x} {one.name} {used} {inputs} {modes}: {shown}"


def main(seed: int, cases: int, names: list[str]) -> int:
    """Run `cases` cases of each instruction."""
    pair, bad = Pair(), 0
    for name in names:
        rng = random.Random(f"{seed}-{name}")
        print("instruction", name, flush=True)
        for _ in range(cases):
            report = run(pair, rng, INSTRUCTIONS[name])
            if report is not None:
                bad += 1
                print("difference", report, flush=True)
                break
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
