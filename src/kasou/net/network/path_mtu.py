"""How large a packet may be on its way to a destination (RFC 1191, RFC 8201)."""

from __future__ import annotations

from kasou.net.wire.address import IpAddress

LIFETIME_NS = 600 * 1_000_000_000
"""RFC 1191 6.3: an estimate is raised again 10 minutes after it was lowered."""
MIN_MTU4, MIN_MTU6 = 552, 1280
"""What a forged report cannot go below (Linux's `min_pmtu`; RFC 8201 4)."""
_PLATEAUS = (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 552)  # RFC 1191 7.1
_MAX_PATHS = 4096


class PathMtu:
    """Estimates lowered by ICMP, forgotten after `LIFETIME_NS`."""

    def __init__(self) -> None:
        self._paths: dict[IpAddress, tuple[int, int]] = {}

    def lookup(self, destination: IpAddress, link_mtu: int, now: int) -> int:
        """The IP MTU towards `destination` over a link of `link_mtu`, bytes."""
        if not self._paths:
            return link_mtu
        found = self._paths.get(destination)
        if found is None:
            return link_mtu
        if now >= found[1]:
            del self._paths[destination]
            return link_mtu
        return min(found[0], link_mtu)

    def too_big(self, destination: IpAddress, reported: int, packet_bytes: int, now: int) -> int:
        """A router reported `reported` (0: an old router, which knew no better); the new estimate.

        `packet_bytes` is the length of the packet that did not fit. An estimate only falls here.
        """
        smallest = MIN_MTU4 if len(destination) == 4 else MIN_MTU6
        if reported == 0:
            reported = next((size for size in _PLATEAUS if size < packet_bytes), smallest)
        mtu = max(smallest, reported)
        known = self._paths.get(destination)
        if known is not None and now < known[1]:
            mtu = min(mtu, known[0])
        elif len(self._paths) >= _MAX_PATHS:
            self._paths.clear()
        self._paths[destination] = mtu, now + LIFETIME_NS
        return mtu
