"""PMP as instructions meet it. (Priv. 3.7)"""

from __future__ import annotations

import pytest
from conformance.computer import (
    CODE,
    DATA,
    M_HANDLER,
    M_MODE,
    S_MODE,
    U_MODE,
    A,
    Computer,
    D,
    R,
    Tables,
    V,
    W,
    X,
    leaf,
)

READ, WRITE, EXECUTE, LOCKED = 1, 2, 4, 0x80
TOR, NA4, NAPOT = 1 << 3, 2 << 3, 3 << 3
FAULTS = {"load": ("ld a0, (a1)", 5), "store": ("sd a0, (a1)", 7), "amo": ("amoor.d a0, a2, (a1)", 7),
          "fetch": ("", 1), "cbo": ("cbo.zero (a1)", 7)}  # fmt: skip
NEEDS = {"load": READ, "store": WRITE, "amo": READ | WRITE, "fetch": EXECUTE, "cbo": WRITE}


def entry(computer: Computer, index: int, config: int, address: int) -> None:
    """One entry by instructions of M-mode: address, then configuration byte."""
    register, shift = f"pmpcfg{index // 8 * 2}", index % 8 * 8
    computer["x10"], computer["x11"], computer["x12"] = address >> 2, 0xFF << shift, config << shift
    computer.program(f"csrw pmpaddr{index}, a0\ncsrc {register}, a1\ncsrs {register}, a2")
    computer["priv"], computer["pc"] = M_MODE, CODE
    computer.run(3)


def napot(base: int, size: int) -> int:
    """What NAPOT's address register wants, before it loses two bits."""
    return base | (size // 2 - 1)


def access(computer: Computer, kind: str, at: int, priv: int) -> tuple[int, int, int] | None:
    if kind == "fetch":
        return computer.step(priv, at)
    computer["x11"] = at
    return computer.attempt(FAULTS[kind][0], priv)


def denied(kind: str, at: int) -> tuple[int, int, int]:
    return FAULTS[kind][1], at, at if kind == "fetch" else CODE


@pytest.mark.parametrize("priv", [U_MODE, S_MODE, M_MODE])
@pytest.mark.parametrize("locked", [0, LOCKED])
def test_rights(computer: Computer, priv: int, locked: int) -> None:
    computer.put("menvcfg", 0xF0)
    computer.put("senvcfg", 0xF0)
    for index, rights in enumerate(
        (0, READ, READ | WRITE, EXECUTE, READ | EXECUTE, READ | WRITE | EXECUTE)
    ):
        page = DATA + index * 0x1000
        computer.program("nop\n" * 1024, page)
        entry(computer, index, NAPOT | rights | locked, napot(page, 4096))
        for kind, need in NEEDS.items():
            free = priv == M_MODE and not locked
            trap = access(computer, kind, page, priv)
            assert trap == (None if free or rights & need == need else denied(kind, page))


@pytest.mark.parametrize("kind", ["load", "store", "amo", "fetch"])
def test_ranges_end_where_they_say(computer: Computer, kind: str) -> None:
    computer.program("nop\n" * 2048, DATA)
    shapes = {
        "na4": (NA4, 0x100, 0x104), "napot8": (NAPOT, 0x100, 0x108),
        "napot64": (NAPOT, 0x140, 0x180), "tor": (TOR, 0x104, 0x234),
    }  # fmt: skip
    for mode, low, high in shapes.values():
        entry(computer, 0, 0, DATA + low)
        last = {TOR: DATA + high, NA4: DATA + low, NAPOT: napot(DATA + low, high - low)}[mode]
        entry(computer, 1, mode, last)
        width = 4 if kind == "fetch" else 8
        for at in range(DATA + low - 16, DATA + high + 16, 4 if kind == "fetch" else 8):
            at &= ~(width - 1)
            touched = at < DATA + high and at + width > DATA + low
            assert access(computer, kind, at, U_MODE) == (denied(kind, at) if touched else None), (
                hex(at)
            )


def test_code_that_walks_into_a_forbidden_part_of_its_page(computer: Computer) -> None:
    """By falling through, and by a branch within the page."""
    computer.program("nop\nnop\nnop\nnop\nnop\nnop\n", DATA)
    entry(computer, 0, NA4, DATA + 16)
    computer["priv"], computer["pc"] = U_MODE, DATA
    computer.run(5)
    assert computer.trapped() == (1, DATA + 16, DATA + 16)
    computer.program("nop\nj 1f\nnop\nnop\n1: nop", DATA)
    computer["priv"], computer["pc"] = U_MODE, DATA
    computer.run(3)
    assert computer.trapped() == (1, DATA + 16, DATA + 16)
    # M-mode may, and what it runs works as anywhere
    computer.program("addi a0, zero, 5\nwfi\ncsrr a1, mie\ncsrw mie, a0\nnop\nnop\nebreak", DATA)
    computer["mie"] = 8
    computer["priv"], computer["pc"] = M_MODE, DATA
    computer.run(2)
    computer.run(5)
    assert computer.trapped() == (3, DATA + 24, DATA + 24)
    assert (computer["x11"], computer.csr("mie")) == (8, 0)


def test_no_match_forbids_all_but_machine_mode(computer: Computer) -> None:
    computer.program("nop", DATA)
    entry(computer, 15, 0, 0)
    for kind in FAULTS:
        assert access(computer, kind, DATA, M_MODE) is None
    for priv in (U_MODE, S_MODE):
        assert computer.step(priv, CODE) == (1, CODE, CODE)


def test_the_lowest_entry_decides(computer: Computer) -> None:
    entry(computer, 3, NAPOT | READ | WRITE, napot(DATA, 4096))
    entry(computer, 2, NAPOT | READ, napot(DATA, 64))
    entry(computer, 5, NAPOT, napot(DATA, 8192))
    assert access(computer, "store", DATA, U_MODE) == denied("store", DATA)
    assert access(computer, "store", DATA + 64, U_MODE) is None
    assert access(computer, "load", DATA + 4096, U_MODE) == denied("load", DATA + 4096)


def test_an_access_that_an_entry_holds_in_part_is_denied(computer: Computer) -> None:
    at = DATA + 0x100
    entry(computer, 0, NA4 | READ | WRITE, at)
    assert access(computer, "load", at, U_MODE) == denied("load", at)
    assert access(computer, "load", at - 4, U_MODE) == denied("load", at - 4)
    computer["x11"] = at
    assert computer.attempt("lw a0, (a1)", U_MODE) is None


def test_locks_hold(computer: Computer) -> None:
    entry(computer, 0, 0, DATA)
    entry(computer, 1, TOR | READ | LOCKED, DATA + 64)
    for index in (0, 1):
        before = computer.csr(f"pmpaddr{index}")
        entry(computer, index, NAPOT | READ | WRITE, 0x1234000)
        assert computer.csr(f"pmpaddr{index}") == before
    assert computer.csr("pmpcfg0") >> 8 & 0xFF == TOR | READ | LOCKED
    computer.attempt("csrw pmpcfg0, zero")
    assert access(computer, "store", DATA, M_MODE) == denied("store", DATA)
    assert access(computer, "load", DATA, M_MODE) is None


def test_write_without_read_is_not_kept(computer: Computer) -> None:
    entry(computer, 4, NAPOT | READ, napot(DATA, 64))
    computer["x10"] = (NAPOT | WRITE) << 32
    computer.attempt("csrw pmpcfg0, a0")
    assert computer.csr("pmpcfg0") >> 32 & 3 != WRITE


def test_mprv_is_checked_as_the_mode_it_names(computer: Computer) -> None:
    entry(computer, 0, NAPOT, napot(DATA, 64))
    for mpp in (U_MODE, S_MODE, M_MODE):
        computer["mstatus"] = 1 << 17 | mpp << 11
        trap = access(computer, "load", DATA, M_MODE)
        assert trap == (None if mpp == M_MODE else denied("load", DATA))


def test_page_tables_and_pages_are_both_checked(computer: Computer) -> None:
    tables = Tables(computer, "sv39")
    tables.use()
    va = 7 << 30
    at = tables.map(va, leaf(DATA, V | R | W | X | A | D))
    assert access(computer, "load", va, S_MODE) is None
    entry(computer, 0, NAPOT, napot(at & ~4095, 4096))
    for kind in ("load", "store", "amo", "fetch"):
        assert access(computer, kind, va, S_MODE) == denied(kind, va)
    entry(computer, 0, NAPOT | READ, napot(at & ~4095, 4096))
    assert access(computer, "load", va, S_MODE) is None
    computer.put("menvcfg", 1 << 61)
    tables.map(va, leaf(DATA, V | R | W))
    assert access(computer, "load", va, S_MODE) == denied("load", va)  # A cannot be written
    entry(computer, 0, NAPOT | READ, napot(DATA, 4096))
    tables.map(va, leaf(DATA, V | R | W | A | D))
    assert access(computer, "store", va, S_MODE) == denied("store", va)
    assert access(computer, "load", va, S_MODE) is None


def test_a_change_takes_effect_at_the_next_access(computer: Computer) -> None:
    computer["x10"], computer["x11"], computer["x12"] = napot(DATA, 64) >> 2, DATA, NAPOT | LOCKED
    computer.program("sd zero, (a1)\nld a2, (a1)\ncsrw pmpaddr0, a0\ncsrw pmpcfg0, a3\nld a2, (a1)")
    computer["x13"], computer["priv"], computer["pc"] = NAPOT | LOCKED, M_MODE, CODE
    computer.run(5)
    assert computer["pc"] == M_HANDLER
    assert computer.trapped() == (5, DATA, CODE + 16)
