"""Every virtio device, with a host around it that answers at once, and a driver's plausible requests.

A rig says what a request to each queue looks like, so that fuzzing gets behind the header check, what
the host may do meanwhile, and one exchange that must work whenever a driver behaves.
"""

import contextlib
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kasou.devices.virtio.balloon import VirtioBalloon
from kasou.devices.virtio.block import VirtioBlock
from kasou.devices.virtio.console import ConsolePort, VirtioConsole
from kasou.devices.virtio.device import VirtioDevice
from kasou.devices.virtio.driver_model import WRITE, Driver, Part, Ram
from kasou.devices.virtio.net import VirtioNet
from kasou.devices.virtio.p9 import share_directory
from kasou.devices.virtio.rng import VirtioRng
from kasou.devices.virtio.vsock import VirtioVsock
from kasou.errors import HostError, LocalError
from kasou.ports import Frame, FrameSink

Request = tuple[bytes, Sequence[int]]
"""What the driver says, and the sizes of the rooms it gives for the answer."""
DATA = 0x28000
"""Where `works` puts its buffers."""


@dataclass
class Rig:
    """A device under test."""

    device: VirtioDevice
    request: Callable[[random.Random, int], Request]
    """A plausible request to a queue."""
    works: Callable[[Driver], None]
    """One exchange with a driver that accepted everything; raises `AssertionError`."""
    poke: Callable[[random.Random], None] = lambda rng: None
    """The host does something of its own."""
    keep: object = None
    """What must live as long."""


def put(driver: Driver, gpa: int, data: bytes, *rooms: tuple[int, int]) -> list[Part]:
    """Store `data` at `gpa`: the parts of a chain with it and the `rooms` (gpa, bytes)."""
    driver.ram.write(gpa, data)
    return [*([(gpa, len(data), 0)] if data else []), *((at, n, WRITE) for at, n in rooms)]


# ---------------------------------------------------------------------- entropy
def rng_rig(ram: Ram, rng: random.Random) -> Rig:
    """Nothing to say, any room."""

    def works(driver: Driver) -> None:
        assert driver.request(0, [(DATA, 8, WRITE)]) == 8

    return Rig(VirtioRng(ram, rng.randbytes), lambda r, q: (b"", [r.randint(0, 100)]), works)


# ---------------------------------------------------------------------- block
class FlakyDisk:
    """A disk in memory that refuses now and then while `flaky`."""

    size_bytes = 64 * 512
    read_only = False

    def __init__(self, rng: random.Random) -> None:
        self.data = bytearray(self.size_bytes)
        self.rng = rng
        self.flaky = 0.05

    def _check(self, offset: int, n: int) -> None:
        assert 0 <= offset <= offset + n <= self.size_bytes, "outside the disk"
        if self.rng.random() < self.flaky:
            raise HostError("the disk is in a bad mood")

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes."""
        self._check(offset, n)
        return bytes(self.data[offset : offset + n])

    def write(self, offset: int, data: bytes) -> None:
        """Store."""
        self._check(offset, len(data))
        self.data[offset : offset + len(data)] = data

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill."""
        for view in views:
            view[:] = self.read(offset, len(view))
            offset += len(view)

    def writev(self, offset: int, views: Sequence[bytes | memoryview]) -> None:
        """Store."""
        for view in views:
            self.write(offset, bytes(view))
            offset += len(view)

    def flush(self) -> None:
        """Nothing to do."""
        self._check(0, 0)

    def discard(self, offset: int, n: int) -> None:
        """Nothing to do."""
        self._check(offset, n)

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None:
        """Zero."""
        self.write(offset, bytes(n))


def block_rig(ram: Ram, rng: random.Random) -> Rig:
    """Two queues; half the rigs stop on errors and are retried by the host."""
    disk = FlakyDisk(rng)
    stop = rng.random() < 0.5
    device = VirtioBlock(
        ram, disk, "fuzz", num_queues=2,
        on_read_error="stop" if stop else "report", on_write_error="stop" if stop else "report",
        stopped=(lambda error: None) if stop else None,
    )  # fmt: skip

    def request(r: random.Random, queue: int) -> Request:
        kind = r.choice([0, 0, 1, 1, 4, 8, 11, 13, r.getrandbits(32)])
        sector = r.choice([r.randrange(70), r.getrandbits(64)])
        data = struct.pack("<IIQ", kind, 0, sector)
        n = 512 * r.randint(0, 3)
        if kind == 1:
            return data + r.randbytes(n), [1]
        if kind in (11, 13):
            ranges = [
                (r.choice([r.randrange(70), r.getrandbits(64)]), r.randrange(80), r.getrandbits(2))
                for _ in range(r.randint(0, 40))
            ]
            return data + b"".join(struct.pack("<QII", *one) for one in ranges), [1]
        return data, [n, 1] if kind == 0 else [20, 1]

    def works(driver: Driver) -> None:
        disk.flaky = 0.0
        if device.stopped_by:
            device.retry()
        sector = bytes(range(256)) * 2
        for queue in (0, 1):
            out = put(driver, DATA, struct.pack("<IIQ", 1, 0, 3) + sector, (DATA + 0x1000, 1))
            assert driver.request(queue, out) == 1
            back = put(driver, DATA, struct.pack("<IIQ", 0, 0, 3), (DATA + 0x1000, 513))
            assert driver.request(queue, back) == 513
            assert driver.ram.read(DATA + 0x1000, 513) == sector + b"\0"
        disk.flaky = 0.05

    def poke(r: random.Random) -> None:
        if device.stopped_by:
            device.retry()

    return Rig(device, request, works, poke)


# ---------------------------------------------------------------------- network
class Wire:
    """A port that keeps what the guest sends."""

    def __init__(self) -> None:
        self.sent: list[Frame] = []

    def send(self, frames: Sequence[Frame]) -> None:
        """From the guest."""
        self.sent += frames
        del self.sent[:-10]

    def attach(self, sink: FrameSink | None) -> None:
        """Frames for the guest come from `poke`."""


MAC = bytes.fromhex("0250 4b00 0001")
BROADCAST = b"\xff" * 6


def net_rig(ram: Ram, rng: random.Random) -> Rig:
    """Two queue pairs."""
    wire = Wire()
    device = VirtioNet(ram, wire, MAC, queue_pairs=2)

    def frame(r: random.Random) -> bytes:
        kind = r.choice([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"])
        return (
            r.choice([MAC, BROADCAST, r.randbytes(6)])
            + r.randbytes(6)
            + kind
            + r.randbytes(r.choice([0, 20, 46, 1500, 4000]))
        )

    def request(r: random.Random, queue: int) -> Request:
        if queue == len(device.queues) - 1 or (queue == 2 and r.random() < 0.5):
            kind, command = r.randrange(7), r.randrange(5)
            return bytes((kind, command)) + r.randbytes(r.choice([0, 1, 2, 6, 8, 20])), [1]
        if queue & 1:
            header = struct.pack(
                "<BBHHHHH", r.choice([0, 1, 2, 7]), r.choice([0, 1, 3, 4, 5, 0x81]),
                r.choice([0, 54, r.getrandbits(16)]), r.choice([0, 1448, r.getrandbits(16)]),
                r.choice([0, 34, r.getrandbits(16)]), r.choice([0, 16, r.getrandbits(16)]), 0,
            )  # fmt: skip
            return header[: r.choice([10, 12])] + frame(r), []
        return b"", [r.choice([1, 12, 100, 1526, 4096])]

    def works(driver: Driver) -> None:
        wire.sent.clear()
        data = BROADCAST + MAC + b"\x88\xb5" + bytes(46)
        driver.request(1, put(driver, DATA, bytes(12) + data))
        assert [bytes(f.data) for f in wire.sent] == [data]
        room = driver.rings[0].offer([(DATA, 2048, WRITE)])
        driver.kick(0)
        device.receive([Frame(data)])
        assert driver.rings[0].collect() == [(room, 12 + len(data))]
        assert driver.ram.read(DATA + 12, len(data)) == data

    def poke(r: random.Random) -> None:
        if r.random() < 0.1:
            device.set_link(not device.link_up)
        device.set_link(True)
        device.receive([Frame(frame(r)) for _ in range(r.randint(1, 3))])
        if r.random() < 0.1:
            device.announce()

    return Rig(device, request, works, poke)


# ---------------------------------------------------------------------- console
def console_rig(ram: Ram, rng: random.Random) -> Rig:
    """The console and two ports."""
    sent = bytearray()

    def output(data: bytes) -> None:
        sent.extend(data[-64:])
        del sent[:-64]

    ports = [ConsolePort(name, output) for name in ("org.kasou.one", "two")]
    device = VirtioConsole(ram, output, ports=ports)

    def request(r: random.Random, queue: int) -> Request:
        if queue == 3:
            number, event = r.choice([0, 1, 2, 3, r.getrandbits(32)]), r.randrange(9)
            return struct.pack("<IHH", number, event, r.randrange(3)) + r.randbytes(
                r.choice([0, 0, 5])
            ), []
        return (r.randbytes(r.randrange(100)), []) if queue & 1 else (b"", [r.randrange(50)])

    def works(driver: Driver) -> None:
        sent.clear()
        driver.request(1, put(driver, DATA, b"hello"))
        assert bytes(sent) == b"hello"

    def poke(r: random.Random) -> None:
        one = r.choice(ports)
        match r.randrange(4):
            case 0:
                one.set_open(r.random() < 0.5)
            case 1:
                one.receive(r.randbytes(20))
            case 2:
                device.receive(r.randbytes(20))
            case _:
                device.resize(r.randrange(200), 25)

    return Rig(device, request, works, poke)


# ---------------------------------------------------------------------- balloon
def balloon_rig(ram: Ram, rng: random.Random) -> Rig:
    """Pages of this RAM and others."""
    given: list[tuple[int, int]] = []

    def give_up(gpa: int, n: int) -> None:
        assert not (gpa | n) & 0xFFF
        ram.view(gpa, n)  # raises `GuestError` outside RAM
        given.append((gpa, n))
        del given[:-100]

    device = VirtioBalloon(ram, give_up)

    def request(r: random.Random, queue: int) -> Request:
        if queue == 2:
            pairs = [(r.randrange(12), r.getrandbits(64)) for _ in range(r.randint(0, 12))]
            return b"".join(struct.pack("<HQ", *pair) for pair in pairs), []
        if queue == 4:
            return b"", [r.choice([4096, 8192, 100]) for _ in range(r.randint(1, 3))]
        pages = [r.choice([0x30 + r.randrange(16), r.getrandbits(32)]) for _ in range(8)]
        return b"".join(struct.pack("<I", page) for page in pages), []

    def works(driver: Driver) -> None:
        given.clear()
        driver.request(0, put(driver, DATA, struct.pack("<I", 0x30)))
        assert given == [(0x30000, 4096)]

    def poke(r: random.Random) -> None:
        if r.random() < 0.5:
            device.set_target(r.randrange(1 << 40))
        else:
            device.request_statistics()

    return Rig(device, request, works, poke)


# ---------------------------------------------------------------------- vsock
def vsock_rig(ram: Ram, rng: random.Random) -> Rig:
    """The guest is CID 3; port 7 is listened to."""
    device = VirtioVsock(ram, 3)
    device.listen(7, lambda stream: None)
    header = struct.Struct("<QQIIIHHIII")

    def request(r: random.Random, queue: int) -> Request:
        if queue != 1:
            return b"", [r.choice([8, 44, 100, 4096])]
        n = r.choice([0, 0, 5, 64])
        packet = header.pack(
            r.choice([3, 3, 3, r.getrandbits(64)]), r.choice([2, 2, 2, 0, r.getrandbits(64)]),
            r.choice([1024, 1025, r.getrandbits(32)]),
            r.choice([7, 7, 0x4000_0000, r.getrandbits(32)]),
            r.choice([n, n, r.getrandbits(32)]), r.choice([1, 1, 2]), r.randrange(9),
            r.randrange(4), r.choice([1 << 18, r.getrandbits(32)]), r.getrandbits(16),
        )  # fmt: skip
        return packet + r.randbytes(n), []

    def works(driver: Driver) -> None:
        for i in range(8):
            driver.rings[0].offer([(DATA + 0x1000 * i, 0x1000, WRITE)])
        driver.kick(0)
        driver.rings[0].collect()
        refused = header.pack(3, 2, 5000, 99, 0, 1, 1, 0, 1 << 16, 0)
        driver.request(1, put(driver, DATA + 0x9000, refused))
        answers = [header.unpack(driver.ram.read(DATA + 0x1000 * i, header.size)) for i in range(8)]
        assert any((a[2], a[3], a[6]) == (99, 5000, 3) for a in answers), "no RST"

    def poke(r: random.Random) -> None:
        with contextlib.suppress(LocalError):
            stream = device.connect_to(r.choice([22, 1024]))
            stream.write(r.randbytes(100))
            if r.random() < 0.5:
                stream.reset()

    return Rig(device, request, works, poke)


# ---------------------------------------------------------------------- 9P
NAMES = (b"a", b"b", b"dir", b"link", b".", b"..", b"/etc", b"a/b", b"", b"\xff", b"x" * 300)


def p9_rig(ram: Ram, rng: random.Random) -> Rig:
    """A directory of its own, gone with the rig."""
    directory = tempfile.TemporaryDirectory(prefix="kasou-fuzz-")
    (Path(directory.name) / "a").write_bytes(b"content")
    device = share_directory(ram, directory.name, "share")

    def message(kind: int, body: bytes, tag: int = 1) -> bytes:
        return struct.pack("<IBH", 7 + len(body), kind, tag) + body

    def string(data: bytes) -> bytes:
        return struct.pack("<H", len(data)) + data

    def request(r: random.Random, queue: int) -> Request:
        def number(n: int) -> bytes:
            return (r.getrandbits(8 * n) if r.random() < 0.1 else r.randrange(4)).to_bytes(
                n, "little"
            )

        def name() -> bytes:
            return string(r.choice(NAMES))

        kind, shape = r.choice([
            (100, "4s"), (104, "44ss4"), (110, "44w"), (110, "44w"), (110, "44w"), (12, "44"),
            (14, "4s444"), (24, "48"), (26, "444448" + "8888"), (116, "484"), (118, "48d"),
            (40, "484"), (120, "4"), (122, "4"), (72, "4s44"), (16, "4ss4"), (70, "44s"),
            (76, "4s4"), (74, "4s4s"), (20, "44s"), (22, "4"), (8, "4"), (50, "44"),
            (52, "4148" + "84s"), (54, "41" + "884s"), (30, "44s"), (32, "4s84"), (108, "2"),
            (r.randrange(256), "4444"),
        ])  # fmt: skip
        body = b""
        for field in shape:
            if field == "s":
                body += name()
            elif field == "w":
                count = r.choice([0, 1, 1, 2, 16, 17])
                body += count.to_bytes(2, "little") + b"".join(name() for _ in range(count))
            elif field == "d":
                data = r.randbytes(r.randrange(50))
                body += struct.pack("<I", len(data)) + data
            else:
                body += number(int(field))
        if kind == 100:
            body = struct.pack("<I", r.choice([8192, 4096, 0, 1 << 31])) + string(b"9P2000.L")
        return message(kind, body), [r.choice([11, 100, 4096, 8192])]

    def works(driver: Driver) -> None:
        def call(kind: int, body: bytes) -> bytes:
            n = driver.request(0, put(driver, DATA, message(kind, body), (DATA + 0x1000, 0x1000)))
            size, answer, tag = struct.unpack("<IBH", driver.ram.read(DATA + 0x1000, 7))
            assert (n, tag) == (size, 1)
            assert answer == kind + 1, f"{kind} is answered by {answer}"
            return driver.ram.read(DATA + 0x1007, size - 7)

        call(100, struct.pack("<I", 8192) + string(b"9P2000.L"))
        call(104, struct.pack("<II", 1, 0xFFFF_FFFF) + string(b"") * 2 + bytes(4))
        call(24, struct.pack("<IQ", 1, 0x7FF))

    return Rig(device, request, works, keep=directory)


RIGS: dict[str, Callable[[Ram, random.Random], Rig]] = {
    "rng": rng_rig,
    "block": block_rig,
    "net": net_rig,
    "console": console_rig,
    "balloon": balloon_rig,
    "vsock": vsock_rig,
    "9p": p9_rig,
}
"""By name; a test sees to it that no device is missing."""
