"""Encodings: none overlaps another, and decoding undoes encoding, for every instruction."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.isa import rv64  # noqa: F401
from kasou.isa.encoding import INSTRUCTIONS, Field, Instruction, decode, encode, parse

COMPRESSED = [one for one in INSTRUCTIONS.values() if one.length == 2]
NARROW = [code for code in range(1 << 16) if code & 3 != 3]


def matches(one: Instruction, bits: int) -> bool:
    return bits & one.mask == one.match and all(
        f.extract(bits) not in f.excluded for f in one.fields.values()
    )


def values(f: Field) -> st.SearchStrategy[int]:
    """All that a field can hold."""
    count = f.bits - f.scale
    low = -(1 << count - 1) if f.signed else 0
    high = (1 << count - 1 if f.signed else 1 << count) - 1
    numbers = st.integers(low, high).map(lambda v: (v << f.scale) + 8 * f.prime)
    return numbers.filter(lambda v: v not in f.excluded)


def operands(one: Instruction) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({name: values(f) for name, f in one.fields.items()})


def test_no_32_bit_encodings_overlap() -> None:
    wide = [one for one in INSTRUCTIONS.values() if one.length == 4]
    assert all(one.match & 3 == 3 and one.mask & 3 == 3 for one in wide)
    for a, b in itertools.combinations(wide, 2):
        assert (a.match ^ b.match) & a.mask & b.mask, f"{a.name} and {b.name}"


def test_no_16_bit_encodings_overlap() -> None:
    for code in NARROW:
        found = [one.name for one in COMPRESSED if matches(one, code)]
        assert len(found) <= 1, f"{code:#06x}"
        decoded = decode(code)
        assert found == ([decoded.insn.name] if decoded else [])


@pytest.mark.parametrize("name", INSTRUCTIONS)
@settings(max_examples=12)
@given(st.data())
def test_decode_undoes_encode(name: str, data: st.DataObject) -> None:
    one = INSTRUCTIONS[name]
    fields = data.draw(operands(one))
    decoded = decode(encode(name, **fields))
    assert decoded is not None
    assert decoded.insn is one
    assert decoded.fields == fields
    if one.expands is None:
        assert decoded.operands == {o: fields[o] for o in one.operands}


@given(st.integers(0, (1 << 30) - 1).map(lambda bits: bits << 2 | 3))
def test_encode_undoes_decode(bits: int) -> None:
    decoded = decode(bits)
    if decoded is not None:
        assert encode(decoded.insn.name, **decoded.fields) == bits


def test_every_expansion_encodes() -> None:
    for code in NARROW:
        if decoded := decode(code):
            assert encode(decoded.base.name, **decoded.operands) & 3 == 3


@pytest.mark.parametrize(
    "code",
    [
        0x0000,  # all zeros
        0x0004,  # c.addi4spn of 0
        0x2001,  # c.addiw to x0
        0x6101,  # c.addi16sp of 0
        0x6081,  # c.lui of 0
        0x8002,  # c.jr to x0
        0x4002,  # c.lwsp to x0
        0x6002,  # c.ldsp to x0
        0x8000,  # quadrant 0, 100
        0x9C41,  # the reserved places beside c.subw
        0x9C61,
    ],
)
def test_reserved(code: int) -> None:
    assert decode(code) is None


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x0015, "c.nop"),
        (0x0501, "c.addi"),
        (0x4015, "c.li"),
        (0x6005, "c.lui"),
        (0x0002, "c.slli"),
        (0x8001, "c.srli"),
        (0x8016, "c.mv"),
        (0x900A, "c.add"),
    ],
)
def test_hints_decode(code: int, name: str) -> None:
    decoded = decode(code)
    assert decoded is not None
    assert decoded.insn.name == name


def test_every_instruction_names_its_source() -> None:
    missing = [one.name for one in INSTRUCTIONS.values() if not one.source and one.length == 4]
    assert missing == []


@pytest.mark.parametrize("encoding", ["rs1 010 rd", "imm[11:0] 000 rd 0010011", "0" * 33])
def test_malformed(encoding: str) -> None:
    with pytest.raises(ValueError, match="bits"):
        parse(encoding)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("addi", {"imm": 2048}),
        ("addi", {"rd": 32}),
        ("beq", {"imm": 3}),
        ("lui", {"imm": 1}),
        ("c.lui", {"rd": 2, "imm": 4096}),
        ("c.addi", {"rd": 0}),
        ("c.and", {"rd": 7, "rs2": 8}),
        ("c.addi4spn", {"rd": 8, "uimm": 0}),
    ],
)
def test_refused_operands(name: str, fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="="):
        encode(name, **fields)
