import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kasou.net.wire.error import ParseError
from kasou.net.wire.tcp import (
    ACK,
    FIN,
    SYN,
    TcpSegment,
    emit_header,
    emit_options,
    flag_text,
    is_intact,
    parse,
)

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)
blocks = st.lists(st.tuples(u32, u32), max_size=2).map(tuple)
segments = st.builds(
    TcpSegment, u16, u16, u32, u32, st.integers(0, 255), u16, u16, st.binary(max_size=50),
    mss=st.none() | u16, window_scale=st.none() | st.integers(0, 255),
    sack_permitted=st.booleans(), sack=blocks, timestamps=st.none() | st.tuples(u32, u32),
    checksum=u16,
)  # fmt: skip


@given(segments)
def test_parse_of_emit_is_the_segment(segment: TcpSegment) -> None:
    assume(len(emit_options(segment)) <= 40)  # what a header has room for
    header = emit_header(segment)
    parsed = parse(header + segment.payload)
    parsed.payload = bytes(parsed.payload)
    assert parsed == segment and len(header) % 4 == 0


@given(st.binary(max_size=80))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        segment = parse(data)
    except ParseError:
        return
    assert len(data) - len(segment.payload) in range(20, 61, 4)


@given(st.binary(min_size=1, max_size=40))
def test_any_options_leave_header_and_payload_alone(options: bytes) -> None:
    options += bytes(-len(options) % 4)
    data = bytearray(emit_header(TcpSegment(1, 2, 3)) + options + b"payload")
    data[12] = (20 + len(options)) << 2
    segment = parse(bytes(data))
    assert (segment.source_port, bytes(segment.payload)) == (1, b"payload")


def test_what_stands_before_a_bad_option_counts() -> None:
    options = bytes((2, 4, 5, 180, 3, 0, 8, 10)) + bytes(4)
    header = bytearray(emit_header(TcpSegment(1, 2, 3)) + options)
    header[12] = 32 << 2
    segment = parse(bytes(header))
    assert segment.mss == 1460 and segment.window_scale is None and segment.timestamps is None


@pytest.mark.parametrize("size", [0, 19])
def test_too_short(size: int) -> None:
    with pytest.raises(ParseError, match="at least 20"):
        parse(bytes(size))


@pytest.mark.parametrize("offset", [0, 4, 15])
def test_impossible_offsets(offset: int) -> None:
    header = bytearray(24)
    header[12] = offset << 4
    with pytest.raises(ParseError, match="data offset"):
        parse(bytes(header))


def test_length_counts_syn_and_fin() -> None:
    assert TcpSegment(1, 2, 3, flags=SYN | FIN | ACK, payload=b"abc").length == 5
    assert flag_text(SYN | ACK) == "SYN|ACK" and flag_text(0) == "-"


def test_a_segment_of_a_capture_is_intact() -> None:
    # SYN from 10.0.2.15:50000 to 10.0.2.2:80, summed by hand.
    segment = bytearray(emit_header(TcpSegment(50000, 80, 1, flags=SYN, window=65535)))
    words = [0x0A00, 0x020F, 0x0A00, 0x0202, 6, 20]
    words += [int.from_bytes(segment[i : i + 2], "big") for i in range(0, 20, 2)]
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    segment[16:18] = (total ^ 0xFFFF).to_bytes(2, "big")
    addresses = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))
    assert is_intact(*addresses, bytes(segment))
    segment[5] ^= 1
    assert not is_intact(*addresses, bytes(segment))
