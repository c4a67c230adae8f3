"""A descriptor chain: one buffer that the driver lends to the device. (Virtio 1.2, 2.6)

    readable   what the driver says             | segment | segment | ...
    writable   room for what the device answers | segment | ...

Both rings make chains out of descriptors that the guest wrote. What is common to them stands here:
the descriptor's format, the limits of a chain, and the chain itself. A segment's address is looked
at when its bytes are: whatever is outside RAM raises `GuestError` there.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from kasou.errors import GuestError
from kasou.ports import GuestMemory

MAX_CHAIN = 1024
"""Longest chain through an indirect table, whose length the queue's size does not bound."""
MAX_CHAIN_BYTES = (1 << 32) - 1
"""A used length has 32 bits."""
DESCRIPTOR = struct.Struct("<QIHH")
"""gpa, length, then flags and next (split) or buffer id and flags (packed)."""

Segment = tuple[int, int]
"""(gpa, n): that many bytes of guest memory."""


class Descriptor(IntFlag):
    """Flags of a descriptor, in both layouts."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


# Plain ints beside the flags: an operation on an IntFlag costs more than reading a descriptor.
NEXT, WRITE, INDIRECT = (int(flag) for flag in Descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """A chain that the device holds, at rest; its descriptors may be overwritten by now."""

    head: int
    slots: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]


class Chain:
    """One buffer from the driver: bytes for the device to read, then room for it to write.

    `head` names it to the driver: its first descriptor (split) or its buffer id (packed). `slots`
    is how many entries of the ring it takes.
    """

    __slots__ = (
        "_memory", "head", "readable", "readable_bytes", "slots", "writable", "writable_bytes",
    )  # fmt: skip

    def __init__(
        self,
        memory: GuestMemory,
        head: int,
        readable: list[Segment],
        writable: list[Segment],
        slots: int = 1,
    ) -> None:
        self._memory = memory
        self.head = head
        self.readable = readable
        self.writable = writable
        self.slots = slots
        total = 0
        for _, n in readable:
            total += n
        self.readable_bytes = total
        for _, n in writable:
            total += n
        self.writable_bytes = total - self.readable_bytes
        if total > MAX_CHAIN_BYTES:
            raise GuestError(f"virtqueue: the chain from {head} has 2^32 bytes or more")

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes of the readable part from `offset`; the caller stays inside."""
        assert 0 <= offset <= offset + n <= self.readable_bytes, "read outside the chain"
        if n:
            gpa, length = self.readable[0]
            if offset + n <= length:
                return self._memory.read(gpa + offset, n)
        return b"".join([self._memory.read(gpa, m) for gpa, m in cut(self.readable, offset, n)])

    def read_all(self) -> bytes:
        """The whole readable part."""
        return self.read(0, self.readable_bytes)

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` in the writable part at `offset`; the caller stays inside."""
        assert 0 <= offset <= offset + len(data) <= self.writable_bytes, "write outside the chain"
        if data:
            gpa, length = self.writable[0]
            if offset + len(data) <= length:
                self._memory.write(gpa + offset, data)
                return
            gpa, length = self.writable[-1]  # a status byte mostly
            before = self.writable_bytes - length
            if offset >= before:
                self._memory.write(gpa + offset - before, data)
                return
        done = 0
        for gpa, n in cut(self.writable, offset, len(data)):
            self._memory.write(gpa, data[done : done + n])
            done += n

    def readable_views(self, offset: int = 0, n: int | None = None) -> list[memoryview]:
        """The guest's own bytes of the readable part, `n` of them (all that follow) from `offset`.

        The driver may change them at any time: look at a byte once.
        """
        n = self.readable_bytes - offset if n is None else n
        assert 0 <= offset <= offset + n <= self.readable_bytes, "view outside the chain"
        return [self._memory.view(gpa, m) for gpa, m in cut(self.readable, offset, n)]

    def writable_views(self, offset: int = 0, n: int | None = None) -> list[memoryview]:
        """The room itself, `n` bytes (all that follow) from `offset`; call `wrote` afterwards."""
        n = self.writable_bytes - offset if n is None else n
        assert 0 <= offset <= offset + n <= self.writable_bytes, "view outside the chain"
        return [self._memory.view(gpa, m) for gpa, m in cut(self.writable, offset, n)]

    def wrote(self, offset: int, n: int) -> None:
        """`n` bytes from `offset` were stored through `writable_views`."""
        for gpa, m in cut(self.writable, offset, n):
            self._memory.wrote(gpa, m)

    def save(self) -> ChainState:
        """The chain as a value."""
        return ChainState(
            head=self.head,
            slots=self.slots,
            readable=tuple(self.readable),
            writable=tuple(self.writable),
        )


def restored(memory: GuestMemory, state: ChainState) -> Chain:
    """The chain that `state` was. Raises `GuestError` for one that cannot be."""
    readable = [(gpa, n) for gpa, n in state.readable]
    writable = [(gpa, n) for gpa, n in state.writable]
    return Chain(memory, state.head, readable, writable, state.slots)


def cut(segments: list[Segment], offset: int, n: int) -> Iterator[Segment]:
    """The pieces that hold bytes [offset, offset + n) of `segments`."""
    for gpa, length in segments:
        if n <= 0:
            return
        if offset >= length:
            offset -= length
            continue
        here = min(length - offset, n)
        yield gpa + offset, here
        n -= here
        offset = 0


def indirect_table(memory: GuestMemory, gpa: int, n: int) -> memoryview:
    """The table that an indirect descriptor points to. Raises `GuestError`."""
    if not n or n % 16 or n > 16 * MAX_CHAIN:
        raise GuestError(f"virtqueue: an indirect table of {n} bytes")
    return memory.view(gpa, n)


def wrong_order(head: int) -> GuestError:
    """What a readable part behind a writable one deserves."""
    return GuestError(f"virtqueue: a readable part follows a writable one in the chain at {head}")
