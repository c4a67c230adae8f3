"""UDP (RFC 768): source port, destination port, length, checksum, two bytes each."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from kasou.net.wire.address import IpAddress
from kasou.net.wire.checksum import Buffer, checksum, pseudo_header
from kasou.net.wire.error import ParseError
from kasou.net.wire.ipv4 import Protocol

_LAYOUT = Struct(">HHHH")
HEADER_BYTES = 8


class UdpDatagram(NamedTuple):
    """Ports and payload."""

    source_port: int
    destination_port: int
    payload: bytes

    def emit(self, source: IpAddress, destination: IpAddress) -> bytes:
        """Header and payload, the checksum (over the pseudo-header of the addresses) in place."""
        length = HEADER_BYTES + len(self.payload)
        initial = pseudo_header(source, destination, Protocol.UDP, length)
        initial += self.source_port + self.destination_port + length
        # "If the computed checksum is zero, it is transmitted as all ones"
        field = checksum(self.payload, initial) or 0xFFFF
        header = _LAYOUT.pack(self.source_port, self.destination_port, length, field)
        return header + self.payload


def parse_udp(
    data: Buffer, source: IpAddress, destination: IpAddress, trusted: bool = False
) -> UdpDatagram:
    """A datagram; the checksum is verified unless `trusted`. Raises `ParseError`.

    A checksum of zero means none was computed, which IPv6 does not allow (RFC 8200 8.1).
    """
    if len(data) < HEADER_BYTES:
        raise ParseError(f"UDP datagram of {len(data)} bytes, shorter than its header")
    source_port, destination_port, length, field = _LAYOUT.unpack_from(data)
    if not HEADER_BYTES <= length <= len(data):
        raise ParseError(f"UDP length {length} in {len(data)} bytes")
    view = memoryview(data)[:length]
    if not trusted:
        if field:
            if checksum(view, pseudo_header(source, destination, Protocol.UDP, length)):
                raise ParseError("UDP checksum is wrong")
        elif len(source) == 16:
            raise ParseError("UDP over IPv6 without a checksum")
    return UdpDatagram(source_port, destination_port, bytes(view[HEADER_BYTES:]))
