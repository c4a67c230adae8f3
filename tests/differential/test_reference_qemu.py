"""Whole programs on both engines and on QEMU's user-mode emulation: the same ELF, the same registers.

A program loads all registers from a table, runs random instructions with branches, calls, misaligned
accesses and dynamic rounding, and stores all registers, fcsr and its data. Single instructions with
many operands are compared with QEMU beside their texts (`kasou/isa/test_rv64.py`).

Which extensions this QEMU has is tried first: what it lacks is left out, and named in the report.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import warnings
from pathlib import Path

import pytest
from conformance.computer import BASE, DATA, Computer
from differential.every_instruction import floating, integer, operands

from kasou.isa.encoding import INSTRUCTIONS, encode

COMPILER, EMULATOR = "riscv64-linux-gnu-gcc", "qemu-riscv64"
PROBES = {
    "zba": "sh1add",
    "zbb": "andn",
    "zbs": "bset",
    "zicond": "czero.eqz",
    "c": "c.add",
    "d": "fadd.d",
}
PROGRAMS, LENGTH = 30, 150
START = """
    .option norelax
    .globl _start
_start:
    la x31, table
    ld x1, 256(x31)
    fscsr x1
"""
END = """
    .balign 4
    .word 0x00000013
out:
    la x31, table
"""
EXIT = """
    li a0, 1
    la a1, table
    li a2, 0x2400
    li a7, 64
    ecall
    li a0, 0
    li a7, 93
    ecall
done: j done
"""
LEAVES_MEMORY_ALONE = ("i", "m", "zba", "zbb", "zbs", "zicond", "c", "f", "d")
NOT_HERE = (
    "ecall",
    "ebreak",
    "fence.i",
    "fence",
    "c.ebreak",
    "jal",
    "jalr",
    "auipc",
    "c.jr",
    "c.jalr",
    "c.j",
)


def build(folder: Path, source: str, name: str) -> Path:
    (folder / f"{name}.s").write_text(source)
    target = folder / name
    subprocess.run(
        [COMPILER, "-nostdlib", "-static", "-march=rv64gc", f"-Wl,-Ttext={BASE + 0x1000:#x},-Tdata={DATA:#x},--no-relax,-e,_start",
         "-o", str(target), str(folder / f"{name}.s")], check=True, capture_output=True,
    )  # fmt: skip
    return target


def supported(folder: Path) -> set[str]:
    """The extensions that QEMU runs without an illegal-instruction signal."""
    found = {"i", "m", "a", "f", "zicsr"}
    for extension, name in PROBES.items():
        one = INSTRUCTIONS[name]
        code = encode(
            name, **{field: 8 if field[0] in "rf" and field != "rm" else 0 for field in one.fields}
        )
        size = {2: ".half", 4: ".word"}[one.length]
        program = build(
            folder,
            f".globl _start\n_start: {size} {code:#x}\n.balign 4\nli a0, 0\nli a7, 93\necall",
            "probe-" + extension,
        )
        if subprocess.run([EMULATOR, str(program)], capture_output=True).returncode == 0:
            found.add(extension)
    return found


def body(rng: random.Random, extensions: set[str]) -> str:
    """Random instructions as words; registers 8 and 9 point into the data and are not written."""
    pool = [
        one
        for one in INSTRUCTIONS.values()
        if one.extension in extensions and one.name not in NOT_HERE
    ]
    lines = []
    for i in range(LENGTH):
        lines.append(f"l{i}:")
        if rng.random() < 0.12:
            ahead = min(LENGTH, i + rng.randrange(1, 8))
            condition = rng.choice(("beq", "bne", "blt", "bge", "bltu", "bgeu"))
            a, b = rng.randrange(32), rng.randrange(32)
            lines.append(rng.choice((f"{condition} x{a}, x{b}, l{ahead}", f"jal x5, l{ahead}",
                                     f"la x6, l{ahead}\njalr x5, (x6)", f"auipc x7, {rng.randrange(1 << 20)}")))  # fmt: skip
            continue
        if rng.random() < 0.2:
            width = rng.choice(("b", "h", "w", "d"))
            signed = rng.choice(("", "u")) if width != "d" else ""
            at = f"{rng.randrange(-2048, 2000)}(x{rng.choice((8, 9))})"
            lines.append(rng.choice((f"l{width}{signed} x{rng.randrange(10, 32)}, {at}", f"s{width} x{rng.randrange(32)}, {at}",
                                     f"fl{rng.choice('wd')} f{rng.randrange(32)}, {at}", f"fs{rng.choice('wd')} f{rng.randrange(32)}, {at}",
                                     f"amo{rng.choice(('add', 'swap', 'maxu', 'min', 'xor'))}.{rng.choice('wd')} x10, x11, (x9)")))  # fmt: skip
            continue
        while True:
            one = rng.choice(pool)
            fields = operands(rng, one)
            base = INSTRUCTIONS[one.expands[0]] if one.expands else one
            if base.flow or (
                base.name[:2] in ("ld", "lw", "lb", "lh", "sd", "sw", "sb", "sh")
                and "rs1" in base.fields
                and "imm" in base.fields
            ):
                continue
            if base.name in ("flw", "fld", "fsw", "fsd") or base.extension == "zicsr":
                continue
            if one.expands and "sp" in one.asm:
                continue
            if fields.get("rd") in (8, 9) or fields.get("rm") in (5, 6):
                continue
            if one.name == "ctzw":
                continue  # QEMU before 8.0 counts on into the upper half
            break
        size = {2: ".half", 4: ".word"}[one.length]
        lines.append(f"{size} {encode(one.name, **fields):#x}  # {one.name}")
    lines.append(f"l{LENGTH}:")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, bytes, str]]:
    """(ELF, what QEMU's table held at the end, source)"""
    if missing := [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed")
    folder = tmp_path_factory.mktemp("qemu")
    extensions = supported(folder)
    if lacking := sorted(set(PROBES) - extensions):
        warnings.warn(f"this QEMU lacks {', '.join(lacking)}: not compared", stacklevel=1)
    found = []
    for number in range(PROGRAMS):
        rng = random.Random(f"program-{number}")
        table = (
            [integer(rng) for _ in range(32)]
            + [rng.randrange(5) << 5]
            + [floating(rng) for _ in range(32)]
        )
        table += [rng.getrandbits(64) for _ in range(0x2400 // 8 - len(table))]
        table[8], table[9] = DATA + 0x1800, DATA + 0x1000
        load = "\n".join(
            [f"fld f{i}, {264 + 8 * i}(x31)" for i in range(32)]
            + [f"ld x{i}, {8 * i}(x31)" for i in range(1, 32)]
        )
        store = "\n".join([f"sd x{i}, {8 * i}(x31)" for i in range(1, 31)] + ["frcsr x1\nsd x1, 256(x31)"]
                          + [f"fsd f{i}, {264 + 8 * i}(x31)" for i in range(32)])  # fmt: skip
        data = "\n".join(f".dword {value:#x}" for value in table)
        source = f"{START}\n{load}\n{body(rng, extensions & set(LEAVES_MEMORY_ALONE))}\n{END}\n{store}\n{EXIT}\n.data\ntable:\n{data}\n"
        elf = build(folder, source, f"program{number}")
        ended = subprocess.run([EMULATOR, str(elf)], capture_output=True, timeout=60)
        assert ended.returncode == 0, (number, ended.returncode, ended.stderr)
        found.append((elf, ended.stdout, source))
    return found


@pytest.mark.parametrize("engine", ["reference", "interpreter"])
def test_programs_end_alike(programs: list[tuple[Path, bytes, str]], engine: str) -> None:
    from elftools.elf.elffile import ELFFile

    for number, (path, expected, _) in enumerate(programs):
        computer = Computer(engine)
        with path.open("rb") as file:
            elf = ELFFile(file)
            for segment in elf.iter_segments("PT_LOAD"):
                if segment["p_paddr"] >= BASE:
                    computer.memory.write(segment["p_paddr"], segment.data())
            computer["pc"] = elf["e_entry"]
        computer["mstatus"] = 3 << 13
        for _ in range(40):  # to the first ecall, which traps
            computer.run(50)
            if computer.trapped() is not None:
                break
        assert computer.trapped() is not None
        assert computer["mcause"] == 11, (number, computer.trapped())
        got = computer.memory.read(DATA, 0x2400)
        differences = [
            (name_of(i), hex(a), hex(b))
            for i, (a, b) in enumerate(
                zip(*(struct.unpack("<1152Q", t) for t in (got, expected)), strict=True)
            )
            if a != b
        ]
        assert not differences, (number, differences[:6])


def name_of(index: int) -> str:
    """What a place in the table holds."""
    if index < 32:
        return f"x{index}"
    return "fcsr" if index == 32 else f"f{index - 33}" if index < 65 else f"data+{8 * index:#x}"
