"""What the built-in SBI asks of the machine: timers, other harts, reset, the console."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kasou.devices.test_finisher import Finish
from kasou.guest.sbi import HartStatus
from kasou.machine.board import UART
from kasou.machine.core import Core

if TYPE_CHECKING:
    from kasou.machine.machine import Machine


def enter_supervisor(core: Core) -> None:
    """What firmware leaves behind: S-mode with everything delegated. (SBI 2.0, 9; Priv. 3.1.8)"""
    block = core.block
    block.set("priv", 1)
    block.set("medeleg", 0xB1FF)
    block.set("mideleg", 0x222)
    block.set("mcounteren", 0xFFFFFFFF)
    block.set("menvcfg", 1 << 63 | 1 << 62 | 0xF0 | 1)


class Firmware:
    """The machine as `kasou.guest.sbi` sees it; called on a hart's own thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def serve(self, core: Core) -> None:
        """Serve the SBI call that stopped `core` at its ecall."""
        block = core.block
        registers = [block.get("x", 10 + i) for i in range(8)]
        block.set("pc", block.get("pc") + 4)
        result = self._machine.sbi.call(core.index, registers)
        if result is not None:
            block.set("x", result[0], 10)
            block.set("x", result[1], 11)

    # ------------------------------------------------------------------ SbiHost
    @property
    def harts(self) -> int:
        """How many harts there are."""
        return len(self._machine.cores)

    def set_timer(self, hart: int, ticks: int) -> None:
        """The supervisor timer, by Sstc's comparator."""
        core = self._machine.cores[hart]
        core.block.set("stimecmp", ticks)
        core.attend()

    def send_ipi(self, hart: int) -> None:
        """Make SSIP pending."""
        self._machine.set_ssip(hart)

    def remote_fence_i(self, hart: int) -> None:
        """Have another hart drop stale code before its next instruction."""
        self._remote(hart)

    def remote_sfence(self, hart: int, start: int, size: int, asid: int | None) -> None:
        """Have another hart drop its translations before its next instruction."""
        self._remote(hart)

    def _remote(self, hart: int) -> None:
        core = self._machine.cores[hart]
        if core is self._machine.runner.current:
            core.flush()
            return
        core.fence()
        # A hart in Python looks before it runs again; one in compiled code must have looked.
        while core.native and core.block.get("request_fence") and not self._machine.runner.stopping:
            time.sleep(0)

    def hart_start(self, hart: int, address: int, opaque: int) -> None:
        """Start a stopped hart."""
        core = self._machine.cores[hart]
        block = core.block
        enter_supervisor(core)
        block.set("mstatus", 0xA00000000)
        block.set("satp", 0)
        block.set("pc", address)
        block.set("x", hart, 10)
        block.set("x", opaque, 11)
        block.set("request_fence", 1)
        block.set("context_dirty", 1)
        self._machine.statuses[hart] = HartStatus.STARTED
        core.attend()

    def hart_stop(self, hart: int) -> None:
        """Stop the calling hart."""
        self._machine.statuses[hart] = HartStatus.STOPPED
        self._machine.cores[hart].request_exit()

    def hart_suspend(self, hart: int) -> None:
        """Sleep until an interrupt is pending."""
        if not self._machine.one_thread:
            self._machine.runner.sleep(self._machine.cores[hart])

    def hart_status(self, hart: int) -> int:
        """The hart's state."""
        return self._machine.statuses[hart]

    def system_reset(self, type: int, reason: int) -> None:
        """Power off (0) or reboot."""
        self._machine.guest_finished(Finish.PASS if type == 0 else Finish.RESET, 0)

    def console_write(self, data: bytes) -> None:
        """DBCN and legacy putchar."""
        self._machine.console_output(data)

    def console_read(self) -> int:
        """One byte from the serial port's receiver, or -1."""
        board = self._machine.board
        with board.lock:
            if board.bus.read(UART.base + 5, 1) & 1:
                return board.bus.read(UART.base, 1)
        return -1

    def read_memory(self, gpa: int, n: int) -> bytes:
        """RAM for the firmware."""
        return self._machine.memory.read(gpa, n)

    def write_memory(self, gpa: int, data: bytes) -> None:
        """RAM for the firmware."""
        self._machine.memory.write(gpa, data)
