"""What a frame with offloads stands for: the plain frames that a wire without them would carry.

The slow path beside `Frame.csum` and `Frame.gso`: a port whose other side cannot take them, and
every test that asks whether a large unit means what it should.
"""

from __future__ import annotations

from struct import pack, unpack_from

from kasou.net.wire.checksum import checksum, ones_complement_sum
from kasou.net.wire.error import ParseError
from kasou.ports import Frame

_FIN_PSH, _CWR = 0x09, 0x80


def complete(frame: Frame) -> Frame:
    """`frame` with its checksum in place; the frame itself when it has one. Raises `ParseError`."""
    if frame.csum is None:
        return frame
    start, offset = frame.csum
    at = start + offset
    if start < 0 or offset < 0 or at + 2 > len(frame.data):
        raise ParseError(f"checksum at {at} of a frame of {len(frame.data)} bytes")
    view = memoryview(frame.data)
    value = checksum(view[start:])
    if offset == 6 and value == 0:  # UDP: zero would say that there is none
        value = 0xFFFF
    data = b"".join((view[:at], value.to_bytes(2, "big"), view[at + 2 :]))
    return frame._replace(data=data, csum=None)


def segment(frame: Frame) -> list[Frame]:
    """The frames that `frame` stands for, complete. Raises `ParseError` for impossible offloads."""
    gso = frame.gso
    if gso is None:
        return [complete(frame)]
    data = frame.data
    if gso.size <= 0 or not 0 < gso.headers <= len(data) or frame.csum is None:
        raise ParseError(f"{gso} on a frame of {len(data)} bytes")
    start = frame.csum[0]
    network = 14 if data[12:14] != b"\x81\x00" else 18
    smallest = 20 if gso.kind.startswith("tcp") else 8
    if not network + 20 <= start or start + smallest > gso.headers:
        raise ParseError(f"{gso} with its transport header at {start}")
    if frame.csum[1] != (6 if gso.kind == "udp" else 16):
        raise ParseError(f"{gso} with its checksum at {frame.csum[1]} of the transport header")
    payload = memoryview(data)[gso.headers :]
    pieces = [payload[at : at + gso.size] for at in range(0, len(payload), gso.size)] or [payload]
    total = len(data) - start  # transport length that the pseudo-header sum in the field counts
    frames, at = [], 0
    for number, piece in enumerate(pieces):
        header = bytearray(data[: gso.headers])
        length = gso.headers - start + len(piece)
        _fix_network(header, network, start, length, number)
        if gso.kind == "udp":
            header[start + 4 : start + 6] = pack(">H", length)
        else:
            sequence = unpack_from(">I", data, start + 4)[0] + at & 0xFFFF_FFFF
            header[start + 4 : start + 8] = pack(">I", sequence)
            if number < len(pieces) - 1:
                header[start + 13] &= ~_FIN_PSH & 0xFF
            if number:
                header[start + 13] &= ~_CWR & 0xFF
        field = start + frame.csum[1]
        partial = unpack_from(">H", data, field)[0]
        adjusted = ones_complement_sum(b"", partial + (0xFFFF - total % 0xFFFF) + length)
        header[field : field + 2] = pack(">H", adjusted)
        whole = Frame(b"".join((header, piece)), frame.csum, None, frame.trusted)
        frames.append(complete(whole))
        at += len(piece)
    return frames


def _fix_network(header: bytearray, network: int, start: int, length: int, number: int) -> None:
    """Lengths, identification and header checksum for one piece."""
    if header[network] >> 4 == 6:
        header[network + 4 : network + 6] = pack(">H", start - network - 40 + length)
        return
    header[network + 2 : network + 4] = pack(">H", start - network + length)
    identification = unpack_from(">H", header, network + 4)[0] + number & 0xFFFF
    header[network + 4 : network + 6] = pack(">H", identification)
    header[network + 10 : network + 12] = bytes(2)
    end = min(start, network + (header[network] & 15) * 4)
    header[network + 10 : network + 12] = pack(">H", checksum(header[network:end]))
