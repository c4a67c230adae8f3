"""Code that is written and then run on the same hart. (Unpriv. 'Zifencei')"""

from __future__ import annotations

import pytest
from conformance.computer import (
    BASE,
    CODE,
    DATA,
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

ADD_1, ADD_16 = 0x00150513, 0x01050513  # addi a0, a0, n
RET = 0x00008067


def patch(n: int) -> int:
    return ADD_1 & 0xFFFFF | n << 20


def test_with_fence_i_the_new_code_runs(computer: Computer) -> None:
    """A function is rewritten 200 times, each time by another instruction."""
    computer.program(f".word {ADD_1}\nret", DATA)
    computer.program(
        """
        li s2, 200
        li a0, 0
        li s3, 0x00050513
        slli s5, s2, 20
    1:  slli s4, s2, 20
        or s4, s4, s3
        sw s4, (s0)
        fence.i
        jalr s0
        addi s2, s2, -1
        bnez s2, 1b
        ebreak
        """
    )
    computer["x8"], computer["pc"] = DATA, CODE
    computer.run(200 * 9 + 6)
    assert computer.trapped() is not None
    assert computer["x10"] == sum(range(201))


@pytest.mark.parametrize("width", ["b", "h", "w", "d", "amo", "sc", "crossing", "zero"])
def test_every_kind_of_store_is_seen_after_fence_i(computer: Computer, width: str) -> None:
    computer.put("menvcfg", 0xF0)
    target = DATA + 0x1000 - (4 if width == "crossing" else 64)
    new = ADD_16
    stores = {
        "b": "srli t0, a2, 16\nsb t0, 2(s0)\nsrli t0, a2, 24\nsb t0, 3(s0)",
        "h": "sh a2, (s0)\nsrli t0, a2, 16\nsh t0, 2(s0)", "w": "sw a2, (s0)",
        "d": "ld t0, (s0)\nsrli t0, t0, 32\nslli t0, t0, 32\nor t0, t0, a2\nsd t0, (s0)",
        "amo": "amoswap.w t0, a2, (s0)", "sc": "lr.w t0, (s0)\nsc.w t0, a2, (s0)",
        "crossing": "lwu t0, 4(s0)\nslli t0, t0, 32\nor t0, t0, a2\nslli t0, t0, 16\nlhu t1, -2(s0)\nor t0, t0, t1\nsd t0, -2(s0)",
        "zero": "cbo.zero (s0)",
    }  # fmt: skip
    computer.program(f".word {ADD_1}\nret", target)
    if width == "zero":
        new = 0
    count = stores[width].count("\n") + 1
    computer.program(f"jalr s0\n{stores[width]}\nfence.i\njalr s0\nebreak")
    computer["x8"], computer["x10"], computer["x12"], computer["pc"] = target, 0, ADD_16, CODE
    computer.run(3 + count + 1 + 4 - (2 if width == "zero" else 0))
    assert computer.trapped() is not None
    if new:
        assert computer["mcause"] == 3
        assert computer["x10"] == 1 + 16
    else:
        assert (computer["mcause"], computer["mepc"], computer["x10"]) == (2, target, 1)


def test_without_fence_i_old_or_new_code_runs(computer: Computer) -> None:
    """Either is right; nothing else is, and a later fence.i decides."""
    computer.program(f".word {ADD_1}\nret", DATA)
    computer.program(
        "jalr s0\nsw a2, (s0)\njalr s0\nmv a3, a0\nfence.i\njalr s0\nsub a4, a0, a3\nebreak"
    )
    computer["x8"], computer["x10"], computer["x12"], computer["pc"] = DATA, 0, ADD_16, CODE
    computer.run(15)
    assert computer.trapped() is not None
    assert computer["x13"] in (2, 17)
    assert computer["x14"] == 16


def test_code_that_rewrites_its_own_page(computer: Computer) -> None:
    """The next instruction but one is written, fenced, and run; 50 times over."""
    computer.program(
        """
        li s2, 50
        li a0, 0
        li s3, 0x00050513
        auipc s0, 0
    1:  slli s4, s2, 20
        or s4, s4, s3
        sw s4, 24(s0)
        fence.i
        nop
        addi a0, a0, 99
        addi s2, s2, -1
        bnez s2, 1b
        ebreak
        """
    )
    computer["pc"] = CODE
    computer.run(5 + 50 * 8 + 1)
    assert computer.trapped() is not None and computer["mcause"] == 3
    assert computer["x10"] == sum(range(51))


def test_instructions_change_their_length(computer: Computer) -> None:
    """Compressed code is overwritten by long instructions and back, page after page."""
    for at in (DATA, DATA + 0x1000 - 16):
        short, long = b"\x05\x05" * 12 + b"\x82\x80", b"\x13\x05\x25\x00" * 6 + b"\x82\x80"
        for code, total in ((short, 12), (long, 12), (short, 12)):
            computer.memory.write(at, code)
            computer.program("fence.i\njalr s0\nebreak")
            computer["x8"], computer["x10"], computer["pc"] = at, 0, CODE
            computer.run(3 + (13 if code == short else 7))
            assert computer.trapped() is not None
            assert computer["x10"] == total


def test_a_long_instruction_appears_at_the_end_of_a_page_that_was_run(computer: Computer) -> None:
    """No fence.i: then the new code may run or not, and the host lives. At RAM's end besides."""
    for end in (DATA + 0x1000, BASE + computer.memory.size):
        computer.program("nop\nret", end - 64)
        computer.memory.store(end - 2, 2, 1)
        computer.program("jalr s0\nsh a2, -2(s1)\njr s3\nnop")
        computer["x8"], computer["x9"], computer["x12"], computer["x19"] = (
            end - 64,
            end,
            0x0513,
            end - 2,
        )
        computer["pc"] = CODE
        computer.run(7)
        if end == BASE + computer.memory.size:
            assert computer.trapped() == (1, end, end - 2) or computer.trapped() == (1, end, end)


def test_two_names_for_a_code_page(computer: Computer) -> None:
    """Written through one gva, run at another."""
    tables = Tables(computer, "sv39")
    tables.use()
    va = 7 << 30
    tables.map(va, leaf(DATA, V | R | W | A | D))
    tables.map(va + 0x1000, leaf(DATA, V | X | A))
    computer.program(f".word {ADD_1}\nret", DATA)
    computer.program("jalr s1\nsw a2, (s0)\nfence.i\njalr s1\nebreak")
    computer["x8"], computer["x9"], computer["x10"], computer["x12"] = va, va + 0x1000, 0, ADD_16
    computer["priv"], computer["pc"] = S_MODE, CODE
    computer.run(9)
    assert computer.trapped() == (3, CODE + 16, CODE + 16)
    assert computer["x10"] == 17


def test_python_writes_code(computer: Computer) -> None:
    """As DMA does; the hart fences."""
    for n in (1, 2, 3):
        computer.memory.write(DATA, patch(n).to_bytes(4, "little") + RET.to_bytes(4, "little"))
        computer["x8"], computer["x10"] = DATA, 0
        computer.program("fence.i\njalr s0\nebreak")
        computer["priv"], computer["pc"] = M_MODE, CODE
        computer.run(5)
        assert computer["x10"] == n


def test_more_code_pages_than_a_hart_may_hold(computer: Computer) -> None:
    """Every page of RAM is run, again and again, with stores between."""
    pages = computer.memory.size // 4096
    for page in range(pages // 2, pages):
        computer.memory.write(BASE + page * 4096, b"\x05\x05\x82\x80")
    computer.program(
        """
    1:  mv s0, s1
    2:  jalr s0
        add s0, s0, s3
        bltu s0, s2, 2b
        fence.i
        addi s4, s4, -1
        bnez s4, 1b
        ebreak
        """
    )
    computer["x9"], computer["x18"], computer["x19"] = (
        BASE + pages // 2 * 4096,
        BASE + pages * 4096,
        4096,
    )
    computer["x20"], computer["x10"], computer["pc"] = 3, 0, CODE
    computer.run(3 * (5 * (pages // 2) + 4) + 1)
    assert computer["mcause"] == 3
    assert computer["x10"] == 3 * (pages // 2)
