"""Loads and stores that reach a device, or nothing."""

from __future__ import annotations

import pytest
from conformance.computer import (
    CODE,
    DATA,
    DEVICE,
    M_MODE,
    S_MODE,
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

VALUE = 0x8877_6655_4433_2211


def test_loads_and_stores_of_every_width(computer: Computer) -> None:
    for size, load, store in ((1, "lb", "sb"), (2, "lh", "sh"), (4, "lw", "sw"), (8, "ld", "sd")):
        for offset in range(0, 16, size):
            computer["x11"], computer["x12"] = DEVICE + offset, 0xF0E1_D2C3_B4A5_9687
            computer.log.clear()
            assert computer.attempt(f"{load} a0, (a1)") is None
            raw = VALUE & (1 << 8 * size) - 1
            signed = raw - (1 << 8 * size) if raw >> 8 * size - 1 else raw
            assert computer["x10"] == signed & (1 << 64) - 1
            assert computer.attempt(f"{store} a2, (a1)") is None
            low = 0xF0E1_D2C3_B4A5_9687 & (1 << 8 * size) - 1
            assert computer.log == [("r", offset, size), ("w", offset, size, low)]
    computer["mstatus"] = 3 << 13
    computer["x11"] = DEVICE
    assert computer.attempt("fld fa0, (a1)") is None
    assert computer["f10"] == VALUE
    assert computer.attempt("c.lw a0, 4(a1)") is None
    assert computer["x10"] == 0x44332211


@pytest.mark.parametrize(
    ("text", "cause"),
    [("ld a0, (a1)", 5), ("sd a0, (a1)", 7), ("lw a0, 1(a1)", 5), ("sh a0, 1(a1)", 7), ("lr.d a0, (a1)", 5),
     ("sc.d a0, a2, (a1)", 7), ("amoadd.w a0, a2, (a1)", 7), ("cbo.zero (a1)", 7), ("fsd fa0, (a1)", 7)],
)  # fmt: skip
@pytest.mark.parametrize("where", [DEVICE, DEVICE + 16, 0, (1 << 56) - 16, (1 << 64) - 16])
def test_access_faults(computer: Computer, text: str, cause: int, where: int) -> None:
    if where == DEVICE and text in ("ld a0, (a1)", "sd a0, (a1)", "fsd fa0, (a1)"):
        return
    computer["mstatus"] = 3 << 13
    computer["x11"], computer["x10"] = where, 77
    before = computer.csr("minstret")
    trap = computer.attempt(text)
    tval = where + (1 if "1(a1)" in text else 0)
    assert trap == (cause, tval, CODE)
    assert computer["x10"] == 77
    assert computer.csr("minstret") == before
    assert not [one for one in computer.log if one[0] == "w"]


def test_code_in_a_device_is_an_access_fault(computer: Computer) -> None:
    assert computer.step(M_MODE, DEVICE) == (1, DEVICE, DEVICE)
    end = 0x8000_0000 + computer.memory.size
    assert computer.step(M_MODE, end) == (1, end, end)
    computer.memory.store(end - 2, 2, 3)  # half an instruction, then nothing
    assert computer.step(M_MODE, end - 2) == (1, end, end - 2)


def test_a_misaligned_access_at_the_end_of_ram(computer: Computer) -> None:
    end = 0x8000_0000 + computer.memory.size
    computer["x11"] = end - 3
    for text, cause in (("ld a0, (a1)", 5), ("sd a0, (a1)", 7)):
        assert computer.attempt(text) == (cause, end, CODE)
    computer["x11"] = 0x8000_0000 - 3
    for text, cause in (("ld a0, (a1)", 5), ("sd a0, (a1)", 7)):
        assert computer.attempt(text) == (cause, 0x8000_0000 - 3, CODE)
    computer["x11"] = (1 << 64) - 3
    assert computer.attempt("ld a0, (a1)") == (5, (1 << 64) - 3, CODE)


def test_a_run_of_accesses_counts_as_it_should(computer: Computer) -> None:
    """Device accesses between others, under translation, in order and once each."""
    tables = Tables(computer, "sv39")
    tables.use()
    va = 7 << 30
    tables.map(va, leaf(DEVICE, V | R | W | A | D))
    computer.program(
        """
        li s2, 20
    1:  sw s2, (a1)
        lw a0, 8(a1)
        sd a0, (a2)
        addi s2, s2, -1
        bnez s2, 1b
        csrr a3, instret
        ebreak
        """
    )
    computer.put("mcounteren", 7)
    computer.put("minstret", 0)
    computer["x11"], computer["x12"], computer["priv"], computer["pc"] = va, DATA, S_MODE, CODE
    computer.run(102)
    assert computer["x13"] == 100  # the first one to count is the one after "put"
    want = []
    for value in range(20, 0, -1):
        want += [("w", 0, 4, value), ("r", 8, 4)]
    assert computer.log == want
    tables.map(va, leaf(DEVICE, V | R | X | A | D))
    computer.touched()
    computer["priv"], computer["pc"] = S_MODE, CODE + 4
    computer.run(1)
    assert computer.trapped() == (15, va, CODE + 4)
