"""Every codec: what is emitted is parsed back, and any bytes at all are a value or a ParseError."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.net.wire.address import Prefix, eui64, ip, ip_text, mac, multicast_mac, solicited_node
from kasou.net.wire.arp import Arp, ArpOperation, parse_arp
from kasou.net.wire.checksum import checksum, ones_complement_sum, pseudo_header
from kasou.net.wire.dhcpv4 import Dhcpv4, parse_dhcpv4
from kasou.net.wire.dhcpv6 import (
    Dhcpv6,
    IdentityAssociation,
    parse_dhcpv6,
    parse_identity_association,
)
from kasou.net.wire.error import ParseError
from kasou.net.wire.ethernet import EthernetHeader, VlanTag, parse_ethernet
from kasou.net.wire.icmpv4 import Icmpv4, parse_icmpv4
from kasou.net.wire.icmpv6 import Icmpv6, parse_icmpv6
from kasou.net.wire.ipv4 import Ipv4Header, parse_ipv4
from kasou.net.wire.ipv6 import Fragment, Ipv6Header, parse_ipv6
from kasou.net.wire.ndp import (
    NeighborAdvertisement,
    NeighborSolicitation,
    PrefixInformation,
    RouterAdvertisement,
    RouterSolicitation,
    parse_ndp,
)
from kasou.net.wire.pcapng import (
    enhanced_packet,
    interface_description,
    parse_pcapng,
    section_header,
)
from kasou.net.wire.udp import UdpDatagram, parse_udp

u8, u16, u32 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2**32 - 1)
macs = st.binary(min_size=6, max_size=6)
ip4, ip6 = st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)
unicast6 = ip6.filter(lambda a: a[0] != 0xFF)
payloads = st.binary(max_size=200)
vlans = st.builds(VlanTag, st.integers(0, 4095), st.integers(0, 7), st.booleans())
A4, B4 = ip("10.0.2.15"), ip("10.0.2.2")
A6, B6 = ip("fd00::15"), ip("fd00::2")


@given(macs, macs, u16.filter(lambda t: t != 0x8100), st.none() | vlans, payloads)
def test_ethernet(dst: bytes, src: bytes, kind: int, vlan: VlanTag | None, payload: bytes) -> None:
    header = EthernetHeader(dst, src, kind, vlan)
    parsed, at = parse_ethernet(header.emit() + payload)
    assert parsed == header and at == (14 if vlan is None else 18)


@given(st.sampled_from(ArpOperation), macs, ip4, macs, ip4)
def test_arp(op: ArpOperation, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> None:
    message = Arp(op, sha, spa, tha, tpa)
    assert parse_arp(message.emit() + bytes(18)) == message


@given(
    st.builds(
        Ipv4Header, ip4, ip4, u8, u8, u16, st.booleans(), st.booleans(),
        st.integers(0, 8191).map(lambda n: 8 * n), u8,
        st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n)),
    ),
    payloads,
)  # fmt: skip
def test_ipv4(header: Ipv4Header, payload: bytes) -> None:
    parsed, rest = parse_ipv4(header.emit(len(payload)) + payload + b"padding")
    assert (parsed, bytes(rest)) == (header, payload)


upper = st.sampled_from([6, 17, 58, 59, 132])


@given(
    st.builds(
        Ipv6Header, ip6, ip6, upper, u8, u8, st.integers(0, 2**20 - 1),
        st.none() | st.builds(Fragment, st.integers(0, 8191).map(lambda n: 8 * n), st.booleans(), u32),
    ),
    payloads,
)  # fmt: skip
def test_ipv6(header: Ipv6Header, payload: bytes) -> None:
    parsed, rest = parse_ipv6(header.emit(len(payload)) + payload + b"padding")
    assert (parsed, bytes(rest)) == (header, payload)


def test_ipv6_extension_headers_are_walked_and_kept() -> None:
    hop_by_hop = bytes((60, 0, 5, 2, 0, 0, 1, 0))  # Router Alert, PadN; Destination Options follow
    destination = bytes((17, 0, 1, 4, 0, 0, 0, 0))
    header = Ipv6Header(A6, B6, 17, first=0, extensions=hop_by_hop + destination)
    parsed, rest = parse_ipv6(header.emit(3) + b"abc")
    assert parsed == header and bytes(rest) == b"abc"
    unknown = bytes((17, 0, 0x80 | 30, 4, 0, 0, 0, 0))  # option type that says "discard"
    with pytest.raises(ParseError, match="asks to be discarded"):
        parse_ipv6(Ipv6Header(A6, B6, 17, first=60, extensions=unknown).emit(0))


@given(u8, u8, u32, payloads)
def test_icmp(kind: int, code: int, rest: int, data: bytes) -> None:
    four, six = Icmpv4(kind, code, rest, data), Icmpv6(kind, code, rest, data)
    assert parse_icmpv4(four.emit()) == four
    assert parse_icmpv6(six.emit(A6, B6), A6, B6) == six


names = st.from_regex(r"[a-z]{1,12}(\.[a-z]{1,12}){0,3}", fullmatch=True)
prefixes = st.builds(
    lambda address, length: Prefix.parse(f"{ip_text(address)}/{length}"), ip6, st.integers(0, 128)
)
ndp_messages = st.one_of(
    st.builds(RouterSolicitation, st.none() | macs),
    st.builds(NeighborSolicitation, unicast6, st.none() | macs),
    st.builds(
        NeighborAdvertisement, unicast6, st.none() | macs, st.booleans(), st.booleans(), st.booleans()
    ),
    st.builds(
        RouterAdvertisement, u8, st.booleans(), st.booleans(), u16, u32, u32, st.none() | macs,
        st.none() | u32,
        st.lists(
            st.builds(PrefixInformation, prefixes, st.booleans(), st.booleans(), u32, u32), max_size=3
        ).map(tuple),
        st.lists(ip6, max_size=3).map(tuple), st.lists(names, max_size=3).map(tuple),
    ),
)  # fmt: skip


@given(ndp_messages)
def test_ndp(message: Any) -> None:
    wire = message.to_icmpv6().emit(A6, B6)
    assert parse_ndp(parse_icmpv6(wire, A6, B6)) == message


@given(u16, u16, payloads, st.sampled_from([(A4, B4), (A6, B6)]))
def test_udp(source: int, destination: int, payload: bytes, pair: tuple[bytes, bytes]) -> None:
    datagram = UdpDatagram(source, destination, payload)
    wire = datagram.emit(*pair)
    assert parse_udp(wire, *pair) == datagram
    broken = bytes((wire[0] ^ 1,)) + wire[1:]
    with pytest.raises(ParseError):
        parse_udp(broken, *pair)
    assert parse_udp(broken, *pair, trusted=True).payload == payload


options4 = st.dictionaries(st.integers(1, 254).filter(lambda k: k != 52), st.binary(max_size=600))


@given(st.builds(Dhcpv4, st.booleans(), u32, macs, options4, u16, u16, ip4, ip4, ip4, ip4, u8))
def test_dhcpv4(message: Dhcpv4) -> None:
    assert parse_dhcpv4(message.emit()) == message


options6 = st.lists(st.tuples(u16, st.binary(max_size=40)), max_size=5).map(tuple)


@given(st.builds(Dhcpv6, st.integers(1, 11), st.integers(0, 2**24 - 1), options6))
def test_dhcpv6(message: Dhcpv6) -> None:
    assert parse_dhcpv6(message.emit()) == message


@given(st.builds(IdentityAssociation, u32, u32, u32, options6))
def test_identity_association(association: IdentityAssociation) -> None:
    assert parse_identity_association(association.emit()) == association


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), payloads)))
def test_pcapng(packets: list[tuple[int, bytes]]) -> None:
    file = section_header() + interface_description("vm-ü")
    file += b"".join(enhanced_packet(0, time, data, len(data) + 1) for time, data in packets)
    parsed = [(packet.time, packet.data) for packet in parse_pcapng(file)]
    assert parsed == packets


def by_words(data: bytes, initial: int) -> int:
    """The checksum's sum, as RFC 1071 says it."""
    data += bytes(len(data) % 2)
    total = initial + sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=300), u16)
def test_the_sum_is_that_of_words(data: bytes, initial: int) -> None:
    assert ones_complement_sum(data, initial) == by_words(data, initial)


def test_checksum_of_rfc_1071_example() -> None:
    assert ones_complement_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert checksum(b"\xff\xff") == 0 and checksum(b"") == 0xFFFF
    assert pseudo_header(A4, B4, 17, 8) == by_words(A4 + B4 + bytes((0, 17, 0, 8)), 0)


PARSERS: list[Callable[[bytes], Any]] = [
    parse_ethernet,
    parse_arp,
    parse_ipv4,
    parse_ipv6,
    lambda data: parse_ipv4(data, big=True),
    lambda data: parse_ipv6(b"\x60" + data, big=True),
    parse_icmpv4,
    lambda data: parse_icmpv6(data, A6, B6),
    lambda data: parse_ndp(Icmpv6(133 + len(data) % 4, 0, 0, data)),
    lambda data: parse_udp(data, A4, B4, trusted=True),
    parse_dhcpv4,
    lambda data: parse_dhcpv4(Dhcpv4(True, 1, bytes(6)).emit()[:240] + data),
    parse_dhcpv6,
    lambda data: parse_dhcpv6(b"\1" + data),
    parse_identity_association,
    lambda data: list(parse_pcapng(data)),
    lambda data: list(parse_pcapng(section_header() + data)),
]


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=120))
def test_any_bytes_are_a_value_or_a_parse_error(parse: Callable[[bytes], Any], data: bytes) -> None:
    try:
        parse(data)
    except ParseError as error:
        assert str(error)


def test_addresses() -> None:
    assert mac("52:54:00:12:34:56") == bytes.fromhex("525400123456")
    assert ip_text(eui64(ip("fec0::"), mac("52:54:00:12:34:56"))) == "fec0::5054:ff:fe12:3456"
    assert ip_text(solicited_node(A6)) == "ff02::1:ff00:15"
    assert multicast_mac(ip("224.0.0.251")) == mac("01:00:5e:00:00:fb")
    net = Prefix.parse("10.0.2.0/24")
    assert ip("10.0.2.9") in net and ip("10.0.3.9") not in net and A6 not in net
    assert ip_text(net.mask) == "255.255.255.0" and ip_text(net.broadcast) == "10.0.2.255"
    assert net.host(15) == A4 and Prefix.parse("0.0.0.0/0").length == 0
