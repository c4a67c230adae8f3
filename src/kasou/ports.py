"""What passes between the parts: the small interfaces at which the layers are plugged together.

Devices know nothing of files, sockets or harts. They are given a `Disk`, a `Port`, a `GuestMemory`
and an `IrqLine`; `kasou.machine.board` and `kasou.control` decide what stands behind them.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

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

    def discard(self, offset: int, n: int) -> None:
        """The guest no longer needs these `n` bytes; they may read as anything or as zero."""
        ...

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None:
        """Make `n` bytes at `offset` read as zero; with `unmap` their space may be given up."""
        ...


@runtime_checkable
class VectorDisk(Disk, Protocol):
    """A `Disk` that moves bytes straight into and out of the holder's buffers.

    All disks of `kasou.storage` are; a device asks with `isinstance` and saves a copy.
    """

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views` (writable, of bytes) in order, from byte `offset`. Raises `HostError`."""
        ...

    def writev(self, offset: int, views: Sequence[bytes | memoryview]) -> None:
        """Store `views` one after the other at byte `offset`. Raises `HostError`."""
        ...


class Gso(NamedTuple):
    """A frame that stands for many: its payload is to be cut into `size` bytes each.

    `headers` is how many bytes of `data` precede the payload and are repeated before each piece.
    """

    kind: Literal["tcp4", "tcp6", "udp"]
    size: int
    headers: int


class Frame(NamedTuple):
    """An Ethernet frame without its frame check sequence, in 64 KiB units where both ends can.

    `csum` is (start, offset): the Internet checksum over `data[start:]`, pseudo-header already
    summed into the field, belongs at `start + offset` and is not computed yet; None when the frame
    is complete. `trusted` says that the transport checksum was verified or never left the host.
    """

    data: bytes
    csum: tuple[int, int] | None = None
    gso: Gso | None = None
    trusted: bool = False


FrameSink = Callable[[Sequence[Frame]], None]
"""Takes frames, oldest first. Must not block; what it has no room for it drops."""


class Port(Protocol):
    """One end of a wire. Frames are sent in batches; both directions may run on any thread."""

    def send(self, frames: Sequence[Frame]) -> None:
        """Frames from the one who holds this end; never blocks."""
        ...

    def attach(self, sink: FrameSink | None) -> None:
        """Say who takes the frames that arrive at this end; None drops them."""
        ...


class GuestMemory(Protocol):
    """A VM's RAM as a device's DMA reaches it: the one gate through which all writers go."""

    def read(self, gpa: int, n: int) -> bytes:
        """Copy `n` bytes at `gpa`. Raises `GuestError` when any of them is outside RAM."""
        ...

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` at `gpa`; all or nothing. Raises `GuestError` when it is outside RAM."""
        ...

    def view(self, gpa: int, n: int) -> memoryview:
        """The bytes themselves; who writes them calls `wrote` afterwards. Raises `GuestError`."""
        ...

    def wrote(self, gpa: int, n: int) -> None:
        """These bytes were written through a `view`."""
        ...
