"""The assembler and the disassembler, both from the instruction table alone.

How it works
    An instruction's `asm` is a template: operands divided by ", ", each with `{field}` in it.
    Disassembling fills the template in; assembling matches an operand against it. A template that
    ends in `{rm}` takes a rounding mode, dynamic if left out; instructions with the fields `aq` and
    `rl` take the suffixes .aq, .rl and .aqrl. Pseudo-instructions are a table of texts, read in both
    directions.

Rules
    * Nothing is relaxed or compressed by itself: what is written is what comes out, so a first pass
      knows every size and label, and a second one emits. Only `li` has a size that depends on its
      operand, which must therefore be known where it stands.
    * There is one section: `.data` and `.section` are read and do nothing.
    * A jump's or a branch's operand is an address (a label, or `. + 8`).
    * The disassembler does not show fields that the template lacks (`rd` of a fence: a hint).

Every error in a program is a `ConfigError` that begins with the line number.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import kasou.isa.rv64  # noqa: F401  (fills the table)
from kasou.errors import ConfigError
from kasou.isa.encoding import INSTRUCTIONS, Decoded, Field, Instruction, decode, encode, length_of

T = TypeVar("T")

# fmt: off
X_NAMES = (
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5",
    "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
)
"""The ABI's names of the integer registers."""
F_NAMES = (
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "fs0", "fs1", "fa0", "fa1", "fa2", "fa3",
    "fa4", "fa5", "fa6", "fa7", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9", "fs10",
    "fs11", "ft8", "ft9", "ft10", "ft11",
)
"""The ABI's names of the floating-point registers."""
ROUNDING_MODES = ("rne", "rtz", "rdn", "rup", "rmm", "5", "6", "dyn")
"""Names of the values of rm; 5 and 6 are reserved."""

PSEUDO = (
    ("nop", "addi zero, zero, 0"),            ("c.nop", "c.nop 0"),
    ("li %0, %1", "addi %0, zero, %1"),       ("mv %0, %1", "addi %0, %1, 0"),
    ("not %0, %1", "xori %0, %1, -1"),        ("neg %0, %1", "sub %0, zero, %1"),
    ("negw %0, %1", "subw %0, zero, %1"),     ("sext.w %0, %1", "addiw %0, %1, 0"),
    ("zext.b %0, %1", "andi %0, %1, 255"),    ("zext.w %0, %1", "add.uw %0, %1, zero"),
    ("seqz %0, %1", "sltiu %0, %1, 1"),       ("snez %0, %1", "sltu %0, zero, %1"),
    ("sltz %0, %1", "slt %0, %1, zero"),      ("sgtz %0, %1", "slt %0, zero, %1"),
    ("beqz %0, %1", "beq %0, zero, %1"),      ("bnez %0, %1", "bne %0, zero, %1"),
    ("blez %0, %1", "bge zero, %0, %1"),      ("bgez %0, %1", "bge %0, zero, %1"),
    ("bltz %0, %1", "blt %0, zero, %1"),      ("bgtz %0, %1", "blt zero, %0, %1"),
    ("j %0", "jal zero, %0"),                 ("jal %0", "jal ra, %0"),
    ("ret", "jalr zero, 0(ra)"),              ("jr %0", "jalr zero, 0(%0)"),
    ("jalr %0", "jalr ra, 0(%0)"),            ("fence", "fence iorw, iorw"),
    ("sfence.vma", "sfence.vma zero, zero"),  ("sinval.vma", "sinval.vma zero, zero"),
    ("rdcycle %0", "csrrs %0, cycle, zero"),  ("rdtime %0", "csrrs %0, time, zero"),
    ("rdinstret %0", "csrrs %0, instret, zero"),
    ("frcsr %0", "csrrs %0, fcsr, zero"),     ("fscsr %0", "csrrw zero, fcsr, %0"),
    ("fscsr %0, %1", "csrrw %0, fcsr, %1"),   ("frrm %0", "csrrs %0, frm, zero"),
    ("fsrm %0", "csrrw zero, frm, %0"),       ("fsrm %0, %1", "csrrw %0, frm, %1"),
    ("fsrmi %0", "csrrwi zero, frm, %0"),     ("fsrmi %0, %1", "csrrwi %0, frm, %1"),
    ("frflags %0", "csrrs %0, fflags, zero"), ("fsflags %0", "csrrw zero, fflags, %0"),
    ("fsflags %0, %1", "csrrw %0, fflags, %1"),
    ("fsflagsi %0", "csrrwi zero, fflags, %0"), ("fsflagsi %0, %1", "csrrwi %0, fflags, %1"),
    ("csrr %0, %1", "csrrs %0, %1, zero"),    ("csrw %0, %1", "csrrw zero, %0, %1"),
    ("csrs %0, %1", "csrrs zero, %0, %1"),    ("csrc %0, %1", "csrrc zero, %0, %1"),
    ("csrwi %0, %1", "csrrwi zero, %0, %1"),  ("csrsi %0, %1", "csrrsi zero, %0, %1"),
    ("csrci %0, %1", "csrrci zero, %0, %1"),
    ("fmv.s %0, %1", "fsgnj.s %0, %1, %1"),   ("fmv.d %0, %1", "fsgnj.d %0, %1, %1"),
    ("fneg.s %0, %1", "fsgnjn.s %0, %1, %1"), ("fneg.d %0, %1", "fsgnjn.d %0, %1, %1"),
    ("fabs.s %0, %1", "fsgnjx.s %0, %1, %1"), ("fabs.d %0, %1", "fsgnjx.d %0, %1, %1"),
)
"""Pseudo-instructions and what they stand for; the disassembler shows the first that fits."""

SHORTHAND = (
    ("bgt %0, %1, %2", "blt %1, %0, %2"),     ("ble %0, %1, %2", "bge %1, %0, %2"),
    ("bgtu %0, %1, %2", "bltu %1, %0, %2"),   ("bleu %0, %1, %2", "bgeu %1, %0, %2"),
    ("sgt %0, %1, %2", "slt %0, %2, %1"),     ("sgtu %0, %1, %2", "sltu %0, %2, %1"),
    ("jalr %0, %1", "jalr %0, 0(%1)"),        ("jalr %0, %1, %2", "jalr %0, %2(%1)"),
    ("sfence.vma %0", "sfence.vma %0, zero"), ("sinval.vma %0", "sinval.vma %0, zero"),
    ("fgt.s %0, %1, %2", "flt.s %0, %2, %1"), ("fge.s %0, %1, %2", "fle.s %0, %2, %1"),
    ("fgt.d %0, %1, %2", "flt.d %0, %2, %1"), ("fge.d %0, %1, %2", "fle.d %0, %2, %1"),
    ("unimp", "csrrw zero, cycle, zero"),
)
"""More that the assembler reads, and the disassembler never shows."""
# fmt: on

WORDS = {"fence.tso": 0x8330000F, "pause": 0x0100000F}
"""Names of whole instruction words, shown and read."""

_REGISTERS = {
    "x": {name: n for n, name in enumerate(X_NAMES)} | {f"x{n}": n for n in range(32)} | {"fp": 8},
    "f": {name: n for n, name in enumerate(F_NAMES)} | {f"f{n}": n for n in range(32)},
}
_REGISTER_FIELDS = dict.fromkeys(("rd", "rs1", "rs2"), "x") | dict.fromkeys(
    ("fd", "fs1", "fs2", "fs3"), "f"
)
_ORDERINGS = {"": (0, 0), ".aq": (1, 0), ".rl": (0, 1), ".aqrl": (1, 1)}


@functools.cache
def _csr_names() -> dict[int, str]:
    return {number: name for name, number in reversed(_csr_numbers().items())}


@functools.cache
def _csr_numbers() -> dict[str, int]:
    from kasou.isa import csr

    return dict(csr.BY_NAME)


@dataclass(frozen=True, slots=True)
class _Template:
    """An instruction's `asm`, taken apart."""

    operands: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    rounds: bool
    """An optional rounding mode follows."""


@functools.cache
def _template(one: Instruction) -> _Template:
    operands = tuple(one.asm.split(", ")) if one.asm else ()
    rounds = bool(operands) and operands[-1] == "{rm}"
    if rounds:
        operands = operands[:-1]
    return _Template(operands, tuple(re.compile(_pattern(o)) for o in operands), rounds)


def _pattern(operand: str) -> str:
    def group(match: re.Match[str]) -> str:
        return f"(?P<{match[1]}>{'[^()]*?' if match[1] in _REGISTER_FIELDS else '.*?'})"

    pattern = re.sub(r"\\\{(\w+)\\\}", group, re.escape(operand))
    pattern = re.sub(r"\bsp\b", "(?:sp|x2)", pattern)
    if pattern.startswith("\\("):
        pattern = "(?:0\\s*)?" + pattern
    return pattern.replace("\\(", "\\s*\\(\\s*").replace("\\)", "\\s*\\)")


# Disassembler -----------------------------------------------------------------------------------


def disassemble(bits: int | Decoded, pc: int | None = None, pseudo: bool = True) -> str:
    """The instruction in the low 16 or 32 bits of `bits`, as the assembler reads it.

    A decoded instruction does as well as its bits.
    `pc` makes targets absolute; without it they are relative, `. + 8`. Without `pseudo` the
    table's own names are shown. What does not decode is `.half 0x....` or `.word 0x........`.
    """
    if isinstance(bits, Decoded):
        bits = encode(bits.insn.name, **bits.fields)
    decoded = decode(bits)
    if decoded is None:
        if length_of(bits) == 2:
            return f".half {bits & 0xFFFF:#06x}"
        return f".word {bits & 0xFFFFFFFF:#010x}"
    one, fields = decoded.insn, decoded.fields
    for name, word in WORDS.items():
        if one.length == 4 and bits & 0xFFFFFFFF == word and (pseudo or fields["fm"]):
            return name
    mnemonic = one.name
    if "aq" in fields:
        pair = fields["aq"], fields["rl"]
        mnemonic += next(suffix for suffix, values in _ORDERINGS.items() if values == pair)
    template = _template(one)
    shown = {name: _show(one, name, value, pc) for name, value in fields.items()}
    operands = [operand.format(**shown) for operand in template.operands]
    if "rm" in fields and fields["rm"] != (7 if template.rounds else 0):
        operands.append(shown["rm"])
    text = f"{mnemonic} {', '.join(operands)}".rstrip()
    return _as_pseudo(mnemonic, text) if pseudo else text


def _show(one: Instruction, name: str, value: int, pc: int | None) -> str:
    if name in _REGISTER_FIELDS:
        return (X_NAMES if _REGISTER_FIELDS[name] == "x" else F_NAMES)[value]
    if name == "rm":
        return ROUNDING_MODES[value]
    if name == "csr":
        return _csr_names().get(value, f"{value:#x}")
    if name in ("pred", "succ"):
        return "".join(c for i, c in enumerate("iorw") if value >> (3 - i) & 1) or "0"
    if name == "imm" and one.flow == "branch":
        if pc is not None:
            return f"{(pc + value) & (1 << 64) - 1:#x}"
        return f". {'-' if value < 0 else '+'} {abs(value)}"
    if one.fields[name].scale >= 12:
        return f"{value >> 12 & 0xFFFFF:#x}"
    return str(value)


@functools.cache
def _shown_pseudo() -> dict[str, list[tuple[re.Pattern[str], str]]]:
    """By the mnemonic that is replaced: what to match, and what to show for it."""
    found: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    for short, full in PSEUDO:
        pattern, seen = re.escape(full), set()
        for n in re.findall(r"%(\d)", full):
            group = f"(?P=o{n})" if n in seen else f"(?P<o{n}>[^,()]+)"
            pattern = pattern.replace(f"%{n}", group, 1)
            seen.add(n)
        entry = re.compile(pattern), re.sub(r"%(\d)", r"\\g<o\1>", short)
        found.setdefault(full.split(" ")[0], []).append(entry)
    return found


def _as_pseudo(mnemonic: str, text: str) -> str:
    for pattern, short in _shown_pseudo().get(mnemonic, ()):
        if match := pattern.fullmatch(text):
            return match.expand(short)
    return text


# Assembler --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Program:
    """What `assemble_program` made."""

    origin: int
    code: bytes
    symbols: dict[str, int]
    """Labels and `.equ`s, with the symbols that were given."""


def assemble(
    text: str, origin: int = 0x80000000, symbols: Mapping[str, int] | None = None
) -> bytes:
    """Assemble a program that will run at `origin`; `symbols` are known besides its labels.

    Raises ConfigError, with the line number, for anything that cannot be assembled.
    """
    return assemble_program(text, origin, symbols).code


def assemble_program(
    text: str, origin: int = 0x80000000, symbols: Mapping[str, int] | None = None
) -> Program:
    """As `assemble`, and tells where the labels are."""
    source = _Source(origin, dict(symbols or {}))
    for number, line in enumerate(_without_block_comments(text).splitlines(), 1):
        for statement in _statements(line):
            source.at_line(number, statement, source.read)
    code = bytearray()
    for item in source.items:
        piece = source.at_line(item.line, item.statement, functools.partial(source.emit, item))
        if len(piece) != item.size:
            raise AssertionError(f"line {item.line}: {len(piece)} bytes, not {item.size}")
        code += piece
    return Program(origin, bytes(code), source.symbols)


class _Mismatch(ValueError):
    """The operands do not have this instruction's shape; another one may fit."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A piece of output: `make` gives its bytes once all labels are known."""

    line: int
    statement: str
    pc: int
    size: int
    make: Callable[[int], bytes]


_TOKEN = re.compile(
    r"\s*(?:(?P<char>'(?:\\.|[^'\\])')|(?P<local>\d+[bf](?![\w.$]))|(?P<number>\d\w*)"
    r"|(?P<name>[A-Za-z_$.][\w.$]*)|(?P<operator><<|>>|[-+*/%&|^~()]))"
)
_LABEL = re.compile(r"\s*([A-Za-z_$.][\w.$]*|\d+)\s*:(?!=)")
_ESCAPES = {
    "a": "\a", "b": "\b", "e": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_DATA = {
    ".byte": 1, ".half": 2, ".short": 2, ".hword": 2, ".2byte": 2, ".word": 4, ".4byte": 4,
    ".long": 4, ".dword": 8, ".quad": 8, ".8byte": 8,
}  # fmt: skip
_IGNORED = {
    ".text", ".data", ".bss", ".rodata", ".section", ".globl", ".global", ".local", ".weak", ".type",
    ".size", ".option", ".attribute", ".file", ".ident", ".cfi_startproc", ".cfi_endproc",
}  # fmt: skip


@dataclass(slots=True)
class _Source:
    """One assembly: the symbols, the items of output, and where the first pass stands."""

    origin: int
    symbols: dict[str, int]
    items: list[_Item] = field(default_factory=list)
    locals: dict[str, list[int]] = field(default_factory=dict)
    """Addresses of each numeric label, rising."""
    size: int = 0
    line: int = 0
    statement: str = ""

    @property
    def pc(self) -> int:
        return self.origin + self.size

    def at_line(self, line: int, statement: str, action: Callable[[], T]) -> T:
        """Do `action`; a ValueError out of it is the program's error at this line."""
        self.line, self.statement = line, statement
        try:
            return action()
        except ValueError as error:
            raise ConfigError(f"line {line}: {statement!r}: {error}") from None

    def emit(self, item: _Item) -> bytes:
        return item.make(item.pc)

    def append(self, size: int, make: Callable[[int], bytes]) -> None:
        self.items.append(_Item(self.line, self.statement, self.pc, size, make))
        self.size += size

    # First pass ---------------------------------------------------------------------------------

    def read(self) -> None:
        """Read one statement: its labels, and the item that it becomes."""
        rest = self.statement
        while match := _LABEL.match(rest):
            self.label(match[1])
            rest = rest[match.end() :]
        rest = rest.strip()
        if not rest:
            return
        if match := re.fullmatch(r"([A-Za-z_$.][\w.$]*)\s*=\s*(.+)", rest):
            self.define(match[1], self.value(match[2], self.pc))
            return
        mnemonic, _, tail = rest.replace("\t", " ").partition(" ")
        if mnemonic.startswith("."):
            self.directive(mnemonic, tail.strip())
        else:
            self.instruction(mnemonic.lower(), _split(tail))

    def label(self, name: str) -> None:
        if name.isdigit():
            self.locals.setdefault(name, []).append(self.pc)
        else:
            self.define(name, self.pc)

    def define(self, name: str, value: int) -> None:
        if name in self.symbols or name == ".":
            raise ValueError(f"{name} is defined already")
        self.symbols[name] = value

    def directive(self, name: str, tail: str) -> None:
        operands = _split(tail)
        if name in _IGNORED:
            return
        if name in _DATA:
            width = _DATA[name]
            self.append(
                width * len(operands),
                lambda pc: b"".join(
                    _data(self.value(o, pc + i * width), width) for i, o in enumerate(operands)
                ),
            )
        elif name in (".ascii", ".asciz", ".string"):
            data = b"".join(_string(o) + b"\0" * (name != ".ascii") for o in operands)
            self.append(len(data), lambda pc: data)
        elif name in (".align", ".p2align", ".balign"):
            _expect(operands, 1)
            amount = self.value(operands[0], self.pc)
            if not 0 <= amount <= (12 if name != ".balign" else 4096):
                raise ValueError(f"alignment {amount} is not supported")
            unit = amount if name == ".balign" else 1 << amount
            padding = _padding(-self.pc % max(unit, 1))
            self.append(len(padding), lambda pc: padding)
        elif name in (".space", ".zero", ".skip"):
            _expect(operands, 1, 2)
            count = self.value(operands[0], self.pc)
            if not 0 <= count <= 1 << 28:
                raise ValueError(f"{count} is not a number of bytes")
            fill = _data(self.value(operands[1], self.pc), 1) if len(operands) > 1 else b"\0"
            self.append(count, lambda pc: fill * count)
        elif name in (".equ", ".set"):
            _expect(operands, 2)
            self.define(operands[0], self.value(operands[1], self.pc))
        else:
            raise ValueError(f"unknown directive {name}")

    def instruction(self, mnemonic: str, operands: list[str]) -> None:
        if mnemonic in WORDS and not operands:
            self.append(4, lambda pc: WORDS[mnemonic].to_bytes(4, "little"))
        elif mnemonic == "li":
            _expect(operands, 2)
            value = self.value(operands[1], self.pc)
            if not -(1 << 63) <= value < 1 << 64:
                raise ValueError(f"{value} does not fit in 64 bits")
            lines = load_immediate(operands[0], value)
            self.append(4 * len(lines), lambda pc: b"".join(self.encoded(o, pc) for o in lines))
        elif mnemonic in _FAR:
            link, arity = _FAR[mnemonic]
            _expect(operands, arity)
            self.append(8, lambda pc: self.far(link or operands[0], link, operands[-1], pc))
        else:
            one, _, _ = self.resolve(mnemonic, operands)
            text = f"{mnemonic} {', '.join(operands)}"
            self.append(one.length, lambda pc: self.encoded(text, pc))

    # Second pass --------------------------------------------------------------------------------

    def far(self, register: str, link: str, target: str, pc: int) -> bytes:
        """Auipc and what uses it: `la` (an empty `link`), `call` and `tail`."""
        distance = self.value(target, pc) - pc
        if not -(1 << 31) <= distance + 0x800 < 1 << 31:
            raise ValueError(f"{target} is {distance:#x} bytes away, more than 2 GiB")
        low = _sign_extend(distance, 12)
        upper = f"auipc {register}, {(distance - low) >> 12 & 0xFFFFF}"
        lower = f"addi {register}, {register}, {low}"
        if link:
            lower = f"jalr {'ra' if link == 'ra' else 'zero'}, {low}({link})"
        return self.encoded(upper, pc) + self.encoded(lower, pc + 4)

    def encoded(self, text: str, pc: int) -> bytes:
        """The bytes of one instruction of the table, or of a pseudo-instruction for one."""
        mnemonic, _, tail = text.partition(" ")
        one, captured, ordering = self.resolve(mnemonic, _split(tail))
        fields = dict(zip(("aq", "rl"), ordering, strict=True)) if "aq" in one.fields else {}
        if _template(one).rounds:
            fields["rm"] = 7
        for name, operand in captured.items():
            fields[name] = self.operand(one, name, operand.strip(), pc)
        return encode(one.name, **fields).to_bytes(one.length, "little")

    def resolve(
        self, mnemonic: str, operands: list[str]
    ) -> tuple[Instruction, dict[str, str], tuple[int, int]]:
        """The instruction that is meant, its operands' texts by field, and its aq and rl."""
        name, ordering = mnemonic, _ORDERINGS[""]
        for suffix, values in _ORDERINGS.items():
            base = mnemonic.removesuffix(suffix)
            if suffix and mnemonic.endswith(suffix) and "aq" in _fields(base):
                name, ordering = base, values
        mismatch: ValueError | None = None
        if one := INSTRUCTIONS.get(name):
            try:
                return one, _captured(one, operands), ordering
            except _Mismatch as error:
                mismatch = error
        if mnemonic in ("csrw", "csrs", "csrc") and operands[1:] and not _is_register(operands[1]):
            mnemonic += "i"
        if full := _read_pseudo().get((mnemonic, len(operands))):
            for n, operand in enumerate(operands):
                full = full.replace(f"%{n}", operand.replace("%", "\0"))
            meant, _, tail = full.replace("\0", "%").partition(" ")
            return self.resolve(meant, _split(tail))
        if mismatch is not None:
            raise mismatch
        if arities := sorted(arity for short, arity in _read_pseudo() if short == mnemonic):
            expected = " or ".join(map(str, arities))
            raise ValueError(f"{len(operands)} operands, expected {expected}")
        raise ValueError(f"unknown instruction {mnemonic}")

    def operand(self, one: Instruction, name: str, text: str, pc: int) -> int:
        """The value of field `name`."""
        if name in _REGISTER_FIELDS:
            return _register(text, _REGISTER_FIELDS[name], one.fields[name])
        if name == "rm" and text in ROUNDING_MODES:
            return ROUNDING_MODES.index(text)
        if name == "csr" and text in _csr_numbers():
            return _csr_numbers()[text]
        if name in ("pred", "succ") and re.fullmatch("i?o?r?w?", text) and text:
            return sum(8 >> "iorw".index(c) for c in text)
        value = self.value(text, pc) if text or name not in ("imm", "uimm") else 0
        if name == "imm" and one.flow == "branch":
            return _sign_extend(value - pc, 64)
        if one.fields[name].scale >= 12:
            if not -(1 << 19) <= value < 1 << 20:
                raise ValueError(f"{value} does not fit in 20 bits")
            return _sign_extend(value, 20) << 12
        return value

    def value(self, text: str, pc: int) -> int:
        """An expression of numbers, symbols, `.`, local labels, %hi() and %lo()."""
        if match := re.fullmatch(r"\s*%(hi|lo)\((.*)\)\s*", text):
            inner = self.value(match[2], pc)
            low = _sign_extend(inner, 12)
            return low if match[1] == "lo" else (inner - low) >> 12 & 0xFFFFF
        parts, at = [], 0
        text = text.strip()
        while at < len(text):
            token = _TOKEN.match(text, at)
            if token is None:
                raise ValueError(f"{text!r} is not an expression")
            at = token.end()
            if token["char"]:
                parts.append(str(ord(_unescape(token["char"][1:-1]))))
            elif token["local"]:
                parts.append(str(self.local(token["local"], pc)))
            elif token["name"]:
                parts.append(str(self.symbol(token["name"], pc)))
            else:
                parts.append(token["number"] or token["operator"])
        try:
            tree = ast.parse(" ".join(parts), mode="eval")
        except (SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"{text!r} is not an expression") from None
        return _evaluate(tree.body)

    def symbol(self, name: str, pc: int) -> int:
        if name == ".":
            return pc
        if name not in self.symbols:
            raise ValueError(f"{name} is not defined")
        return self.symbols[name]

    def local(self, reference: str, pc: int) -> int:
        addresses = self.locals.get(reference[:-1], [])
        if reference[-1] == "b":
            found = [a for a in addresses if a <= pc][-1:]
        else:
            found = [a for a in addresses if a > pc][:1]
        if not found:
            raise ValueError(f"there is no label {reference[:-1]}: {reference} could mean")
        return found[0]


_FAR = {"la": ("", 2), "lla": ("", 2), "call": ("ra", 1), "tail": ("t1", 1)}
"""Pairs that begin with auipc: the register that links or carries, and how many operands."""


def load_immediate(register: str, value: int) -> list[str]:
    """The instructions of `li`: `value`, signed or unsigned 64 bits, into `register`."""
    value = _sign_extend(value, 64)
    low = _sign_extend(value, 12)
    if value == low:
        return [f"addi {register}, zero, {value}"]
    if -(1 << 31) <= value < 1 << 31:
        lines = [f"lui {register}, {(value - low) >> 12 & 0xFFFFF}"]
        return [*lines, f"addiw {register}, {register}, {low}"] if low else lines
    upper = (value - low) >> 12
    zeros = (upper & -upper).bit_length() - 1
    lines = [
        *load_immediate(register, upper >> zeros),
        f"slli {register}, {register}, {12 + zeros}",
    ]
    return [*lines, f"addi {register}, {register}, {low}"] if low else lines


@functools.cache
def _read_pseudo() -> dict[tuple[str, int], str]:
    """What a pseudo-instruction with so many operands stands for."""
    return {
        (short.split(" ")[0], short.count("%")): full
        for short, full in (*PSEUDO, *SHORTHAND)
        if short.split(" ")[0] != "li"
    }


def _fields(name: str) -> dict[str, Field]:
    return INSTRUCTIONS[name].fields if name in INSTRUCTIONS else {}


def _captured(one: Instruction, operands: list[str]) -> dict[str, str]:
    """The operands' texts by field; raises _Mismatch if their shape is another one."""
    template = _template(one)
    count = len(template.patterns)
    captured: dict[str, str] = {}
    if len(operands) == count + 1 and "rm" in one.fields:
        captured["rm"] = operands[-1]
    elif len(operands) != count:
        raise _Mismatch(f"{len(operands)} operands, expected {count}: {one.asm or 'none'}")
    for operand, pattern, shape in zip(
        operands, template.patterns, template.operands, strict=False
    ):
        match = pattern.fullmatch(operand)
        if match is None:
            raise _Mismatch(f"{operand!r} does not look like {shape}")
        captured.update(match.groupdict())
    return captured


def _register(text: str, kind: str, field: Field) -> int:
    if text not in _REGISTERS[kind]:
        raise ValueError(f"{text!r} is not an {kind} register")
    number = _REGISTERS[kind][text]
    if field.prime and not 8 <= number < 16:
        raise ValueError(f"{text} is not one of {kind}8 to {kind}15")
    return number


def _is_register(text: str) -> bool:
    return text in _REGISTERS["x"]


def _expect(operands: list[str], *counts: int) -> None:
    if len(operands) not in counts:
        expected = " or ".join(map(str, counts))
        raise ValueError(f"{len(operands)} operands, expected {expected}")


def _sign_extend(value: int, bits: int) -> int:
    low = value & ((1 << bits) - 1)
    return low - (1 << bits) if low >> (bits - 1) else low


def _data(value: int, width: int) -> bytes:
    if not -(1 << (8 * width - 1)) <= value < 1 << (8 * width):
        raise ValueError(f"{value} does not fit in {8 * width} bits")
    return (value & ((1 << (8 * width)) - 1)).to_bytes(width, "little")


def _padding(count: int) -> bytes:
    """So many bytes that may be run through: zeros up to a halfword, then c.nop and nop."""
    head = b"\0" * (count % 2) + b"\x01\x00" * (count % 4 // 2)
    return head + b"\x13\0\0\0" * (count // 4)


def _evaluate(node: ast.expr) -> int:
    """An expression of ints only."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand)
        case ast.UnaryOp(op=ast.UAdd()):
            return _evaluate(node.operand)
        case ast.UnaryOp(op=ast.Invert()):
            return ~_evaluate(node.operand)
        case ast.BinOp():
            left, right = _evaluate(node.left), _evaluate(node.right)
            return _binary(node.op, left, right)
    raise ValueError("only numbers, symbols and + - * / % << >> & | ^ ~ may stand here")


def _binary(op: ast.operator, left: int, right: int) -> int:
    if isinstance(op, ast.Div | ast.Mod) and right == 0:
        raise ValueError("division by zero")
    if isinstance(op, ast.LShift | ast.RShift) and not 0 <= right < 128:
        raise ValueError(f"shift by {right}")
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left // right
        case ast.Mod():
            return left % right
        case ast.LShift():
            return left << right
        case ast.RShift():
            return left >> right
        case ast.BitAnd():
            return left & right
        case ast.BitOr():
            return left | right
        case ast.BitXor():
            return left ^ right
    raise ValueError("only + - * / % << >> & | ^ ~ may stand here")


# Reading text -----------------------------------------------------------------------------------

_QUOTED = r'"(?:\\.|[^"\\])*"|' + r"'(?:\\.|[^'\\])'"


def _without_block_comments(text: str) -> str:
    """Take out `/* */` outside of strings and line comments, keeping the line numbers."""
    pattern = re.compile(rf"{_QUOTED}|#[^\n]*|//[^\n]*|/\*.*?\*/", re.DOTALL)

    def replace(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n") + " " if match[0].startswith("/*") else match[0]

    return pattern.sub(replace, text)


def _statements(line: str) -> list[str]:
    """The statements of a line, without its comment."""
    statements = [""]
    for match in re.finditer(rf"{_QUOTED}|#.*|//.*|.", line):
        part = match[0]
        if part.startswith(("#", "//")):
            break
        if part == ";":
            statements.append("")
        else:
            statements[-1] += part
    return [stripped for s in statements if (stripped := s.strip())]


def _split(text: str) -> list[str]:
    """Operands: divided by commas outside of strings and parentheses."""
    operands, depth = [""], 0
    for match in re.finditer(rf"{_QUOTED}|.", text):
        part = match[0]
        depth += {"(": 1, ")": -1}.get(part, 0)
        if part == "," and depth == 0:
            operands.append("")
        else:
            operands[-1] += part
    stripped = [operand.strip() for operand in operands]
    return [] if stripped == [""] else stripped


def _string(text: str) -> bytes:
    if not re.fullmatch(r'"(?:\\.|[^"\\])*"', text):
        raise ValueError(f"{text} is not a string in double quotes")
    return _bytes(text[1:-1])


def _bytes(text: str) -> bytes:
    """UTF-8, with escapes as single bytes."""
    parts = re.split(r"(\\(?:[0-7]{1,3}|x[0-9a-fA-F]+|.))", text)
    return b"".join(
        _unescape(part).encode("latin-1") if i % 2 else part.encode()
        for i, part in enumerate(parts)
    )


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        if match["octal"]:
            return chr(int(match["octal"], 8) & 255)
        if match["hexadecimal"]:
            return chr(int(match["hexadecimal"], 16) & 255)
        if match["letter"] not in _ESCAPES:
            raise ValueError(f"unknown escape {match[0]}")
        return _ESCAPES[match["letter"]]

    escape = r"\\(?:(?P<octal>[0-7]{1,3})|x(?P<hexadecimal>[0-9a-fA-F]+)|(?P<letter>.))"
    return re.sub(escape, character, text)
