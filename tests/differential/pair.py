"""Two cores on equal small machines without devices: the interpreter, and the reference model."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from kasou.engine.interpreter import SharedTables
from kasou.engine.memory import PhysicalMemory
from kasou.errors import BusError
from kasou.isa.state import CELLS
from kasou.machine.core import Core, InterpreterCore, ReferenceCore

BASE = 0x8000_0000
SIZE = 4 << 20
IGNORED = ("trap_cause", "trap_tval")


class NoDevices:
    """A host whose bus is empty and whose clock counts instructions."""

    icount = True

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def bus_read(self, gpa: int, size: int) -> int:
        raise BusError(f"nothing at {gpa:#x}")

    def bus_write(self, gpa: int, size: int, value: int) -> None:
        raise BusError(f"nothing at {gpa:#x}")

    def host_ticks(self) -> int:
        return 0

    def environment_call(self, core: Core) -> None:
        core.block.set("pc", core.block.get("pc") + 4)


class Pair:
    """Both cores; what is set in one is set in the other."""

    def __init__(self) -> None:
        self.memories = (PhysicalMemory(BASE, SIZE), PhysicalMemory(BASE, SIZE))
        fast = InterpreterCore(0, NoDevices(), SharedTables(self.memories[0], 1))
        self.cores: tuple[Core, Core] = (fast, ReferenceCore(0, NoDevices(), self.memories[1]))

    def set(self, state: Mapping[str, int]) -> None:
        """Set cells; a name may carry an index: `x[5]`."""
        for core in self.cores:
            for name, value in state.items():
                cell, _, index = name.rstrip("]").partition("[")
                core.block.set(cell, value, int(index or 0))
            core.flush()

    def write(self, gpa: int, data: bytes) -> None:
        """Put bytes into both memories."""
        for memory in self.memories:
            memory.write(gpa, data)
        for core in self.cores:
            core.flush()

    def step(self, count: int = 1) -> None:
        """Run instructions on both."""
        for core in self.cores:
            core.block.set("attention", (1 << 64) - 1)
            core.run(core.count + count)

    def differences(self) -> dict[str, tuple[int, int]]:
        """Cells that differ, as (interpreter, reference); RAM under the name RAM."""
        a, b = (core.block for core in self.cores)
        found = {
            f"{cell.name}[{i}]": (a.get(cell.name, i), b.get(cell.name, i))
            for cell in CELLS.values()
            if cell.name not in IGNORED
            for i in range(32 if cell.name == "x" else cell.count)
            if a.get(cell.name, i) != b.get(cell.name, i)
        }
        views = [m.view(BASE, SIZE) for m in self.memories]
        if views[0] != views[1]:
            at = next(i for i in range(SIZE) if views[0][i] != views[1][i])
            found["RAM"] = (BASE + at, views[0][at])
        return found
