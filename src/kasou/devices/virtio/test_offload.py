import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.devices.virtio.offload import (
    internet_checksum,
    ones_sum,
    plain_frames,
    segments,
    with_checksum,
)
from kasou.ports import Frame, Gso

ETHERNET = bytes(range(12))


def slow_checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for (word,) in struct.iter_unpack(">H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp4(payload: bytes, flags: int = 0x18, identification: int = 0xFFFF) -> bytes:
    """A frame whose lengths and checksums are still to be set."""
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 0, identification, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
    )
    tcp = struct.pack(">HHIIBBHHH", 80, 5000, 0xFFFF_FFF0, 7, 0x80, flags, 512, 0, 0)
    return ETHERNET + b"\x08\x00" + ip + tcp + bytes(12) + payload


def udp6(payload: bytes) -> bytes:
    ip = struct.pack(">IHBB16s16s", 6 << 28, 0, 17, 64, b"a" * 16, b"b" * 16)
    return ETHERNET + b"\x86\xdd" + ip + struct.pack(">HHHH", 53, 5000, 0, 0) + payload


def check_tcp4(frame: bytes) -> tuple[int, int, bytes]:
    """Sequence number, flags and payload of a complete frame; its checksums must be right."""
    (total,) = struct.unpack_from(">H", frame, 16)
    assert total == len(frame) - 14
    assert slow_checksum(frame[14:34]) == 0
    pseudo = frame[26:34] + struct.pack(">HH", 6, total - 20)
    assert slow_checksum(pseudo + frame[34:]) == 0
    return struct.unpack_from(">I", frame, 38)[0], frame[47], frame[66:]


@given(st.binary(max_size=70) | st.binary(max_size=3).map(lambda b: b * 7000))
def test_sum_agrees_with_the_definition(data: bytes) -> None:
    assert internet_checksum(data) == slow_checksum(data)
    assert internet_checksum(data, 0xABCD) == slow_checksum(b"\xab\xcd" + data)


def test_sums_at_the_edges() -> None:
    assert ones_sum(b"") == 0
    assert ones_sum(b"\xff\xff") == 0xFFFF
    assert internet_checksum(bytes(5)) == 0xFFFF
    assert internet_checksum(b"\xff" * 65536) == 0


def test_checksum_is_filled_in() -> None:
    data = ETHERNET + b"\x08\x00" + bytes(20) + b"\x12\x34\xab\xcd hello"
    done = with_checksum(Frame(data, csum=(34, 2), trusted=True))
    assert done is not None
    assert done.csum is None
    assert done.trusted
    expected = slow_checksum(data[34:])
    assert done.data == data[:36] + expected.to_bytes(2, "big") + data[38:]
    zero = with_checksum(Frame(bytes(34) + b"\xff\xff" + bytes(6), csum=(34, 6)))
    assert zero is not None
    assert zero.data[40:42] == b"\xff\xff"


@pytest.mark.parametrize("csum", [(34, 65), (-1, 0), (1 << 15, 0), (0, 1 << 15), (99, 0)])
def test_checksum_outside_the_frame(csum: tuple[int, int]) -> None:
    assert with_checksum(Frame(bytes(100), csum=csum)) is None
    assert plain_frames(Frame(bytes(100), csum=csum)) == []


def test_tcp_is_cut() -> None:
    payload = bytes(range(256)) * 10
    frame = Frame(tcp4(payload, flags=0x99), csum=(34, 16), gso=Gso("tcp4", 1000, 66))
    pieces = plain_frames(frame)
    seen = [check_tcp4(piece.data) for piece in pieces]
    assert [sequence for sequence, _, _ in seen] == [0xFFFF_FFF0, 0x3D8, 0x7C0]
    assert [flags for _, flags, _ in seen] == [0x90, 0x10, 0x19]
    assert b"".join(part for _, _, part in seen) == payload
    assert [piece.data[18:20] for piece in pieces] == [b"\xff\xff", b"\0\0", b"\0\1"]
    assert all(piece.csum is None and piece.gso is None for piece in pieces)


def test_cut_with_checksums_left_to_the_taker() -> None:
    frame = Frame(tcp4(b"x" * 2000), csum=(34, 16), gso=Gso("tcp4", 999, 66), trusted=True)
    partial = segments(frame, complete=False)
    assert [piece.csum for piece in partial] == [(34, 16)] * 3
    assert all(piece.trusted for piece in partial)
    assert [with_checksum(piece) for piece in partial] == segments(frame, complete=True)


def test_udp_is_cut_into_datagrams() -> None:
    pieces = plain_frames(Frame(udp6(b"abcde"), csum=(54, 6), gso=Gso("udp", 2, 62)))
    assert [piece.data[62:] for piece in pieces] == [b"ab", b"cd", b"e"]
    for piece in pieces:
        length = len(piece.data) - 54
        assert struct.unpack_from(">H", piece.data, 18)[0] == length
        assert struct.unpack_from(">H", piece.data, 58)[0] == length
        pseudo = piece.data[22:54] + struct.pack(">IHBB", length, 0, 0, 17)
        assert slow_checksum(pseudo + piece.data[54:]) == 0


def test_behind_a_vlan_tag() -> None:
    plain = tcp4(b"y" * 30)
    tagged = plain[:12] + b"\x81\x00\x00\x05" + plain[12:]
    pieces = plain_frames(Frame(tagged, csum=(38, 16), gso=Gso("tcp4", 10, 70)))
    untagged = [piece.data[:12] + piece.data[16:] for piece in pieces]
    assert b"".join(check_tcp4(data)[2] for data in untagged) == b"y" * 30


@pytest.mark.parametrize(
    "gso",
    [
        Gso("tcp6", 10, 66),
        Gso("udp", 10, 66),
        Gso("tcp4", 0, 66),
        Gso("tcp4", -5, 66),
        Gso("tcp4", 10, 40),
        Gso("tcp4", 10, 95),
        Gso("tcp4", 10, 5000),
    ],
)
def test_a_frame_that_is_not_what_it_says_is_dropped(gso: Gso) -> None:
    assert plain_frames(Frame(tcp4(b"z" * 100), csum=(34, 16), gso=gso)) == []


def test_no_more_pieces_than_are_bearable() -> None:
    assert plain_frames(Frame(tcp4(b"z" * 65000), gso=Gso("tcp4", 1, 66))) == []


@given(
    data=st.binary(max_size=120) | st.binary(max_size=100).map(lambda b: tcp4(b)[: 20 + len(b)]),
    csum=st.none() | st.tuples(st.integers(0, 200), st.integers(0, 200)),
    gso=st.none()
    | st.builds(
        Gso,
        st.sampled_from(["tcp4", "tcp6", "udp"]),
        st.integers(-1, 100),
        st.integers(0, 200),
    ),
)
def test_whatever_a_frame_says_nothing_is_raised(
    data: bytes, csum: tuple[int, int] | None, gso: Gso | None
) -> None:
    for piece in plain_frames(Frame(data, csum, gso)):
        assert piece.csum is None
        assert piece.gso is None
