import errno
import struct
from pathlib import Path

import pytest

from kasou.devices.virtio.device import Status
from kasou.devices.virtio.ninep import messages as m
from kasou.devices.virtio.ninep.codec import decode, encode
from kasou.devices.virtio.ninep.session import VERSION
from kasou.devices.virtio.p9 import VirtioP9, share_directory
from kasou.errors import ConfigError, GuestError

DESC, AVAIL, USED, REQUEST, ANSWER = 0x0, 0x1000, 0x2000, 0x3000, 0x10_0000
NEXT, WRITE = 1, 2


class Ram:
    def __init__(self) -> None:
        self.bytes = bytearray(0x20_0000)

    def read(self, gpa: int, n: int) -> bytes:
        if gpa + n > len(self.bytes):
            raise GuestError(f"{n} bytes at {gpa:#x} are outside RAM")
        return bytes(self.bytes[gpa : gpa + n])

    def write(self, gpa: int, data: bytes) -> None:
        if gpa + len(data) > len(self.bytes):
            raise GuestError(f"{len(data)} bytes at {gpa:#x} are outside RAM")
        self.bytes[gpa : gpa + len(data)] = data


class Driver:
    def __init__(self, directory: Path) -> None:
        self.ram = Ram()
        self.device = share_directory(self.ram, directory, "src")
        self.start()

    def start(self) -> None:
        self.count = 0
        self.ram.write(DESC, bytes(0x3000))
        self.device.set_status(0)
        self.device.accept(1 << 32 | 1)
        self.device.set_status(11)
        queue = self.device.queues[0]
        queue.size, queue.desc, queue.avail, queue.used = 128, DESC, AVAIL, USED
        self.device.enable_queue(0)
        self.device.set_status(15)

    def raw(self, request: bytes, room: int = 0x2000) -> bytes:
        self.ram.write(REQUEST, request)
        self.ram.write(DESC, struct.pack("<QIHH", REQUEST, len(request), NEXT if room else 0, 1))
        self.ram.write(DESC + 16, struct.pack("<QIHH", ANSWER, room, WRITE, 0))
        self.ram.write(AVAIL + 4 + 2 * (self.count % 128), struct.pack("<H", 0))
        self.count += 1
        self.ram.write(AVAIL + 2, struct.pack("<H", self.count))
        self.device.notify(0)
        (used,) = struct.unpack("<H", self.ram.read(USED + 2, 2))
        if used != self.count:
            return b""
        _, n = struct.unpack("<II", self.ram.read(USED + 4 + 8 * ((used - 1) % 128), 8))
        return self.ram.read(ANSWER, n)

    def ask(self, request: m.Message) -> m.Message:
        return decode(self.raw(encode(3, request)))[1]


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    (tmp_path / "file").write_text("hello")
    driver = Driver(tmp_path)
    assert driver.ask(m.Tversion(8192, VERSION)) == m.Rversion(8192, VERSION)
    assert isinstance(driver.ask(m.Tattach(0, m.NO_FID, b"", b"", 0)), m.Rattach)
    return driver


def test_a_file_is_read_through_the_queue(driver: Driver) -> None:
    assert driver.device.config == b"\x03\x00src"
    assert isinstance(driver.ask(m.Twalk(0, 1, (b"file",))), m.Rwalk)
    assert isinstance(driver.ask(m.Tlopen(1, 0)), m.Rlopen)
    assert driver.ask(m.Tread(1, 0, 100)) == m.Rread(b"hello")


def test_requests_that_lie_about_their_size(driver: Driver) -> None:
    tclunk = encode(3, m.Tclunk(0))
    for size in (5000, 9000, 0xFFFF_FFFF):
        answer = driver.raw(size.to_bytes(4, "little") + tclunk[4:])
        assert decode(answer) == (3, m.Rlerror(errno.EMSGSIZE))
    for size in (0, 7, 10):
        answer = driver.raw(size.to_bytes(4, "little") + tclunk[4:])
        assert isinstance(decode(answer)[1], m.Rlerror)
    assert driver.device.running


@pytest.mark.parametrize(("request_", "room"), [(b"123456", 100), (bytes(7), 10), (bytes(7), 0)])
def test_chains_without_room_are_the_drivers_fault(
    driver: Driver, request_: bytes, room: int
) -> None:
    assert driver.raw(request_, room) == b""
    assert driver.device.status & Status.DEVICE_NEEDS_RESET
    driver.start()
    assert driver.ask(m.Tclunk(0)) == m.Rlerror(errno.EPROTO)  # nothing is left of the session


def test_at_rest(driver: Driver, tmp_path: Path) -> None:
    driver.ask(m.Twalk(0, 1, (b"file",)))
    driver.ask(m.Tlopen(1, 0))
    state = driver.device.save()
    driver.device.session.close()
    driver.device = share_directory(driver.ram, tmp_path, "src")
    driver.device.restore(state)
    assert driver.ask(m.Tread(1, 1, 3)) == m.Rread(b"ell")


def test_tags_are_checked(driver: Driver) -> None:
    for tag in ("", "x" * 32):
        with pytest.raises(ConfigError):
            VirtioP9(driver.ram, driver.device.session, tag)
