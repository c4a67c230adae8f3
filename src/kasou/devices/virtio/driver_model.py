"""The driver's side, for tests and fuzzers: rings of both layouts as a driver keeps them, bring-up.

Written from the specification's driver sections, sharing nothing with the device's side, so that the
two check each other. (Virtio 1.2, 2.7.13, 2.8.21, 3.1.1)

    ram = Ram()
    driver = Driver(ram, MmioFace(transport))
    driver.rings[0].offer([(0x8000, 16, 0), (0x9000, 512, WRITE)])
    driver.kick(0)
    [(head, written)] = driver.rings[0].collect()
"""

import struct
from collections.abc import Sequence
from typing import Any, Protocol

from kasou.devices.register import Device
from kasou.errors import GuestError

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 0x80, 0x8000
INDIRECT_DESC, EVENT_IDX, PACKED, RING_RESET = 1 << 28, 1 << 29, 1 << 34, 1 << 40
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64

Part = tuple[int, int, int]
"""(gpa, bytes, flags)."""


class Ram:
    """`n` bytes of memory from gpa 0; `writes` are the (gpa, bytes) that went through the gate."""

    def __init__(self, n: int = 0x40000) -> None:
        self.bytes = bytearray(n)
        self.writes: list[tuple[int, int]] = []

    def _check(self, gpa: int, n: int) -> None:
        if gpa < 0 or gpa + n > len(self.bytes):
            raise GuestError(f"{n} bytes at {gpa:#x} are outside RAM")

    def read(self, gpa: int, n: int) -> bytes:
        """A copy."""
        self._check(gpa, n)
        return bytes(self.bytes[gpa : gpa + n])

    def write(self, gpa: int, data: bytes) -> None:
        """Store."""
        self._check(gpa, len(data))
        self.bytes[gpa : gpa + len(data)] = data
        self.wrote(gpa, len(data))

    def view(self, gpa: int, n: int) -> memoryview:
        """The bytes themselves."""
        self._check(gpa, n)
        return memoryview(self.bytes)[gpa : gpa + n]

    def wrote(self, gpa: int, n: int) -> None:
        """Remember what was written."""
        self.writes.append((gpa, n))

    def put(self, gpa: int, layout: str, *values: int) -> None:
        """Store numbers, as `struct` packs them."""
        self.write(gpa, struct.pack("<" + layout, *values))

    def get(self, gpa: int, layout: str) -> tuple[Any, ...]:
        """Load numbers."""
        return struct.unpack("<" + layout, self.read(gpa, struct.calcsize("<" + layout)))


class DriverRing(Protocol):
    """A queue as its driver keeps it; all of it lies at `areas[0]` and behind."""

    size: int
    areas: tuple[int, int, int]

    def offer(self, parts: Sequence[Part], table: int | None = None) -> int:
        """Make one chain available, with `table` through an indirect table there: its id."""
        ...

    def needs_kick(self) -> bool:
        """Whether the device wants to be notified of what was offered since this was last asked."""
        ...

    def collect(self) -> list[tuple[int, int]]:
        """The chains that came back: (id, bytes written)."""
        ...

    def interrupt_after(self, completions: int | None) -> None:
        """Want an interrupt after so many more (single-slot) completions; None: no interrupt."""
        ...


def _put_table(ram: Ram, table: int, parts: Sequence[Part], chained: bool) -> None:
    for i, (gpa, n, flags) in enumerate(parts):
        more = NEXT if chained and i + 1 < len(parts) else 0
        ram.put(table + 16 * i, "QIHH", gpa, n, *((flags | more, i + 1) if chained else (0, flags)))


class SplitDriverRing:
    """Descriptor table, avail ring, used ring."""

    def __init__(self, ram: Ram, at: int, size: int, event_idx: bool) -> None:
        self.ram, self.size, self.event_idx = ram, size, event_idx
        used = at + 16 * size + 6 + 2 * size + 3 & ~3
        self.areas = (at, at + 16 * size, used)
        ram.write(at, bytes(used + 6 + 8 * size - at))
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._idx = self._kicked = self._last_used = 0

    def offer(self, parts: Sequence[Part], table: int | None = None) -> int:
        """Descriptors first, then the ring's entry, then the index."""
        if table is not None:
            _put_table(self.ram, table, parts, chained=True)
            parts = [(table, 16 * len(parts), INDIRECT)]
        slots = [self._free.pop() for _ in parts]
        for i, (gpa, n, flags) in enumerate(parts):
            following = slots[i + 1] if i + 1 < len(parts) else 0
            more = NEXT if i + 1 < len(parts) else 0
            self.ram.put(self.areas[0] + 16 * slots[i], "QIHH", gpa, n, flags | more, following)
        self._chains[slots[0]] = slots
        self.ram.put(self.areas[1] + 4 + 2 * (self._idx % self.size), "H", slots[0])
        self._idx = (self._idx + 1) & 0xFFFF
        self.ram.put(self.areas[1] + 2, "H", self._idx)
        return slots[0]

    def needs_kick(self) -> bool:
        """2.7.10."""
        old, new = self._kicked, self._idx
        self._kicked = new
        if self.event_idx:
            (event,) = self.ram.get(self.areas[2] + 4 + 8 * self.size, "H")
            return bool((new - event - 1) & 0xFFFF < (new - old) & 0xFFFF)
        return not self.ram.get(self.areas[2], "H")[0] & 1

    def collect(self) -> list[tuple[int, int]]:
        """2.7.14."""
        (index,) = self.ram.get(self.areas[2] + 2, "H")
        back: list[tuple[int, int]] = []
        while self._last_used != index:
            at = self.areas[2] + 4 + 8 * (self._last_used % self.size)
            head, written = self.ram.get(at, "II")
            self._free.extend(reversed(self._chains.pop(head)))
            self._last_used = (self._last_used + 1) & 0xFFFF
            back.append((head, written))
        return back

    def interrupt_after(self, completions: int | None) -> None:
        """`used_event`, or the flag."""
        if self.event_idx:
            event = self._last_used + (completions - 1 if completions is not None else -1)
            self.ram.put(self.areas[1] + 4 + 2 * self.size, "H", event & 0xFFFF)
        else:
            self.ram.put(self.areas[1], "H", int(completions is None))


class PackedDriverRing:
    """One ring of descriptors, and two event suppression structures behind it."""

    def __init__(self, ram: Ram, at: int, size: int, event_idx: bool) -> None:
        self.ram, self.size, self.event_idx = ram, size, event_idx
        self.areas = (at, at + 16 * size, at + 16 * size + 4)
        ram.write(at, bytes(16 * size + 8))
        self._next, self._wrap = 0, True
        self._used, self._used_wrap = 0, True
        self._ids = list(range(size - 1, -1, -1))
        self._slots: dict[int, int] = {}
        self._room = size
        self._offered = self._kicked = 0

    def offer(self, parts: Sequence[Part], table: int | None = None) -> int:
        """The first descriptor's flags last: that makes all of the chain available at once."""
        if table is not None:
            _put_table(self.ram, table, parts, chained=False)
            parts = [(table, 16 * len(parts), INDIRECT)]
        assert len(parts) <= self._room, "the ring is full"
        buffer = self._ids.pop()
        first: tuple[int, int] | None = None
        for i, (gpa, n, flags) in enumerate(parts):
            flags |= (NEXT if i + 1 < len(parts) else 0) | (AVAIL if self._wrap else USED)
            at = self.areas[0] + 16 * self._next
            self.ram.put(at, "QIH", gpa, n, buffer)
            if first is None:
                first = at + 14, flags
            else:
                self.ram.put(at + 14, "H", flags)
            self._next += 1
            if self._next == self.size:
                self._next, self._wrap = 0, not self._wrap
        assert first is not None, "a chain has parts"
        self.ram.put(first[0], "H", first[1])
        self._slots[buffer] = len(parts)
        self._room -= len(parts)
        self._offered += len(parts)
        return buffer

    def needs_kick(self) -> bool:
        """2.8.10: flags, or the position in `off`, whose lap is told by its wrap bit."""
        old, self._kicked = self._kicked, self._offered
        where, flags = self.ram.get(self.areas[2], "HH")
        if flags != 2:
            return bool(flags == 0)
        event = where & 0x7FFF
        if bool(where >> 15) != self._wrap:
            event -= self.size
        return bool(0 <= self._next - event - 1 < self._offered - old)

    def collect(self) -> list[tuple[int, int]]:
        """2.8.22."""
        back: list[tuple[int, int]] = []
        while True:
            _, written, buffer, flags = self.ram.get(self.areas[0] + 16 * self._used, "QIHH")
            marks = bool(flags & AVAIL), bool(flags & USED)
            if marks != (self._used_wrap, self._used_wrap) or buffer not in self._slots:
                return back
            slots = self._slots.pop(buffer)
            self._ids.append(buffer)
            self._room += slots
            self._used += slots
            if self._used >= self.size:
                self._used, self._used_wrap = self._used - self.size, not self._used_wrap
            back.append((buffer, written))

    def interrupt_after(self, completions: int | None) -> None:
        """The driver's event suppression structure."""
        if completions is None or not self.event_idx:
            self.ram.put(self.areas[1], "HH", 0, int(completions is None))
            return
        where = self._used + completions - 1
        wrap = self._used_wrap
        if where >= self.size:
            where, wrap = where - self.size, not wrap
        self.ram.put(self.areas[1], "HH", where | wrap << 15, 2)


class Face(Protocol):
    """A transport as its driver reaches it."""

    def features(self) -> int:
        """What is offered."""
        ...

    def choose(self, features: int) -> None:
        """Accept these."""
        ...

    def status(self) -> int:
        """The device status."""
        ...

    def set_status(self, value: int) -> None:
        """Write the device status."""
        ...

    def max_size(self, index: int) -> int:
        """Of a queue; 0 if there is none."""
        ...

    def start_queue(self, index: int, size: int, areas: tuple[int, int, int]) -> None:
        """Configure and enable."""
        ...

    def reset_queue(self, index: int) -> None:
        """RING_RESET."""
        ...

    def kick(self, index: int) -> None:
        """Notify."""
        ...

    def acknowledge(self) -> int:
        """Why the device interrupts; the line falls."""
        ...


class MmioFace:
    """Through the registers of virtio-mmio."""

    def __init__(self, transport: Device) -> None:
        self.transport = transport

    def r(self, offset: int) -> int:
        """Load a register."""
        return self.transport.read(offset, 4)

    def w(self, offset: int, value: int) -> None:
        """Store a register."""
        self.transport.write(offset, 4, value)

    def features(self) -> int:
        """DeviceFeatures, both halves."""
        self.w(0x14, 1)
        high = self.r(0x10)
        self.w(0x14, 0)
        return high << 32 | self.r(0x10)

    def choose(self, features: int) -> None:
        """DriverFeatures, both halves."""
        for half in (0, 1):
            self.w(0x24, half)
            self.w(0x20, features >> 32 * half & 0xFFFF_FFFF)

    def status(self) -> int:
        """Status."""
        return self.r(0x70)

    def set_status(self, value: int) -> None:
        """Status."""
        self.w(0x70, value)

    def max_size(self, index: int) -> int:
        """QueueNumMax."""
        self.w(0x30, index)
        return self.r(0x34)

    def start_queue(self, index: int, size: int, areas: tuple[int, int, int]) -> None:
        """QueueNum, the areas, QueueReady."""
        self.w(0x30, index)
        self.w(0x38, size)
        for register, gpa in zip((0x80, 0x90, 0xA0), areas, strict=True):
            self.w(register, gpa & 0xFFFF_FFFF)
            self.w(register + 4, gpa >> 32)
        self.w(0x44, 1)

    def reset_queue(self, index: int) -> None:
        """QueueReset, until it reads 0."""
        self.w(0x30, index)
        self.w(0xC0, 1)
        assert not self.r(0xC0) and not self.r(0x44), "the queue is not reset"

    def kick(self, index: int) -> None:
        """QueueNotify."""
        self.w(0x50, index)

    def acknowledge(self) -> int:
        """InterruptStatus, InterruptACK."""
        status = self.r(0x60)
        self.w(0x64, status)
        return status


class PciFace:
    """Through virtio-pci, found as drivers find it: by its capabilities. `base` is where its BAR goes.

    `ecam` is the function's configuration space, `memory` the window in which the BAR lies.
    """

    def __init__(self, ecam: Device, memory: Device, base: int, window_base: int = 0) -> None:
        self.ecam, self.memory = ecam, memory
        self.structures: dict[int, int] = {}
        at = ecam.read(0x34, 1)
        while at:
            if ecam.read(at, 1) == 9 and ecam.read(at + 4, 1) == 4:
                self.structures[ecam.read(at + 3, 1)] = base - window_base + ecam.read(at + 8, 4)
                if ecam.read(at + 3, 1) == 2:
                    self.multiplier = ecam.read(at + 16, 4)
            at = ecam.read(at + 1, 1)
        self.common, self.notify, self.isr, self.config = (self.structures[k] for k in (1, 2, 3, 4))
        ecam.write(0x20, 4, base & 0xFFFF_FFFF)
        ecam.write(0x24, 4, base >> 32)
        ecam.write(0x04, 2, 0b110)  # memory, bus master

    def r(self, offset: int, size: int) -> int:
        """Load from the common structure."""
        return self.memory.read(self.common + offset, size)

    def w(self, offset: int, size: int, value: int) -> None:
        """Store to the common structure."""
        self.memory.write(self.common + offset, size, value)

    def features(self) -> int:
        """device_feature, both halves."""
        self.w(0x00, 4, 1)
        high = self.r(0x04, 4)
        self.w(0x00, 4, 0)
        return high << 32 | self.r(0x04, 4)

    def choose(self, features: int) -> None:
        """driver_feature, both halves."""
        for half in (0, 1):
            self.w(0x08, 4, half)
            self.w(0x0C, 4, features >> 32 * half & 0xFFFF_FFFF)

    def status(self) -> int:
        """device_status."""
        return self.r(0x14, 1)

    def set_status(self, value: int) -> None:
        """device_status."""
        self.w(0x14, 1, value)

    def max_size(self, index: int) -> int:
        """queue_size, before the driver wrote it."""
        if index >= self.r(0x12, 2):
            return 0
        self.w(0x16, 2, index)
        return self.r(0x18, 2)

    def start_queue(self, index: int, size: int, areas: tuple[int, int, int]) -> None:
        """queue_size, the areas, queue_enable."""
        self.w(0x16, 2, index)
        self.w(0x18, 2, size)
        for register, gpa in zip((0x20, 0x28, 0x30), areas, strict=True):
            self.w(register, 4, gpa & 0xFFFF_FFFF)
            self.w(register + 4, 4, gpa >> 32)
        self.w(0x1C, 2, 1)

    def reset_queue(self, index: int) -> None:
        """queue_reset, until it reads 0."""
        self.w(0x16, 2, index)
        self.w(0x3A, 2, 1)
        assert not self.r(0x3A, 2) and not self.r(0x1C, 2), "the queue is not reset"

    def kick(self, index: int) -> None:
        """The queue's notification word."""
        self.w(0x16, 2, index)
        at = self.notify + self.multiplier * self.r(0x1E, 2)
        self.memory.write(at, 2, index)

    def acknowledge(self) -> int:
        """ISR; reading it is enough."""
        return self.memory.read(self.isr, 1)


class FunctionView:
    """One function's 4 KiB of ECAM, as the `ecam` of a `PciFace`."""

    def __init__(self, ecam: Device, device: int) -> None:
        self._ecam, self._base = ecam, device << 15

    def read(self, offset: int, size: int) -> int:
        """Load."""
        return self._ecam.read(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Store."""
        self._ecam.write(self._base + offset, size, value)


class Driver:
    """Brings a device up and keeps a ring for each of its queues, 4 KiB apart from gpa `at`."""

    def __init__(
        self, ram: Ram, face: Face, features: int = -1, size: int = 16, at: int = 0x1000
    ) -> None:
        self.ram, self.face = ram, face
        face.set_status(0)
        assert face.status() == 0, "the device does not reset"
        face.set_status(ACKNOWLEDGE)
        face.set_status(ACKNOWLEDGE | DRIVER)
        self.features = face.features() & features
        face.choose(self.features)
        face.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert face.status() & FEATURES_OK, "the device refuses the features it offered"
        self.rings: list[DriverRing] = []
        while most := face.max_size(len(self.rings)):
            self.rings.append(self.ring(at, min(size, most)))
            self.start(len(self.rings) - 1)
            at += 0x1000
        self._next = at
        face.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def room(self, n: int) -> int:
        """The gpa of `n` fresh bytes behind the rings, 64-byte aligned."""
        gpa = self._next
        self._next += n + 63 & ~63
        return gpa

    def place(self, data: bytes) -> int:
        """The gpa of a copy of `data` in fresh bytes."""
        gpa = self.room(len(data))
        self.ram.write(gpa, data)
        return gpa

    def send(self, index: int, data: bytes, room: int = 0) -> bytes:
        """Offer `data` and then `room` bytes as one chain: what the device wrote there, at once."""
        parts = [(self.place(data), len(data), 0)] if data else []
        answer = self.room(room)
        parts += [(answer, room, WRITE)] if room else []
        return self.ram.read(answer, self.request(index, parts))

    def ring(self, at: int, size: int) -> DriverRing:
        """A new ring in the negotiated layout."""
        layout = PackedDriverRing if self.features & PACKED else SplitDriverRing
        return layout(self.ram, at, size, bool(self.features & EVENT_IDX))

    def start(self, index: int) -> None:
        """Configure and enable queue `index` with its ring."""
        ring = self.rings[index]
        self.face.start_queue(index, ring.size, ring.areas)

    def kick(self, index: int) -> None:
        """Notify the device, whether it wants it or not."""
        self.face.kick(index)

    def request(self, index: int, parts: Sequence[Part], table: int | None = None) -> int:
        """Offer one chain, notify, and give the bytes written; it must come back at once."""
        ring = self.rings[index]
        head = ring.offer(parts, table)
        if ring.needs_kick():
            self.kick(index)
        back = ring.collect()
        assert [h for h, _ in back] == [head], f"{back} came back, not chain {head}"
        return back[0][1]
