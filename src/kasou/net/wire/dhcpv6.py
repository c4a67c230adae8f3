"""DHCP for IPv6 (RFC 8415): type, transaction, options; options may nest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import pack, unpack_from

from kasou.net.wire.address import IpAddress
from kasou.net.wire.checksum import Buffer
from kasou.net.wire.error import ParseError

SERVER_PORT, CLIENT_PORT = 547, 546


class Dhcpv6Type(IntEnum):
    """Message types (RFC 8415 7.3)."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    INFORMATION_REQUEST = 11


class Dhcpv6Option(IntEnum):
    """Options that are used (RFC 8415 21, DNS RFC 3646)."""

    CLIENT_ID = 1
    SERVER_ID = 2
    IA_NA = 3
    IA_ADDRESS = 5
    OPTION_REQUEST = 6
    STATUS_CODE = 13
    RAPID_COMMIT = 14
    DNS_SERVERS = 23
    DOMAIN_LIST = 24
    FQDN = 39


@dataclass(frozen=True, slots=True)
class Dhcpv6:
    """One client or server message: options in order, each (code, value)."""

    type: int
    transaction: int
    options: tuple[tuple[int, bytes], ...] = ()

    def option(self, code: int) -> bytes | None:
        """The first option of `code`."""
        return next((value for kind, value in self.options if kind == code), None)

    def emit(self) -> bytes:
        """The message."""
        return pack(">I", self.type << 24 | self.transaction) + emit_options(self.options)


@dataclass(frozen=True, slots=True)
class IdentityAssociation:
    """IA_NA (RFC 8415 21.4): `t1`, `t2` in s and the options within."""

    iaid: int
    t1: int
    t2: int
    options: tuple[tuple[int, bytes], ...] = ()

    def emit(self) -> bytes:
        """The value of an IA_NA option."""
        return pack(">III", self.iaid, self.t1, self.t2) + emit_options(self.options)


def ia_address(address: IpAddress, preferred: int, valid: int) -> bytes:
    """The value of an IA Address option; lifetimes in s."""
    return address + pack(">II", preferred, valid)


def emit_options(options: tuple[tuple[int, bytes], ...]) -> bytes:
    """Options one after another."""
    return b"".join(pack(">HH", kind, len(value)) + value for kind, value in options)


def parse_dhcpv6(data: Buffer) -> Dhcpv6:
    """A client or server message; relays' are not for us. Raises `ParseError`."""
    if len(data) < 4:
        raise ParseError(f"DHCPv6 message of {len(data)} bytes")
    (word,) = unpack_from(">I", data)
    if not 1 <= word >> 24 <= 11:
        raise ParseError(f"DHCPv6 message of type {word >> 24}")
    return Dhcpv6(word >> 24, word & 0xFFFFFF, parse_options(bytes(data[4:])))


def parse_options(data: bytes) -> tuple[tuple[int, bytes], ...]:
    """Options one after another. Raises `ParseError`."""
    options = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ParseError("DHCPv6 option is cut off")
        kind, size = unpack_from(">HH", data, at)
        if at + 4 + size > len(data):
            raise ParseError(f"DHCPv6 option {kind} of {size} bytes is cut off")
        options.append((kind, data[at + 4 : at + 4 + size]))
        at += 4 + size
    return tuple(options)


def parse_identity_association(value: bytes) -> IdentityAssociation:
    """The value of an IA_NA option. Raises `ParseError`."""
    if len(value) < 12:
        raise ParseError("DHCPv6 IA_NA is cut off")
    iaid, t1, t2 = unpack_from(">III", value)
    return IdentityAssociation(iaid, t1, t2, parse_options(value[12:]))
