"""The assembler and the disassembler: inverse to each other, and the same as binutils."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.errors import ConfigError
from kasou.isa.asm import WORDS, assemble, assemble_program, disassemble, load_immediate
from kasou.isa.encoding import INSTRUCTIONS, Field, Instruction, decode, encode, length_of
from kasou.isa.word import Word

PC = 0x80000000
OBJDUMP = shutil.which("riscv64-linux-gnu-objdump")
AS = shutil.which("riscv64-linux-gnu-as")
MARCH = "rv64gc_zba_zbb_zbs_zicbom_zicboz_zawrs_svinval_zihintpause"
needs_binutils = pytest.mark.skipif(not (OBJDUMP and AS), reason="no binutils for RISC-V")


def shown(one: Instruction, name: str) -> bool:
    return "{" + name + "}" in one.asm or name in ("aq", "rl")


def random_value(f: Field, rng: random.Random) -> int:
    while True:
        count = f.bits - f.scale
        value = rng.getrandbits(count) << f.scale
        if f.signed and value >> (f.bits - 1):
            value -= 1 << f.bits
        value += 8 * f.prime
        if value not in f.excluded:
            return value


def samples(count: int, seed: int = 1) -> list[int]:
    """Encodings of every instruction with random operands, the fields that are not shown 0."""
    rng = random.Random(seed)
    words = []
    for one in INSTRUCTIONS.values():
        for _ in range(count):
            fields = {n: random_value(f, rng) for n, f in one.fields.items() if shown(one, n)}
            if "rm" in fields:
                fields["rm"] = rng.choice((0, 1, 2, 3, 4, 7))
            words.append(encode(one.name, **fields))
    return words


def size(word: int) -> int:
    return length_of(word)


def packed(words: list[int]) -> bytes:
    return b"".join(w.to_bytes(size(w), "little") for w in words)


def addresses(words: list[int]) -> list[int]:
    at, found = PC, []
    for word in words:
        found.append(at)
        at += size(word)
    return found


@pytest.mark.parametrize("pseudo", [True, False])
def test_assemble_undoes_disassemble(pseudo: bool) -> None:
    words = samples(30)
    lines = [disassemble(w, pc, pseudo) for w, pc in zip(words, addresses(words), strict=True)]
    assert assemble("\n".join(lines)) == packed(words)


@given(st.integers(0, (1 << 32) - 1))
def test_any_word_disassembles(bits: int) -> None:
    text = disassemble(bits)
    if decode(bits) is None:
        width = size(bits)
        assert assemble(text) == (bits & (1 << 8 * width) - 1).to_bytes(width, "little")


def test_relative_without_a_pc() -> None:
    for line in ("jal ra, . - 8", "beq a0, a1, . + 16", "c.j . + 4"):
        code = assemble(line)
        assert disassemble(int.from_bytes(code, "little"), pseudo=False) == line


@given(st.integers(-(1 << 63), (1 << 64) - 1))
def test_load_immediate(value: int) -> None:
    lines = load_immediate("a0", value)
    assert len(lines) <= 8
    register = Word(0)
    for bits in iter_words(assemble("\n".join(lines))):
        decoded = decode(bits)
        assert decoded is not None
        imm = decoded.operands.get("imm", 0)
        match decoded.base.name:
            case "lui":
                register = Word(imm)
            case "addi":
                register = (register if decoded.operands["rs1"] else Word(0)) + imm
            case "addiw":
                register = (register + imm).sext(32)
            case "slli":
                register = register << decoded.operands["shamt"]
    assert register == value


def iter_words(code: bytes) -> list[int]:
    at, words = 0, []
    while at < len(code):
        width = length_of(code[at])
        words.append(int.from_bytes(code[at : at + width], "little"))
        at += width
    return words


# A whole program -------------------------------------------------------------------------------

PROGRAM = """
        .globl start        # where it begins
        .equ    UART, 0x10000000
start:  li      s0, UART
        la      a0, message /* a comment
                               of two lines */
1:      lbu     t0, (a0)
        beqz    t0, 2f
        sb      t0, 0(s0); addi a0, a0, 1
        j       1b
2:      call    done
        lui     a1, %hi(message)        // absolute
        addi    a1, a1, %lo(message)
done:   csrw    mtvec, a0
        csrw    mstatus, 3
        csrr    a0, mhartid
        amoswap.w.aqrl a0, a1, (a2)
        fcvt.w.s a0, fa0, rtz
        fence   rw, w
        fence.tso
        jalr    a0
        jalr    ra, a1
        jalr    ra, 8(a2)
        c.lwsp  a0, 4(sp)
        ret
        .balign 8
message:
        .asciz  "hi; # \\"there\\"\\n\\x41\\101"
        .byte   'a', '\\n', -1
        .align  2
        .half   1 + 2 * 3, ~0 & 0xff
        .word   message - start
        .space  3, 7
"""


def test_a_program() -> None:
    program = assemble_program(PROGRAM)
    start, message = program.symbols["start"], program.symbols["message"]
    assert start == program.origin == PC
    assert message % 8 == 0
    data = program.code[message - start :]
    assert data.startswith(b'hi; # "there"\nAA\0a\n\xff')
    assert data.endswith(b"\x07\x00\xff\x00" + (message - start).to_bytes(4, "little") + b"\7\7\7")
    texts = [disassemble(w) for w in iter_words(program.code[: message - start])]
    assert texts[:4] == ["lui s0, 0x10000", "auipc a0, 0x0", texts[2], "lbu t0, 0(a0)"]
    assert "beqz t0, . + 16" in texts
    assert "csrwi mstatus, 3" in texts
    assert texts.count("ret") == 1


@needs_binutils
def test_the_program_by_binutils(tmp_path: Path) -> None:
    assert assemble(PROGRAM.replace("lui     a1, %hi", "#"), 0)  # parses at 0 too
    source = re.sub(r".*%(hi|lo).*\n", "", PROGRAM)
    source = ".option norelax\n.option norvc\n" + source.replace("c.lwsp", ".option rvc\n c.lwsp")
    ours = assemble(source.replace("csrw    mstatus, 3", "csrwi mstatus, 3"), 0x80000000)
    (tmp_path / "p.s").write_text(source)
    run = subprocess.run(
        f"{AS} -march={MARCH} p.s -o p.o && riscv64-linux-gnu-ld --no-relax -N -e start"
        f" -Ttext=0x80000000 p.o -o p.elf && riscv64-linux-gnu-objcopy -O binary p.elf p.bin",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    theirs = (tmp_path / "p.bin").read_bytes()
    ret = ours.index(assemble("c.lwsp a0, 4(sp)"))  # after it binutils compresses
    assert theirs[:ret] == ours[:ret]


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("frob a0", 1, "unknown instruction frob"),
        ("nop\n\naddi a0, a1, 5000", 3, "outside"),
        ("/* \n\n */ addi a0, a1", 3, "2 operands, expected 3"),
        ("beq a0, a1, nowhere", 1, "nowhere is not defined"),
        ("li a0, later\nlater:", 1, "later is not defined"),
        ("x: nop\nx: nop", 2, "x is defined already"),
        (".frob 3", 1, "unknown directive"),
        (".byte 256", 1, "does not fit"),
        ("lw a0, a1", 1, "does not look like"),
        ("add a0, a1, fa2", 1, "not an x register"),
        ("c.and a0, t0", 1, "not one of x8 to x15"),
        ("beq a0, a1, . + 4098", 1, "outside"),
        ("j 1f\n1: j 2b", 2, "no label 2"),
        ("lui a0, 0x100000", 1, "20 bits"),
        (".word 1 << 1000", 1, "shift"),
        (".word f(3)", 1, "f is not defined"),
        (".word 3 3", 1, "not an expression"),
        (".ascii hello", 1, "not a string"),
        ("lr.w.qa a0, (a1)", 1, "unknown instruction"),
        ("add.aq a0, a1, a2", 1, "unknown instruction"),
        ("mv a0", 1, "1 operands, expected 2"),
    ],
)
def test_errors(source: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        assemble(source)
    assert str(error.value).startswith(f"line {line}: ")


@given(st.text(alphabet="abcdex0159 ,.()[]:;#\"'%\\+-*/<>=~\n\tliwsp", max_size=60))
def test_noise_is_refused_or_assembled(text: str) -> None:
    try:
        assemble(text)
    except ConfigError as error:
        assert str(error).startswith("line ")


# Against binutils --------------------------------------------------------------------------------


def objdump(path: Path, aliases: bool = False) -> dict[int, str]:
    """The instructions of an object, or of a raw file, by address."""
    raw = ["-D", "-b", "binary", "-m", "riscv:rv64"] if path.suffix == ".bin" else ["-d"]
    raw += [] if aliases else ["-M", "no-aliases"]
    command = [str(OBJDUMP), *raw, f"--adjust-vma={PC:#x}", str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^ *([0-9a-f]+):\t[0-9a-f]+ +\t(.*)$", output, re.MULTILINE)
    targets = re.compile(r"([0-9a-f]+) <.*>$")  # hexadecimal without a prefix
    return {int(at, 16): targets.sub(r"0x\1", text) for at, text in found}


def normal(text: str) -> str:
    """One spelling for ours and theirs: numbers decimal, no spaces, no comments."""
    text = re.sub(r"#.*", "", text).replace("\t", " ").replace(", ", ",").strip()
    text = re.sub(r"\b0x[0-9a-f]+\b", lambda m: str(int(m[0], 16)), text)
    return re.sub(r"^\.(2byte|short)", ".half", re.sub(r"^\.4byte", ".word", text))


@needs_binutils
def test_disassembly_of_every_halfword(tmp_path: Path) -> None:
    codes = [code for code in range(1 << 16) if code & 3 != 3]
    (tmp_path / "all.bin").write_bytes(packed(codes))
    theirs = objdump(tmp_path / "all.bin")
    for i, code in enumerate(codes):
        ours, other = (
            normal(disassemble(code, PC + 2 * i, pseudo=False)),
            normal(theirs[PC + 2 * i]),
        )
        if other != ours:
            # binutils calls hints by other names, zero an instruction, and takes c.addi16sp of 0
            hints = {"c.nop": "c.addi", "c.slli": "c.slli64", "c.srli": "c.srli64"}
            known = {**hints, "c.srai": "c.srai64", ".half": "c.unimp"}
            assert known.get(ours.split()[0]) == other.split()[0] or code == 0x6101, (ours, other)


@needs_binutils
def test_expansion_of_every_halfword(tmp_path: Path) -> None:
    """With aliases binutils shows a compressed instruction as what it stands for."""
    codes = [code for code in range(1 << 16) if code & 3 != 3 and decode(code)]
    expanded = [encode(d.base.name, **d.operands) for code in codes if (d := decode(code))]
    (tmp_path / "short.bin").write_bytes(b"".join(packed([code, 1]) for code in codes))
    (tmp_path / "long.bin").write_bytes(packed(expanded))
    short, long = (objdump(tmp_path / f"{n}.bin", aliases=True) for n in ("short", "long"))
    unlike = set()
    for i, code in enumerate(codes):
        one, other = normal(short[PC + 4 * i]), normal(long[PC + 4 * i])
        if one != other and not one.startswith("c."):  # hints keep their names
            unlike.add((disassemble(code).split()[0], one.split(" ")[0], other.split(" ")[0]))
    # The long `mv` is addi, so c.mv (an add) is none, and c.addi of 0 (a hint) is one.
    assert unlike == {("c.mv", "mv", "add"), ("c.addi", "add", "mv")}


@needs_binutils
def test_disassembly_of_every_instruction(tmp_path: Path) -> None:
    words = [w for w in samples(40, seed=2) if size(w) == 4]
    (tmp_path / "all.s").write_text("".join(f".insn {word:#x}\n" for word in words))
    command = [str(AS), f"-march={MARCH}", "all.s", "-o", "all.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    theirs = objdump(tmp_path / "all.o")
    unknown = set()
    for word, pc in zip(words, addresses(words), strict=True):
        decoded = decode(word)
        assert decoded is not None
        ours, other = disassemble(word, pc, pseudo=False), theirs[pc]
        if other.startswith((".4byte", ".word")):
            unknown.add(decoded.insn.name)
        elif decoded.insn.name == "fence":
            assert other.startswith("fence") or other == "pause"
        elif "csr" in decoded.fields:
            mnemonic, _, tail = normal(other).partition(" ")
            rd, csr, source = tail.split(",")
            named = normal(ours).split(" ")[1].split(",")
            assert (mnemonic, rd, source) == (decoded.insn.name, named[0], named[2])
            if not csr.isdigit() and not named[1].isdigit():
                assert csr == named[1]
        else:
            assert normal(other) == normal(ours)
    # Zicond came to binutils after 2.40; a fence with a set empty it does not show.
    assert unknown <= {"czero.eqz", "czero.nez", "fence"}


@needs_binutils
def test_binutils_assembles_what_we_print(tmp_path: Path) -> None:
    words, lines = [], []
    for word in samples(20, seed=3):
        decoded = decode(word)
        assert decoded is not None
        name, text = decoded.insn.name, disassemble(word)
        csr = "csr" in decoded.fields  # names of registers differ between versions
        hint = name.startswith("c.") and name[2:] in ("nop", "slli", "srli", "srai", "li", "lui")
        jump = decoded.insn.flow == "branch"
        if not (csr or hint or jump or name.startswith("czero") or name == "fence"):
            words.append(word)
            lines.append(text)
    (tmp_path / "p.s").write_text(".option norelax\n.option norvc\n" + fix_rvc(lines))
    run = subprocess.run(
        [str(AS), f"-march={MARCH}", "p.s", "-o", "p.o"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[:2000]
    copy = ["riscv64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", "p.o", "p.bin"]
    subprocess.run(copy, cwd=tmp_path, check=True)
    theirs = iter_words((tmp_path / "p.bin").read_bytes())
    assert [*map(disassemble, theirs)] == [*map(disassemble, words)]


def fix_rvc(lines: list[str]) -> str:
    """Compressed instructions need rvc, and everything else must not be compressed."""
    return "\n".join(
        f".option rvc\n{line}\n.option norvc" if line.startswith("c.") else line for line in lines
    )


def test_whole_words() -> None:
    for name, word in WORDS.items():
        assert disassemble(word) == name
        assert assemble(name) == word.to_bytes(4, "little")
