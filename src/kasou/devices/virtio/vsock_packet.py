"""The packets of virtio-vsock: one header, then `len` bytes of a stream. (Virtio 1.2, 5.10.6)

    | src_cid u64 | dst_cid u64 | src_port u32 | dst_port u32 | len u32 | type u16 | op u16 |
    | flags u32 | buf_alloc u32 | fwd_cnt u32 | data ...

Every packet tells the sender's receive buffer (`buf_alloc`, bytes) and how many bytes its owner
has taken out of it (`fwd_cnt`, modulo 2^32); that is the other side's credit.
"""

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

HOST_CID = 2
"""The well-known address of the host."""

_HEADER = struct.Struct("<QQIIIHHIII")
HEADER_BYTES = _HEADER.size
MAX_DATA = 1 << 16
"""Most bytes of data in one packet."""


class Type(IntEnum):
    """Kinds of socket."""

    STREAM = 1
    SEQPACKET = 2


class Op(IntEnum):
    """What a packet is."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """Flags of SHUTDOWN: what its sender will do no more."""

    RECEIVE = 1
    SEND = 2


BOTH_WAYS = Shutdown.RECEIVE | Shutdown.SEND


class Header(NamedTuple):
    """A packet's header, its fields in the order of the specification."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    n: int
    type: int
    op: int
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    def pack(self) -> bytes:
        """The 44 bytes on the wire."""
        return _HEADER.pack(*self)

    @classmethod
    def parse(cls, raw: bytes) -> "Header":
        """From exactly 44 bytes; any value of any field is taken."""
        return cls(*_HEADER.unpack(raw))
