"""The header before every frame of virtio-net, and what it says as a `Frame`. (Virtio 1.2, 5.1.6)

    | flags u8 | gso_type u8 | hdr_len u16 | gso_size u16 | csum_start u16 | csum_offset u16 |
    | num_buffers u16, only with VERSION_1 or MRG_RXBUF |

The header from the guest is not believed: what does not fit the bytes that follow it, or was not
negotiated, makes no frame. `hdr_len` is a hint only; the length of the headers is read from them.
"""

import struct
from enum import IntFlag
from typing import Literal

from kasou.ports import Frame, Gso

MAX_FRAME = 65535 + 18
"""Bytes of the largest frame: an IP packet behind Ethernet and a VLAN tag."""


class NetFeature(IntFlag):
    """Features of a network card."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    SPEED_DUPLEX = 1 << 63


class Flag(IntFlag):
    """`flags`."""

    NEEDS_CSUM = 1
    DATA_VALID = 2


_HEADER = struct.Struct("<BBHHHH")
_NUM_BUFFERS = struct.Struct("<H")
SHORT_HEADER, HEADER = 10, 12
"""Bytes of a header without and with `num_buffers`."""

_NEEDS_CSUM = int(Flag.NEEDS_CSUM)
_CSUM = int(NetFeature.CSUM)
_GUEST_CSUM = int(NetFeature.GUEST_CSUM)
_TCP4, _TCP6, _UDP, _ECN = 1, 4, 5, 0x80
_IPV6 = b"\x86\xdd"
_CWR = 0x80
_UNKNOWN = bytes(SHORT_HEADER)
_VALID = bytes((Flag.DATA_VALID,)) + bytes(SHORT_HEADER - 1)

Kind = Literal["tcp4", "tcp6", "udp"]
_FROM_GUEST: dict[int, tuple[Kind, int]] = {
    _TCP4: ("tcp4", int(NetFeature.HOST_TSO4)),
    _TCP4 | _ECN: ("tcp4", int(NetFeature.HOST_TSO4 | NetFeature.HOST_ECN)),
    _TCP6: ("tcp6", int(NetFeature.HOST_TSO6)),
    _TCP6 | _ECN: ("tcp6", int(NetFeature.HOST_TSO6 | NetFeature.HOST_ECN)),
    _UDP: ("udp", int(NetFeature.HOST_USO)),
}
"""What a `gso_type` stands for, and what must have been negotiated for it."""


def frame_from_guest(raw: bytes, header_bytes: int, accepted: int) -> Frame | None:
    """The frame behind the header in `raw`, None if it breaks a rule; `raw` holds a header."""
    flags, gso_type, _, gso_size, start, offset = _HEADER.unpack_from(raw)
    data = raw[header_bytes:]
    if not 14 <= len(data) <= MAX_FRAME:
        return None
    if not flags & _NEEDS_CSUM:
        return None if gso_type else Frame(data)
    if not accepted & _CSUM or start + offset + 2 > len(data):
        return None
    if not gso_type:
        return Frame(data, (start, offset), None, True)
    kind, needed = _FROM_GUEST.get(gso_type, ("udp", -1))
    if accepted & needed != needed or not gso_size:
        return None
    headers = _headers(data, start, offset, kind)
    if headers is None:
        return None
    return Frame(data, (start, offset), Gso(kind, gso_size, headers), True)


def _headers(data: bytes, start: int, offset: int, kind: Kind) -> int | None:
    """Bytes of all headers of a large frame whose transport header is at `start`."""
    if kind == "udp":
        headers, expected = start + 8, 6
    else:
        if start + 20 > len(data):
            return None
        length = data[start + 12] >> 4
        headers, expected = start + 4 * length, 16
        if length < 5:
            return None
    if offset != expected or start < 34 or headers >= len(data):
        return None
    return headers


def header_for_guest(frame: Frame, offloads: int) -> bytes | None:
    """The header before `frame`, without `num_buffers`; None if the driver cannot take it as it is.

    `offloads` are the GUEST_ features in force.
    """
    if frame.csum is None:
        if frame.gso is not None:
            return None
        return _VALID if frame.trusted and offloads & _GUEST_CSUM else _UNKNOWN
    start, offset = frame.csum
    if not offloads & _GUEST_CSUM or not 0 <= start <= start + offset <= len(frame.data) - 2:
        return None
    if frame.gso is None:
        return _HEADER.pack(_NEEDS_CSUM, 0, 0, 0, start, offset)
    kind, size, headers = frame.gso
    if not 0 < size < 1 << 16 or not start < headers < len(frame.data) <= MAX_FRAME:
        return None
    if kind == "udp":
        gso_type = _UDP
        needed = NetFeature.GUEST_USO6 if _is_ipv6(frame.data) else NetFeature.GUEST_USO4
    else:
        gso_type = _TCP4 if kind == "tcp4" else _TCP6
        needed = NetFeature.GUEST_TSO4 if kind == "tcp4" else NetFeature.GUEST_TSO6
        if start + 13 < headers and frame.data[start + 13] & _CWR:
            gso_type |= _ECN
            needed |= NetFeature.GUEST_ECN
    if offloads & needed != needed:
        return None
    return _HEADER.pack(_NEEDS_CSUM, gso_type, headers, size, start, offset)


def with_num_buffers(header: bytes, buffers: int) -> bytes:
    """The longer header."""
    return header + _NUM_BUFFERS.pack(buffers)


def _is_ipv6(data: bytes) -> bool:
    return data[12:14] == _IPV6 or (data[12:14] == b"\x81\x00" and data[16:18] == _IPV6)
