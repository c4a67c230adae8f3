"""HTIF: how bare-metal test programs end and print, through `tohost` and `fromhost`.

A program stores into `tohost` and waits for it to become 0. An odd value ends the run with code
value >> 1. An even one is a command: device 1 is a character console (command 1 writes the low
byte); device 0 is a system call whose number and arguments stand in memory at the value.
(riscv-isa-sim, HTIF; riscv-tests, `tohost`)
"""

from __future__ import annotations

from collections.abc import Callable

from kasou.engine.memory import PhysicalMemory
from kasou.errors import GuestError

SYS_WRITE, SYS_EXIT = 64, 93


class Htif:
    """Looks at `tohost` when polled."""

    def __init__(
        self,
        memory: PhysicalMemory,
        tohost: int,
        fromhost: int | None,
        output: Callable[[bytes], None],
    ) -> None:
        self._memory, self._tohost, self._fromhost = memory, tohost, fromhost
        self._output = output

    def poll(self) -> int | None:
        """Serve a command, if there is one; the exit code when the program has ended."""
        value = self._memory.load(self._tohost, 8)
        if value == 0:
            return None
        if value & 1:
            return (value & ((1 << 48) - 1)) >> 1
        device, command, payload = value >> 56, value >> 48 & 0xFF, value & ((1 << 48) - 1)
        answer = 1
        if device == 1 and command == 1:
            self._output(bytes([payload & 0xFF]))
            answer = value
        elif device == 0:
            try:
                call = [self._memory.load(payload + 8 * i, 8) for i in range(4)]
                if call[0] == SYS_EXIT:
                    return call[1]
                if call[0] == SYS_WRITE:
                    self._output(self._memory.read(call[2], call[3]))
                    self._memory.store(payload, 8, call[3])
            except GuestError:
                answer = 1
        self._memory.store(self._tohost, 8, 0)
        if self._fromhost is not None:
            self._memory.store(self._fromhost, 8, answer)
        return None
