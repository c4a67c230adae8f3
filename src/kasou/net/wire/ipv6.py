"""The IPv6 header and its extension headers (RFC 8200 3 and 4).

    0       4              12               16             31
    | ver 6 | traffic class |           flow label          |
    |         payload length        | next header| hop limit|
    |  source 16  |  destination 16                         |

Of the extension headers only Fragment means something to a host that is no router and has no
options of its own; the others are walked, checked for options that say "discard", and passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, unpack_from

from kasou.net.wire.address import IpAddress
from kasou.net.wire.checksum import Buffer
from kasou.net.wire.error import ParseError

_LAYOUT = Struct(">IHBB16s16s")
HEADER_BYTES = 40
FRAGMENT_BYTES = 8
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, NO_NEXT = 0, 43, 44, 60, 59
_MAX_EXTENSIONS = 8


@dataclass(frozen=True, slots=True)
class Fragment:
    """The Fragment header: `offset` in bytes, a multiple of 8."""

    offset: int
    more: bool
    identification: int


@dataclass(frozen=True, slots=True)
class Ipv6Header:
    """A header and what its extensions amount to.

    `extensions` are the bytes between the fixed header and the fragment header or payload, as
    received, `first` the next-header value that introduces them; `protocol` names the payload.
    """

    source: IpAddress
    destination: IpAddress
    protocol: int
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0
    fragment: Fragment | None = None
    first: int | None = None
    extensions: bytes = b""

    @property
    def is_fragment(self) -> bool:
        """Whether this is a piece of a larger packet (an atomic fragment, RFC 6946, is not)."""
        return self.fragment is not None and (self.fragment.more or self.fragment.offset != 0)

    def emit(self, payload_bytes: int) -> bytes:
        """The header with its extensions, for a payload of `payload_bytes`.

        A length above 65,535 is written as 0, as Linux does for frames that stand for many (GSO).
        """
        extensions = self.extensions
        if self.fragment is not None:
            piece = self.fragment
            extensions += self.protocol.to_bytes(2, "little")
            extensions += (piece.offset | piece.more).to_bytes(2, "big")
            extensions += piece.identification.to_bytes(4, "big")
        first = self.protocol if self.fragment is None else FRAGMENT
        if self.extensions and self.first is not None:
            first = self.first
        length = len(extensions) + payload_bytes
        word = 6 << 28 | self.traffic_class << 20 | self.flow_label
        return _LAYOUT.pack(
            word, length if length <= 0xFFFF else 0, first, self.hop_limit,
            self.source, self.destination,
        ) + extensions  # fmt: skip


def parse_ipv6(data: Buffer, big: bool = False) -> tuple[Ipv6Header, memoryview]:
    """The header and the upper-layer payload (or fragment). Raises `ParseError`.

    `big` accepts a payload length of 0 as "all there is", for frames with a `Gso`.
    """
    if len(data) < HEADER_BYTES:
        raise ParseError(f"IPv6 packet of {len(data)} bytes, shorter than its header")
    word, length, following, hop_limit, source, destination = _LAYOUT.unpack_from(data)
    if word >> 28 != 6:
        raise ParseError(f"IPv6 packet of version {word >> 28}")
    end = HEADER_BYTES + length
    if length == 0 and big:
        end = len(data)
    if end > len(data):
        raise ParseError(f"IPv6 payload length {length} in a packet of {len(data)} bytes")
    view = memoryview(data)[:end]
    at, first, fragment, extensions_end = HEADER_BYTES, following, None, HEADER_BYTES
    for _ in range(_MAX_EXTENSIONS):
        if following not in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
            break
        if at + 8 > end:
            raise ParseError(f"IPv6 extension header {following} is cut off")
        if following == FRAGMENT:
            following, _, place, identification = unpack_from(">BBHI", view, at)
            fragment = Fragment(place & ~7, bool(place & 1), identification)
            at += FRAGMENT_BYTES
            break
        size = 8 + view[at + 1] * 8
        if at + size > end:
            raise ParseError(f"IPv6 extension header {following} of {size} bytes is cut off")
        if following == HOP_BY_HOP and at != HEADER_BYTES:
            raise ParseError("IPv6 Hop-by-Hop header is not first")
        if following == ROUTING:
            if view[at + 3]:
                raise ParseError("IPv6 Routing header with segments left")
        else:
            _check_options(view[at + 2 : at + size])
        following, at = view[at], at + size
        extensions_end = at
    else:
        raise ParseError(f"more than {_MAX_EXTENSIONS} IPv6 extension headers")
    if fragment is not None and not (fragment.more or fragment.offset):
        at, following = _after_atomic(view, at, following)
    header = Ipv6Header(
        source, destination, following, hop_limit, word >> 20 & 0xFF, word & 0xFFFFF, fragment,
        first if extensions_end > HEADER_BYTES else None,
        bytes(view[HEADER_BYTES:extensions_end]),
    )  # fmt: skip
    return header, view[at:]


def _after_atomic(view: memoryview, at: int, following: int) -> tuple[int, int]:
    """Pass over Destination Options behind a Fragment header that fragments nothing."""
    while following == DESTINATION and at + 8 <= len(view):
        size = 8 + view[at + 1] * 8
        if at + size > len(view):
            raise ParseError("IPv6 Destination Options are cut off")
        _check_options(view[at + 2 : at + size])
        following, at = view[at], at + size
    return at, following


def _check_options(options: memoryview) -> None:
    """RFC 8200 4.2: the top two bits of an unknown option's type say what becomes of the packet."""
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == 0:  # Pad1
            at += 1
            continue
        if at + 2 > len(options) or at + 2 + options[at + 1] > len(options):
            raise ParseError("IPv6 option is cut off")
        if kind not in (1, 5, 0xC2) and kind >> 6:  # PadN, Router Alert, Jumbo
            raise ParseError(f"IPv6 option {kind:#x}, unknown, asks to be discarded")
        at += 2 + options[at + 1]
