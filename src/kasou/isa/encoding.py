"""Encoding strings, the `@insn` and `@compressed` decorators, and the decoder made from them.

An encoding string reads like the specification's table, most significant bit first:

    "imm[11:0] rs1 010 rd 0000011"          32 bits
    "010 uimm[5] rd!=0 uimm[4:2|7:6] 10"    16 bits

A token is literal bits, a field of known width (`WIDTHS`), or slices of an immediate,
`name[hi:lo|bit|...]`. Fields called `imm` are sign-extended from their highest bit, all others are
zero-extended. A prime (`rd'`) is a three-bit register x8..x15. `rd!=0`, `rd!=0,2` and, after any of
its slices, `imm[5]!=0` exclude values of the whole field.
Integer registers are rd, rs1, rs2; floating-point registers fd, fs1, fs2, fs3.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WIDTHS = {
    **dict.fromkeys(("rd", "rs1", "rs2", "fd", "fs1", "fs2", "fs3"), 5),
    **dict.fromkeys(("rd'", "rs1'", "rs2'", "fd'", "fs2'"), 3),
    "rm": 3, "aq": 1, "rl": 1, "csr": 12, "zimm": 5, "fm": 4, "pred": 4, "succ": 4,
}  # fmt: skip
Slice = tuple[int, int, int]
"""(lowest bit in the instruction, width, lowest bit in the field)"""


@dataclass(frozen=True, slots=True)
class Field:
    """A named operand: its slices of the instruction, and how they become a value."""

    name: str
    slices: tuple[Slice, ...]
    signed: bool = False
    prime: bool = False
    excluded: tuple[int, ...] = ()

    @property
    def bits(self) -> int:
        """Width in bits of the assembled value."""
        return max(low + width for _, width, low in self.slices)

    @property
    def scale(self) -> int:
        """Lowest bit that the encoding carries: lower ones are zero."""
        return min(low for _, _, low in self.slices)

    def extract(self, word: Any) -> Any:
        """The operand's value from an instruction, on ints or on any value of the protocol."""
        parts = [((word >> at) & ((1 << width) - 1)) << low for at, width, low in self.slices]
        value = parts[0]
        for part in parts[1:]:
            value = value | part
        if self.prime:
            value = value + 8
        if not self.signed:
            return value
        if isinstance(value, int):
            return value - (1 << self.bits) if value >> (self.bits - 1) else value
        return value.sext(self.bits)

    def insert(self, value: int) -> int:
        """The instruction bits that carry `value`; raises ValueError if they cannot."""
        raw = value - 8 if self.prime else value
        low, high = (
            (-(1 << self.bits - 1), 1 << self.bits - 1) if self.signed else (0, 1 << self.bits)
        )
        if not low <= raw < high:
            raise ValueError(f"{self.name}={value} is outside {low}..{high - 1}")
        if value in self.excluded:
            raise ValueError(f"{self.name}={value} is not allowed here")
        carried = 0
        word = 0
        for at, width, start in self.slices:
            word |= ((raw >> start) & ((1 << width) - 1)) << at
            carried |= ((1 << width) - 1) << start
        if raw & ((1 << self.bits) - 1) & ~carried:
            raise ValueError(f"{self.name}={value} has bits that the encoding does not carry")
        return word


def parse(encoding: str) -> tuple[int, int, int, dict[str, Field]]:
    """(mask, match, length in bytes, fields) of an encoding string; ValueError if malformed."""
    tokens: list[tuple[str, int]] = []
    for token in encoding.split():
        name = token.partition("!=")[0]
        if set(token) <= {"0", "1"}:
            width = len(token)
        elif "[" in token:
            width = sum(_span(part)[1] for part in _parts(name))
        else:
            width = WIDTHS[name]
        tokens.append((token, width))
    total = sum(width for _, width in tokens)
    if total not in (16, 32):
        raise ValueError(f"{encoding!r} has {total} bits, not 16 or 32")
    mask = match = 0
    slices: dict[str, list[Slice]] = {}
    excluded: dict[str, tuple[int, ...]] = {}
    at = total
    for token, width in tokens:
        at -= width
        if set(token) <= {"0", "1"}:
            mask |= ((1 << width) - 1) << at
            match |= int(token, 2) << at
            continue
        name, _, values = token.partition("!=")
        if values:
            excluded[name.partition("[")[0]] = tuple(int(v) for v in values.split(","))
        if "[" not in name:
            slices.setdefault(name, []).append((at, width, 0))
            continue
        position = at + width
        for part in _parts(name):
            low, count = _span(part)
            position -= count
            slices.setdefault(name.partition("[")[0], []).append((position, count, low))
    fields = {
        name.rstrip("'"): Field(
            name.rstrip("'"),
            tuple(found),
            name == "imm",
            name.endswith("'"),
            excluded.get(name, ()),
        )
        for name, found in slices.items()
    }
    return mask, match, total // 8, fields


def _parts(token: str) -> list[str]:
    return token[token.index("[") + 1 : token.index("]")].split("|")


def _span(part: str) -> tuple[int, int]:
    high, _, low = part.partition(":")
    return int(low or high), int(high) - int(low or high) + 1


Text = Callable[..., None]


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One instruction: its encoding, its assembly text, its meaning and where that stands."""

    name: str
    extension: str
    encoding: str
    asm: str
    text: Text
    mask: int
    match: int
    length: int
    fields: dict[str, Field]
    operands: tuple[str, ...]
    """The fields that the meaning uses, in the order of its parameters."""
    flow: str = ""
    """"branch" (pc-relative), "jump" (to a register), or "" (falls through or ends its block)."""
    expands: tuple[str, dict[str, str | int]] | None = None
    """For a compressed instruction: the base instruction and where its operands come from."""

    @property
    def source(self) -> str:
        """The specification's section, from the end of the docstring."""
        found = re.search(r"\(([^()]*)\)\s*$", inspect.getdoc(self.text) or "")
        return found[1] if found else ""


INSTRUCTIONS: dict[str, Instruction] = {}
"""Every instruction by name, in the order of definition; `kasou.isa.rv64` fills it."""


def insn(
    encoding: str, asm: str = "", name: str = "", flow: str = "", extension: str = ""
) -> Callable[[Text], Text]:
    """Define an instruction: `encoding` and `asm` beside the function that is its meaning.

    The function takes the hart and, by name, the fields it uses. `asm` holds the operands as
    `{field}`; the mnemonic is the function's name with `_` as `.`, or `name`; the extension is the
    module's name, or `extension`.
    """

    def define(text: Text) -> Text:
        mnemonic = name or text.__name__.rstrip("_").replace("_", ".")
        if mnemonic in INSTRUCTIONS:
            raise ValueError(f"{mnemonic} is defined twice")
        mask, match, length, fields = parse(encoding)
        operands = tuple(inspect.signature(text).parameters)[1:]
        if missing := [o for o in operands if o not in fields]:
            raise ValueError(f"{mnemonic}: {missing} not in the encoding {encoding!r}")
        home = extension or text.__module__.rpartition(".")[2]
        INSTRUCTIONS[mnemonic] = Instruction(
            mnemonic, home, encoding, asm, text, mask, match, length, fields, operands, flow
        )
        return text

    return define


def compressed(name: str, encoding: str, asm: str, base: str, **operands: str | int) -> None:
    """Define a 16-bit instruction as what it expands to: `base` with `operands`.

    An operand's value is a field of the compressed encoding (a name) or a constant.
    """
    mask, match, length, fields = parse(encoding)
    meaning = INSTRUCTIONS[base]
    if name in INSTRUCTIONS:
        raise ValueError(f"{name} is defined twice")
    INSTRUCTIONS[name] = Instruction(
        name, "c", encoding, asm, meaning.text, mask, match, length, fields,
        meaning.operands, meaning.flow, (base, operands),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded instruction: `base` is what runs, with its operands' values."""

    insn: Instruction
    base: Instruction
    fields: dict[str, int]
    """The fields of the encoding itself."""
    operands: dict[str, int] = field(default_factory=dict)
    """The operands of `base`'s text; immediates are signed ints."""


def length_of(bits: int) -> int:
    """Length in bytes of the instruction whose low 16 bits these are. (Unpriv. 1.5)"""
    return 4 if bits & 3 == 3 else 2


_BUCKETS: dict[int, list[Instruction]] = {}


def candidates(bits: int) -> list[Instruction]:
    """The instructions that share this word's major opcode."""
    if not _BUCKETS:
        for one in INSTRUCTIONS.values():
            for key in range(128):
                narrow = 0x7F if one.length == 4 else 0xE003
                spread = key if one.length == 4 else (key & 3) | (key >> 2 & 7) << 13
                if one.length == 2 and key >= 32:
                    continue
                if spread & one.mask & narrow == one.match & narrow:
                    _BUCKETS.setdefault(key if one.length == 4 else 128 + key, []).append(one)
    key = bits & 0x7F if length_of(bits) == 4 else 128 + ((bits & 3) | (bits >> 13 & 7) << 2)
    return _BUCKETS.get(key, [])


def decode(bits: int) -> Decoded | None:
    """Decode the low 16 or 32 bits; None if no instruction has this encoding."""
    bits &= 0xFFFFFFFF if length_of(bits) == 4 else 0xFFFF
    for one in candidates(bits):
        if bits & one.mask != one.match:
            continue
        values = {name: f.extract(bits) for name, f in one.fields.items()}
        if any(values[name] in f.excluded for name, f in one.fields.items()):
            continue
        if one.expands is None:
            return Decoded(one, one, values, {o: values[o] for o in one.operands})
        base, sources = INSTRUCTIONS[one.expands[0]], one.expands[1]
        taken = {
            o: values[s] if isinstance(s := sources.get(o, 0), str) else s for o in base.operands
        }
        return Decoded(one, base, values, taken)
    return None


def encode(name: str, **fields: int) -> int:
    """The instruction word; raises KeyError for an unknown name, ValueError for a bad operand."""
    one = INSTRUCTIONS[name]
    word = one.match
    for operand, f in one.fields.items():
        word |= f.insert(fields.get(operand, 0))
    return word
