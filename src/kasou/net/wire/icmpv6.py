"""ICMPv6 (RFC 4443): as ICMP, with the pseudo-header under its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import pack, unpack_from

from kasou.net.wire.address import IpAddress
from kasou.net.wire.checksum import Buffer, checksum, pseudo_header
from kasou.net.wire.error import ParseError
from kasou.net.wire.ipv4 import Protocol


class Icmpv6Type(IntEnum):
    """The types that are met; 133 to 137 are Neighbor Discovery's (`ndp`)."""

    DESTINATION_UNREACHABLE = 1
    PACKET_TOO_BIG = 2
    TIME_EXCEEDED = 3
    PARAMETER_PROBLEM = 4
    ECHO_REQUEST = 128
    ECHO_REPLY = 129
    ROUTER_SOLICITATION = 133
    ROUTER_ADVERTISEMENT = 134
    NEIGHBOR_SOLICITATION = 135
    NEIGHBOR_ADVERTISEMENT = 136
    REDIRECT = 137


class Unreachable6(IntEnum):
    """Codes of Destination Unreachable (RFC 4443 3.1)."""

    NO_ROUTE = 0
    ADMINISTRATIVELY_PROHIBITED = 1
    ADDRESS = 3
    PORT = 4


@dataclass(frozen=True, slots=True)
class Icmpv6:
    """One message. `rest` is the second word: identifier and sequence of an echo, or the MTU."""

    type: int
    code: int
    rest: int
    data: bytes

    def emit(self, source: IpAddress, destination: IpAddress) -> bytes:
        """The message with its checksum."""
        body = pack(">BBHI", self.type, self.code, 0, self.rest) + self.data
        initial = pseudo_header(source, destination, Protocol.ICMPV6, len(body))
        return body[:2] + checksum(body, initial).to_bytes(2, "big") + body[4:]

    @property
    def is_error(self) -> bool:
        """Whether it reports on a packet; `data` then quotes that packet from its IPv6 header on."""
        return self.type < 128


def parse_icmpv6(data: Buffer, source: IpAddress, destination: IpAddress) -> Icmpv6:
    """A message whose checksum is right. Raises `ParseError`."""
    if len(data) < 8:
        raise ParseError(f"ICMPv6 message of {len(data)} bytes, shorter than its header")
    if checksum(data, pseudo_header(source, destination, Protocol.ICMPV6, len(data))):
        raise ParseError("ICMPv6 checksum is wrong")
    type_, code, _, rest = unpack_from(">BBHI", data)
    return Icmpv6(type_, code, rest, bytes(data[8:]))
