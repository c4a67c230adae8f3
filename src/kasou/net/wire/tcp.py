"""The TCP header and its options (RFC 9293 3.1, 3.2; RFC 2018; RFC 7323), bytes <-> values.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    |          source port          |       destination port        |
    |                        sequence number                        |
    |                     acknowledgment number                     |
    | offset| rsrvd |C E U A P R S F|            window             |
    |            checksum           |         urgent pointer        |
    |  options, padded to a multiple of 4 bytes                     |

Rules: a header that does not fit its segment is malformed. An option whose length cannot be ends
the options; a known option with another length than its standard's is passed over. Neither harms
what was read before it, and neither raises.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kasou.net.wire.checksum import checksum, pseudo_header
from kasou.net.wire.error import ParseError

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80
FLAG_NAMES = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")

PROTOCOL = 6
"""TCP's number in IPv4's protocol and IPv6's next header field."""

CHECKSUM_OFFSET = 16

_END, _NOP, _MSS, _SCALE, _SACK_PERMITTED, _SACK, _TIMESTAMPS = 0, 1, 2, 3, 4, 5, 8

FIXED = struct.Struct("!HHIIBBHHH")
WITH_TIMESTAMPS = struct.Struct("!HHIIBBHHHIII")
TIMESTAMPS_ALIGNED = 0x0101080A
"""NOP, NOP, timestamps, length 10: how every stack lays out the option (RFC 7323 appendix A)."""
_TIMES = struct.Struct("!II")
_BLOCK = struct.Struct("!II")


@dataclass(slots=True)
class TcpSegment:
    """One segment. Numbers are as on the wire: sequence numbers modulo 2^32, `window` unscaled."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgment: int = 0
    flags: int = 0
    window: int = 0
    urgent: int = 0
    payload: bytes | memoryview = b""
    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    sack: tuple[tuple[int, int], ...] = ()
    timestamps: tuple[int, int] | None = None
    checksum: int = 0

    @property
    def length(self) -> int:
        """SEG.LEN: the sequence numbers it occupies, SYN and FIN among them."""
        return len(self.payload) + (self.flags & SYN) // SYN + (self.flags & FIN)

    def __str__(self) -> str:
        text = f"{flag_text(self.flags)} seq={self.sequence} ack={self.acknowledgment}"
        return f"{text} win={self.window} len={len(self.payload)}"


def flag_text(flags: int) -> str:
    """`SYN|ACK` for 0x12."""
    return "|".join(name for bit, name in enumerate(FLAG_NAMES) if flags >> bit & 1) or "-"


def parse(data: bytes | memoryview) -> TcpSegment:
    """Read a segment; the payload is a view of `data`. Raises `ParseError`."""
    if len(data) < 20:
        raise ParseError(f"TCP: {len(data)} bytes, a header has at least 20")
    source, destination, seq, ack, offset, flags, window, checksum, urgent = FIXED.unpack_from(data)
    header = offset >> 4 << 2
    if header < 20 or header > len(data):
        raise ParseError(f"TCP: data offset of {header} in a segment of {len(data)} bytes")
    view = data if type(data) is memoryview else memoryview(data)
    segment = TcpSegment(
        source, destination, seq, ack, flags, window, urgent, view[header:], checksum=checksum
    )
    if header == 32 and data[20:24] == b"\x01\x01\x08\x0a":
        segment.timestamps = _TIMES.unpack_from(data, 24)
    elif header > 20:
        _parse_options(segment, bytes(view[20:header]))
    return segment


def _parse_options(segment: TcpSegment, options: bytes) -> None:
    at, end = 0, len(options)
    while at < end:
        kind = options[at]
        if kind == _END:
            return
        if kind == _NOP:
            at += 1
            continue
        if at + 1 >= end or options[at + 1] < 2 or at + options[at + 1] > end:
            return  # RFC 9293 3.2 MUST-7: be prepared for an illegal length
        length = options[at + 1]
        value = options[at + 2 : at + length]
        if kind == _MSS and length == 4:
            segment.mss = value[0] << 8 | value[1]
        elif kind == _SCALE and length == 3:
            segment.window_scale = value[0]
        elif kind == _SACK_PERMITTED and length == 2:
            segment.sack_permitted = True
        elif kind == _SACK and length in (10, 18, 26, 34):
            segment.sack = tuple(_BLOCK.iter_unpack(value))
        elif kind == _TIMESTAMPS and length == 10:
            segment.timestamps = _TIMES.unpack(value)
        at += length


def emit_options(segment: TcpSegment) -> bytes:
    """The options of `segment`, padded with NOPs before them to a multiple of 4 bytes each."""
    options = b""
    if segment.mss is not None:
        options += struct.pack("!BBH", _MSS, 4, segment.mss)
    if segment.window_scale is not None:
        options += struct.pack("!BBBB", _NOP, _SCALE, 3, segment.window_scale)
    if segment.sack_permitted:
        options += struct.pack("!BBBB", _NOP, _NOP, _SACK_PERMITTED, 2)
    if segment.timestamps is not None:
        options += struct.pack("!III", TIMESTAMPS_ALIGNED, *segment.timestamps)
    if segment.sack:
        options += struct.pack("!BBBB", _NOP, _NOP, _SACK, 2 + 8 * len(segment.sack))
        options += b"".join(_BLOCK.pack(*block) for block in segment.sack)
    return options


def emit_header(segment: TcpSegment) -> bytes:
    """Header and options of `segment` with its `checksum` as it stands; the payload follows."""
    options = emit_options(segment)
    assert len(options) <= 40, f"{len(options)} bytes of options"
    fixed = FIXED.pack(
        segment.source_port,
        segment.destination_port,
        segment.sequence,
        segment.acknowledgment,
        (20 + len(options)) << 2,
        segment.flags,
        segment.window,
        segment.checksum,
        segment.urgent,
    )
    return fixed + options


def is_intact(source: bytes, destination: bytes, segment: bytes | memoryview) -> bool:
    """Whether the checksum of `segment`, header and payload, is right."""
    return not checksum(segment, pseudo_header(source, destination, PROTOCOL, len(segment)))
