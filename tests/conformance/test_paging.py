"""Address translation as instructions see it, against tables built by hand. (Priv. 12.3 to 12.5)"""

from __future__ import annotations

import random

import pytest
from conformance.computer import (
    BASE,
    CODE,
    DATA,
    LEVELS,
    S_MODE,
    U_MODE,
    A,
    Computer,
    D,
    G,
    R,
    Tables,
    U,
    V,
    W,
    X,
    leaf,
)  # fmt: skip

ALL = V | R | W | X | A | D
SUM, MXR = 1 << 18, 1 << 19
N, PBMTE, ADUE = 1 << 63, 1 << 62, 1 << 61
VA = 0x12_3456_7000 & (1 << 38) - 1
ACCESSES = {"load": ("ld a0, (a1)", 13), "store": ("sd a0, (a1)", 15), "amo": ("amoadd.d a0, a2, (a1)", 15),
            "lr": ("lr.d a0, (a1)", 13), "fetch": ("", 12)}  # fmt: skip


@pytest.fixture(params=sorted(LEVELS))
def tables(request: pytest.FixtureRequest, computer: Computer) -> Tables:
    made = Tables(computer, request.param)
    made.use()
    return made


def access(
    computer: Computer, kind: str, va: int, priv: int = S_MODE
) -> tuple[int, int, int] | None:
    """Try an access at `va`; code stands in an executable page of its own kind."""
    if kind == "fetch":
        return computer.step(priv, va)
    computer["x11"] = va
    return computer.step(
        priv,
        {"load": 0, "store": 4, "amo": 8, "lr": 12}[kind] + (CODE if priv == S_MODE else VA - 4096),
    )


@pytest.fixture
def ready(computer: Computer, tables: Tables) -> Tables:
    """The four instructions at CODE for S, and in a user page for U; a nop at DATA."""
    computer.program("\n".join(text for text, _ in ACCESSES.values() if text))
    computer.memory.write(DATA, b"\x13\0\0\0" * 1024)
    tables.map(VA - 4096, leaf(CODE, ALL | U))
    return tables


def allowed(flags: int, kind: str, priv: int, status: int) -> bool:
    """Priv. 12.3.1, as sentences."""
    if flags & (R | W) == W or not flags & V or not flags & (R | X):
        return False
    if priv == U_MODE and not flags & U:
        return False
    if priv == S_MODE and flags & U and (kind == "fetch" or not status & SUM):
        return False
    if kind == "fetch":
        return bool(flags & X)
    if kind in ("store", "amo"):
        return bool(flags & W)
    return bool(flags & R) or bool(status & MXR and flags & X)


def test_permissions(computer: Computer, ready: Tables) -> None:
    status = computer.csr("mstatus")
    for bits in range(32):
        ready.map(VA, leaf(DATA, bits | A | D))
        for more in (0, SUM, MXR, SUM | MXR):
            for priv in (U_MODE, S_MODE):
                for kind, (_, cause) in ACCESSES.items():
                    computer.put("mstatus", status | more)
                    trap = access(computer, kind, VA, priv)
                    if allowed(bits, kind, priv, more):
                        assert trap is None, (bits, more, priv, kind)
                    else:
                        assert trap is not None, (bits, more, priv, kind)
                        assert trap[:2] == (cause, VA), (bits, more, priv, kind)


@pytest.mark.parametrize("adue", [0, ADUE])
def test_accessed_and_dirty(computer: Computer, ready: Tables, adue: int) -> None:
    computer.put("menvcfg", adue)
    for bits in (0, A, D, A | D):
        for kind, (_, cause) in ACCESSES.items():
            at = ready.map(VA, leaf(DATA, V | R | W | X | bits))
            need = A | D if kind in ("store", "amo") else A
            trap = access(computer, kind, VA)
            if bits & need == need or adue:
                assert trap is None
                assert computer.memory.load_u64(at) == leaf(DATA, V | R | W | X | bits | need)
            else:
                assert trap is not None and trap[:2] == (cause, VA)
                assert computer.memory.load_u64(at) == leaf(DATA, V | R | W | X | bits)


def test_a_store_after_a_load_sets_dirty(computer: Computer, ready: Tables) -> None:
    computer.put("menvcfg", ADUE)
    at = ready.map(VA, leaf(DATA, V | R | W))
    computer.program("ld a0, (a1)\nld a0, (a1)\nsd a0, (a1)")
    computer["x11"], computer["priv"], computer["pc"] = VA, S_MODE, CODE
    computer.run(2)
    assert computer.memory.load_u64(at) & (A | D) == A
    computer.run(1)
    assert computer.memory.load_u64(at) & (A | D) == A | D


def test_superpages(computer: Computer, ready: Tables) -> None:
    for level in range(1, ready.levels):
        size = 4096 << 9 * level
        va = 3 << 12 + 9 * (ready.levels - 1) | (size if level < ready.levels - 1 else 0)
        target = DATA if level == 1 else BASE
        ready.map(va, leaf(target & ~(size - 1), ALL), level)
        offset = (DATA - (target & ~(size - 1))) + 0x18
        if target & ~(size - 1) <= DATA < (target & ~(size - 1)) + size:
            computer.memory.store_u64(DATA + 0x18, 0x1234_5678 + level)
            assert access(computer, "load", va + offset) is None
            assert computer["x10"] == 0x1234_5678 + level
        for bit in (12, 12 + 9 * level - 1):
            ready.map(va, leaf(target & ~(size - 1) | 1 << bit, ALL), level)
            for kind, (_, cause) in ACCESSES.items():
                trap = access(computer, kind, va)
                assert trap is not None and trap[:2] == (cause, va)


def test_not_canonical_addresses_fault(computer: Computer, ready: Tables) -> None:
    bits = 12 + 9 * ready.levels
    high = (1 << 64) - (1 << bits - 1)
    ready.map(high, leaf(DATA, ALL))
    assert access(computer, "load", high) is None
    for va in (high - 8, 1 << bits - 1, high & (1 << bits) - 1, 1 << 63):
        for kind, (_, cause) in ACCESSES.items():
            trap = access(computer, kind, va)
            assert trap is not None and trap[:2] == (cause, va)


def test_svnapot_and_svpbmt(computer: Computer, ready: Tables) -> None:
    block = BASE + (3 << 16)
    computer.memory.store_u64(block + 0x5008, 0xCAFE)
    va = VA & ~0xFFFF
    for low in range(16):
        entry = leaf(block, ALL) | low << 10 | N
        ready.map(va + 0x5000, entry)
        trap = access(computer, "load", va + 0x5008)
        if low == 8:
            assert trap is None and computer["x10"] == 0xCAFE
        else:
            assert trap is not None and trap[:2] == (13, va + 0x5008)
    for kind in range(4):
        ready.map(VA, leaf(DATA, ALL) | kind << 61)
        for enabled in (0, PBMTE):
            computer.put("menvcfg", enabled)
            good = kind == 0 or (kind < 3 and bool(enabled))
            assert (access(computer, "load", VA) is None) == good


def test_reserved_bits(computer: Computer, ready: Tables) -> None:
    at = ready.map(VA, leaf(DATA, ALL))
    for bit in range(54, 61):
        ready.map(VA, leaf(DATA, ALL) | 1 << bit)
        trap = access(computer, "load", VA)
        assert trap is not None and trap[:2] == (13, VA)
    ready.map(VA, leaf(DATA, ALL) | 3 << 8 | G)
    assert access(computer, "load", VA) is None
    parent = ready.entry(VA, 1)
    good = computer.memory.load_u64(parent)
    computer.put("menvcfg", PBMTE)
    for bad in (A, D, U, W, N, 1 << 61, 1 << 62, 1 << 54, 1 << 60):
        computer.memory.store_u64(parent, good | bad)
        trap = access(computer, "store", VA)
        assert trap is not None and trap[:2] == (15, VA), hex(bad)
    computer.memory.store_u64(parent, good)
    ready.map(VA, leaf(at, V))
    trap = access(computer, "fetch", VA)
    assert trap is not None and trap[:2] == (12, VA)


def test_tables_outside_of_ram_are_access_faults(computer: Computer, tables: Tables) -> None:
    computer.program("ld a0, (a1)\nsd a0, (a1)")
    entry = tables.entry(VA, 1)
    computer.memory.store_u64(entry, leaf(0x4000_0000, V))
    for offset, cause in ((0, 5), (4, 7)):
        computer["x11"] = VA
        trap = computer.step(S_MODE, CODE + offset)
        assert trap is not None and trap[:2] == (cause, VA)
    trap = computer.step(S_MODE, VA)
    assert trap is not None and trap[:2] == (1, VA)


def test_misaligned_accesses_across_pages(computer: Computer, tables: Tables) -> None:
    """Both pages are elsewhere; either may be missing; a store leaves nothing behind."""
    first, second = DATA + 0x3000, DATA + 0x1000
    rng = random.Random(5)
    for size, load, store in ((2, "lhu", "sh"), (4, "lwu", "sw"), (8, "ld", "sd")):
        for before in range(1, size):
            data = rng.randbytes(size)
            va = VA + 4096 - before
            tables.map(VA, leaf(first, ALL))
            tables.map(VA + 4096, leaf(second, ALL))
            computer.memory.write(first, bytes(4096))
            computer.memory.write(second, bytes(4096))
            computer["x11"], computer["x12"] = va, int.from_bytes(data, "little")
            assert computer.attempt(f"{store} a2, (a1)", S_MODE) is None
            assert computer.memory.read(first + 4096 - before, before) == data[:before]
            assert computer.memory.read(second, size - before) == data[before:]
            assert computer.attempt(f"{load} a0, (a1)", S_MODE) is None
            assert computer["x10"] == int.from_bytes(data, "little")
            computer["x12"] = ~computer["x12"]
            tables.map(VA + 4096, 0)
            assert computer.attempt(f"{store} a2, (a1)", S_MODE) == (15, VA + 4096, CODE)
            assert computer.memory.read(first + 4096 - before, before) == data[:before]
            assert computer.attempt(f"{load} a0, (a1)", S_MODE) == (13, VA + 4096, CODE)
            tables.map(VA, 0)
            assert computer.attempt(f"{load} a0, (a1)", S_MODE) == (13, va, CODE)


def test_an_instruction_in_two_pages(computer: Computer, tables: Tables) -> None:
    first, second = DATA + 0x3000, DATA + 0x1000
    word = 0x7FF50513.to_bytes(4, "little")  # addi a0, a0, 2047
    computer.memory.write(first + 4094, word[:2])
    computer.memory.write(second, word[2:] + b"\x13\0\0\0")
    tables.map(VA, leaf(first, ALL))
    computer["x10"] = 1
    assert computer.step(S_MODE, VA + 4094) == (12, VA + 4096, VA + 4094)
    tables.map(VA + 4096, leaf(second, ALL & ~X))
    assert computer.step(S_MODE, VA + 4094) == (12, VA + 4096, VA + 4094)
    tables.map(VA + 4096, leaf(0x4000_0000, ALL))
    assert computer.step(S_MODE, VA + 4094) == (1, VA + 4096, VA + 4094)
    tables.map(VA + 4096, leaf(second, ALL))
    assert computer.step(S_MODE, VA + 4094) is None
    assert (computer["x10"], computer["pc"]) == (2048, VA + 4098)
    tables.map(VA, 0)
    assert computer.step(S_MODE, VA + 4094) == (12, VA + 4094, VA + 4094)
    # another second half, of an instruction that faults: epc is its start, tval its bits
    tables.map(VA, leaf(first, ALL))
    computer.memory.write(first + 4094, b"\x73\x10")
    computer.memory.write(second, b"\x00\x7c")  # csrw 0x7c0, x0
    computer.touched()
    assert computer.step(S_MODE, VA + 4094) == (2, 0x7C001073, VA + 4094)


def test_the_second_half_is_looked_up_anew(computer: Computer, tables: Tables) -> None:
    """The same first page before two second ones, with sfence.vma and no fence.i between."""
    first, second, third = DATA + 0x3000, DATA + 0x1000, DATA + 0x5000
    word = 0x7FF50513.to_bytes(4, "little")
    other = 0x00150513.to_bytes(4, "little")
    computer.memory.write(first + 4094, word[:2])
    computer.memory.write(second, word[2:] + b"\x01\0")
    computer.memory.write(third, other[2:] + b"\x01\0")
    tables.map(VA, leaf(first, ALL))
    entry = tables.map(VA + 4096, leaf(second, ALL))
    computer.program(
        """
        jalr s1
        sd a3, (a2)
        sfence.vma a1, zero
        jalr s1
        1: j 1b
        """
    )
    for page in (second, third):
        computer.memory.write(page + 2, b"\x82\x80")  # ret
    computer["x10"], computer["x9"], computer["x11"] = 0, VA + 4094, VA + 4096
    computer["x12"], computer["x13"] = entry, leaf(third, ALL)
    computer["priv"], computer["pc"] = S_MODE, CODE
    computer.run(20)
    assert computer["x10"] == 2048


def test_sfence_is_precise(computer: Computer, ready: Tables) -> None:
    """After the fence of an address, every 4 KiB piece of its page is looked up anew."""
    level = 1
    va = 5 << 30
    ready.map(va, leaf(BASE, ALL), level)
    entry = ready.map(va, leaf(BASE, ALL), level)
    computer.memory.store_u64(DATA, 111)
    computer.memory.store_u64(DATA + 0x20_0000, 222)
    computer.program(
        """
        ld a0, (s0)
        ld a0, (s1)
        sd a3, (a2)
        sfence.vma s1, zero
        ld a4, (s0)
        """
    )
    computer["x8"], computer["x9"] = va + (DATA - BASE), va + 0x1000
    computer["x12"], computer["x13"] = entry, leaf(BASE + 0x20_0000, ALL)
    computer["priv"], computer["pc"] = S_MODE, CODE
    computer.run(5)
    assert (computer["x10"] != 222, computer["x14"]) == (True, 222)


@pytest.mark.parametrize("fence", ["sfence.vma", "sfence.vma zero, a5", "sinval.vma zero, zero"])
def test_fences_of_everything(computer: Computer, ready: Tables, fence: str) -> None:
    entry = ready.map(VA, leaf(DATA, ALL))
    computer.memory.store_u64(DATA, 111)
    computer.memory.store_u64(DATA + 0x1000, 222)
    computer.program(f"ld a0, (s0)\nsd a3, (a2)\n{fence}\nld a4, (s0)")
    computer["x8"], computer["x12"], computer["x13"] = VA, entry, leaf(DATA + 0x1000, ALL)
    computer["x15"], computer["priv"], computer["pc"] = 0, S_MODE, CODE
    computer.run(4)
    assert (computer["x10"], computer["x14"]) == (111, 222)


def test_a_fence_for_code_pages(computer: Computer, ready: Tables) -> None:
    computer.memory.write(DATA, b"\x05\x05\x82\x80")  # c.addi a0, 1; ret
    computer.memory.write(DATA + 0x1000, b"\x09\x05\x82\x80")  # c.addi a0, 2; ret
    entry = ready.map(VA, leaf(DATA, ALL))
    computer.program("jalr s0\nsd a3, (a2)\nsfence.vma s0, zero\njalr s0\n1: j 1b")
    computer["x8"], computer["x12"], computer["x13"] = VA, entry, leaf(DATA + 0x1000, ALL)
    computer["x10"], computer["priv"], computer["pc"] = 0, S_MODE, CODE
    computer.run(12)
    assert computer["x10"] == 3


def test_satp_switches_address_spaces(computer: Computer, ready: Tables) -> None:
    other = Tables(
        computer, next(n for n, (m, _) in LEVELS.items() if m == ready.mode), at=ready.next
    )
    ready.map(VA, leaf(DATA, ALL))
    other.map(VA, leaf(DATA + 0x1000, ALL))
    computer.memory.store_u64(DATA, 111)
    computer.memory.store_u64(DATA + 0x1000, 222)
    computer.program("ld a0, (s0)\ncsrw satp, a3\nld a4, (s0)\ncsrw satp, zero\nld a5, (s1)")
    computer["x8"], computer["x9"], computer["x13"] = VA, DATA, other.satp | 7 << 44
    computer["priv"], computer["pc"] = S_MODE, CODE
    computer.run(5)
    assert [computer[f"x{i}"] for i in (10, 14, 15)] == [111, 222, 111]


def test_mprv_and_sum_take_effect_at_once(computer: Computer, ready: Tables) -> None:
    ready.map(VA, leaf(DATA, ALL | U))
    computer.memory.store_u64(DATA, 111)
    computer.program("csrs sstatus, a2\nld a0, (s0)\ncsrc sstatus, a2\nld a3, (s0)")
    computer["x8"], computer["x12"], computer["x13"] = VA, SUM, 5
    computer["priv"], computer["pc"] = S_MODE, CODE
    computer.run(4)
    assert computer["x10"] == 111
    assert computer.trapped() == (13, VA, CODE + 12)
    # M-mode with MPRV and MPP = U reads by the tables; without it, at physical addresses
    computer["mstatus"] = computer["mstatus"] & ~(3 << 11)
    computer.program("csrs mstatus, a2\nld a0, (s0)\ncsrc mstatus, a2\nld a3, (s0)")
    computer["x10"], computer["x12"] = 0, 1 << 17
    computer["priv"], computer["pc"] = 3, CODE
    computer.run(4)
    assert computer["x10"] == 111
    assert computer.trapped() == (5, VA, CODE + 12)
