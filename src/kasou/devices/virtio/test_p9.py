import errno
from pathlib import Path

import pytest

from kasou.devices.virtio.device import Status
from kasou.devices.virtio.driver_model import WRITE, Ram, SplitDriverRing
from kasou.devices.virtio.ninep import messages as m
from kasou.devices.virtio.ninep.codec import decode, encode
from kasou.devices.virtio.ninep.session import VERSION
from kasou.devices.virtio.p9 import VirtioP9, share_directory
from kasou.errors import ConfigError

RINGS, REQUEST, ANSWER = 0x0, 0x3000, 0x10_0000


class Mounted:
    """A driver with one ring."""

    def __init__(self, directory: Path) -> None:
        self.ram = Ram(0x20_0000)
        self.device = share_directory(self.ram, directory, "src")
        self.start()

    def start(self) -> None:
        self.ring = SplitDriverRing(self.ram, RINGS, 128, event_idx=False)
        self.device.set_status(0)
        self.device.accept(1 << 32 | 1)
        self.device.set_status(11)
        queue = self.device.queues[0]
        queue.size, (queue.desc, queue.driver, queue.device) = 128, self.ring.areas
        self.device.enable_queue(0)
        self.device.set_status(15)

    def raw(self, request: bytes, room: int = 0x2000) -> bytes:
        self.ram.write(REQUEST, request)
        self.ring.offer([(REQUEST, len(request), 0), (ANSWER, room, WRITE)][: 2 if room else 1])
        self.device.notify(0)
        back = self.ring.collect()
        return self.ram.read(ANSWER, back[0][1]) if back else b""

    def ask(self, request: m.Message) -> m.Message:
        return decode(self.raw(encode(3, request)))[1]


@pytest.fixture
def driver(tmp_path: Path) -> Mounted:
    (tmp_path / "file").write_text("hello")
    driver = Mounted(tmp_path)
    assert driver.ask(m.Tversion(8192, VERSION)) == m.Rversion(8192, VERSION)
    assert isinstance(driver.ask(m.Tattach(0, m.NO_FID, b"", b"", 0)), m.Rattach)
    return driver


def test_a_file_is_read_through_the_queue(driver: Mounted) -> None:
    assert driver.device.config == b"\x03\x00src"
    assert isinstance(driver.ask(m.Twalk(0, 1, (b"file",))), m.Rwalk)
    assert isinstance(driver.ask(m.Tlopen(1, 0)), m.Rlopen)
    assert driver.ask(m.Tread(1, 0, 100)) == m.Rread(b"hello")


def test_requests_that_lie_about_their_size(driver: Mounted) -> None:
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
    driver: Mounted, request_: bytes, room: int
) -> None:
    assert driver.raw(request_, room) == b""
    assert driver.device.status & Status.DEVICE_NEEDS_RESET
    driver.start()
    assert driver.ask(m.Tclunk(0)) == m.Rlerror(errno.EPROTO)  # nothing is left of the session


def test_at_rest(driver: Mounted, tmp_path: Path) -> None:
    driver.ask(m.Twalk(0, 1, (b"file",)))
    driver.ask(m.Tlopen(1, 0))
    state = driver.device.save()
    driver.device.session.close()
    driver.device = share_directory(driver.ram, tmp_path, "src")
    driver.device.restore(state)
    assert driver.ask(m.Tread(1, 1, 3)) == m.Rread(b"ell")


def test_tags_are_checked(driver: Mounted) -> None:
    for tag in ("", "x" * 32):
        with pytest.raises(ConfigError):
            VirtioP9(driver.ram, driver.device.session, tag)
