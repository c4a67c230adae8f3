"""The IPv4 header (RFC 791 3.1).

0       4       8              16     19             31
| ver 4 |  IHL  |  DSCP   ECN  |     total length      |
|        identification        |0 DF MF| fragment offset|
|      TTL      |   protocol   |    header checksum     |
|  source  |  destination  |  options, padded to 4 bytes |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from kasou.net.wire.address import IpAddress
from kasou.net.wire.checksum import Buffer, checksum
from kasou.net.wire.error import ParseError

_LAYOUT = Struct(">BBHHHBBH4s4s")
HEADER_BYTES = 20
_DF, _MF, _OFFSET = 0x4000, 0x2000, 0x1FFF


class Protocol(IntEnum):
    """IP protocol numbers, and IPv6 next headers of upper layers."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58


@dataclass(frozen=True, slots=True)
class Ipv4Header:
    """A header. `offset` is the fragment's place in bytes, a multiple of 8; `options` of 4."""

    source: IpAddress
    destination: IpAddress
    protocol: int
    ttl: int = 64
    identification: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    offset: int = 0
    traffic_class: int = 0
    options: bytes = b""

    @property
    def is_fragment(self) -> bool:
        """Whether this is a piece of a larger packet."""
        return self.more_fragments or self.offset != 0

    def emit(self, payload_bytes: int) -> bytes:
        """The header, its checksum in place, for a payload of `payload_bytes`.

        A total above 65,535 is written as 0, as Linux does for frames that stand for many (GSO).
        """
        length = HEADER_BYTES + len(self.options)
        total = length + payload_bytes
        flags = self.dont_fragment * _DF | self.more_fragments * _MF | self.offset // 8
        header = _LAYOUT.pack(
            0x40 | length // 4, self.traffic_class, total if total <= 0xFFFF else 0,
            self.identification, flags, self.ttl, self.protocol, 0,
            self.source, self.destination,
        ) + self.options  # fmt: skip
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:]


def parse_ipv4(data: Buffer, big: bool = False) -> tuple[Ipv4Header, memoryview]:
    """The header and the payload, cut to the total length. Raises `ParseError`.

    `big` accepts a total length of 0 as "all there is", for frames with a `Gso`.
    """
    if len(data) < HEADER_BYTES:
        raise ParseError(f"IPv4 packet of {len(data)} bytes, shorter than its header")
    first, traffic_class, total, ident, flags, ttl, protocol, _, source, destination = (
        _LAYOUT.unpack_from(data)
    )
    length = (first & 15) * 4
    if first >> 4 != 4 or length < HEADER_BYTES:
        raise ParseError(f"IPv4 packet begins with {first:#04x}")
    if total == 0 and big:
        total = len(data)
    if not length <= total <= len(data):
        raise ParseError(f"IPv4 header of {length} in total length {total} of {len(data)} bytes")
    view = memoryview(data)
    if checksum(view[:length]):
        raise ParseError("IPv4 header checksum is wrong")
    header = Ipv4Header(
        source, destination, protocol, ttl, ident, bool(flags & _DF), bool(flags & _MF),
        (flags & _OFFSET) * 8, traffic_class, bytes(view[HEADER_BYTES:length]),
    )  # fmt: skip
    return header, view[length:total]
