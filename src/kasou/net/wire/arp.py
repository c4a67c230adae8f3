"""ARP for IPv4 on Ethernet (RFC 826)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from kasou.net.wire.address import IpAddress, MacAddress
from kasou.net.wire.checksum import Buffer
from kasou.net.wire.error import ParseError

_LAYOUT = Struct(">HHBBH6s4s6s4s")
_ETHERNET, _IPV4 = 1, 0x0800


class ArpOperation(IntEnum):
    """`ar$op`."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True, slots=True)
class Arp:
    """One message; the names are the RFC's."""

    operation: ArpOperation
    sender_mac: MacAddress
    sender_ip: IpAddress
    target_mac: MacAddress
    target_ip: IpAddress

    def emit(self) -> bytes:
        """28 bytes."""
        return _LAYOUT.pack(
            _ETHERNET, _IPV4, 6, 4, self.operation,
            self.sender_mac, self.sender_ip, self.target_mac, self.target_ip,
        )  # fmt: skip


def parse_arp(data: Buffer) -> Arp:
    """A message; the padding of a short frame may follow it. Raises `ParseError`."""
    if len(data) < _LAYOUT.size:
        raise ParseError(f"ARP message of {len(data)} bytes, expected {_LAYOUT.size}")
    hardware, protocol, hlen, plen, operation, *addresses = _LAYOUT.unpack_from(data)
    if (hardware, protocol, hlen, plen) != (_ETHERNET, _IPV4, 6, 4):
        raise ParseError(
            f"ARP for hardware {hardware}, protocol {protocol:#x}: not IPv4 on Ethernet"
        )
    if operation not in (1, 2):
        raise ParseError(f"ARP operation {operation}, neither request nor reply")
    return Arp(ArpOperation(operation), *addresses)
