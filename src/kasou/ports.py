"""What passes between the parts: the small interfaces at which the layers are plugged together.

Devices know nothing of files, sockets or harts. They are given a `Disk`, a `GuestMemory` and an
`IrqLine`; `kasou.machine.board` and `kasou.control` decide what stands behind them.
"""

from collections.abc import Callable
from typing import Protocol

IrqLine = Callable[[bool], None]
"""A level-triggered interrupt wire: called with the new level, True for asserted."""

ByteSink = Callable[[bytes], None]
"""Takes bytes that the guest sent (a serial line, a console); must not block for long."""


class Disk(Protocol):
    """A block back end: `size_bytes` bytes that keep what was written to them."""

    @property
    def size_bytes(self) -> int:
        """Capacity, a multiple of 512."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether `write` is refused."""
        ...

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from byte `offset`; the caller stays inside. Raises `HostError`."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at byte `offset`; the caller stays inside. Raises `HostError`."""
        ...

    def flush(self) -> None:
        """Return once everything written is on stable storage. Raises `HostError`."""
        ...


class GuestMemory(Protocol):
    """A VM's RAM as a device's DMA reaches it: the one gate through which all writers go."""

    def read(self, gpa: int, n: int) -> bytes:
        """Copy `n` bytes at `gpa`. Raises `GuestError` when any of them is outside RAM."""
        ...

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` at `gpa`; all or nothing. Raises `GuestError` when it is outside RAM."""
        ...
