import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.net.network.fragmentation import fragment4, fragment6
from kasou.net.network.icmp import RateLimit, error4, error6
from kasou.net.network.path_mtu import LIFETIME_NS, PathMtu
from kasou.net.network.reassembly import MAX_PER_SOURCE, Reassembler
from kasou.net.network.routing import Route, RoutingTable
from kasou.net.wire.address import Prefix, ip
from kasou.net.wire.error import ParseError
from kasou.net.wire.icmpv4 import IcmpType, Icmpv4
from kasou.net.wire.icmpv6 import Icmpv6, Icmpv6Type
from kasou.net.wire.ipv4 import Ipv4Header, parse_ipv4
from kasou.net.wire.ipv6 import Ipv6Header, parse_ipv6

A, B = ip("10.0.2.15"), ip("10.0.2.2")
A6, B6 = ip("fd00::15"), ip("fd00::2")
SECOND = 1_000_000_000


# ---------------------------------------------------------------------- routing


def test_the_longest_prefix_wins_then_the_metric() -> None:
    table: RoutingTable[str] = RoutingTable()
    table.add(Route(Prefix.parse("0.0.0.0/0"), "wan", B, metric=5))
    table.add(Route(Prefix.parse("0.0.0.0/0"), "backup", A, metric=9))
    table.add(Route(Prefix.parse("10.0.2.0/24"), "lan"))
    assert table.lookup(A) == ("lan", A)
    assert table.lookup(ip("1.1.1.1")) == ("wan", B)
    assert table.lookup(ip("2001:db8::1")) is None
    table.remove(Prefix.parse("0.0.0.0/0"), "wan", B)
    assert table.lookup(ip("1.1.1.1")) == ("backup", A)


# ---------------------------------------------------------------------- path MTU


def test_a_path_mtu_falls_and_is_forgotten() -> None:
    paths = PathMtu()
    assert paths.lookup(A, 1500, 0) == 1500
    assert paths.too_big(A, 1400, 1500, 0) == 1400
    assert paths.too_big(A, 1450, 1500, 1) == 1400  # it only falls
    assert paths.lookup(A, 1500, 2) == 1400 and paths.lookup(B, 1500, 2) == 1500
    assert paths.lookup(A, 1500, LIFETIME_NS + 1) == 1500


def test_forged_and_old_reports() -> None:
    paths = PathMtu()
    assert paths.too_big(A, 68, 1500, 0) == 552
    assert paths.too_big(A6, 500, 1500, 0) == 1280
    assert paths.too_big(B, 0, 1500, 0) == 1492  # RFC 1191's plateau below 1500


# ---------------------------------------------------------------------- fragments


def joined4(packets: list[bytes], timeout: int = SECOND) -> tuple[Ipv4Header, bytes] | None:
    whole = None
    reassembler: Reassembler[Ipv4Header] = Reassembler(timeout)
    for packet in packets:
        header, payload = parse_ipv4(packet)
        if not header.is_fragment:
            return header, bytes(payload)
        key = header.source, header.destination, header.protocol, header.identification
        whole = reassembler.receive(
            key, header, header.offset, header.more_fragments, payload, 0
        ) or whole  # fmt: skip
    return whole


@given(st.binary(max_size=6000), st.integers(68, 1500), st.randoms(use_true_random=False))
def test_fragments_in_any_order_are_the_packet(
    payload: bytes, mtu: int, rng: random.Random
) -> None:
    header = Ipv4Header(A, B, 17, identification=7)
    packets = list(fragment4(header, payload, mtu))
    assert all(len(packet) <= mtu for packet in packets)
    rng.shuffle(packets)
    repeated = [packet for packet in packets for _ in range(rng.choice((1, 1, 2)))]
    whole = joined4(repeated)
    assert whole is not None and whole[1] == payload


@given(st.binary(max_size=6000), st.integers(1280, 1500), st.randoms(use_true_random=False))
def test_ipv6_fragments(payload: bytes, mtu: int, rng: random.Random) -> None:
    packets = list(fragment6(Ipv6Header(A6, B6, 17), payload, mtu, 99))
    assert all(len(packet) <= mtu for packet in packets)
    rng.shuffle(packets)
    reassembler: Reassembler[Ipv6Header] = Reassembler(SECOND)
    whole = None
    for packet in packets:
        header, piece = parse_ipv6(packet)
        if header.fragment is None:
            whole = header, bytes(piece)
            break
        place = header.fragment
        key = header.source, header.destination, 0, place.identification
        whole = reassembler.receive(key, header, place.offset, place.more, piece, 0) or whole
    assert whole is not None and whole[1] == payload and whole[0].protocol == 17
    assert reassembler.held_bytes == 0


def piece(
    reassembler: Reassembler[str],
    offset: int,
    data: bytes,
    more: bool,
    ident: int = 1,
    now: int = 0,
) -> tuple[str, bytes] | None:
    key = A, B, 17, ident
    return reassembler.receive(key, f"at {offset}", offset, more, memoryview(data), now)


def test_overlapping_fragments_poison_their_datagram() -> None:
    reassembler: Reassembler[str] = Reassembler(SECOND)
    assert piece(reassembler, 0, bytes(16), True) is None
    with pytest.raises(ParseError, match="overlaps"):
        piece(reassembler, 8, b"x" * 16, False)
    assert piece(reassembler, 16, bytes(8), False) is None
    assert reassembler.held_bytes == 0
    assert reassembler.deadline() == SECOND and reassembler.handle_timer(SECOND) == []
    piece(reassembler, 0, bytes(8), True)
    assert piece(reassembler, 8, b"end", False) == ("at 0", bytes(8) + b"end")


@pytest.mark.parametrize("offset, size, more", [(65528, 100, False), (0, 7, True), (8, 0, False)])
def test_impossible_fragments(offset: int, size: int, more: bool) -> None:
    with pytest.raises(ParseError):
        piece(Reassembler(SECOND), offset, bytes(size), more)


def test_reassembly_is_bounded_and_ends() -> None:
    reassembler: Reassembler[str] = Reassembler(SECOND, max_bytes=1000)
    for ident in range(MAX_PER_SOURCE + 10):
        piece(reassembler, 0, bytes(104), True, ident)
        assert reassembler.held_bytes <= 1000
    (first, *_) = reassembler.handle_timer(SECOND)
    assert first.first == "at 0" and len(first.payload) == 104
    assert reassembler.held_bytes == 0 and reassembler.deadline() is None


# ---------------------------------------------------------------------- ICMP errors


def test_no_errors_about_errors_groups_or_later_fragments() -> None:
    def about(header: Ipv4Header, payload: bytes = b"") -> Icmpv4 | None:
        return error4(header, payload, IcmpType.DESTINATION_UNREACHABLE, 1)

    good = about(Ipv4Header(A, B, 17), bytes(1000))
    assert good is not None and len(good.data) == 548
    assert parse_ipv4(good.data + bytes(1000))[0].source == A
    assert about(Ipv4Header(A, ip("224.0.0.1"), 17)) is None
    assert about(Ipv4Header(A, ip("255.255.255.255"), 17)) is None
    assert about(Ipv4Header(ip("0.0.0.0"), B, 17)) is None
    assert about(Ipv4Header(A, B, 17, offset=8)) is None
    assert about(Ipv4Header(A, B, 1), bytes((3, 1))) is None
    assert about(Ipv4Header(A, B, 1), bytes((8, 0))) is not None

    def about6(header: Ipv6Header, payload: bytes = b"", kind: int = 1) -> Icmpv6 | None:
        return error6(header, payload, Icmpv6Type(kind), 0)

    assert about6(Ipv6Header(A6, ip("ff02::1"), 17)) is None
    assert about6(Ipv6Header(A6, ip("ff02::1"), 17), kind=2) is not None
    assert about6(Ipv6Header(A6, B6, 58), bytes((1, 0))) is None
    assert about6(Ipv6Header(A6, B6, 58), bytes((128, 0))) is not None


def test_the_limiter_lets_a_burst_through_and_then_a_rate() -> None:
    limit = RateLimit(interval_ns=10, burst=3)
    assert [limit.allows(0) for _ in range(5)] == [True, True, True, False, False]
    assert limit.allows(10) and not limit.allows(10)
    assert [limit.allows(1000) for _ in range(4)] == [True, True, True, False]
