"""A driver in miniature: the other side of a virtio device, for tests and benches.

    driver = Driver(VirtioRng(ram, os.urandom), ram)
    room = driver.room(16)
    driver.queues[0].add(writable=[(room, 16)])
    driver.kick(0)
    [(_, written)] = driver.queues[0].used()

It uses split rings without event indices unless told otherwise, and places what it needs in `Ram`
one after the other; nothing is ever freed but the descriptors of a chain that came back.
"""

import struct
from collections.abc import Sequence

from kasou.devices.virtio.device import Interrupt, Status, VirtioDevice
from kasou.errors import GuestError

_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_DESCRIPTOR = struct.Struct("<QIHH")
_READY = (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK)

Parts = Sequence[tuple[int, int]]
"""(gpa, n) of each part of a buffer."""


class Ram:
    """A `GuestMemory` from gpa 0 on; `writes` counts what went through the gate for writers."""

    def __init__(self, n: int = 1 << 20) -> None:
        self.bytes = bytearray(n)
        self._view = memoryview(self.bytes)
        self.writes = 0

    def view(self, gpa: int, n: int) -> memoryview:
        """The bytes themselves. Raises `GuestError` outside RAM."""
        if gpa < 0 or n < 0 or gpa + n > len(self.bytes):
            raise GuestError(f"memory: {n} bytes at {gpa:#x} are not in RAM")
        return self._view[gpa : gpa + n]

    def wrote(self, gpa: int, n: int) -> None:
        """Count."""
        self.writes += 1

    def read(self, gpa: int, n: int) -> bytes:
        """A copy. Raises `GuestError` outside RAM."""
        return bytes(self.view(gpa, n))

    def write(self, gpa: int, data: bytes) -> None:
        """Store. Raises `GuestError` outside RAM."""
        self.view(gpa, len(data))[:] = data
        self.writes += 1


class DriverQueue:
    """The driver's side of one split ring."""

    def __init__(self, ram: Ram, size: int, desc: int, avail: int, used: int) -> None:
        self.size = size
        self._ram = ram
        self._desc = ram.view(desc, 16 * size)
        self._avail = ram.view(avail, 6 + 2 * size).cast("H")
        self._used_index = ram.view(used, 4).cast("H")
        self._used = ram.view(used + 4, 8 * size).cast("I")
        self._free = list(range(size - 1, -1, -1))
        self._parts: dict[int, list[int]] = {}
        self._seen = 0

    def add(
        self, readable: Parts = (), writable: Parts = (), *, indirect_at: int | None = None
    ) -> int:
        """Make a chain available, through an indirect table if there is a place for it; its head."""
        parts = [(gpa, n, 0) for gpa, n in readable] + [(gpa, n, _WRITE) for gpa, n in writable]
        if indirect_at is None:
            slots = [self._free.pop() for _ in parts]
            self._write(self._desc, slots, parts)
        else:
            slots = [self._free.pop()]
            table = self._ram.view(indirect_at, 16 * len(parts))
            self._write(table, list(range(len(parts))), parts)
            _DESCRIPTOR.pack_into(
                self._desc, 16 * slots[0], indirect_at, 16 * len(parts), _INDIRECT, 0
            )
        head = slots[0]
        self._parts[head] = slots
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Put a head, right or wrong, into the avail ring."""
        index = self._avail[1]
        self._avail[2 + index % self.size] = head
        self._avail[1] = index + 1 & 0xFFFF

    @staticmethod
    def _write(table: memoryview, slots: list[int], parts: list[tuple[int, int, int]]) -> None:
        last = len(parts) - 1
        for i, (gpa, n, flags) in enumerate(parts):
            following = (_NEXT, slots[i + 1]) if i < last else (0, 0)
            _DESCRIPTOR.pack_into(table, 16 * slots[i], gpa, n, flags | following[0], following[1])

    def used(self) -> list[tuple[int, int]]:
        """(head, bytes written) of the chains that came back since last asked."""
        found = []
        while self._seen != self._used_index[1]:
            at = 2 * (self._seen % self.size)
            head, written = self._used[at], self._used[at + 1]
            self._free += reversed(self._parts.pop(head, []))
            found.append((head, written))
            self._seen = self._seen + 1 & 0xFFFF
        return found


class Driver:
    """Negotiates with `device` and sets all its queues up, with `size` descriptors each.

    `features` are accepted of what is offered, all but packed rings and event indices by default.
    `interrupts` are those since it was last cleared.
    """

    def __init__(
        self,
        device: VirtioDevice,
        ram: Ram,
        features: int = ~(1 << 34 | 1 << 29),
        size: int = 64,
        start: int = 0x1000,
    ) -> None:
        self.device, self.ram = device, ram
        self._next = start
        self.interrupts: list[tuple[Interrupt, int]] = []
        device.connect(lambda why, index: self.interrupts.append((why, index)))
        device.set_status(0)
        device.accept(device.offered & features)
        status = Status(0)
        for step in _READY[:-1]:
            status |= step
            device.set_status(status)
        self.queues: list[DriverQueue] = []
        for index, queue in enumerate(device.queues):
            n = min(size, queue.max_size)
            queue.size = n
            queue.desc = self.room(16 * n)
            queue.driver = self.room(6 + 2 * n)
            queue.device = self.room(6 + 8 * n)
            device.enable_queue(index)
            self.queues.append(DriverQueue(ram, n, queue.desc, queue.driver, queue.device))
        device.set_status(status | Status.DRIVER_OK)

    def room(self, n: int) -> int:
        """The gpa of `n` fresh bytes, 64-byte aligned."""
        gpa = self._next
        self._next += n + 63 & ~63
        return gpa

    def place(self, data: bytes) -> int:
        """The gpa of a copy of `data`."""
        gpa = self.room(len(data))
        self.ram.view(gpa, len(data))[:] = data
        return gpa

    def kick(self, index: int) -> None:
        """Notify the device of queue `index`."""
        self.device.notify(index)

    def send(self, data: bytes, room: int = 0, queue: int = 0) -> bytes:
        """One request and its answer: `data`, then `room` bytes; what the device wrote there."""
        readable = [(self.place(data), len(data))] if data else []
        answer = self.room(room)
        self.queues[queue].add(readable, [(answer, room)] if room else [])
        self.kick(queue)
        ((_, written),) = self.queues[queue].used()
        return self.ram.read(answer, written)
