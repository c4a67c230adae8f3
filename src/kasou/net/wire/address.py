"""Addresses as the layers hold them: packed bytes, the length telling the family.

Packed addresses hash, compare and slice fast and go into headers as they are; text is for people.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypeAlias

from kasou.errors import ConfigError

MacAddress: TypeAlias = bytes
"""Six bytes."""
IpAddress: TypeAlias = bytes
"""Four bytes (IPv4) or sixteen (IPv6)."""

BROADCAST: MacAddress = b"\xff" * 6
ANY4: IpAddress = bytes(4)
ANY6: IpAddress = bytes(16)
BROADCAST4: IpAddress = b"\xff" * 4
ALL_NODES: IpAddress = bytes.fromhex("ff020000000000000000000000000001")
ALL_ROUTERS: IpAddress = bytes.fromhex("ff020000000000000000000000000002")
ALL_DHCP_AGENTS: IpAddress = bytes.fromhex("ff020000000000000000000000010002")


def ip(text: str) -> IpAddress:
    """The packed form of an IPv4 or IPv6 address in text. Raises `ConfigError`."""
    try:
        return ipaddress.ip_address(text.partition("%")[0]).packed
    except ValueError:
        raise ConfigError(f"{text!r} is not an IP address") from None


def ip_text(address: IpAddress) -> str:
    """An address for people and for the host's socket calls."""
    return str(ipaddress.ip_address(address))


def mac(text: str) -> MacAddress:
    """The packed form of `52:54:00:12:34:56`. Raises `ConfigError`."""
    try:
        packed = bytes.fromhex(text.replace(":", " ").replace("-", " "))
    except ValueError:
        packed = b""
    if len(packed) != 6:
        raise ConfigError(f"{text!r} is not a MAC address (six hexadecimal bytes)")
    return packed


def mac_text(address: MacAddress) -> str:
    """A MAC address for people."""
    return address.hex(":")


def is_group(address: MacAddress) -> bool:
    """Whether a frame to `address` is for several stations (IEEE 802 I/G bit)."""
    return bool(address[0] & 1)


def is_multicast(address: IpAddress) -> bool:
    """224.0.0.0/4 or ff00::/8."""
    return address[0] >> 4 == 14 if len(address) == 4 else address[0] == 0xFF


def is_link_local(address: IpAddress) -> bool:
    """169.254.0.0/16 or fe80::/10."""
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_loopback(address: IpAddress) -> bool:
    """127.0.0.0/8 or ::1."""
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def multicast_mac(address: IpAddress) -> MacAddress:
    """Where a multicast packet is sent on Ethernet (RFC 1112 6.4, RFC 2464 7)."""
    if len(address) == 4:
        return bytes((1, 0, 0x5E, address[1] & 0x7F, address[2], address[3]))
    return b"\x33\x33" + address[12:]


def solicited_node(address: IpAddress) -> IpAddress:
    """The multicast group in which the owner of an IPv6 address hears solicitations (RFC 4291)."""
    return bytes.fromhex("ff0200000000000000000001ff") + address[13:]


def eui64(prefix: IpAddress, station: MacAddress) -> IpAddress:
    """The address in a /64 that SLAAC makes of a MAC address (RFC 4291 appendix A)."""
    return prefix[:8] + bytes((station[0] ^ 2,)) + station[1:3] + b"\xff\xfe" + station[3:]


LINK_LOCAL_PREFIX: IpAddress = b"\xfe\x80" + bytes(14)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A network: the first `length` bits of `address`; the bits after it are zero."""

    address: IpAddress
    length: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """`10.0.2.0/24`, `fd00::/64`, or an address alone. Raises `ConfigError`."""
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ConfigError(f"{text!r} is not a network (ADDRESS/LENGTH)") from None
        return cls(network.network_address.packed, network.prefixlen)

    def __contains__(self, address: IpAddress) -> bool:
        if len(address) != len(self.address):
            return False
        shift = 8 * len(address) - self.length
        return (
            int.from_bytes(address, "big") >> shift == int.from_bytes(self.address, "big") >> shift
        )

    def __str__(self) -> str:
        return f"{ip_text(self.address)}/{self.length}"

    @property
    def mask(self) -> bytes:
        """The netmask, as long as the address."""
        bits = 8 * len(self.address)
        return ((1 << bits) - (1 << bits - self.length)).to_bytes(len(self.address), "big")

    @property
    def broadcast(self) -> IpAddress:
        """The address with every host bit one."""
        bits = 8 * len(self.address)
        top = int.from_bytes(self.address, "big") | ((1 << bits - self.length) - 1)
        return top.to_bytes(len(self.address), "big")

    def host(self, number: int) -> IpAddress:
        """The address `number` places after the network's own. Raises `ConfigError` outside."""
        address = int.from_bytes(self.address, "big") + number
        packed = address.to_bytes(len(self.address) + 1, "big")[1:]
        if number < 0 or packed not in self:
            raise ConfigError(f"{self} has no host number {number}")
        return packed
