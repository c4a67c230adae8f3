"""ICMP (RFC 792): echo, and the errors that tell a sender why its packet went no further.

type 1 | code 1 | checksum 2 | rest 4 | data
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import pack, unpack_from

from kasou.net.wire.checksum import Buffer, checksum
from kasou.net.wire.error import ParseError


class IcmpType(IntEnum):
    """The types that are met."""

    ECHO_REPLY = 0
    DESTINATION_UNREACHABLE = 3
    REDIRECT = 5
    ECHO = 8
    TIME_EXCEEDED = 11
    PARAMETER_PROBLEM = 12


class Unreachable(IntEnum):
    """Codes of Destination Unreachable (RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1)."""

    NETWORK = 0
    HOST = 1
    PROTOCOL = 2
    PORT = 3
    FRAGMENTATION_NEEDED = 4
    ADMINISTRATIVELY_PROHIBITED = 13


@dataclass(frozen=True, slots=True)
class Icmpv4:
    """One message. `rest` is the second word: identifier and sequence of an echo, or the MTU."""

    type: int
    code: int
    rest: int
    data: bytes

    def emit(self) -> bytes:
        """The message with its checksum."""
        body = pack(">BBHI", self.type, self.code, 0, self.rest) + self.data
        return body[:2] + checksum(body).to_bytes(2, "big") + body[4:]

    @property
    def is_error(self) -> bool:
        """Whether it reports on a packet; `data` then quotes that packet from its IP header on."""
        return self.type in (3, 4, 5, 11, 12)


def parse_icmpv4(data: Buffer) -> Icmpv4:
    """A message whose checksum is right. Raises `ParseError`."""
    if len(data) < 8:
        raise ParseError(f"ICMP message of {len(data)} bytes, shorter than its header")
    if checksum(data):
        raise ParseError("ICMP checksum is wrong")
    type_, code, _, rest = unpack_from(">BBHI", data)
    return Icmpv4(type_, code, rest, bytes(data[8:]))
