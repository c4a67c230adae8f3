"""A small computer around the reference model: 4 MiB of RAM, one scratch device, a clock to set."""

from __future__ import annotations

from typing import Any

import pytest

from kasou.engine.memory import PhysicalMemory
from kasou.engine.reference import ReferenceHart
from kasou.errors import BusError
from kasou.isa.csr import BY_NAME, read_csr, write_csr
from kasou.isa.encoding import encode
from kasou.isa.trap import Trap
from kasou.isa.word import Word

BASE = 0x8000_0000
DEVICE = 0x1000_0000


class Scratch:
    """One device of 16 bytes that remembers every access."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []

    def read(self, gpa: int, size: int) -> int:
        if not DEVICE <= gpa <= DEVICE + 16 - size:
            raise BusError(f"nothing at {gpa:#x}")
        self.log.append(("r", gpa - DEVICE, size))
        return 0x8877_6655_4433_2211 & ((1 << 8 * size) - 1)

    def write(self, gpa: int, size: int, value: int) -> None:
        if not DEVICE <= gpa <= DEVICE + 16 - size:
            raise BusError(f"nothing at {gpa:#x}")
        self.log.append(("w", gpa - DEVICE, size, value))


class Machine:
    """The computer; it is its own clock."""

    def __init__(self) -> None:
        self.now = 0
        self.memory = PhysicalMemory(BASE, 4 << 20)
        self.bus = Scratch()
        self.hart: Any = ReferenceHart(self.memory, self.bus, self)
        self.hart.reset(BASE, hartid=3)

    def time(self, hart: Any) -> int:
        return self.now

    def program(self, *words: int, at: int = BASE) -> None:
        """Put 32-bit instructions into RAM."""
        for i, word in enumerate(words):
            self.memory.store(at + 4 * i, 4, word)

    def run(self, *words: int) -> str | None:
        """Put instructions at pc (gva 0 is mapped to BASE by the tests) and step through them."""
        pc = int(self.hart.pc)
        self.program(*words, at=pc if pc >= BASE else BASE + pc)
        reason = None
        for _ in words:
            reason = self.hart.step()
        return reason

    def get(self, name: str) -> int:
        """Read a CSR, without the checks of access."""
        return int(read_csr(self.hart, Word(BY_NAME[name])))

    def put(self, name: str, value: int) -> None:
        """Write a CSR, without the checks of access."""
        write_csr(self.hart, Word(BY_NAME[name]), Word(value))

    def open_pmp(self) -> None:
        """Let S and U use all addresses."""
        self.put("pmpaddr15", (1 << 54) - 1)
        self.put("pmpcfg2", self.get("pmpcfg2") & (1 << 56) - 1 | 0x1F << 56)


def trap_of(call: Any, *args: Any) -> tuple[int, int | None] | None:
    """The (cause, tval) of a trap that the call raises, or None."""
    try:
        call(*args)
    except Trap as trap:
        return int(trap.cause), None if trap.tval is None else int(trap.tval)
    return None


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def trap() -> Any:
    return trap_of


@pytest.fixture
def insn() -> Any:
    """`encode`, with CSRs by name."""

    def make(name: str, **fields: Any) -> int:
        if "csr" in fields and isinstance(fields["csr"], str):
            fields["csr"] = BY_NAME[fields["csr"]]
        return encode(name, **fields)

    return make
