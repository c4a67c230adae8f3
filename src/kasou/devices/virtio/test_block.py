"""A driver in miniature against the disk."""

import errno
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.block import (
    MAX_RANGE_SECTORS,
    MAX_RANGES,
    Answer,
    BlockFeature,
    OnError,
    Request,
    VirtioBlock,
)
from kasou.devices.virtio.device import Feature, Status
from kasou.devices.virtio.driver_model import PACKED, WRITE, Driver, MmioFace, Ram
from kasou.devices.virtio.mmio import VirtioMmio
from kasou.errors import ConfigError, HostError
from kasou.ports import VectorDisk

V1 = int(Feature.VERSION_1)
SECTORS = 64


class RamDisk:
    """Remembers what was asked; the next `refuse` requests fail with `error`."""

    def __init__(self, read_only: bool = False) -> None:
        self.data = bytearray(512 * SECTORS)
        self.read_only = read_only
        self.log: list[tuple[str, int, int]] = []
        self.refuse = 0
        self.error = HostError("disk: no space left on device", errno.ENOSPC)

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def note(self, what: str, offset: int = 0, n: int = 0) -> None:
        if self.refuse:
            self.refuse -= 1
            raise self.error
        self.log.append((what, offset, n))

    def read(self, offset: int, n: int) -> bytes:
        self.note("read", offset, n)
        return bytes(self.data[offset : offset + n])

    def write(self, offset: int, data: bytes) -> None:
        self.note("write", offset, len(data))
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.note("flush")

    def discard(self, offset: int, n: int) -> None:
        self.note("discard", offset, n)

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None:
        self.note("unmap" if unmap else "zero", offset, n)
        self.data[offset : offset + n] = bytes(n)


class RamVectorDisk(RamDisk):
    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        self.note("readv", offset, sum(map(len, views)))
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def writev(self, offset: int, views: Sequence[bytes | memoryview]) -> None:
        self.note("writev", offset, sum(map(len, views)))
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)


class Guest:
    def __init__(
        self,
        disk: RamDisk | None = None,
        features: int = -1,
        queues: int = 1,
        on_error: tuple[OnError, OnError] = ("report", "enospc"),
        stops: bool = False,
    ) -> None:
        self.ram = Ram(1 << 20)
        self.disk = disk or RamDisk()
        self.stops: list[HostError] = []
        self.block = self.make(queues, on_error, stops)
        self.block.offer(PACKED)
        self.driver = Driver(self.ram, MmioFace(VirtioMmio(self.block, lambda on: None)), features)

    def make(self, queues: int, on_error: tuple[OnError, OnError], stops: bool) -> VirtioBlock:
        return VirtioBlock(
            self.ram,
            self.disk,
            "serial",
            num_queues=queues,
            on_read_error=on_error[0],
            on_write_error=on_error[1],
            stopped=self.stops.append if stops else None,
        )

    def parts(self, kind: int, sector: int, data: bytes, room: int) -> list[tuple[int, int, int]]:
        header = struct.pack("<IIQ", kind, 0, sector)
        parts = [(self.driver.place(header), 16, 0)]
        for at in range(0, len(data), 700):
            piece = data[at : at + 700]
            parts.append((self.driver.place(piece), len(piece), 0))
        self.answer = self.driver.room(room)
        half = room // 2
        parts += [(self.answer, half, WRITE), (self.answer + half, room - half, WRITE)][half == 0 :]
        self.status = self.driver.place(b"\xee")
        return [part for part in parts if part[1]] + [(self.status, 1, WRITE)]

    def ask(
        self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, queue: int = 0
    ) -> int:
        written = self.driver.request(queue, self.parts(kind, sector, data, room))
        status = self.ram.read(self.status, 1)[0]
        if kind == Request.IN:
            assert written == (room if status == Answer.OK else 0) + 1
        return status

    def offer(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> int:
        """Without expecting an answer; where the status will be."""
        self.driver.rings[0].offer(self.parts(kind, sector, data, room))
        self.driver.kick(0)
        return self.status


@pytest.fixture(params=[RamDisk, RamVectorDisk])
def disk(request: pytest.FixtureRequest) -> RamDisk:
    made: RamDisk = request.param()
    assert isinstance(made, VectorDisk) == (request.param is RamVectorDisk)
    return made


@pytest.mark.parametrize("features", [-1, ~PACKED, V1])
def test_read_and_write(disk: RamDisk, features: int) -> None:
    guest = Guest(disk, features)
    data = bytes(range(256)) * 8
    assert guest.ask(Request.OUT, 3, data) == Answer.OK
    assert disk.data[3 * 512 : 7 * 512] == data
    before = len(guest.ram.writes)
    assert guest.ask(Request.IN, 2, room=2048) == Answer.OK
    assert guest.ram.read(guest.answer, 2048) == bytes(512) + data[:1536]
    written = guest.ram.writes[before:]
    assert any(gpa <= guest.answer < gpa + n for gpa, n in written), "dirty tracking missed it"
    assert guest.ask(Request.GET_ID, room=20) == Answer.OK
    assert guest.ram.read(guest.answer, 20) == b"serial".ljust(20, b"\0")
    counters = guest.block.counters
    assert (counters.reads, counters.read_bytes, counters.writes) == (1, 2048, 1)


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room", "answer"),
    [
        (Request.IN, SECTORS, b"", 512, Answer.IOERR),
        (Request.IN, SECTORS - 1, b"", 1024, Answer.IOERR),
        (Request.IN, (1 << 64) - 1, b"", 512, Answer.IOERR),
        (Request.IN, 0, b"", 100, Answer.IOERR),
        (Request.OUT, SECTORS, bytes(512), 0, Answer.IOERR),
        (Request.OUT, 0, bytes(513), 0, Answer.IOERR),
        (Request.IN, 0, b"", 0, Answer.OK),
        (Request.OUT, 0, b"", 0, Answer.OK),
        (Request.DISCARD, 0, b"", 0, Answer.IOERR),
        (Request.DISCARD, 0, bytes(15), 0, Answer.IOERR),
        (Request.DISCARD, 0, struct.pack("<QII", SECTORS, 1, 0), 0, Answer.IOERR),
        (Request.DISCARD, 0, struct.pack("<QII", 0, MAX_RANGE_SECTORS + 1, 0), 0, Answer.IOERR),
        (Request.DISCARD, 0, struct.pack("<QII", 0, 1, 1), 0, Answer.UNSUPP),
        (Request.WRITE_ZEROES, 0, struct.pack("<QII", 0, 1, 2), 0, Answer.UNSUPP),
        (Request.WRITE_ZEROES, 0, bytes(16 * (MAX_RANGES + 1)), 0, Answer.IOERR),
        (2, 0, b"", 0, Answer.UNSUPP),
        (1 << 31, 0, b"", 0, Answer.UNSUPP),
    ],
)
def test_wrong_requests_are_answered(
    kind: int, sector: int, data: bytes, room: int, answer: Answer
) -> None:
    guest = Guest(RamVectorDisk())
    assert guest.ask(kind, sector, data, room) == answer
    assert guest.disk.log == []
    assert guest.block.running


def test_a_request_without_header_or_status_needs_reset() -> None:
    for parts in ([(0x8000, 15, 0), (0x9000, 1, WRITE)], [(0x8000, 16, 0)]):
        guest = Guest()
        guest.driver.rings[0].offer(parts)
        guest.driver.kick(0)
        assert guest.block.status & Status.DEVICE_NEEDS_RESET


def test_discard_and_zeroes() -> None:
    guest = Guest()
    ranges = struct.pack("<QIIQII", 1, 2, 0, 8, 4, 0)
    assert guest.ask(Request.DISCARD, data=ranges) == Answer.OK
    assert guest.ask(Request.WRITE_ZEROES, data=struct.pack("<QII", 1, 2, 1)) == Answer.OK
    assert guest.ask(Request.WRITE_ZEROES, data=struct.pack("<QII", 3, 1, 0)) == Answer.OK
    assert guest.disk.log == [
        ("discard", 512, 1024),
        ("discard", 4096, 2048),
        ("unmap", 512, 1024),
        ("zero", 1536, 512),
    ]
    for features in (V1, ~int(BlockFeature.DISCARD | BlockFeature.WRITE_ZEROES)):
        other = Guest(features=features)
        assert other.ask(Request.DISCARD, data=ranges) == Answer.UNSUPP


def test_a_read_only_disk() -> None:
    guest = Guest(RamDisk(read_only=True))
    assert guest.block.offered & BlockFeature.RO
    assert not guest.block.offered & (BlockFeature.DISCARD | BlockFeature.WRITE_ZEROES)
    assert guest.ask(Request.OUT, data=bytes(512)) == Answer.IOERR
    assert guest.ask(Request.FLUSH) == Answer.OK
    assert guest.ask(Request.IN, room=512) == Answer.OK
    assert guest.disk.log == [("read", 0, 512)]


def flushed(guest: Guest) -> bool:
    guest.disk.log.clear()
    guest.ask(Request.OUT, data=bytes(512))
    return ("flush", 0, 0) in guest.disk.log


def test_writes_go_through_unless_the_driver_flushes() -> None:
    guest = Guest(features=~int(BlockFeature.CONFIG_WCE))
    assert not flushed(guest)
    assert guest.ask(Request.FLUSH) == Answer.OK
    assert guest.disk.log[-1] == ("flush", 0, 0)
    assert flushed(Guest(features=V1))
    guest = Guest()
    assert not flushed(guest)
    guest.block.write_config(32, b"\0")
    assert guest.block.config[32] == 0
    assert flushed(guest)
    guest.block.write_config(0, b"\xff" * 8)
    assert guest.block.config[:8] == struct.pack("<Q", SECTORS)


def test_configuration() -> None:
    config = Guest(queues=3).block.config
    assert struct.unpack_from("<QII", config) == (SECTORS, 4 << 20, 254)
    assert struct.unpack_from("<I", config, 20) == (512,)
    assert struct.unpack_from("<BBHI", config, 24) == (3, 0, 8, 0)
    assert struct.unpack_from("<BxH", config, 32) == (1, 3)
    assert struct.unpack_from("<III", config, 36) == (MAX_RANGE_SECTORS, MAX_RANGES, 1)
    assert struct.unpack_from("<IIB", config, 48) == (MAX_RANGE_SECTORS, MAX_RANGES, 1)
    assert len(config) == 60
    with pytest.raises(ConfigError):
        Guest(queues=0)


def test_several_queues() -> None:
    guest = Guest(queues=3)
    for queue in range(3):
        assert guest.ask(Request.OUT, queue, bytes((queue,)) * 512, queue=queue) == Answer.OK
    assert guest.disk.data[:1536] == b"\0" * 512 + b"\1" * 512 + b"\2" * 512


def test_a_new_size_is_shown() -> None:
    guest = Guest()
    guest.disk.data += bytes(512)
    guest.block.resized()
    assert guest.block.config[:8] == struct.pack("<Q", SECTORS + 1)
    assert guest.ask(Request.IN, SECTORS, room=512) == Answer.OK


# ---------------------------------------------------------------------- errors of the host
def test_errors_are_reported() -> None:
    guest = Guest(on_error=("report", "report"), stops=True)
    for kind, data, room in (
        (Request.IN, b"", 512),
        (Request.OUT, bytes(512), 0),
        (Request.FLUSH, b"", 0),
        (Request.DISCARD, struct.pack("<QII", 0, 1, 0), 0),
    ):
        guest.disk.refuse = 1
        assert guest.ask(kind, 0, data, room) == Answer.IOERR
    assert guest.block.counters.errors == 4
    assert guest.stops == []
    nobody = Guest(on_error=("stop", "stop"))
    nobody.disk.refuse = 1
    assert nobody.ask(Request.OUT, data=bytes(512)) == Answer.IOERR


def test_a_full_host_stops_the_machine_and_the_request_is_done_later(disk: RamDisk) -> None:
    guest = Guest(disk, stops=True)
    disk.refuse = 1
    first = guest.offer(Request.OUT, 1, b"1" * 512)
    assert guest.stops == [disk.error]
    second = guest.offer(Request.OUT, 2, b"2" * 512)
    assert guest.driver.rings[0].collect() == []
    assert disk.log == []
    disk.refuse = 1
    guest.block.retry()
    assert len(guest.stops) == 2
    guest.block.retry()
    assert guest.block.stopped_by is None
    assert [n for _, n in guest.driver.rings[0].collect()] == [1, 1]
    assert guest.ram.read(first, 1) == guest.ram.read(second, 1) == b"\0"
    assert disk.data[512:1536] == b"1" * 512 + b"2" * 512


def test_other_errors_stop_only_where_asked_for() -> None:
    guest = Guest(stops=True)
    guest.disk.error = HostError("disk: input/output error", errno.EIO)
    guest.disk.refuse = 1
    assert guest.ask(Request.OUT, data=bytes(512)) == Answer.IOERR
    guest = Guest(on_error=("stop", "stop"), stops=True)
    guest.disk.error = HostError("disk: gone")
    guest.disk.refuse = 1
    guest.offer(Request.IN, room=512)
    assert len(guest.stops) == 1


def test_reset_forgets_what_was_kept() -> None:
    guest = Guest(stops=True)
    guest.disk.refuse = 1
    guest.offer(Request.OUT, 1, b"1" * 512)
    guest.block.set_status(0)
    guest.block.retry()
    assert guest.disk.log == []
    assert guest.block.stopped_by is None


def test_state_continues_with_the_request_that_was_kept() -> None:
    guest = Guest(stops=True)
    guest.block.write_config(32, b"\0")
    guest.disk.refuse = 1
    status = guest.offer(Request.OUT, 1, b"1" * 512)
    state = guest.block.save()
    again = guest.make(1, ("report", "enospc"), stops=True)
    again.offer(PACKED)
    again.restore(state)
    assert again.save() == state
    assert again.config[32] == 0
    again.resume()
    assert guest.ram.read(status, 1) == b"\0"
    assert guest.disk.data[512:1024] == b"1" * 512
    guest.disk.data += bytes(512)
    for other in (VirtioBlock(guest.ram, guest.disk), guest.make(2, ("stop", "stop"), True)):
        with pytest.raises(ConfigError):
            other.restore(state)


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([*Request, 2, 10, 14]),
            st.integers(0, SECTORS + 1) | st.sampled_from([1 << 55, (1 << 64) - 1]),
            st.binary(max_size=40) | st.sampled_from([bytes(512), bytes(1024)]),
            st.sampled_from([0, 1, 20, 511, 512, 1024]),
        ),
        max_size=8,
    ),
    features=st.just(-1) | st.integers(0, (1 << 40) - 1),
    refuse=st.integers(0, 3),
)
def test_whatever_is_asked_there_is_an_answer(
    requests: list[tuple[int, int, bytes, int]], features: int, refuse: int
) -> None:
    guest = Guest(RamVectorDisk(), features)
    guest.disk.refuse = refuse
    for kind, sector, data, room in requests:
        assert guest.ask(kind, sector, data, room) in list(Answer)
        assert len(guest.disk.data) == 512 * SECTORS
    assert guest.block.running
