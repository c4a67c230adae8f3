from __future__ import annotations

import pytest

from kasou.errors import GuestError
from kasou.guest import sbi
from kasou.guest.sbi import ALL_ADDRESSES, Extension, HartStatus, Sbi

RAM = 0x8000_0000
M1 = (1 << 64) - 1


class Host:
    """A board that writes down what it is asked to do."""

    harts = 3

    def __init__(self) -> None:
        self.done: list[tuple[object, ...]] = []
        self.memory = bytearray(0x3000)
        self.typed = b""
        self.written = b""
        self.status = [HartStatus.STARTED, HartStatus.STOPPED, HartStatus.STOPPED]

    def set_timer(self, hart: int, ticks: int) -> None:
        self.done.append(("timer", hart, ticks))

    def send_ipi(self, hart: int) -> None:
        self.done.append(("ipi", hart))

    def remote_fence_i(self, hart: int) -> None:
        self.done.append(("fence.i", hart))

    def remote_sfence(self, hart: int, start: int, size: int, asid: int | None) -> None:
        self.done.append(("sfence", hart, start, size, asid))

    def hart_start(self, hart: int, address: int, opaque: int) -> None:
        self.done.append(("start", hart, address, opaque))

    def hart_stop(self, hart: int) -> None:
        self.done.append(("stop", hart))

    def hart_suspend(self, hart: int) -> None:
        self.done.append(("suspend", hart))

    def hart_status(self, hart: int) -> int:
        return self.status[hart]

    def system_reset(self, type: int, reason: int) -> None:
        self.done.append(("reset", type, reason))

    def console_write(self, data: bytes) -> None:
        self.written += data

    def console_read(self) -> int:
        if not self.typed:
            return -1
        byte, self.typed = self.typed[0], self.typed[1:]
        return byte

    def read_memory(self, gpa: int, n: int) -> bytes:
        self._check(gpa, n)
        return bytes(self.memory[gpa - RAM : gpa - RAM + n])

    def write_memory(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self.memory[gpa - RAM : gpa - RAM + len(data)] = data

    def _check(self, gpa: int, n: int) -> None:
        if not RAM <= gpa <= gpa + n <= RAM + len(self.memory):
            raise GuestError(f"{gpa:#x}: outside RAM")


def call(
    host: Host, extension: int, function: int = 0, *arguments: int, hart: int = 0
) -> tuple[int, int] | None:
    a = [*arguments, *[0] * (6 - len(arguments))]
    return Sbi(host).call(hart, [*a, function, extension])


B, T, I, F = Extension.BASE, Extension.TIME, Extension.IPI, Extension.RFENCE  # noqa: E741
H, R, D, P = Extension.HSM, Extension.SRST, Extension.DBCN, Extension.PMU
TABLE = [
    # extension, function, arguments, (a0, a1), what the board was asked to do
    (B, 0, (), (0, 0x0200_0000), []),
    (B, 1, (), (0, sbi.IMPLEMENTATION_ID), []),
    (B, 3, (Extension.HSM,), (0, 1), []),
    (B, 3, (8,), (0, 1), []),
    (B, 3, (9,), (0, 0), []),
    (B, 3, (0x12345,), (0, 0), []),
    (B, 4, (), (0, 0), []),
    (B, 6, (), (0, 0), []),
    (B, 7, (), (-2, 0), []),
    (0x0A000000, 0, (), (-2, 0), []),
    (0x9, 0, (), (-2, 0), []),
    (T, 0, (1234,), (0, 0), [("timer", 0, 1234)]),
    (T, 0, (M1,), (0, 0), [("timer", 0, M1)]),
    (T, 1, (), (-2, 0), []),
    (I, 0, (0b101, 0), (0, 0), [("ipi", 0), ("ipi", 2)]),
    (I, 0, (0b11, 1), (0, 0), [("ipi", 1), ("ipi", 2)]),
    (I, 0, (0, M1), (0, 0), [("ipi", 0), ("ipi", 1), ("ipi", 2)]),
    (I, 0, (0b1000, 0), (-3, 0), []),
    (I, 0, (1, 3), (-3, 0), []),
    (I, 0, (0b11, 2), (-3, 0), []),
    (I, 1, (1, 0), (-2, 0), []),
    (F, 0, (0b10, 0), (0, 0), [("fence.i", 1)]),
    (F, 1, (0b10, 0, 0x1000, 0x2000), (0, 0), [("sfence", 1, 0x1000, 0x2000, None)]),
    (F, 1, (0b10, 0, 0, 0), (0, 0), [("sfence", 1, 0, ALL_ADDRESSES, None)]),
    (F, 1, (0b10, 0, 0x1000, M1), (0, 0), [("sfence", 1, 0, ALL_ADDRESSES, None)]),
    (F, 1, (0b10, 0, M1, 0x1000), (-5, 0), []),
    (F, 2, (0b1, 0, 0x1000, 0x1000, 7), (0, 0), [("sfence", 0, 0x1000, 0x1000, 7)]),
    (F, 1, (0b1000, 0, 0, 0), (-3, 0), []),
    (F, 3, (1, 0), (-2, 0), []),
    (H, 0, (1, RAM + 4, 99), (0, 0), [("start", 1, RAM + 4, 99)]),
    (H, 0, (0, RAM, 0), (-6, 0), []),
    (H, 0, (3, RAM, 0), (-3, 0), []),
    (H, 0, (M1, RAM, 0), (-3, 0), []),
    (H, 0, (1, 0x1000, 0), (-5, 0), []),
    (H, 0, (1, RAM + 1, 0), (-5, 0), []),
    (H, 1, (), None, [("stop", 0)]),
    (H, 2, (0,), (0, 0), []),
    (H, 2, (1,), (0, 1), []),
    (H, 2, (3,), (-3, 0), []),
    (H, 3, (0,), (0, 0), [("suspend", 0)]),
    (H, 3, (0x8000_0000,), (-2, 0), []),
    (H, 3, (1,), (-3, 0), []),
    (H, 3, (0x8000_0001,), (-3, 0), []),
    (H, 3, (0x1000_0000,), (-2, 0), []),
    (H, 4, (), (-2, 0), []),
    (R, 0, (0, 0), None, [("reset", 0, 0)]),
    (R, 0, (0, 1), None, [("reset", 0, 1)]),
    (R, 0, (1, 0), None, [("reset", 1, 0)]),
    (R, 0, (2, 0), None, [("reset", 2, 0)]),
    (R, 0, (3, 0), (-3, 0), []),
    (R, 0, (0, 2), (-3, 0), []),
    (R, 0, (0xF000_0000, 0), (-2, 0), []),
    (R, 1, (), (-2, 0), []),
    (P, 0, (), (0, 0), []),
    (P, 1, (0,), (-3, 0), []),
    (P, 2, (0,), (-2, 0), []),
    (P, 9, (0,), (-2, 0), []),
    (D, 2, (ord("x"),), (0, 0), []),
    (D, 0, (4, 0x1000, 0), (-3, 0), []),
    (D, 0, (4, RAM, 1), (-3, 0), []),
    (D, 0, (0, 0, 0), (0, 0), []),
    (D, 1, (4, RAM, 0), (0, 0), []),
    (D, 3, (), (-2, 0), []),
]


@pytest.mark.parametrize(("extension", "function", "arguments", "result", "done"), TABLE)
def test_call(
    extension: int,
    function: int,
    arguments: tuple[int, ...],
    result: tuple[int, int] | None,
    done: list[object],
) -> None:
    host = Host()
    assert call(host, extension, function, *arguments) == result
    assert host.done == done


def test_console() -> None:
    host = Host()
    host.memory[16:21] = b"hello"
    assert call(host, D, 0, 5, RAM + 16, 0) == (0, 5)
    assert call(host, D, 2, 0x121) == (0, 0)
    assert host.written == b"hello!"
    host.typed = b"typed"
    assert call(host, D, 1, 3, RAM, 0) == (0, 3)
    assert host.memory[:3] == b"typ" and host.typed == b"ed"
    assert call(host, D, 1, 9, 0x10, 0) == (-3, 0)
    assert host.typed == b"ed"
    assert call(host, D, 0, 1 << 40, RAM, 0) == (0, sbi.CONSOLE_LIMIT)


def test_signed_registers_are_the_same_call() -> None:
    host = Host()
    assert call(host, I, 0, 0, -1) == (0, 0)
    assert len(host.done) == 3


LEGACY = [
    (0, (77,), 0, [("timer", 1, 77)]),
    (1, (ord("a"),), 0, []),
    (2, (), -1, []),
    (3, (), 0, []),
    (4, (0,), 0, [("ipi", 0), ("ipi", 1), ("ipi", 2)]),
    (4, (RAM,), 0, [("ipi", 1)]),
    (4, (8,), -5, []),
    (5, (RAM,), 0, [("fence.i", 1)]),
    (6, (RAM, 4096, 4096), 0, [("sfence", 1, 4096, 4096, None)]),
    (7, (RAM, 4096, 4096, 5), 0, [("sfence", 1, 4096, 4096, 5)]),
]


@pytest.mark.parametrize(("extension", "arguments", "a0", "done"), LEGACY)
def test_legacy(extension: int, arguments: tuple[int, ...], a0: int, done: list[object]) -> None:
    host = Host()
    host.memory[0] = 0b1010
    a1 = arguments[1] if len(arguments) > 1 else 0
    assert call(host, extension, 0, *arguments, hart=1) == (a0, a1)
    assert host.done == done


def test_legacy_console_and_shutdown() -> None:
    host = Host()
    host.typed = b"q"
    assert call(host, 2, 0, 0, 42) == (ord("q"), 42)
    assert call(host, 1, 0, ord("z")) == (0, 0) and host.written == b"z"
    assert call(host, 8) is None and host.done == [("reset", 0, 0)]
