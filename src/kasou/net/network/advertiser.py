"""A router's side of Router Advertisements (RFC 4861 6.2): solicited ones, and one now and then."""

from __future__ import annotations

import random

from kasou.net.network.interface import Interface
from kasou.net.wire.address import ALL_NODES, ALL_ROUTERS, ANY6, IpAddress
from kasou.net.wire.ndp import RouterAdvertisement, RouterSolicitation

_SECOND = 1_000_000_000
MAX_INTERVAL_NS, MIN_INTERVAL_NS = 600 * _SECOND, 200 * _SECOND
INITIAL_INTERVAL_NS, INITIAL_COUNT = 16 * _SECOND, 3
MIN_DELAY_NS = 3 * _SECOND  # MIN_DELAY_BETWEEN_RAS, between ones to all


class RouterAdvertiser:
    """Advertises `advertisement` on `interface`. A lifetime of 0 in `stop` takes it back."""

    def __init__(
        self, interface: Interface, advertisement: RouterAdvertisement, rng: random.Random, now: int
    ) -> None:
        self.interface, self.advertisement = interface, advertisement
        self._rng = rng
        self._due = now
        self._last = now - MIN_DELAY_NS
        self._initial = INITIAL_COUNT
        interface.groups.add(ALL_ROUTERS)
        interface.on_router_solicitation = self.solicited

    def solicited(self, source: IpAddress, message: RouterSolicitation, now: int) -> None:
        """Answer at once: to the asker alone if it has an address, else to all, rate-limited."""
        if source != ANY6:
            self._send(source, now)
        else:
            self._due = min(self._due, max(now, self._last + MIN_DELAY_NS))
            self.handle_timer(now)

    def deadline(self) -> int:
        """When the next advertisement to all is due, ns."""
        return self._due

    def handle_timer(self, now: int) -> None:
        """Advertise to all, if it is time."""
        if now < self._due:
            return
        self._send(ALL_NODES, now)
        self._last = now
        interval = self._rng.randrange(MIN_INTERVAL_NS, MAX_INTERVAL_NS)
        if self._initial:
            self._initial -= 1
            interval = min(interval, INITIAL_INTERVAL_NS)
        self._due = now + interval

    def _send(self, destination: IpAddress, now: int) -> None:
        source = self.interface.link_local
        assert source is not None, "a router that advertises has a link-local address"
        message = self.advertisement.to_icmpv6()
        self.interface.send_icmpv6(message, source, destination, now, hop_limit=255)
