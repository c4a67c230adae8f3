"""A driver that breaks the rules: whatever it does, the device asks for a reset at worst.

Each step is one of: a plausible request, perhaps spoilt; a ring made wrong in one way; something
on the host's side; a reset, of the device or a queue; a save and restore; a random register. After
each, nothing but `BusError` may have been raised (the hart takes an access fault), and a device that
needs a reset leaves memory alone. In the end it is reset and must work.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fuzz.registers import random_access
from fuzz.rigs import RIGS, Rig
from kasou.devices.pci.host import PciHost, PciState
from kasou.devices.register import Device
from kasou.devices.virtio.chain import Chain
from kasou.devices.virtio.device import Feature
from kasou.devices.virtio.driver_model import (
    AVAIL,
    INDIRECT,
    NEEDS_RESET,
    NEXT,
    PACKED,
    USED,
    WRITE,
    Driver,
    DriverRing,
    Face,
    FunctionView,
    MmioFace,
    Part,
    PciFace,
    Ram,
)
from kasou.devices.virtio.mmio import MmioState, VirtioMmio
from kasou.devices.virtio.pci import VirtioPci
from kasou.errors import BusError
from kasou.json_values import from_json, to_json

RAM_BYTES = 0x40000
HEAP, TABLES = 0x20000, 0x38000
MEMORY32, MEMORY64 = 0x4000_0000, 0x4_0000_0000
SLOWEST_STEP = 5.0
"""Seconds: more is a guest that can hang its devices."""
LARGEST_READ = 4 << 20
"""Bytes that a device may copy out of one chain at once: more is a guest that can fill the host."""
ADDRESSES = (
    0, 1, 0x1000, 0x1800, HEAP, HEAP + 7, TABLES, RAM_BYTES - 1, RAM_BYTES, 1 << 32,
    (1 << 64) - 1, (1 << 64) - 16,
)  # fmt: skip
LENGTHS = (0, 1, 15, 16, 17, 512, 4096, RAM_BYTES, 1 << 31, (1 << 32) - 1)


class HostileDriver:
    """One run: a device on a transport, tormented from one seed."""

    def __init__(self, name: str, transport: str, packed: bool, seed: int) -> None:
        self.name, self.transport, self.packed, self.seed = name, transport, packed, seed
        self.rng = rng = random.Random(f"{name} {transport} {packed} {seed}")
        self.ram = Ram(RAM_BYTES)
        self.rig: Rig = RIGS[name](self.ram, rng)
        self.device = self.rig.device
        if packed:
            self.device.offer(Feature.RING_PACKED)
        self.host = PciHost([lambda on: None] * 4, MEMORY32, MEMORY64)
        self.mmio: VirtioMmio | None = None
        if transport == "pci":
            self.host.add(VirtioPci(self.device))
        else:
            self.mmio = VirtioMmio(self.device, lambda on: None)
        self.driver = self.bring_up()
        self.steps: list[Callable[[], None]] = [
            *[self.request] * 8, *[self.spoilt_request] * 6, *[self.wrong_ring] * 4,
            *[self.poke] * 4, self.kick_anything, self.reset, self.reset_queue, self.restore,
            self.registers, self.start_again,
        ]  # fmt: skip

    def face(self) -> Face:
        """The transport, found anew."""
        if self.mmio is not None:
            return MmioFace(self.mmio)
        return PciFace(FunctionView(self.host.ecam, 1), self.host.memory64, MEMORY64, MEMORY64)

    def bring_up(self, features: int = -1, size: int = 16) -> Driver:
        """Reset and negotiate, with rings in the layout of this run."""
        self.ram.bytes[:] = bytes(RAM_BYTES)
        self.ram.writes.clear()
        return Driver(self.ram, self.face(), features, size)

    def run(self, steps: int) -> None:
        """Take `steps` steps, then be good. Raises `AssertionError` naming the run."""
        with bounded_reads():
            for n in range(steps):
                step = self.rng.choice(self.steps)
                started = time.monotonic()
                try:
                    step()
                    self.look()
                except Exception as problem:
                    raise AssertionError(f"{self}: step {n}, {step.__name__}") from problem
                taken = time.monotonic() - started
                assert taken < SLOWEST_STEP, f"{self}: step {n}, {step.__name__}: {taken:.1f} s"
            self.be_good()

    def __str__(self) -> str:
        packed = " --packed" if self.packed else ""
        return f"{self.name} --transport {self.transport}{packed} --seed {self.seed}"

    def be_good(self) -> None:
        """After whatever was done, a reset and a driver that behaves."""
        driver = self.bring_up()
        assert not driver.face.status() & NEEDS_RESET, f"{self}: not well after a reset"
        try:
            self.rig.works(driver)
        except Exception as problem:
            raise AssertionError(f"{self}: does not work after a reset") from problem
        assert not driver.face.status() & NEEDS_RESET, f"{self}: a good driver was refused"
        self.driver = driver

    def look(self) -> None:
        """A device that needs a reset does nothing until it has had one."""
        if not self.device.status & NEEDS_RESET:
            return
        before = bytes(self.ram.bytes)
        for index in range(len(self.device.queues)):
            with suppress(BusError):
                self.driver.kick(index)
        self.rig.poke(self.rng)
        assert bytes(self.ram.bytes) == before, "a broken device wrote to memory"
        if self.rng.random() < 0.3:
            self.be_good()
        else:
            self.start_again()

    # ------------------------------------------------------------------ steps
    def request(self) -> None:
        """A plausible request, in one to four pieces each way."""
        queue = self.rng.randrange(len(self.driver.rings))
        self.offer(queue, self.parts(queue))
        self.kick(queue)

    def spoilt_request(self) -> None:
        """The same with one or two things wrong."""
        rng = self.rng
        queue = rng.randrange(len(self.driver.rings))
        parts = self.parts(queue)
        for _ in range(rng.randint(1, 2)):
            i = rng.randrange(len(parts))
            gpa, n, flags = parts[i]
            spoil = rng.randrange(7)
            if spoil == 0:
                parts[i] = rng.choice(ADDRESSES), n, flags
            elif spoil == 1:
                parts[i] = gpa, rng.choice(LENGTHS), flags
            elif spoil == 2:
                parts[i] = gpa, n, flags ^ WRITE
            elif spoil == 3:
                rng.shuffle(parts)
            elif spoil == 4:
                del parts[i:]
                parts = parts or [(gpa, n, flags)]
            elif spoil == 5:
                parts += parts[: rng.randint(1, 8)]
            else:
                self.ram.write(HEAP + rng.randrange(0x100), rng.randbytes(rng.randint(1, 8)))
        self.offer(queue, parts)
        self.kick(queue)

    def wrong_ring(self) -> None:
        """Descriptors and indices as no driver would have them."""
        rng = self.rng
        queue = rng.randrange(len(self.driver.rings))
        self.offer(queue, self.parts(queue))
        ring = self.driver.rings[queue]
        desc, driver_area, device_area = ring.areas
        for _ in range(rng.randint(1, 4)):
            at = desc + 16 * rng.randrange(ring.size)
            spoil = rng.randrange(8)
            if spoil == 0:
                self.ram.put(at + 12, "HH", rng.getrandbits(16), rng.getrandbits(16))
            elif spoil == 1:  # a loop, or out of the table
                self.ram.put(at + 12, "HH", NEXT, rng.choice([0, 1, ring.size, 0xFFFF]))
            elif spoil == 2:
                self.ram.put(at, "QI", rng.choice(ADDRESSES), rng.choice(LENGTHS))
            elif spoil == 3:
                self.wrong_table(at)
            elif spoil == 4:  # forward, backward, far
                step = rng.choice([1, 2, ring.size, ring.size + 1, 0x8000, 0xFFFF])
                (idx,) = self.ram.get(driver_area + 2, "H")
                self.ram.put(driver_area + 2, "H", idx + step & 0xFFFF)
            elif spoil == 5:
                self.ram.put(driver_area + 4 + 2 * rng.randrange(ring.size), "H",
                             rng.choice([0, ring.size, 0xFFFF]))  # fmt: skip
            elif spoil == 6:
                self.ram.put(driver_area, "HH", rng.getrandbits(16), rng.getrandbits(16))
            else:
                self.ram.put(device_area, "HH", rng.getrandbits(16), rng.getrandbits(16))
        self.kick(queue)

    def wrong_table(self, at: int) -> None:
        """Point descriptor `at` to an indirect table with something wrong."""
        rng = self.rng
        n = rng.choice([1, 2, 16, 1024, 1025])
        table = rng.choice([TABLES, TABLES + 1, at])
        flags = INDIRECT | rng.choice([0, 0, NEXT, WRITE]) | rng.choice([0, AVAIL, USED])
        length = 16 * n + rng.choice([0, 0, 1, -1])
        self.ram.put(at, "QI", table, length)
        self.ram.put(at + 14 if self.laid_out_packed() else at + 12, "H", flags)
        for i in range(min(n, 40)):
            inner = rng.choice([NEXT, NEXT, NEXT | WRITE, INDIRECT, 0])
            gpa, m = rng.choice(ADDRESSES), rng.choice(LENGTHS)
            self.ram.put(TABLES + 16 * i, "QIHH", gpa, m, inner, rng.choice([i + 1, 0, 0xFFFF]))

    def poke(self) -> None:
        """The host does something."""
        self.rig.poke(self.rng)

    def kick_anything(self) -> None:
        """A notification for a queue that may not exist."""
        with suppress(BusError):
            self.driver.kick(self.rng.choice([0, len(self.driver.rings), 0xFFFF]))

    def reset(self) -> None:
        """Reset with chains in flight; what the host does then meets no driver."""
        queue = self.rng.randrange(len(self.driver.rings))
        self.offer(queue, self.parts(queue))
        self.driver.face.set_status(0)
        self.rig.poke(self.rng)
        self.start_again()

    def reset_queue(self) -> None:
        """Reset one queue, and start it again, perhaps somewhere impossible."""
        rng = self.rng
        if not self.driver.features & Feature.RING_RESET:
            return
        queue = rng.randrange(len(self.driver.rings))
        self.offer(queue, self.parts(queue))
        if not self.device.queues[queue].ready:
            return
        with suppress(AssertionError, BusError):  # a device that failed may refuse
            self.driver.face.reset_queue(queue)
        self.rig.poke(rng)
        if rng.random() < 0.2:
            areas = rng.choice(ADDRESSES), rng.choice(ADDRESSES), rng.choice(ADDRESSES)
            size = rng.choice([0, 1, 3, 8, 64, 0x8000])
            with suppress(BusError):
                self.driver.face.start_queue(queue, size, areas)
        else:
            self.driver.rings[queue] = self.driver.ring(0x1000 * (queue + 1), 4)
            self.driver.start(queue)

    def restore(self) -> None:
        """Save, through JSON, and restore into the same device."""
        if self.mmio is not None:
            saved = json.loads(json.dumps(to_json(self.mmio.save(), MmioState)))
            self.mmio.restore(from_json(MmioState, saved))
        else:
            saved = json.loads(json.dumps(to_json(self.host.save(), PciState)))
            self.host.restore(from_json(PciState, saved))
        self.device.resume()

    def registers(self) -> None:
        """Random accesses; then the driver finds out what is left."""
        windows: list[tuple[Device, int]] = [
            (self.host.ecam, 0x10000),
            (self.host.memory64, 0x4000),
        ]
        for _ in range(20):
            random_access(
                *((self.mmio, 0x200) if self.mmio else self.rng.choice(windows)), self.rng
            )
        if self.rng.random() < 0.5:
            self.start_again()
        elif self.mmio is None:
            self.driver.face = self.face()

    def start_again(self) -> None:
        """A new driver, with whatever features it likes."""
        rng = self.rng
        features = -1 if rng.random() < 0.5 else rng.getrandbits(32) | 1 << 32
        if rng.random() < 0.9:
            features |= PACKED
        self.driver = self.bring_up(features, rng.choice([4, 16]))

    # ------------------------------------------------------------------ how
    def laid_out_packed(self) -> bool:
        """Whether the present driver's rings are packed."""
        return bool(self.driver.features & PACKED)

    def parts(self, queue: int) -> list[Part]:
        """A plausible request, its data in the heap."""
        rng = self.rng
        data, rooms = self.rig.request(rng, queue)
        at = HEAP + rng.randrange(16)
        self.ram.write(at, data)
        parts: list[Part] = []
        for n in self.pieces(len(data)):
            parts.append((at, n, 0))
            at += n
        for room in rooms:
            for n in self.pieces(room):
                parts.append((at, n, WRITE))
                at += n
        return parts or [(HEAP, 0, 0)]

    def pieces(self, n: int) -> Iterator[int]:
        """Sizes that add up to `n`."""
        for _ in range(self.rng.choice([0, 0, 1, 3])):
            piece = self.rng.randint(0, n)
            yield piece
            n -= piece
        yield n

    def offer(self, queue: int, parts: list[Part]) -> None:
        """Make a chain available where the device will look next, whatever is in use."""
        ring = self.driver.rings[queue]
        if len(parts) >= ring.size or self.rng.random() < 0.3:
            packed = self.laid_out_packed()
            for i, (gpa, n, flags) in enumerate(parts[:1024]):
                more = NEXT if i + 1 < len(parts) and not packed else 0
                at = TABLES + 16 * i
                self.ram.put(at, "QIHH", gpa, n, *((0, flags) if packed else (flags | more, i + 1)))
            parts = [(TABLES, 16 * len(parts), INDIRECT)]
        next_avail = self.device.queues[queue].save().next_avail
        offer = self.offer_packed if self.laid_out_packed() else self.offer_split
        offer(ring, parts, next_avail)

    def offer_split(self, ring: DriverRing, parts: list[Part], next_avail: int) -> None:
        """Descriptors anywhere in the table; the next index."""
        slots = self.rng.sample(range(ring.size), len(parts))
        for i, (gpa, n, flags) in enumerate(parts):
            last = i + 1 == len(parts)
            link = (flags, 0) if last else (flags | NEXT, slots[i + 1])
            self.ram.put(ring.areas[0] + 16 * slots[i], "QIHH", gpa, n, *link)
        (idx,) = self.ram.get(ring.areas[1] + 2, "H")
        self.ram.put(ring.areas[1] + 4 + 2 * (idx % ring.size), "H", slots[0])
        self.ram.put(ring.areas[1] + 2, "H", idx + 1 & 0xFFFF)

    def offer_packed(self, ring: DriverRing, parts: list[Part], next_avail: int) -> None:
        """The next free slots: those behind the last that is available already."""
        position = next_avail
        for _ in range(ring.size):
            mark = AVAIL if position < ring.size else USED
            (flags,) = self.ram.get(ring.areas[0] + 16 * (position % ring.size) + 14, "H")
            if flags & (AVAIL | USED) != mark:
                break
            position = (position + 1) % (2 * ring.size)
        for i, (gpa, n, flags) in enumerate(parts):
            at = ring.areas[0] + 16 * (position % ring.size)
            mark = AVAIL if position < ring.size else USED
            more = NEXT if i + 1 < len(parts) else 0
            self.ram.put(at, "QIHH", gpa, n, self.rng.randrange(ring.size), flags | mark | more)
            position = (position + 1) % (2 * ring.size)

    def kick(self, queue: int) -> None:
        """Notify; now and then the interrupt is taken."""
        self.driver.kick(queue)
        if self.rng.random() < 0.3:
            self.driver.face.acknowledge()


@contextmanager
def bounded_reads() -> Iterator[None]:
    """Inside, a device that copies too much of a chain at once fails."""
    read = Chain.read

    def bounded(self: Chain, offset: int, n: int) -> bytes:
        assert n <= LARGEST_READ, f"{n} bytes are copied out of a chain at once"
        return read(self, offset, n)

    Chain.read = bounded  # type: ignore[method-assign]
    try:
        yield
    finally:
        Chain.read = read  # type: ignore[method-assign]
