"""The split virtqueue: descriptor chains out of rings that the guest wrote. (Virtio 1.2, 2.7)

        descriptor table           avail ring (driver)        used ring (device)
    +------+-----+-------+------+  +-------+-----+------+---  +-------+-----+------------+---
    | addr | len | flags | next |  | flags | idx | ring |     | flags | idx | (head, len)|
    +------+-----+-------+------+  +-------+-----+------+---  +-------+-----+------------+---

A device takes chains with `chains()` and gives each back with `complete()`; it never sees a ring
index or a descriptor. Everything read here was written by the guest: whatever it holds, the walk
ends, and breaking the rules raises `GuestError` and nothing else. Indices are 16 bits wide and
wrap.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from kasou.errors import GuestError
from kasou.ports import GuestMemory

MAX_CHAIN = 1024
"""Longest chain through an indirect table, whose length the queue's size does not bound."""
_MAX_CHAIN_BYTES = 1 << 32
_U16 = struct.Struct("<H")
_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")


class Descriptor(IntFlag):
    """Flags of a descriptor."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


# Plain ints beside the flags: an operation on an IntFlag costs more than reading a descriptor.
_NEXT, _WRITE, _INDIRECT = (int(flag) for flag in Descriptor)

NO_INTERRUPT = 1
"""Flag of the avail ring: the driver does not want an interrupt."""


class Segment(NamedTuple):
    """`n` bytes of guest memory at `gpa`."""

    gpa: int
    n: int


class Chain:
    """One buffer from the driver: bytes for the device to read, then room for it to write."""

    __slots__ = ("_memory", "head", "readable", "readable_bytes", "writable", "writable_bytes")

    def __init__(
        self, memory: GuestMemory, head: int, readable: list[Segment], writable: list[Segment]
    ) -> None:
        self._memory = memory
        self.head = head
        self.readable = readable
        self.writable = writable
        self.readable_bytes = sum(s.n for s in readable)
        self.writable_bytes = sum(s.n for s in writable)

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes of the readable part from `offset`; the caller stays inside."""
        assert 0 <= offset <= offset + n <= self.readable_bytes, "read outside the chain"
        return b"".join(self._memory.read(s.gpa, s.n) for s in _cut(self.readable, offset, n))

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` in the writable part at `offset`; the caller stays inside."""
        assert 0 <= offset <= offset + len(data) <= self.writable_bytes, "write outside the chain"
        done = 0
        for s in _cut(self.writable, offset, len(data)):
            self._memory.write(s.gpa, data[done : done + s.n])
            done += s.n


def _cut(segments: list[Segment], offset: int, n: int) -> Iterator[Segment]:
    """The pieces that hold bytes [offset, offset + n) of `segments`."""
    for gpa, length in segments:
        if n <= 0:
            return
        if offset >= length:
            offset -= length
            continue
        here = min(length - offset, n)
        yield Segment(gpa + offset, here)
        n -= here
        offset = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue at rest. `signalled` is the used index at the last interrupt decision."""

    size: int
    ready: bool
    desc: int
    avail: int
    used: int
    next_avail: int
    next_used: int
    signalled: int
    indirect: bool
    event_idx: bool


class SplitQueue:
    """One virtqueue of at most `max_size` descriptors.

    The transport sets `size` and the guest-physical addresses `desc`, `avail` and `used`, then
    calls `enable`; the device sets `indirect` and `event_idx` to what was negotiated.
    """

    def __init__(self, memory: GuestMemory, max_size: int) -> None:
        self.memory = memory
        self.max_size = max_size
        self.reset()

    def reset(self) -> None:
        """Forget everything the driver configured."""
        self.size = self.max_size
        self.ready = False
        self.desc = self.avail = self.used = 0
        self.indirect = self.event_idx = False
        self._next_avail = self._next_used = self._signalled = 0

    def enable(self) -> None:
        """Start, if size and addresses allow it. Raises `GuestError`."""
        if not 0 < self.size <= self.max_size or self.size & self.size - 1:
            raise GuestError(
                f"virtqueue: size {self.size} is not a power of two up to {self.max_size}"
            )
        for name, gpa, align in (
            ("descriptor table", self.desc, 16),
            ("avail ring", self.avail, 2),
            ("used ring", self.used, 4),
        ):
            if gpa % align:
                raise GuestError(f"virtqueue: {name} at {gpa:#x} is not {align}-byte aligned")
        self._next_avail = self._next_used = self._signalled = 0
        self.ready = True

    def disable(self) -> None:
        """Stop; the driver may set new addresses."""
        self.ready = False

    def chains(self) -> Iterator[Chain]:
        """The chains that are available now, oldest first. Raises `GuestError`.

        What the driver makes available later comes with a notification of its own.
        """
        if not self.ready:
            return
        end = self._available()
        while self._next_avail != end:
            slot = self.avail + 4 + 2 * (self._next_avail % self.size)
            head = self._u16(slot)
            self._next_avail = (self._next_avail + 1) & 0xFFFF
            yield self._chain(head)

    def next_chain(self) -> Chain | None:
        """One chain, None if there is none now; for devices that wait for the host's input."""
        return next(self.chains(), None)

    def complete(self, chain: Chain, written: int) -> None:
        """Give `chain` back with `written` bytes stored in it. Raises `GuestError`."""
        slot = self.used + 4 + 8 * (self._next_used % self.size)
        self.memory.write(slot, _USED_ELEMENT.pack(chain.head, written))
        self._next_used = (self._next_used + 1) & 0xFFFF
        self.memory.write(self.used + 2, _U16.pack(self._next_used))  # publish last

    def complete_many(self, done: Sequence[tuple[Chain, int]]) -> None:
        """Give chains back, each with the bytes stored in it; the driver sees all of them or none.

        Raises `GuestError`.
        """
        start = self._next_used % self.size
        elements = b"".join(_USED_ELEMENT.pack(chain.head, written) for chain, written in done)
        before_end = 8 * (self.size - start)
        self.memory.write(self.used + 4 + 8 * start, elements[:before_end])
        if len(elements) > before_end:
            self.memory.write(self.used + 4, elements[before_end:])
        self._next_used = (self._next_used + len(done)) & 0xFFFF
        self.memory.write(self.used + 2, _U16.pack(self._next_used))  # publish last

    def give_back(self, chains: Sequence[Chain]) -> None:
        """Make available again the chains that were taken last and are not completed, in order."""
        self._next_avail = (self._next_avail - len(chains)) & 0xFFFF

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was completed since this was last asked."""
        old, new = self._signalled, self._next_used
        self._signalled = new
        if not self.ready or old == new:
            return False
        if self.event_idx:
            event = self._u16(self.avail + 4 + 2 * self.size)
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._u16(self.avail) & NO_INTERRUPT

    def save(self) -> QueueState:
        """Configuration and positions."""
        return QueueState(
            size=self.size,
            ready=self.ready,
            desc=self.desc,
            avail=self.avail,
            used=self.used,
            next_avail=self._next_avail,
            next_used=self._next_used,
            signalled=self._signalled,
            indirect=self.indirect,
            event_idx=self.event_idx,
        )

    def restore(self, state: QueueState) -> None:
        """Continue where `state` was."""
        self.size, self.ready = state.size, state.ready
        self.desc, self.avail, self.used = state.desc, state.avail, state.used
        self._next_avail, self._next_used = state.next_avail, state.next_used
        self._signalled = state.signalled
        self.indirect, self.event_idx = state.indirect, state.event_idx

    def _u16(self, gpa: int) -> int:
        value: int = _U16.unpack(self.memory.read(gpa, 2))[0]
        return value

    def _available(self) -> int:
        """The avail index up to which chains can be taken without missing a notification.

        With event indices the driver notifies when its index passes `avail_event`. So that is set
        to the index just read, and the index read again until it stood still; as nothing is
        completed meanwhile, the driver can move it `size` times at most.
        """
        index = self._avail_index()
        if self.event_idx:
            for _ in range(self.size):
                self.memory.write(self.used + 4 + 8 * self.size, _U16.pack(index))
                seen, index = index, self._avail_index()
                if index == seen:
                    break
        return index

    def _avail_index(self) -> int:
        index = self._u16(self.avail + 2)
        if (index - self._next_avail) & 0xFFFF > self.size:
            raise GuestError(
                f"virtqueue: avail idx {index} is more than {self.size} ahead of {self._next_avail}"
            )
        return index

    def _chain(self, head: int) -> Chain:
        """Walk the chain from descriptor `head`, through an indirect table at its end."""
        readable: list[Segment] = []
        writable: list[Segment] = []
        total = 0
        table, length, longest, inside = b"", self.size, self.size, False
        i, steps = head, 0
        while True:
            if i >= length:
                raise GuestError(f"virtqueue: descriptor {i} in a table of {length}")
            if steps >= longest:
                raise GuestError(f"virtqueue: the chain from {head} has more than {longest} parts")
            steps += 1
            raw = (
                table[16 * i : 16 * i + 16] if inside else self.memory.read(self.desc + 16 * i, 16)
            )
            gpa, n, flags, following = _DESCRIPTOR.unpack(raw)
            if flags & _INDIRECT:
                if inside or not self.indirect or flags & _NEXT:
                    raise GuestError(f"virtqueue: descriptor {i} may not be indirect")
                if not n or n % 16 or n > 16 * MAX_CHAIN:
                    raise GuestError(f"virtqueue: an indirect table of {n} bytes")
                table, length, inside = self.memory.read(gpa, n), n // 16, True
                longest, steps, i = MAX_CHAIN, len(readable) + len(writable), 0
                continue
            if flags & _WRITE:
                writable.append(Segment(gpa, n))
            elif writable:
                raise GuestError(f"virtqueue: a readable part follows a writable one at {i}")
            else:
                readable.append(Segment(gpa, n))
            total += n
            if total > _MAX_CHAIN_BYTES:
                raise GuestError(f"virtqueue: the chain from {head} is longer than 2^32 bytes")
            if not flags & _NEXT:
                return Chain(self.memory, head, readable, writable)
            i = following
