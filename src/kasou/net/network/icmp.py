"""ICMP errors about a packet, and the rules by which none is sent (RFC 1122 3.2.2, RFC 4443 2.4).

None about an error, about a packet to many, from no one, or about a fragment but the first; and not
more than the limiter lets through.
"""

from __future__ import annotations

from kasou.net.wire.address import ANY4, ANY6, BROADCAST4, IpAddress, is_loopback, is_multicast
from kasou.net.wire.icmpv4 import IcmpType, Icmpv4
from kasou.net.wire.icmpv6 import Icmpv6, Icmpv6Type
from kasou.net.wire.ipv4 import Ipv4Header, Protocol
from kasou.net.wire.ipv6 import Ipv6Header

_QUOTE4 = 548  # RFC 1812 4.3.2.3: as much as fits in 576 bytes with both headers
_QUOTE6 = 1280 - 48


class RateLimit:
    """A bucket of `burst` tokens, filled by one every `interval_ns` (RFC 4443 2.4 f)."""

    def __init__(self, interval_ns: int = 1_000_000, burst: int = 50) -> None:
        self.interval_ns, self.burst = interval_ns, burst
        self._full_at = 0

    def allows(self, now: int) -> bool:
        """Whether one more may pass at `now`; it is then counted."""
        full_at = max(self._full_at, now) + self.interval_ns
        if full_at - now > self.burst * self.interval_ns:
            return False
        self._full_at = full_at
        return True


def _may_report(source: IpAddress, destination: IpAddress) -> bool:
    if is_multicast(source) or source in (ANY4, ANY6, BROADCAST4) or is_loopback(source):
        return False
    return not is_multicast(destination) and destination != BROADCAST4


def error4(
    header: Ipv4Header, payload: bytes | memoryview, kind: IcmpType, code: int, rest: int = 0
) -> Icmpv4 | None:
    """The error about the packet of `header` and `payload`; None when there must be none."""
    if not _may_report(header.source, header.destination) or header.offset:
        return None
    if header.protocol == Protocol.ICMP and (
        len(payload) < 1 or payload[0] not in (IcmpType.ECHO, IcmpType.ECHO_REPLY)
    ):
        return None
    quoted = header.emit(len(payload)) + bytes(payload[:_QUOTE4])
    return Icmpv4(kind, code, rest, quoted[:_QUOTE4])


def error6(
    header: Ipv6Header, payload: bytes | memoryview, kind: Icmpv6Type, code: int, rest: int = 0
) -> Icmpv6 | None:
    """The same for IPv6. Packet Too Big alone may answer a packet to many (RFC 4443 2.4 e)."""
    too_big = kind is Icmpv6Type.PACKET_TOO_BIG
    if not _may_report(header.source, header.source if too_big else header.destination):
        return None
    if header.fragment is not None and header.fragment.offset:
        return None
    if header.protocol == Protocol.ICMPV6 and (
        len(payload) < 1 or payload[0] < 128 or payload[0] == Icmpv6Type.REDIRECT
    ):
        return None
    quoted = header.emit(len(payload)) + bytes(payload[:_QUOTE6])
    return Icmpv6(kind, code, rest, quoted[:_QUOTE6])
