"""A driver in miniature against transport and devices."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.block import Answer, Request, VirtioBlock
from kasou.devices.virtio.console import RECEIVE, TRANSMIT, VirtioConsole
from kasou.devices.virtio.device import Interrupt, NoDevice, Status, VirtioDevice
from kasou.devices.virtio.driver_model import Ram
from kasou.devices.virtio.mmio import VirtioMmio
from kasou.devices.virtio.rng import VirtioRng
from kasou.errors import BusError, ConfigError, HostError

NEXT, WRITE = 1, 2
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


class RamDisk:
    def __init__(self, sectors: int = 8, read_only: bool = False) -> None:
        self.data = bytearray(512 * sectors)
        self.read_only = read_only
        self.flushes = 0
        self.broken = False

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, n: int) -> bytes:
        if self.broken:
            raise HostError("the disk is on fire")
        return bytes(self.data[offset : offset + n])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.flushes += 1

    def discard(self, offset: int, n: int) -> None: ...

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None: ...


class Driver:
    SIZE = 8

    def __init__(self, ram: Ram, device: VirtioDevice, features: int = -1) -> None:
        self.ram, self.device = ram, device
        self.irq = False
        self.mmio = VirtioMmio(device, self.wire)
        self.idx = [0] * len(device.queues)
        self.w(0x70, 3)
        offered = 0
        for select in (0, 1):
            self.w(0x14, select)
            offered |= self.r(0x10) << 32 * select
        for select in (0, 1):
            self.w(0x24, select)
            self.w(0x20, (offered & features) >> 32 * select & 0xFFFF_FFFF)
        self.w(0x70, 11)
        assert self.r(0x70) == 11
        for q in range(len(device.queues)):
            self.w(0x30, q)
            assert self.r(0x34) >= self.SIZE
            self.w(0x38, self.SIZE)
            for register, part in ((0x80, 0), (0x90, 0x400), (0xA0, 0x600)):
                self.w(register, self.base(q) + part)
                self.w(register + 4, 0)
            self.w(0x44, 1)
            assert self.r(0x44) == 1
        self.w(0x70, 15)
        assert self.r(0x70) == READY

    def wire(self, on: bool) -> None:
        self.irq = on

    @staticmethod
    def base(q: int) -> int:
        return 0x1000 * (q + 1)

    def r(self, offset: int) -> int:
        return self.mmio.read(offset, 4)

    def w(self, offset: int, value: int) -> None:
        self.mmio.write(offset, 4, value)

    def offer(self, parts: list[tuple[int, int, int]], q: int = 0) -> None:
        """Make one chain of (gpa, n, flags) available, without a notification."""
        for i, (gpa, n, flags) in enumerate(parts):
            more = NEXT if i + 1 < len(parts) else 0
            entry = struct.pack("<QIHH", gpa, n, flags | more, i + 1)
            self.ram.write(self.base(q) + 16 * i, entry)
        self.ram.write(self.base(q) + 0x404 + 2 * (self.idx[q] % self.SIZE), bytes(2))
        used_event = self.base(q) + 0x404 + 2 * self.SIZE
        self.ram.write(used_event, struct.pack("<H", self.idx[q]))
        self.idx[q] += 1
        self.ram.write(self.base(q) + 0x402, struct.pack("<H", self.idx[q]))

    def send(self, parts: list[tuple[int, int, int]], q: int = 0) -> int:
        """Offer, notify, and give the used length."""
        self.offer(parts, q)
        self.w(0x50, q)
        used = struct.unpack("<H", self.ram.read(self.base(q) + 0x602, 2))[0]
        assert used == self.idx[q], "the chain did not come back"
        slot = self.base(q) + 0x604 + 8 * ((used - 1) % self.SIZE)
        length: int = struct.unpack("<II", self.ram.read(slot, 8))[1]
        return length

    def ack(self) -> int:
        status = self.r(0x60)
        self.w(0x64, status)
        assert not self.irq
        return status


def block(
    disk: RamDisk, kind: int, sector: int, data: bytes = b"", room: int = 0, features: int = -1
) -> tuple[int, int, bytes, Driver]:
    """Status, used length, data."""
    ram = Ram()
    d = Driver(ram, VirtioBlock(ram, disk, serial="seventeen"), features)
    ram.write(0x8000, struct.pack("<IIQ", kind, 0, sector))
    ram.write(0x9000, data)
    parts = [(0x8000, 16, 0)]
    if data:
        parts += [(0x9000, len(data), 0)]
    if room:
        parts += [(0xA000, room, WRITE)]
    used = d.send([*parts, (0xF000, 1, WRITE)])
    assert d.irq
    assert d.ack() == Interrupt.USED_BUFFER
    return ram.read(0xF000, 1)[0], used, ram.read(0xA000, room), d


def test_identity() -> None:
    mmio = VirtioMmio(VirtioBlock(Ram(), RamDisk()), lambda on: None)
    assert mmio.read(0, 4).to_bytes(4, "little") == b"virt"
    assert (mmio.read(4, 4), mmio.read(8, 4)) == (2, 2)
    assert mmio.read(0xC, 4) == 0x554D_4551, "xv6 looks"
    assert mmio.read(0x100, 4) == mmio.read(0x100, 8) == 8
    assert mmio.read(0x114, 4) == 512
    assert mmio.read(0x2FF, 1) == 0
    assert mmio.read(0xB0, 4) == 0xFFFF_FFFF
    with pytest.raises(BusError):
        mmio.read(0, 1)
    empty = VirtioMmio(NoDevice(Ram()), lambda on: None)
    assert (empty.read(8, 4), empty.read(0x10, 4), empty.read(0x34, 4)) == (0, 0, 0)


def test_block_read_write_flush_id() -> None:
    disk = RamDisk()
    disk.data[512:1024] = b"r" * 512
    assert block(disk, Request.IN, 1, room=1024)[:3] == (0, 1025, b"r" * 512 + bytes(512))
    assert block(disk, Request.OUT, 2, data=b"w" * 512)[:2] == (0, 1)
    assert disk.data[1024:1536] == b"w" * 512
    assert disk.flushes == 0
    assert block(disk, Request.FLUSH, 0)[0] == 0
    assert disk.flushes == 1
    block(disk, Request.OUT, 2, data=b"w" * 512, features=1 << 32)
    assert disk.flushes == 2, "write-through for a driver that cannot flush"
    assert block(disk, Request.GET_ID, 0, room=20)[2] == b"seventeen".ljust(20, b"\0")


def test_block_answers_errors_in_the_status() -> None:
    disk = RamDisk()
    assert block(disk, Request.IN, 8, room=512)[0] == Answer.IOERR
    assert block(disk, Request.IN, (1 << 64) - 1, room=512)[0] == Answer.IOERR
    assert block(disk, Request.IN, 0, room=100)[0] == Answer.IOERR
    assert block(disk, 10, 0)[0] == Answer.UNSUPP
    disk.broken = True
    assert block(disk, Request.IN, 0, room=512)[:2] == (Answer.IOERR, 1)
    assert block(RamDisk(read_only=True), Request.OUT, 0, data=bytes(512))[0] == Answer.IOERR
    device = VirtioBlock(Ram(), RamDisk(read_only=True))
    assert device.offered & 1 << 5


def test_a_broken_driver_gets_needs_reset_and_may_start_again() -> None:
    ram = Ram()
    device = VirtioBlock(ram, RamDisk())
    d = Driver(ram, device)
    d.offer([(0x8000, 4, 0)])
    d.w(0x50, 0)
    assert d.r(0x70) == READY | Status.DEVICE_NEEDS_RESET
    assert d.ack() == Interrupt.CONFIG_CHANGE
    d.w(0x50, 0)
    assert not d.irq
    d.w(0x70, 0)
    assert d.r(0x70) == 0
    ram.write(0, bytes(0x4000))
    assert Driver(ram, device).r(0x70) == READY


def test_features_that_were_not_offered_are_refused() -> None:
    mmio = VirtioMmio(VirtioRng(Ram(), bytes), lambda on: None)
    mmio.write(0x70, 4, 3)
    mmio.write(0x24, 4, 0)
    mmio.write(0x20, 4, 1 << 7)
    mmio.write(0x70, 4, 11)
    assert mmio.read(0x70, 4) == 3


def test_bad_queue_configuration_needs_reset() -> None:
    mmio = VirtioMmio(VirtioRng(Ram(), bytes), lambda on: None)
    mmio.write(0x70, 4, 11)
    mmio.write(0x38, 4, 7)
    mmio.write(0x44, 4, 1)
    assert mmio.read(0x44, 4) == 0
    assert mmio.read(0x70, 4) & Status.DEVICE_NEEDS_RESET
    mmio.write(0x30, 4, 5)
    assert mmio.read(0x34, 4) == 0
    mmio.write(0x38, 4, 8)
    mmio.write(0x50, 4, 5)


def test_rng() -> None:
    ram = Ram()
    d = Driver(ram, VirtioRng(ram, lambda n: b"\x5a" * n))
    assert d.send([(0x8000, 100, WRITE)]) == 100
    assert ram.read(0x8000, 101) == b"\x5a" * 100 + b"\0"


def test_console() -> None:
    ram = Ram()
    sent = bytearray()
    console = VirtioConsole(ram, sent.extend, columns=100, rows=30)
    console.receive(b"early ")
    d = Driver(ram, console)
    assert (d.mmio.read(0x100, 2), d.mmio.read(0x102, 2)) == (100, 30)
    ram.write(0x8000, b"hello")
    assert d.send([(0x8000, 5, 0)], q=TRANSMIT) == 0
    assert sent == b"hello"
    assert d.send([(0x9000, 4, WRITE)], q=RECEIVE) == 4
    assert ram.read(0x9000, 4) == b"earl"
    d.ack()
    console.receive(b"bird")
    assert not d.irq
    assert d.send([(0x9000, 64, WRITE)], q=RECEIVE) == 6
    assert ram.read(0x9000, 6) == b"y bird"
    d.offer([(0x9000, 64, WRITE)], q=RECEIVE)
    d.w(0x50, RECEIVE)
    d.ack()
    console.receive(b"!")
    assert d.irq
    d.ack()
    console.resize(100, 30)
    assert not d.irq
    console.resize(132, 50)
    assert d.ack() == Interrupt.CONFIG_CHANGE
    assert d.r(0xFC) == 1
    d.w(0x108, ord("E"))
    assert sent == b"helloE"


def test_state_comes_back() -> None:
    ram = Ram()
    console = VirtioConsole(ram, lambda data: None)
    d = Driver(ram, console)
    d.offer([(0x9000, 64, WRITE)], q=RECEIVE)
    console.receive(b"typed")
    console.receive(b"ahead")
    irq: list[bool] = []
    other = VirtioConsole(ram, lambda data: None)
    transport = VirtioMmio(other, irq.append)
    transport.restore(d.mmio.save())
    assert irq == [True]
    assert transport.save() == d.mmio.save()
    assert other.save().ports[0].pending == b"ahead"
    with pytest.raises(ConfigError):
        VirtioMmio(VirtioRng(ram, bytes), irq.append).restore(d.mmio.save())


def test_without_version_1_as_small_kernels_do() -> None:
    assert block(RamDisk(), Request.IN, 0, room=512, features=0)[0] == Answer.OK


@settings(max_examples=200, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from([*range(0, 0x120, 4), 0x70, 0x44, 0x50]),
            st.sampled_from([1, 2, 4, 8]),
            st.sampled_from([0, 1, 2, 3, 8, 11, 15, 64, 0x1000, 0xFFFF_FFFF]),
        ),
        max_size=40,
    ),
    which=st.integers(0, 2),
    rings=st.binary(min_size=256, max_size=256),
)
def test_no_sequence_of_accesses_breaks_the_machine(
    accesses: list[tuple[bool, int, int, int]], which: int, rings: bytes
) -> None:
    ram = Ram()
    ram.write(0x0, rings)
    ram.write(0x1000, rings)
    devices: list[VirtioDevice] = [
        VirtioBlock(ram, RamDisk()),
        VirtioRng(ram, bytes),
        VirtioConsole(ram, lambda data: None),
    ]
    mmio = VirtioMmio(devices[which], lambda on: None)
    for write, offset, size, value in accesses:
        try:
            if write:
                mmio.write(offset, size, value & (1 << 8 * size) - 1)
            else:
                mmio.read(offset, size)
        except BusError:
            pass
