"""The routing table: the longest prefix wins, then the lowest metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from kasou.net.wire.address import IpAddress, Prefix

Link = TypeVar("Link")


@dataclass(frozen=True, slots=True)
class Route(Generic[Link]):
    """Packets to `prefix` leave by `link`, to `gateway` or (None) straight to their destination."""

    prefix: Prefix
    link: Link
    gateway: IpAddress | None = None
    metric: int = 0


class RoutingTable(Generic[Link]):
    """Routes, and which of them a destination takes."""

    _MAX_CACHED = 4096

    def __init__(self) -> None:
        self.routes: list[Route[Link]] = []
        self._cache: dict[IpAddress, tuple[Link, IpAddress] | None] = {}

    def add(self, route: Route[Link]) -> None:
        """Add a route, in place of one with the same prefix, link and gateway."""
        self.remove(route.prefix, route.link, route.gateway)
        self.routes.append(route)
        self.routes.sort(key=lambda each: (-each.prefix.length, each.metric))

    def remove(self, prefix: Prefix, link: Link, gateway: IpAddress | None = None) -> None:
        """Take a route away, if it is there."""
        self._cache.clear()
        self.routes = [
            each
            for each in self.routes
            if (each.prefix, each.gateway) != (prefix, gateway) or each.link is not link
        ]

    def lookup(self, destination: IpAddress) -> tuple[Link, IpAddress] | None:
        """The link and the next hop towards `destination`; None when there is no route."""
        try:
            return self._cache[destination]
        except KeyError:
            pass
        if len(self._cache) >= self._MAX_CACHED:
            self._cache.clear()
        found = next((each for each in self.routes if destination in each.prefix), None)
        hop = None if found is None else (found.link, found.gateway or destination)
        self._cache[destination] = hop
        return hop
