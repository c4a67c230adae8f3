"""A disk for the guest. (Virtio 1.2, 5.2)

A request is one chain: a header (type, reserved, sector), data, and a status byte at the end.

    readable  | type u32 | reserved u32 | sector u64 | data of OUT ...
    writable  | data of IN ...                       | status u8

What the guest asks wrongly (a sector behind the end, a write to a read-only disk) and what the host
refuses is answered in the status byte; only a chain with no place for it is a `GuestError`.
"""

import struct
from enum import IntEnum, IntFlag

from kasou.devices.virtio.device import VirtioDevice, log
from kasou.devices.virtio.queue import Chain
from kasou.errors import GuestError, HostError
from kasou.ports import Disk, GuestMemory

SECTOR = 512
_CHUNK = 1 << 20
_HEADER = struct.Struct("<IIQ")
_ID_BYTES = 20


class BlockFeature(IntFlag):
    """Features of a disk."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9


class Request(IntEnum):
    """What a request asks for."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class Answer(IntEnum):
    """The status byte."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class VirtioBlock(VirtioDevice):
    """virtio-blk over a `Disk`; `serial` is what the guest sees as its serial number."""

    device_id = 2
    queue_sizes = (256,)

    def __init__(self, memory: GuestMemory, disk: Disk, serial: str = "") -> None:
        offered = BlockFeature.SEG_MAX | BlockFeature.BLK_SIZE | BlockFeature.FLUSH
        if disk.read_only:
            offered |= BlockFeature.RO
        # capacity, size_max, seg_max (header and status aside), geometry, blk_size
        capacity = disk.size_bytes // SECTOR
        config = struct.pack("<QIIII", capacity, 0, self.queue_sizes[0] - 2, 0, SECTOR)
        super().__init__(memory, int(offered), config)
        self._disk = disk
        self._serial = serial.encode()[:_ID_BYTES].ljust(_ID_BYTES, b"\0")

    def serve(self, index: int) -> None:
        """Do what is asked, in order."""
        queue = self.queues[index]
        for chain in queue.chains():
            if chain.readable_bytes < _HEADER.size or not chain.writable_bytes:
                raise GuestError("VirtioBlock: a request without header or status byte")
            kind, _, sector = _HEADER.unpack(chain.read(0, _HEADER.size))
            written = 0
            try:
                answer, written = self._answer(chain, kind, sector)
            except HostError as error:
                log.warning("VirtioBlock: %s", error)
                answer = Answer.IOERR
            chain.write(chain.writable_bytes - 1, bytes((answer,)))
            queue.complete(chain, written + 1)

    def _answer(self, chain: Chain, kind: int, sector: int) -> tuple[Answer, int]:
        """The status, and how many bytes of data were written before it."""
        start = sector * SECTOR
        if kind == Request.IN:
            room = chain.writable_bytes - 1
            if not self._inside(start, room):
                return Answer.IOERR, 0
            for done in range(0, room, _CHUNK):
                chain.write(done, self._disk.read(start + done, min(_CHUNK, room - done)))
            return Answer.OK, room
        if kind == Request.OUT:
            length = chain.readable_bytes - _HEADER.size
            if self._disk.read_only or not self._inside(start, length):
                return Answer.IOERR, 0
            for done in range(0, length, _CHUNK):
                data = chain.read(_HEADER.size + done, min(_CHUNK, length - done))
                self._disk.write(start + done, data)
            if not self.accepted & BlockFeature.FLUSH:
                self._disk.flush()  # a driver that cannot flush expects write-through
            return Answer.OK, 0
        if kind == Request.FLUSH:
            if not self._disk.read_only:
                self._disk.flush()
            return Answer.OK, 0
        if kind == Request.GET_ID:
            serial = self._serial[: chain.writable_bytes - 1]
            chain.write(0, serial)
            return Answer.OK, len(serial)
        return Answer.UNSUPP, 0

    def _inside(self, start: int, n: int) -> bool:
        return n % SECTOR == 0 and start + n <= self._disk.size_bytes
