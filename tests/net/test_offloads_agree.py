"""The card and the stack finish frames each in a file of its own: they must make the same bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.offload import segments, with_checksum
from kasou.net.link.offload import complete, segment
from kasou.net.wire.address import ip
from kasou.net.wire.checksum import checksum, pseudo_header
from kasou.net.wire.error import ParseError
from kasou.net.wire.ipv4 import Ipv4Header, parse_ipv4
from kasou.net.wire.ipv6 import Ipv6Header, parse_ipv6
from kasou.ports import Frame, Gso

ETHERNET = bytes(range(12))


def unit(six: bool, udp: bool, payload: bytes, size: int, vlan: bool) -> Frame:
    """A large frame as a guest's card gives it."""
    source, destination = (
        (ip("fd00::15"), ip("2001:db8::1")) if six else (ip("10.0.2.15"), ip("1.1.1.1"))
    )
    length = (8 if udp else 32) + len(payload)
    partial = pseudo_header(source, destination, 17 if udp else 6, length).to_bytes(2, "big")
    if udp:
        header = bytes.fromhex("10001388") + length.to_bytes(2, "big") + partial
    else:
        header = bytes.fromhex("9c400050 fffffff0 00000001 8099ffff") + partial + bytes(2)
        header += bytes.fromhex("0101080a0000000100000002")
    protocol = 17 if udp else 6
    if six:
        network = Ipv6Header(source, destination, protocol).emit(length)
    else:
        network = Ipv4Header(source, destination, protocol, identification=0xFFFE).emit(length)
    link = ETHERNET + (b"\x81\x00\x00\x07" if vlan else b"") + (b"\x86\xdd" if six else b"\x08\x00")
    start = len(link) + len(network)
    kind = "udp" if udp else "tcp6" if six else "tcp4"
    gso = Gso(kind, size, start + len(header)) if size else None
    return Frame(link + network + header + payload, (start, 6 if udp else 16), gso)


@settings(deadline=None)
@given(
    st.booleans(), st.booleans(), st.integers(1, 20_000), st.sampled_from([0, 536, 1448, 9000]),
    st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_both_make_the_same_frames(
    six: bool, udp: bool, length: int, size: int, vlan: bool, seed: int
) -> None:
    frame = unit(six, udp, random.Random(seed).randbytes(length), size, vlan)
    if frame.gso is None:
        done = with_checksum(frame)
        assert done is not None and complete(frame).data == done.data
        return
    ours, cards = segment(frame), segments(frame, complete=True)
    assert [each.data for each in ours] == [each.data for each in cards]
    joined = b""
    for piece in ours:
        packet = piece.data[18 if vlan else 14 :]
        if six:
            header6, body = parse_ipv6(packet)
            initial = pseudo_header(
                header6.source, header6.destination, header6.protocol, len(body)
            )
        else:
            header4, body = parse_ipv4(packet)
            initial = pseudo_header(
                header4.source, header4.destination, header4.protocol, len(body)
            )
        assert checksum(body, initial) == 0
        joined += bytes(body[8 if udp else 32 :])
    assert joined == frame.data[frame.gso.headers :]


@pytest.mark.parametrize("csum", [None, (0, 0), (5000, 0), (14, 4000), (34, 4000), (34, 6)])
def test_impossible_offloads_are_refused(csum: tuple[int, int] | None) -> None:
    with pytest.raises(ParseError):
        segment(unit(False, False, bytes(5000), 1448, False)._replace(csum=csum))
