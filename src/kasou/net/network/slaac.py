"""Stateless address autoconfiguration (RFC 4862): a host's addresses from what routers advertise.

link-local: tentative --1 s, nobody objects--> ours; then solicit routers (at most three times)
advertised prefix: EUI-64 address, tentative --> ours, until its valid lifetime is over
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from kasou.net.network.interface import Interface
from kasou.net.network.ip import IpLayer
from kasou.net.network.routing import Route
from kasou.net.wire.address import (
    ALL_ROUTERS,
    ANY6,
    IpAddress,
    Prefix,
    eui64,
    solicited_node,
)
from kasou.net.wire.ndp import (
    FOREVER,
    NeighborSolicitation,
    PrefixInformation,
    RouterAdvertisement,
    RouterSolicitation,
)

_SECOND = 1_000_000_000
_TWO_HOURS_NS = 7200 * _SECOND
RETRANS_NS = 1 * _SECOND
SOLICITATION_INTERVAL_NS, MAX_SOLICITATIONS = 4 * _SECOND, 3
_DEFAULT = Prefix(ANY6, 0)


@dataclass(slots=True)
class _Router:
    address: IpAddress
    until: int


class Slaac:
    """Configures `interface` of the host whose IP layer is `ip`."""

    def __init__(self, ip: IpLayer, interface: Interface, rng: random.Random, now: int) -> None:
        self.name_servers: tuple[IpAddress, ...] = ()
        self.search: tuple[str, ...] = ()
        self.duplicates: list[IpAddress] = []
        self.on_configured: Callable[[IpAddress], None] | None = None
        """Called with each address that becomes ours."""
        self._ip, self._interface, self._rng = ip, interface, rng
        self._probes: dict[IpAddress, int] = {}  # tentative address: when it becomes ours
        self._valid: dict[IpAddress, int | None] = {}  # address: when it ends, None never
        self._router: _Router | None = None
        self._solicit_at: int | None = None
        self._solicitations = 0
        interface.on_router_advertisement = self.advertised
        interface.on_duplicate = self._duplicate
        assert interface.link_local is not None, "SLAAC needs a link-local address"
        self._probe(interface.link_local, 64, now)

    def advertised(self, router: IpAddress, message: RouterAdvertisement, now: int) -> None:
        """A router advertised itself (RFC 4862 5.5.3, RFC 4861 6.3.4)."""
        self._solicit_at = None
        link = self._interface
        if (self._router is not None and self._router.address == router) or message.lifetime:
            if self._router is not None:
                self._ip.routes.remove(_DEFAULT, link, self._router.address)
            self._router = None
            if message.lifetime:
                self._router = _Router(router, now + message.lifetime * _SECOND)
                self._ip.routes.add(Route(_DEFAULT, link, router))
        if message.mtu is not None and 1280 <= message.mtu <= link.mtu:
            link.mtu = message.mtu
        if message.name_servers:
            self.name_servers = message.name_servers
        if message.search:
            self.search = message.search
        for one in message.prefixes:
            self._prefix(one, now)

    def _prefix(self, one: PrefixInformation, now: int) -> None:
        if one.prefix.address[:2] == b"\xfe\x80":
            return
        if one.on_link and one.valid:
            self._ip.routes.add(Route(one.prefix, self._interface))
        if not one.autonomous or one.prefix.length != 64 or one.preferred > one.valid:
            return
        address = eui64(one.prefix.address, self._interface.mac)
        until = None if one.valid == FOREVER else now + one.valid * _SECOND
        if address in self._valid:
            # 5.5.3 e: a lifetime is not cut below two hours by an advertisement anyone can forge
            known = self._valid[address]
            remaining = _TWO_HOURS_NS + 1 if known is None else known - now
            if until is not None and until - now <= _TWO_HOURS_NS < remaining:
                until = now + _TWO_HOURS_NS
            self._valid[address] = until
        elif address not in self.duplicates and one.valid:
            self._valid[address] = until
            self._probe(address, 64, now)

    def _probe(self, address: IpAddress, length: int, now: int) -> None:
        """Ask whether anyone has `address` before it is used (5.4)."""
        link = self._interface
        self._ip.add_address(link, address, length)
        link.tentative.add(address)
        self._probes[address] = now + RETRANS_NS
        probe = NeighborSolicitation(address).to_icmpv6()
        link.send_icmpv6(probe, ANY6, solicited_node(address), now, hop_limit=255)

    def _duplicate(self, address: IpAddress, now: int) -> None:
        """Someone else has it: it is never used."""
        if self._probes.pop(address, None) is not None:
            self.duplicates.append(address)
            self._valid.pop(address, None)
            self._interface.remove_address(address)

    def deadline(self) -> int | None:
        """When `handle_timer` is due, ns."""
        times = [
            *self._probes.values(),
            *(each for each in self._valid.values() if each is not None),
        ]
        if self._solicit_at is not None:
            times.append(self._solicit_at)
        if self._router is not None:
            times.append(self._router.until)
        return min(times, default=None)

    def handle_timer(self, now: int) -> None:
        """Let time pass up to `now`."""
        link = self._interface
        for address in [each for each, due in self._probes.items() if due <= now]:
            del self._probes[address]
            link.tentative.discard(address)
            if address == link.link_local and self._router is None:
                self._solicit_at = now
            if self.on_configured is not None:
                self.on_configured(address)
        if self._solicit_at is not None and self._solicit_at <= now:
            self._solicitations += 1
            source = link.link_local
            assert source is not None
            message = RouterSolicitation(link.mac).to_icmpv6()
            link.send_icmpv6(message, source, ALL_ROUTERS, now, hop_limit=255)
            more = self._solicitations < MAX_SOLICITATIONS
            self._solicit_at = now + SOLICITATION_INTERVAL_NS if more else None
        for address in [
            each for each, end in self._valid.items() if end is not None and end <= now
        ]:
            del self._valid[address]
            link.remove_address(address)
        if self._router is not None and self._router.until <= now:
            self._ip.routes.remove(_DEFAULT, link, self._router.address)
            self._router = None
