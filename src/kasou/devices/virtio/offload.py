"""What a network card does for those who cannot: checksums, and cutting large frames to size.

A `Frame` may say that its checksum is not computed (`csum`) and that it stands for many (`gso`).
Where the taker has not agreed to that, the frame is finished here. All of it works on the bytes;
a frame that is not what its `csum` or `gso` says becomes nothing (None, or an empty list).
(RFC 1071; Virtio 1.2, 5.1.6.2 and 5.1.6.4)
"""

import struct

from kasou.ports import Frame

MAX_PIECES = 2048
"""A frame that would be cut into more is dropped: it costs its taker more than its sender."""
_PIECE = 8192
_ETHERNET = 14
_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN_TAGS = (0x8100, 0x88A8)
_TCP, _UDP = 6, 17
_FIN_PSH, _CWR = 0x09, 0x80
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


def ones_sum(data: bytes | memoryview) -> int:
    """The ones' complement sum of 16-bit words, 0..0xFFFF; an odd byte counts as a high one.

    As 2^16 is 1 modulo 0xFFFF, the sum of the words is the whole number modulo 0xFFFF. Pieces keep
    the numbers in the host's cache: 64 KiB take 70 us instead of 125.
    """
    if len(data) <= _PIECE:
        total = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    else:
        total = 0
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            total += int.from_bytes(piece, "big") << 8 * (len(piece) & 1)
    return total % 0xFFFF or (0xFFFF if total else 0)


def internet_checksum(data: bytes | memoryview, initial: int = 0) -> int:
    """The Internet checksum of `data`, `initial` being a sum to begin with (a pseudo-header)."""
    total = ones_sum(data) + initial
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


def with_checksum(frame: Frame) -> Frame | None:
    """`frame`, complete: the checksum that `csum` asks for is in its place."""
    if frame.csum is None:
        return frame
    start, offset = frame.csum
    data = frame.data
    at = start + offset
    if start < 0 or offset < 0 or at + 2 > len(data):
        return None
    value = internet_checksum(memoryview(data)[start:])
    if not value and offset == 6:
        value = 0xFFFF  # in UDP zero means that there is none (RFC 768)
    whole = b"".join((data[:at], _U16.pack(value), data[at + 2 :]))
    return frame._replace(data=whole, csum=None)


def plain_frames(frame: Frame) -> list[Frame]:
    """`frame` for a taker who knows no offloads: cut to size and complete."""
    if frame.gso is not None:
        return segments(frame, complete=True)
    done = with_checksum(frame)
    return [] if done is None else [done]


def segments(frame: Frame, complete: bool) -> list[Frame]:
    """The frames that `frame`, which has a `gso`, stands for; `complete` computes checksums too.

    Sequence numbers, lengths, IPv4 identifications count on; FIN and PSH stay with the last
    segment, CWR with the first. Without `complete` each has a `csum` of its own.
    """
    data, gso = frame.data, frame.gso
    assert gso is not None, "only a large frame is cut"
    found = _transport(data)
    if found is None:
        return []
    ip, transport, protocol, version = found
    if gso.kind != {(4, _TCP): "tcp4", (6, _TCP): "tcp6"}.get((version, protocol), "udp"):
        return []
    shortest, longest = (20, 60) if protocol == _TCP else (8, 8)
    payload = len(data) - gso.headers
    if not shortest <= gso.headers - transport <= longest or payload <= 0 or gso.size <= 0:
        return []
    if payload > gso.size * MAX_PIECES:
        return []
    offset = 16 if protocol == _TCP else 6
    addresses = data[ip + 12 : ip + 20] if version == 4 else data[ip + 8 : ip + 40]
    pseudo = ones_sum(addresses) + protocol
    view = memoryview(data)
    pieces = []
    for number, at in enumerate(range(gso.headers, len(data), gso.size)):
        piece = view[at : at + gso.size]
        headers = bytearray(view[: gso.headers])
        length = gso.headers - transport + len(piece)
        _set_lengths(headers, ip, version, transport - ip + length, number)
        if protocol == _TCP:
            first, last = number == 0, at + gso.size >= len(data)
            _set_tcp(headers, transport, at - gso.headers, first, last)
        else:
            _U16.pack_into(headers, transport + 4, length)
        _U16.pack_into(headers, transport + offset, 0)
        total = pseudo + length
        if complete:
            total += ones_sum(memoryview(headers)[transport:]) + ones_sum(piece)
            value = 0xFFFF - (total % 0xFFFF or 0xFFFF)
            if not value and protocol == _UDP:
                value = 0xFFFF
            csum = None
        else:
            value = total % 0xFFFF or 0xFFFF
            csum = (transport, offset)
        _U16.pack_into(headers, transport + offset, value)
        pieces.append(Frame(b"".join((headers, piece)), csum, None, frame.trusted))
    return pieces


def _transport(data: bytes) -> tuple[int, int, int, int] | None:
    """Where the IP and TCP or UDP headers begin, the protocol, and the version of IP."""
    if len(data) < _ETHERNET + 28:
        return None
    kind: int = _U16.unpack_from(data, 12)[0]
    ip = _ETHERNET
    while kind in _VLAN_TAGS and ip + 4 + 28 <= len(data):
        kind = _U16.unpack_from(data, ip + 2)[0]
        ip += 4
    if kind == _IPV4:
        transport, protocol, version = ip + 4 * (data[ip] & 15), data[ip + 9], 4
        if transport < ip + 20:
            return None
    elif kind == _IPV6 and len(data) >= ip + 48:
        transport, protocol, version = ip + 40, data[ip + 6], 6
    else:
        return None
    return (ip, transport, protocol, version) if protocol in (_TCP, _UDP) else None


def _set_lengths(headers: bytearray, ip: int, version: int, total: int, number: int) -> None:
    """The IP header of piece `number`, with `total` bytes from its first."""
    if version == 6:
        _U16.pack_into(headers, ip + 4, total - 40 & 0xFFFF)
        return
    _U16.pack_into(headers, ip + 2, total & 0xFFFF)
    identification: int = _U16.unpack_from(headers, ip + 4)[0]
    _U16.pack_into(headers, ip + 4, identification + number & 0xFFFF)
    _U16.pack_into(headers, ip + 10, 0)
    end = ip + 4 * (headers[ip] & 15)
    _U16.pack_into(headers, ip + 10, internet_checksum(memoryview(headers)[ip:end]))


def _set_tcp(headers: bytearray, tcp: int, sent: int, first: bool, last: bool) -> None:
    """The TCP header of the piece that begins `sent` bytes into the payload."""
    sequence: int = _U32.unpack_from(headers, tcp + 4)[0]
    _U32.pack_into(headers, tcp + 4, sequence + sent & 0xFFFF_FFFF)
    if not last:
        headers[tcp + 13] &= ~_FIN_PSH & 0xFF
    if not first:
        headers[tcp + 13] &= ~_CWR & 0xFF
