"""Neighbor Discovery (RFC 4861 4) as the bodies of ICMPv6 messages, with RFC 8106's DNS options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack, unpack_from

from kasou.net.wire.address import IpAddress, MacAddress, Prefix
from kasou.net.wire.error import ParseError
from kasou.net.wire.icmpv6 import Icmpv6, Icmpv6Type

SOURCE_LINK_LAYER, TARGET_LINK_LAYER, PREFIX_INFORMATION, MTU, RDNSS, DNSSL = 1, 2, 3, 5, 25, 31
FOREVER = 0xFFFF_FFFF
"""A lifetime of all ones, s."""


@dataclass(frozen=True, slots=True)
class RouterSolicitation:
    """A host asks routers to advertise themselves."""

    source_mac: MacAddress | None = None

    def to_icmpv6(self) -> Icmpv6:
        """The message as ICMPv6."""
        return Icmpv6(
            Icmpv6Type.ROUTER_SOLICITATION, 0, 0, _mac(SOURCE_LINK_LAYER, self.source_mac)
        )


@dataclass(frozen=True, slots=True)
class PrefixInformation:
    """One prefix of a router advertisement; lifetimes in s."""

    prefix: Prefix
    on_link: bool = True
    autonomous: bool = True
    valid: int = FOREVER
    preferred: int = FOREVER


@dataclass(frozen=True, slots=True)
class RouterAdvertisement:
    """A router says that it is one. Lifetimes in s, `reachable` and `retransmit` in ms.

    `managed`: addresses come by DHCPv6; `other`: other configuration does.
    """

    hop_limit: int = 64
    managed: bool = False
    other: bool = False
    lifetime: int = 1800
    reachable: int = 0
    retransmit: int = 0
    source_mac: MacAddress | None = None
    mtu: int | None = None
    prefixes: tuple[PrefixInformation, ...] = ()
    name_servers: tuple[IpAddress, ...] = ()
    search: tuple[str, ...] = ()
    name_lifetime: int = 1800

    def to_icmpv6(self) -> Icmpv6:
        """The message as ICMPv6."""
        rest = self.hop_limit << 24 | self.managed << 23 | self.other << 22 | self.lifetime
        data = pack(">II", self.reachable, self.retransmit) + _mac(
            SOURCE_LINK_LAYER, self.source_mac
        )
        if self.mtu is not None:
            data += pack(">BBHI", MTU, 1, 0, self.mtu)
        for one in self.prefixes:
            flags = one.on_link << 7 | one.autonomous << 6
            data += pack(
                ">BBBBIII16s", PREFIX_INFORMATION, 4, one.prefix.length, flags,
                one.valid, one.preferred, 0, one.prefix.address,
            )  # fmt: skip
        if self.name_servers:
            data += pack(">BBHI", RDNSS, 1 + 2 * len(self.name_servers), 0, self.name_lifetime)
            data += b"".join(self.name_servers)
        if self.search:
            names = b"".join(_labels(name) for name in self.search)
            names += bytes(-len(names) % 8)
            data += pack(">BBHI", DNSSL, 1 + len(names) // 8, 0, self.name_lifetime) + names
        return Icmpv6(Icmpv6Type.ROUTER_ADVERTISEMENT, 0, rest, data)


@dataclass(frozen=True, slots=True)
class NeighborSolicitation:
    """Who has `target`? Without `source_mac` it is a duplicate address detection probe."""

    target: IpAddress
    source_mac: MacAddress | None = None

    def to_icmpv6(self) -> Icmpv6:
        """The message as ICMPv6."""
        data = self.target + _mac(SOURCE_LINK_LAYER, self.source_mac)
        return Icmpv6(Icmpv6Type.NEIGHBOR_SOLICITATION, 0, 0, data)


@dataclass(frozen=True, slots=True)
class NeighborAdvertisement:
    """`target` is at `target_mac`."""

    target: IpAddress
    target_mac: MacAddress | None = None
    router: bool = False
    solicited: bool = False
    override: bool = False

    def to_icmpv6(self) -> Icmpv6:
        """The message as ICMPv6."""
        rest = self.router << 31 | self.solicited << 30 | self.override << 29
        data = self.target + _mac(TARGET_LINK_LAYER, self.target_mac)
        return Icmpv6(Icmpv6Type.NEIGHBOR_ADVERTISEMENT, 0, rest, data)


NdpMessage = RouterSolicitation | RouterAdvertisement | NeighborSolicitation | NeighborAdvertisement


def parse_ndp(message: Icmpv6) -> NdpMessage | None:
    """The message in an ICMPv6 one of types 133 to 136; None for others. Raises `ParseError`.

    That it came with hop limit 255, as it must (RFC 4861 6.1, 7.1), is the caller's to check.
    """
    data, rest = message.data, message.rest
    match message.type:
        case Icmpv6Type.ROUTER_SOLICITATION:
            return RouterSolicitation(_find_mac(data, SOURCE_LINK_LAYER))
        case Icmpv6Type.ROUTER_ADVERTISEMENT:
            return _parse_advertisement(rest, data)
        case Icmpv6Type.NEIGHBOR_SOLICITATION:
            target = _target(data)
            return NeighborSolicitation(target, _find_mac(data[16:], SOURCE_LINK_LAYER))
        case Icmpv6Type.NEIGHBOR_ADVERTISEMENT:
            target, target_mac = _target(data), _find_mac(data[16:], TARGET_LINK_LAYER)
            flags = bool(rest >> 31), bool(rest >> 30 & 1), bool(rest >> 29 & 1)
            return NeighborAdvertisement(target, target_mac, *flags)
    return None


def _parse_advertisement(rest: int, data: bytes) -> RouterAdvertisement:
    if len(data) < 8:
        raise ParseError("router advertisement is cut off")
    reachable, retransmit = unpack_from(">II", data)
    mtu, prefixes, servers, search, lifetime = None, [], [], [], 1800
    for kind, body in _options(data[8:]):
        if kind == MTU and len(body) == 6:
            (mtu,) = unpack_from(">I", body, 2)
        elif kind == PREFIX_INFORMATION and len(body) == 30 and body[0] <= 128:
            valid, preferred = unpack_from(">II", body, 2)
            prefix = Prefix(body[14:], body[0])
            on_link, autonomous = bool(body[1] & 0x80), bool(body[1] & 0x40)
            prefixes.append(PrefixInformation(prefix, on_link, autonomous, valid, preferred))
        elif kind == RDNSS and len(body) >= 22:
            (lifetime,) = unpack_from(">I", body, 2)
            servers += [body[at : at + 16] for at in range(6, len(body) - 15, 16)]
        elif kind == DNSSL and len(body) >= 14:
            (lifetime,) = unpack_from(">I", body, 2)
            search += _names(body[6:])
    return RouterAdvertisement(
        rest >> 24, bool(rest >> 23 & 1), bool(rest >> 22 & 1), rest & 0xFFFF, reachable, retransmit,
        _find_mac(data[8:], SOURCE_LINK_LAYER), mtu, tuple(prefixes), tuple(servers),
        tuple(search), lifetime,
    )  # fmt: skip


def _target(data: bytes) -> IpAddress:
    if len(data) < 16 or data[0] == 0xFF:
        raise ParseError("neighbor discovery without a unicast target")
    return data[:16]


def _mac(kind: int, address: MacAddress | None) -> bytes:
    return b"" if address is None else bytes((kind, 1)) + address


def _find_mac(data: bytes, kind: int) -> MacAddress | None:
    found = None
    for option, body in _options(data):
        if option == kind and len(body) == 6:
            found = body
    return found


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The options: type, length in units of 8 bytes with these two, body. Raises `ParseError`."""
    at = 0
    while at < len(data):
        if at + 2 > len(data) or data[at + 1] == 0 or at + 8 * data[at + 1] > len(data):
            raise ParseError(f"neighbor discovery option at {at} of {len(data)} bytes is malformed")
        size = 8 * data[at + 1]
        yield data[at], data[at + 2 : at + size]
        at += size


def _labels(name: str) -> bytes:
    """A domain name as labels, uncompressed (RFC 1035 3.1)."""
    parts = [part.encode("ascii", "ignore")[:63] for part in name.strip(".").split(".")]
    return b"".join(bytes((len(part),)) + part for part in parts if part) + b"\0"


def _names(data: bytes) -> list[str]:
    names: list[str] = []
    labels: list[str] = []
    at = 0
    while at < len(data):
        size = data[at]
        if size == 0:
            if labels:
                names.append(".".join(labels))
            labels = []
        elif size > 63 or at + 1 + size > len(data):
            raise ParseError("DNS search list is malformed")
        else:
            labels.append(data[at + 1 : at + 1 + size].decode("ascii", "replace"))
        at += 1 + size
    return names
