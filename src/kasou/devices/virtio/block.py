"""A disk for the guest. (Virtio 1.2, 5.2)

A request is one chain: a header (type, reserved, sector), data, and a status byte at the end.

    readable  | type u32 | reserved u32 | sector u64 | data of OUT, or ranges ...
    writable  | data of IN ...                       | status u8

What the guest asks wrongly (a sector behind the end, a write to a read-only disk) is answered in
the status byte; only a chain with no place for it is a `GuestError`. What the host refuses is
reported there too, or stops the machine: then the request is kept, and done again by `retry`.
"""

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Literal

from kasou.devices.virtio.device import VirtioDevice, VirtioState, log
from kasou.devices.virtio.queue import Chain
from kasou.errors import ConfigError, GuestError, HostError
from kasou.ports import Disk, GuestMemory, VectorDisk

SECTOR = 512
QUEUE_SIZE = 256
MAX_QUEUES = 16
SEG_MAX = QUEUE_SIZE - 2
"""Data parts of a request: a ring's worth, without header and status."""
SIZE_MAX = 4 << 20
MAX_RANGES = 32
"""Of one discard or write-zeroes request."""
MAX_RANGE_SECTORS = 1 << 22
"""Of each range: 2 GiB."""
_CHUNK = 1 << 20
_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_CONFIG = struct.Struct("<QII4xIBBHIBxHIIIIIB3x")
_WRITEBACK = 32
"""Where `writeback` is in the configuration space."""
_ID_BYTES = 20
_UNMAP = 1

OnError = Literal["report", "stop", "enospc"]
"""What to do when the host refuses: tell the guest, stop the machine, stop if the host is full."""


class BlockFeature(IntFlag):
    """Features of a disk."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


_READ_ONLY = BlockFeature.SIZE_MAX | BlockFeature.SEG_MAX | BlockFeature.BLK_SIZE
_READ_ONLY |= BlockFeature.FLUSH | BlockFeature.TOPOLOGY
_WRITABLE = BlockFeature.CONFIG_WCE | BlockFeature.DISCARD | BlockFeature.WRITE_ZEROES


class Request(IntEnum):
    """What a request asks for."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Answer(IntEnum):
    """The status byte."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


@dataclass(slots=True)
class BlockCounters:
    """What was done since power-on."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0
    flushes: int = 0
    discarded_bytes: int = 0
    errors: int = 0


class VirtioBlock(VirtioDevice):
    """virtio-blk over a `Disk`; `serial` is what the guest sees as its serial number.

    With "stop", or "enospc" when the host is full, `stopped` is called with the error, under the
    board's lock and on the thread of a hart: it asks for the machine to stop and does not wait for
    it. Without `stopped` every error is reported to the guest. Raises `ConfigError`.
    """

    device_id = 2

    def __init__(
        self,
        memory: GuestMemory,
        disk: Disk,
        serial: str = "",
        *,
        num_queues: int = 1,
        on_read_error: OnError = "report",
        on_write_error: OnError = "enospc",
        stopped: Callable[[HostError], None] | None = None,
    ) -> None:
        if not 1 <= num_queues <= MAX_QUEUES:
            raise ConfigError(f"disk: {num_queues} queues; 1 to {MAX_QUEUES} can be")
        offered = _READ_ONLY | (BlockFeature.RO if disk.read_only else _WRITABLE)
        if num_queues > 1:
            offered |= BlockFeature.MQ
        self._disk = disk
        self._vectors = disk if isinstance(disk, VectorDisk) else None
        self._serial = serial.encode()[:_ID_BYTES].ljust(_ID_BYTES, b"\0")
        self._num_queues = num_queues
        self._on_error = {False: on_read_error, True: on_write_error}
        self._stopped = stopped
        self.stopped_by: HostError | None = None
        """Why requests wait for `retry`."""
        self.counters = BlockCounters()
        sizes = (QUEUE_SIZE,) * num_queues
        super().__init__(memory, int(offered), self._configuration(), sizes)

    def _configuration(self) -> bytes:
        ranges = (0, 0, 0) if self._disk.read_only else (MAX_RANGE_SECTORS, MAX_RANGES, 1)
        return _CONFIG.pack(
            self._disk.size_bytes // SECTOR,
            SIZE_MAX,
            SEG_MAX,
            SECTOR,
            3, 0, 8, 0,  # physical blocks of 4 KiB, aligned; best in 4 KiB; no optimum known
            1,  # writeback
            self._num_queues,
            *ranges,
            *ranges[:2],
            0 if self._disk.read_only else 1,
        )  # fmt: skip

    # ------------------------------------------------------------------ host side
    def retry(self) -> None:
        """Do again what was kept when the machine stopped, and what came after; on resume."""
        self.stopped_by = None
        for index in range(len(self.queues)):
            self.notify(index)

    def resume(self) -> None:
        """Everything is restored: what was kept is done again."""
        self.retry()

    def resized(self) -> None:
        """The disk has a new size."""
        capacity = (self._disk.size_bytes // SECTOR).to_bytes(8, "little")
        self.change_config(capacity + self.config[8:])

    # ------------------------------------------------------------------ guest side
    def serve(self, index: int) -> None:
        """Do what is asked, in order."""
        if self.stopped_by is not None:
            return
        queue = self.queues[index]
        for chain in queue.chains():
            if chain.readable_bytes < _HEADER.size or not chain.writable_bytes:
                raise GuestError("VirtioBlock: a request without header or status byte")
            kind, _, sector = _HEADER.unpack(chain.read(0, _HEADER.size))
            written = 0
            try:
                answer, written = self._answer(chain, kind, sector)
            except HostError as error:
                self.counters.errors += 1
                if self._must_stop(kind, error):
                    queue.give_back([chain])
                    self.stopped_by = error
                    assert self._stopped is not None, "who stops is known"
                    self._stopped(error)
                    return
                log.warning("VirtioBlock: %s", error)
                answer = Answer.IOERR
            chain.write(chain.writable_bytes - 1, bytes((answer,)))
            queue.complete(chain, written + 1)

    def _must_stop(self, kind: int, error: HostError) -> bool:
        policy = self._on_error[kind != Request.IN]
        if self._stopped is None or policy == "report":
            return False
        return policy == "stop" or error.errno in (errno.ENOSPC, errno.EDQUOT)

    def _answer(self, chain: Chain, kind: int, sector: int) -> tuple[Answer, int]:
        """The status, and how many bytes of data were written before it."""
        start = sector * SECTOR
        if kind == Request.IN:
            return self._read(chain, start)
        if kind == Request.OUT:
            return self._write(chain, start), 0
        if kind == Request.FLUSH:
            self.counters.flushes += 1
            if not self._disk.read_only:
                self._disk.flush()
            return Answer.OK, 0
        if kind == Request.GET_ID:
            serial = self._serial[: chain.writable_bytes - 1]
            chain.write(0, serial)
            return Answer.OK, len(serial)
        if kind == Request.DISCARD and self.accepted & BlockFeature.DISCARD:
            return self._ranges(chain, discard=True), 0
        if kind == Request.WRITE_ZEROES and self.accepted & BlockFeature.WRITE_ZEROES:
            return self._ranges(chain, discard=False), 0
        return Answer.UNSUPP, 0

    def _read(self, chain: Chain, start: int) -> tuple[Answer, int]:
        room = chain.writable_bytes - 1
        if not self._inside(start, room):
            return Answer.IOERR, 0
        if self._vectors is not None and room:
            views = chain.writable_views(0, room)
            try:
                self._vectors.readv(start, views)
            finally:
                chain.wrote(0, room)
        else:
            for done in range(0, room, _CHUNK):
                chain.write(done, self._disk.read(start + done, min(_CHUNK, room - done)))
        self.counters.reads += 1
        self.counters.read_bytes += room
        return Answer.OK, room

    def _write(self, chain: Chain, start: int) -> Answer:
        length = chain.readable_bytes - _HEADER.size
        if self._disk.read_only or not self._inside(start, length):
            return Answer.IOERR
        if self._vectors is not None and length:
            self._vectors.writev(start, chain.readable_views(_HEADER.size))
        else:
            for done in range(0, length, _CHUNK):
                data = chain.read(_HEADER.size + done, min(_CHUNK, length - done))
                self._disk.write(start + done, data)
        self._written_through()
        self.counters.writes += 1
        self.counters.written_bytes += length
        return Answer.OK

    def _ranges(self, chain: Chain, discard: bool) -> Answer:
        """Discard, or fill with zeroes, each range of the request, if all of them are possible."""
        length = chain.readable_bytes - _HEADER.size
        if not length or length % _RANGE.size or length > MAX_RANGES * _RANGE.size:
            return Answer.IOERR
        ranges = list(_RANGE.iter_unpack(chain.read(_HEADER.size, length)))
        allowed = 0 if discard else _UNMAP
        if any(flags & ~allowed for _, _, flags in ranges):
            return Answer.UNSUPP
        if self._disk.read_only or not all(
            sectors <= MAX_RANGE_SECTORS and self._inside(sector * SECTOR, sectors * SECTOR)
            for sector, sectors, _ in ranges
        ):
            return Answer.IOERR
        for sector, sectors, flags in ranges:
            if discard:
                self._disk.discard(sector * SECTOR, sectors * SECTOR)
                self.counters.discarded_bytes += sectors * SECTOR
            else:
                self._disk.write_zeroes(sector * SECTOR, sectors * SECTOR, bool(flags & _UNMAP))
        self._written_through()
        return Answer.OK

    def _written_through(self) -> None:
        """Flush, unless the driver knows that it has to ask for that itself. (5.2.6.2)"""
        if self.accepted & BlockFeature.CONFIG_WCE:
            writeback = bool(self.config[_WRITEBACK])
        else:
            writeback = bool(self.accepted & BlockFeature.FLUSH)
        if not writeback:
            self._disk.flush()

    def _inside(self, start: int, n: int) -> bool:
        return n % SECTOR == 0 and start + n <= self._disk.size_bytes

    def write_config(self, offset: int, data: bytes) -> None:
        """`writeback`, if that was negotiated: whether writes may wait for a flush."""
        if offset == _WRITEBACK and self.accepted & BlockFeature.CONFIG_WCE:
            mode = bytes((data[0] & 1,))
            self.config = self.config[:_WRITEBACK] + mode + self.config[_WRITEBACK + 1 :]

    def reset(self) -> None:
        """As after power-on: nothing is kept."""
        super().reset()
        self.stopped_by = None
        self.config = self._configuration()

    def restore(self, state: VirtioState) -> None:
        """Continue where `state` was. Raises `ConfigError` when it is another disk's."""
        if len(state.queues) != len(self.queues) or len(state.config) != _CONFIG.size:
            raise ConfigError("VirtioBlock: the snapshot's disk has more or fewer queues")
        super().restore(state)
        if state.config[:8] != self._configuration()[:8]:
            raise ConfigError(
                f"VirtioBlock: the snapshot's disk has "
                f"{int.from_bytes(state.config[:8], 'little') * SECTOR} bytes, this one "
                f"{self._disk.size_bytes}; give the disk that belongs to the snapshot"
            )
        self.stopped_by = None
