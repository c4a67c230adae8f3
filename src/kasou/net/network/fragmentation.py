"""Packets cut to fit a link (RFC 791 3.2, RFC 8200 4.5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kasou.net.wire.checksum import Buffer
from kasou.net.wire.ipv4 import HEADER_BYTES, Ipv4Header
from kasou.net.wire.ipv6 import FRAGMENT_BYTES, Fragment, Ipv6Header
from kasou.net.wire.ipv6 import HEADER_BYTES as HEADER6_BYTES


def fragment4(header: Ipv4Header, payload: Buffer, mtu: int) -> Iterator[bytes]:
    """The packets, of at most `mtu` bytes each, that carry `payload`; one when it fits.

    The caller has seen that `header` does not say "don't fragment". Options are repeated in every
    piece, as if all were of the kind that is copied.
    """
    view = memoryview(payload)
    room = mtu - HEADER_BYTES - len(header.options)
    if len(view) <= room:
        yield header.emit(len(view)) + bytes(view)
        return
    room &= ~7
    for at in range(0, len(view), room):
        piece = view[at : at + room]
        more = header.more_fragments or at + room < len(view)
        place = replace(header, more_fragments=more, offset=header.offset + at)
        yield place.emit(len(piece)) + bytes(piece)


def fragment6(
    header: Ipv6Header, payload: Buffer, mtu: int, identification: int
) -> Iterator[bytes]:
    """The same for IPv6, where only the source of a packet may fragment it."""
    view = memoryview(payload)
    room = mtu - HEADER6_BYTES - len(header.extensions)
    if len(view) <= room:
        yield header.emit(len(view)) + bytes(view)
        return
    room = room - FRAGMENT_BYTES & ~7
    for at in range(0, len(view), room):
        piece = view[at : at + room]
        place = Fragment(at, at + room < len(view), identification)
        yield replace(header, fragment=place).emit(len(piece)) + bytes(piece)
