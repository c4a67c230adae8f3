"""Pings of the guests as pings of the host, where it lets its users ping (`ping_group_range`).

One host socket stands for one (guest, identifier, family): the host's kernel has an identifier of
its own in its place. Where the host allows no ping sockets the guest is told so.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from kasou.net.gateway.outside import Echoes, Outside
from kasou.net.gateway.station import Station
from kasou.net.network.ip import Echo
from kasou.net.wire.address import IpAddress

IDLE_NS = 30 * 1_000_000_000
MAX_FLOWS = 128

_Key = tuple[IpAddress, int, bool]


@dataclass(slots=True, eq=False)
class _Flow:
    guest: IpAddress
    identifier: int
    station: Station | None
    socket: Echoes
    used: int
    peers: dict[IpAddress, IpAddress] = field(default_factory=dict)


class PingNat:
    """All flows; `reply` sends an echo reply to a guest."""

    def __init__(self, outside: Outside, reply: Callable[[Echo], None]) -> None:
        self.now = 0
        self.counters: Counter[str] = Counter()
        self._outside, self._reply = outside, reply
        self._flows: OrderedDict[_Key, _Flow] = OrderedDict()

    def receive(
        self, station: Station | None, echo: Echo, host_address: IpAddress, now: int
    ) -> bool:
        """A guest's echo request to `host_address`; False when the host allows no pings."""
        self.now = now
        key = echo.source, echo.identifier, len(host_address) == 16
        flow = self._flows.get(key)
        if flow is None:
            socket = self._outside.echoes(len(host_address) == 16)
            if socket is None:
                self.counters["not_allowed"] += 1
                return False
            if len(self._flows) >= MAX_FLOWS:
                self._close(next(iter(self._flows)))
            flow = self._flows[key] = _Flow(echo.source, echo.identifier, station, socket, now)
            opened = flow
            socket.on_readable = lambda: self._replied(opened)
        self._flows.move_to_end(key)
        flow.used = now
        if len(flow.peers) > 64:
            flow.peers.clear()
        flow.peers[host_address] = echo.destination
        flow.socket.send(host_address, echo.sequence, echo.data)
        self.counters["requests"] += 1
        return True

    def _replied(self, flow: _Flow) -> None:
        for reply in flow.socket.receive():
            shown = flow.peers.get(reply.source)
            if shown is not None:
                self.counters["replies"] += 1
                self._reply(Echo(shown, flow.guest, flow.identifier, reply.sequence, reply.data))

    def deadline(self) -> int | None:
        """When the oldest flow is over, ns."""
        first = next(iter(self._flows.values()), None)
        return None if first is None else first.used + IDLE_NS

    def handle_timer(self, now: int) -> None:
        """End what was idle too long."""
        self.now = now
        for key, flow in list(self._flows.items()):
            if now - flow.used >= IDLE_NS:
                self._close(key)

    def forget(self, station: Station) -> None:
        """A VM left: its flows end."""
        for key in [key for key, flow in self._flows.items() if flow.station is station]:
            self._close(key)

    def close(self) -> None:
        """End every flow."""
        for key in list(self._flows):
            self._close(key)

    def _close(self, key: _Key) -> None:
        self._flows.pop(key).socket.close()
