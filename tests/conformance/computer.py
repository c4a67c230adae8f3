"""One hart on either engine with RAM and a stub of a device, to run a few instructions on."""

from __future__ import annotations

import threading
from typing import Any

from kasou.engine.hart_state import Exit
from kasou.engine.interpreter import SharedTables
from kasou.engine.memory import PhysicalMemory
from kasou.engine.reference import ReferenceHart
from kasou.errors import BusError
from kasou.isa.asm import assemble
from kasou.isa.csr import BY_NAME, read_csr, write_csr
from kasou.isa.word import Word
from kasou.machine.core import Core, InterpreterCore, ReferenceCore

BASE, SIZE = 0x8000_0000, 8 << 20
CODE, DATA = BASE + 0x1_0000, BASE + 0x2_0000
M_HANDLER, S_HANDLER = BASE + 0x800, BASE + 0xC00
TABLES = BASE + 0x10_0000
DEVICE = 0x1000_0000
"""A device of 16 bytes."""
NEVER = (1 << 64) - 1
U_MODE, S_MODE, M_MODE = 0, 1, 3
Trapped = tuple[int, int, int]


class Computer:
    """The computer, which is its core's host, bus and clock of counted instructions."""

    icount = True

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.lock = threading.RLock()
        self.log: list[tuple[Any, ...]] = []
        self.calls = 0
        self.memory = PhysicalMemory(BASE, SIZE)
        self.core: Core
        if engine == "interpreter":
            core = InterpreterCore(0, self, SharedTables(self.memory, 1))
            self.core, self.reference = core, core.model
        else:
            slow = ReferenceCore(0, self, self.memory)
            self.core, self.reference = slow, slow.hart
        assert isinstance(self.reference, ReferenceHart)
        self.put("mtvec", M_HANDLER)
        self.put("stvec", S_HANDLER)
        for handler in (M_HANDLER, S_HANDLER):
            self.program("1: j 1b", handler)
        self.open_pmp()

    # ---- CoreHost
    def bus_read(self, gpa: int, size: int) -> int:
        if not DEVICE <= gpa <= DEVICE + 16 - size:
            raise BusError(f"nothing at {gpa:#x}")
        self.log.append(("r", gpa - DEVICE, size))
        return 0x8877_6655_4433_2211 & ((1 << 8 * size) - 1)

    def bus_write(self, gpa: int, size: int, value: int) -> None:
        if not DEVICE <= gpa <= DEVICE + 16 - size:
            raise BusError(f"nothing at {gpa:#x}")
        self.log.append(("w", gpa - DEVICE, size, value))

    def host_ticks(self) -> int:
        return 0

    def environment_call(self, core: Core) -> None:
        self.calls += 1
        core.block.set("pc", core.block.get("pc") + 4)

    # ---- looking and setting
    def __getitem__(self, name: str) -> int:
        """A cell, or a register by `x5`, `f7`."""
        if name[1:].isdigit():
            return self.core.block.get(name[0], int(name[1:]))
        return self.core.block.get(name)

    def __setitem__(self, name: str, value: int) -> None:
        if name[1:].isdigit():
            self.core.block.set(name[0], value, int(name[1:]))
        else:
            self.core.block.set(name, value)
        self.touched()

    def touched(self) -> None:
        """State was changed behind the engine's back."""
        self.core.flush()
        self.core.block.set("attention", NEVER)

    def csr(self, name: str) -> int:
        """Read a CSR, without the checks of access."""
        self.reference.instructions = self.core.count
        return int(read_csr(self.reference, Word(BY_NAME[name])))

    def put(self, name: str, value: int) -> None:
        """Write a CSR, without the checks of access."""
        self.reference.instructions = self.core.count
        write_csr(self.reference, Word(BY_NAME[name]), Word(value))
        self.touched()

    def open_pmp(self) -> None:
        """Let S and U use all addresses, by the last entry."""
        self.put("pmpaddr15", (1 << 54) - 1)
        self.put("pmpcfg2", self.csr("pmpcfg2") & (1 << 56) - 1 | 0x1F << 56)

    def program(self, text: str, at: int = CODE, origin: int | None = None) -> int:
        """Assemble to gpa `at`; the number of bytes. `origin` is where it thinks it stands."""
        code = assemble(text, at if origin is None else origin)
        self.memory.write(at, code)
        self.touched()
        return len(code)

    # ---- running
    def run(self, count: int) -> Exit:
        """So many instructions, traps counted in; less if it waits for an interrupt."""
        return self.core.run(self.core.count + count)

    def trapped(self) -> Trapped | None:
        """(cause, tval, epc) if the hart stands in a handler."""
        if self["pc"] == self["mtvec"] & ~3:
            return self["mcause"], self["mtval"], self["mepc"]
        if self["pc"] == self["stvec"] & ~3:
            return self["scause"], self["stval"], self["sepc"]
        return None

    def attempt(
        self, text: str, priv: int = M_MODE, at: int = CODE, pc: int | None = None
    ) -> Trapped | None:
        """Run one instruction in a mode; the trap it took."""
        self.program(text, at)
        return self.step(priv, at if pc is None else pc)

    def step(self, priv: int, pc: int) -> Trapped | None:
        """Run the instruction at a gva in a mode; the trap it took."""
        self["priv"], self["pc"] = priv, pc
        self.core.block.set("context_dirty", 1)
        self.run(1)
        return self.trapped()


V, R, W, X, U, G, A, D = (1 << bit for bit in range(8))
LEVELS = {"sv39": (8, 3), "sv48": (9, 4), "sv57": (10, 5)}


class Tables:
    """Page tables built from the top down in RAM; knows nothing of the code under test."""

    def __init__(self, computer: Computer, name: str, at: int = TABLES) -> None:
        self.computer, (self.mode, self.levels) = computer, LEVELS[name]
        self.next = at
        self.root = self._page()
        # all of RAM and the device at their own addresses, for supervisors, as pages of 1 GiB
        for gva in (BASE, DEVICE):
            self.map(gva, leaf(gva & ~(1 << 30) + 1, V | R | W | X | A | D), 2)

    @property
    def satp(self) -> int:
        return self.mode << 60 | self.root >> 12

    def use(self) -> None:
        self.computer.put("satp", self.satp)

    def _page(self) -> int:
        self.computer.memory.write(self.next, bytes(4096))
        self.next += 4096
        return self.next - 4096

    def map(self, va: int, pte: int, level: int = 0) -> int:
        """Put a leaf at `level`; the gpa of the entry."""
        at = self.entry(va, level)
        self.computer.memory.store_u64(at, pte)
        return at

    def entry(self, va: int, level: int) -> int:
        """The gpa of the entry for `va` at `level`."""
        memory, table = self.computer.memory, self.root
        for depth in range(self.levels - 1, level, -1):
            at = table + 8 * (va >> (12 + 9 * depth) & 511)
            entry = memory.load_u64(at)
            if not entry & V:
                entry = self._page() >> 12 << 10 | V
                memory.store_u64(at, entry)
            table = (entry >> 10 & (1 << 44) - 1) << 12
        return table + 8 * (va >> (12 + 9 * level) & 511)


def leaf(pa: int, flags: int) -> int:
    """The entry of a page at gpa `pa`."""
    return pa >> 12 << 10 | flags
