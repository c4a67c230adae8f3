"""Capture files as Wireshark reads them (pcapng, draft-ietf-opsawg-pcapng), written as a stream.

    block type 4 | total length 4 | body, padded to 4 | total length 4

A file is a Section Header Block, one Interface Description Block for each interface, then Enhanced
Packet Blocks. Little-endian; timestamps in ns (`if_tsresol` 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack, unpack_from

from kasou.net.wire.checksum import Buffer
from kasou.net.wire.error import ParseError

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_MAGIC = 0x1A2B3C4D
LINKTYPE_ETHERNET = 1
_OPT_END, _IF_NAME, _IF_TSRESOL, _SHB_USERAPPL = 0, 2, 9, 4


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """One packet of a file: interface number, time ns, bytes as captured, length on the wire."""

    interface: int
    time: int
    data: bytes
    original_bytes: int


def section_header() -> bytes:
    """The block that opens a file."""
    body = pack("<IHHq", _MAGIC, 1, 0, -1) + _option(_SHB_USERAPPL, b"kasou") + _option(_OPT_END)
    return _block(_SECTION, body)


def interface_description(name: str, snap_bytes: int = 0) -> bytes:
    """Describe the next interface, numbered from 0; `snap_bytes` 0 means packets are whole."""
    body = pack("<HHI", LINKTYPE_ETHERNET, 0, snap_bytes) + _option(_IF_NAME, name.encode())
    return _block(_INTERFACE, body + _option(_IF_TSRESOL, b"\x09") + _option(_OPT_END))


def enhanced_packet(interface: int, time: int, data: Buffer, original_bytes: int) -> bytes:
    """One packet at `time` ns since the epoch; `data` may be cut, `original_bytes` is not."""
    stamp = time & (1 << 64) - 1
    head = pack("<IIIII", interface, stamp >> 32, stamp & 0xFFFFFFFF, len(data), original_bytes)
    return _block(_PACKET, head + bytes(data) + bytes(-len(data) % 4))


def parse_pcapng(data: bytes) -> Iterator[CapturedPacket]:
    """The packets of a file that `section_header` and its kind wrote. Raises `ParseError`."""
    at = 0
    while at < len(data):
        if at + 12 > len(data):
            raise ParseError("pcapng block is cut off")
        kind, total = unpack_from("<II", data, at)
        if total < 12 or total % 4 or at + total > len(data):
            raise ParseError(f"pcapng block of {total} bytes at {at}")
        if data[at + total - 4 : at + total] != data[at + 4 : at + 8]:
            raise ParseError(f"pcapng block at {at}: its two lengths differ")
        body = data[at + 8 : at + total - 4]
        if kind == _SECTION and body[:4] != pack("<I", _MAGIC):
            raise ParseError("pcapng section is not little-endian")
        if kind == _PACKET:
            if len(body) < 20:
                raise ParseError("pcapng packet block is cut off")
            interface, high, low, captured, original = unpack_from("<IIIII", body)
            if 20 + captured > len(body):
                raise ParseError(f"pcapng packet of {captured} bytes is cut off")
            packet = body[20 : 20 + captured]
            yield CapturedPacket(interface, high << 32 | low, packet, original)
        at += total


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return pack("<II", kind, total) + body + pack("<I", total)


def _option(code: int, value: bytes = b"") -> bytes:
    return pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)
