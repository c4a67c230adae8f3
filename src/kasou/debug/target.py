"""A machine as a debugger sees it.

A breakpoint is an `ebreak` in place of the instruction, as debuggers have always done it; while there
are any, compiled code leaves to Python at an `ebreak`, and the guest gets those that are its own.
What the debugger reads is the original. Addresses are those of the hart's own translation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from kasou.debug.gdb_protocol import CSRS, FIRST_CSR, FIRST_FLOAT, PC
from kasou.errors import GuestError
from kasou.isa.trap import Trap
from kasou.machine.machine import Machine

EBREAK, C_EBREAK = (0x0010_0073).to_bytes(4, "little"), (0x9002).to_bytes(2, "little")
PAGE = 4096


class MachineTarget:
    """Debugs `machine`, from one thread; `stopped` is called on a hart's thread or the caller's.

    The harts are held from the start, and while the debugger has not said `go`.
    """

    def __init__(self, machine: Machine, stopped: Callable[[int], None]) -> None:
        self._machine = machine
        self._stopped = stopped
        self._originals: dict[int, bytes] = {}
        self._places: dict[int, int] = {}
        self._held = True
        self._lock = threading.Lock()
        machine.runner.on_breakpoint = self._hit
        machine.runner.hold()

    # ------------------------------------------------------------------ looking
    @property
    def harts(self) -> int:
        """How many there are."""
        return len(self._machine.cores)

    def read_register(self, hart: int, number: int) -> int:
        """A register by GDB's number."""
        name, index = _cell(number)
        return self._machine.cores[hart].block.get(name, index)

    def write_register(self, hart: int, number: int, value: int) -> None:
        """Change an integer or floating-point register, or pc. Raises `GuestError` for others."""
        name, index = _cell(number)
        if number >= FIRST_CSR:
            raise GuestError(f"debugger: {name} is read-only here")
        if number:
            self._machine.cores[hart].block.set(name, value, index)

    def read_memory(self, hart: int, gva: int, n: int) -> bytes:
        """RAM as the hart's loads see it, breakpoints aside. Raises `GuestError`."""
        return b"".join(
            self._original(gpa, self._machine.memory.read(gpa, size))
            for gpa, size in self._reach(hart, gva, n)
        )

    def write_memory(self, hart: int, gva: int, data: bytes) -> None:
        """Change RAM as the hart's loads see it. Raises `GuestError`."""
        done = 0
        for gpa, size in list(self._reach(hart, gva, len(data))):
            self._machine.memory.write(gpa, data[done : done + size])
            done += size
        self._forget_code()

    # ------------------------------------------------------------------ breakpoints
    def insert_breakpoint(self, hart: int, gva: int, length: int) -> None:
        """Stop before the instruction at `gva`; RAM only. Raises `GuestError`."""
        if gva in self._places:
            return
        ((gpa, _),) = self._reach(hart, gva, 2)
        first = self._machine.memory.load(gpa, 2)
        patch = EBREAK if first & 3 == 3 and length != 2 and gva % PAGE != PAGE - 2 else C_EBREAK
        self._originals[gpa] = self._machine.memory.read(gpa, len(patch))
        self._places[gva] = gpa
        self._machine.memory.write(gpa, patch)
        self._breakpoints_changed()

    def remove_breakpoint(self, hart: int, gva: int) -> None:
        """No longer stop there."""
        gpa = self._places.pop(gva, None)
        if gpa is not None:
            self._machine.memory.write(gpa, self._originals.pop(gpa))
            self._breakpoints_changed()

    def _breakpoints_changed(self) -> None:
        for core in self._machine.cores:
            core.breakpoints = frozenset(self._places)
            core.block.set("debug", int(bool(self._places)))
        self._forget_code()

    def _forget_code(self) -> None:
        for core in self._machine.cores:
            core.flush()

    def _original(self, gpa: int, data: bytes) -> bytes:
        """`data`, read at `gpa`, with what breakpoints replaced put back."""
        for at, original in self._originals.items():
            start, end = max(at, gpa), min(at + len(original), gpa + len(data))
            if start < end:
                data = data[: start - gpa] + original[start - at : end - at] + data[end - gpa :]
        return data

    # ------------------------------------------------------------------ running
    def go(self) -> None:
        """Let the harts run."""
        with self._lock:
            if self._held:
                self._held = False
                self._machine.runner.release()

    def step(self, hart: int) -> None:
        """Run one instruction of one hart."""
        self._machine.runner.step(self._machine.cores[hart])
        self._stopped(hart)

    def interrupt(self) -> None:
        """Stop all harts."""
        with self._lock:
            if self._held:
                return
            self._held = True
        self._machine.runner.hold()
        self._stopped(0)

    def kill(self) -> None:
        """End the machine."""
        self._machine.stop()

    def close(self) -> None:
        """The debugger has left: no breakpoints, and the machine goes on."""
        self._machine.runner.on_breakpoint = None
        with self._machine.parked():
            for gva in list(self._places):
                self.remove_breakpoint(0, gva)
        self.go()

    def _hit(self, hart: int) -> None:
        """A hart came to a breakpoint; the runner holds the harts on our behalf."""
        with self._lock:
            if self._held:
                self._machine.runner.release()  # another one came first: held once is enough
                return
            self._held = True
        threading.Thread(target=self._report, args=(hart,), daemon=True).start()

    def _report(self, hart: int) -> None:
        """Once every hart stands still, say so; not on the hart's thread, which must get there."""
        with self._machine.parked():
            self._stopped(hart)

    # ------------------------------------------------------------------ addresses
    def _reach(self, hart: int, gva: int, n: int) -> Iterator[tuple[int, int]]:
        """(gpa, bytes) of RAM behind gva .. gva+n-1. Raises `GuestError` where there is none."""
        core = self._machine.cores[hart]
        while n > 0:
            size = min(n, PAGE - gva % PAGE)
            try:
                gpa = core.translated(gva)
            except Trap:
                raise GuestError(f"debugger: nothing is mapped at {gva:#x}") from None
            if not self._machine.memory.holds(gpa, size):
                raise GuestError(f"debugger: {gva:#x} is not RAM")
            yield gpa, size
            gva, n = gva + size, n - size


def _cell(number: int) -> tuple[str, int]:
    if number < PC:
        return "x", number
    if number == PC:
        return "pc", 0
    if number < FIRST_CSR:
        return "f", number - FIRST_FLOAT
    return CSRS[number - FIRST_CSR], 0
