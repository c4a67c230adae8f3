"""DHCP for IPv4 (RFC 2131 2, options RFC 2132): BOOTP's fixed fields, a cookie, then options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct

from kasou.net.wire.address import ANY4, IpAddress, MacAddress
from kasou.net.wire.checksum import Buffer
from kasou.net.wire.error import ParseError

_LAYOUT = Struct(">BBBBIHH4s4s4s4s16s64s128s")
_COOKIE = b"\x63\x82\x53\x63"
_MIN_BYTES = 300  # BOOTP clients expect at least the 64-byte vendor area
BROADCAST_FLAG = 0x8000
SERVER_PORT, CLIENT_PORT = 67, 68


class DhcpType(IntEnum):
    """Option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class DhcpOption(IntEnum):
    """The options that are used (RFC 2132; 119 RFC 3397, 121 RFC 3442)."""

    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOST_NAME = 12
    DOMAIN_NAME = 15
    MTU = 26
    BROADCAST = 28
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETERS = 55
    MESSAGE = 56
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    CLIENT_ID = 61
    SEARCH = 119


@dataclass(frozen=True, slots=True)
class Dhcpv4:
    """One message; the names are the RFC's. `is_request` is `op` BOOTREQUEST."""

    is_request: bool
    xid: int
    chaddr: MacAddress
    options: Mapping[int, bytes] = field(default_factory=dict)
    flags: int = 0
    secs: int = 0
    ciaddr: IpAddress = ANY4
    yiaddr: IpAddress = ANY4
    siaddr: IpAddress = ANY4
    giaddr: IpAddress = ANY4
    hops: int = 0

    @property
    def type(self) -> int:
        """Option 53, 0 when there is none (plain BOOTP)."""
        kind = self.options.get(DhcpOption.MESSAGE_TYPE, b"")
        return kind[0] if len(kind) == 1 else 0

    def address(self, option: int) -> IpAddress | None:
        """An option that holds one address."""
        value = self.options.get(option, b"")
        return value if len(value) == 4 else None

    def emit(self) -> bytes:
        """The message; a value longer than 255 bytes is split over options (RFC 3396)."""
        out = _LAYOUT.pack(
            1 if self.is_request else 2, 1, 6, self.hops, self.xid, self.secs, self.flags,
            self.ciaddr, self.yiaddr, self.siaddr, self.giaddr, self.chaddr, b"", b"",
        ) + _COOKIE  # fmt: skip
        for kind, value in self.options.items():
            for at in range(0, max(1, len(value)), 255):
                piece = value[at : at + 255]
                out += bytes((kind, len(piece))) + piece
        out += b"\xff"
        return out + bytes(max(0, _MIN_BYTES - len(out)))


def parse_dhcpv4(data: Buffer) -> Dhcpv4:
    """A message for Ethernet. Raises `ParseError`."""
    start = _LAYOUT.size + len(_COOKIE)
    if len(data) < start:
        raise ParseError(f"DHCP message of {len(data)} bytes, shorter than {start}")
    data = bytes(data)
    op, htype, hlen, hops, xid, secs, flags, ci, yi, si, gi, chaddr, sname, file = (
        _LAYOUT.unpack_from(data)
    )
    if op not in (1, 2) or (htype, hlen) != (1, 6):
        raise ParseError(f"DHCP op {op}, hardware {htype} of {hlen} bytes: not for Ethernet")
    if data[_LAYOUT.size : start] != _COOKIE:
        raise ParseError("DHCP message without its cookie")
    options = _parse_options(data[start:])
    overload = options.pop(DhcpOption.OVERLOAD, b"\0")
    for bit, area in ((1, file), (2, sname)):
        if overload[:1] and overload[0] & bit:
            for kind, value in _parse_options(area).items():
                options[kind] = options.get(kind, b"") + value
    return Dhcpv4(op == 1, xid, chaddr[:6], options, flags, secs, ci, yi, si, gi, hops)


def _parse_options(area: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while at < len(area) and area[at] != 255:
        if area[at] == 0:
            at += 1
            continue
        if at + 2 > len(area) or at + 2 + area[at + 1] > len(area):
            raise ParseError(f"DHCP option {area[at]} is cut off")
        value = area[at + 2 : at + 2 + area[at + 1]]
        options[area[at]] = options.get(area[at], b"") + value
        at += 2 + len(value)
    return options
