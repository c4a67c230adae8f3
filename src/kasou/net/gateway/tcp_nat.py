"""TCP of the guests as connections of the host, and of the host's clients as ones to guests.

The guest's SYN is answered only when the host's connection is open: refused there is refused here,
unreachable there is ICMP here, and slow there is slow here. A client of a forwarded port is accepted
by the host's kernel at once; its bytes wait there until the guest's connection is open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kasou.errors import LocalError
from kasou.net.gateway.forward import LOOPBACK4, Forward
from kasou.net.gateway.outside import Failure, Outside, Stream
from kasou.net.gateway.plan import LOOPBACK6, AddressPlan
from kasou.net.gateway.station import Station
from kasou.net.gateway.tcp_relay import TcpRelay
from kasou.net.stack import Host
from kasou.net.transport.tcp import Connection, Endpoint, Event
from kasou.net.wire.address import IpAddress, is_loopback

MAX_OPENING = 512
"""Connections of one VM that wait for the host's side; more SYNs are left unanswered."""
MAX_RELAYS = 4096
"""Connections of one VM."""

Allows = Callable[[Station | None, str, IpAddress, int], bool]
"""Whether a VM's egress rules admit a protocol to an address and port."""
Report = Callable[[Endpoint, Endpoint, bytes, Failure], None]
"""Tells a guest (first) by ICMP that its SYN, given, does not reach a peer (second)."""


class TcpNat:
    """All connections that cross the gateway."""

    def __init__(
        self,
        host: Host,
        outside: Outside,
        plan: AddressPlan,
        station_at: Callable[[IpAddress], Station | None],
        allows: Allows,
        report: Report,
    ) -> None:
        self.relays: dict[TcpRelay, Station | None] = {}
        self.counters: Counter[str] = Counter()
        self._opening: dict[Connection, tuple[Stream, Station | None]] = {}
        self._host, self._outside, self._plan = host, outside, plan
        self._station_at, self._allows, self._report = station_at, allows, report
        host.tcp.on_unclaimed_syn = self._on_syn

    # ------------------------------------------------------------------ guest to host

    def _on_syn(self, connection: Connection) -> None:
        """A guest wants to connect to somewhere."""
        destination, port = connection.local
        station = self._station_at(connection.remote.address)
        host_address = self._plan.host_address(destination)
        if host_address is None:
            if destination in self._plan.own:
                connection.refuse()
            else:
                self._unreachable(connection, Failure.UNREACHABLE)
            return
        if not self._allows(station, "tcp", destination, port):
            connection.refuse()
            return
        if self._is_full(station):
            self.counters["overflowed"] += 1
            connection.ignore()
            return
        connection.on_event = self._gave_up
        self._open(connection, host_address, station)

    def _open(
        self, connection: Connection, host_address: IpAddress, station: Station | None
    ) -> None:
        port = connection.local.port
        stream = self._outside.connect(host_address, port)
        self._opening[connection] = stream, station

        def connected(failure: Failure | None) -> None:
            if failure is Failure.REFUSED and host_address == LOOPBACK6:
                # many servers of the host listen on 127.0.0.1 alone; it is the same host
                opening = self._opening.pop(connection, None)
                if opening is not None:
                    stream.abort()
                    self._open(connection, LOOPBACK4, station)
            else:
                self._connected(connection, failure)

        stream.on_connected = connected

    def _is_full(self, station: Station | None) -> bool:
        opening = sum(owner is station for _, owner in self._opening.values())
        if opening >= MAX_OPENING:
            return True
        if len(self.relays) < MAX_RELAYS:
            return False
        return sum(owner is station for owner in self.relays.values()) >= MAX_RELAYS

    def _gave_up(self, connection: Connection, event: Event) -> None:
        """The guest reset its SYN before the host's side was open."""
        if event is Event.CLOSED and connection in self._opening:
            self._opening.pop(connection)[0].abort()

    def _connected(self, connection: Connection, failure: Failure | None) -> None:
        opening = self._opening.pop(connection, None)
        if opening is None:
            return
        stream, station = opening
        connection.on_event = None
        if failure is None:
            self._join(connection, stream, station)
            connection.accept()
            return
        self.counters[failure.value] += 1
        stream.abort()
        if failure is Failure.REFUSED:
            connection.refuse()
        else:
            self._unreachable(connection, failure)

    def _unreachable(self, connection: Connection, failure: Failure) -> None:
        header = connection.first_header
        connection.ignore()
        self._report(connection.remote, connection.local, header, failure)

    # ------------------------------------------------------------------ host to guest

    def accepted(
        self, forward: Forward, station: Station, stream: Stream, client: tuple[IpAddress, int]
    ) -> None:
        """A client of the host connected to a forwarded port."""
        guest = Endpoint(station.address4, forward.guest_port)
        local = Endpoint(self._plan.config.gateway4, 0)
        can_keep = len(client[0]) == 4 and not is_loopback(client[0])
        if forward.keep_source and can_keep and not self._plan.is_local(client[0]):
            local = Endpoint(*client)
        connection = self._connect(local, guest) or self._connect(local._replace(port=0), guest)
        if connection is None:
            stream.abort()
            return
        self._join(connection, stream, station)

    def _connect(self, local: Endpoint, guest: Endpoint) -> Connection | None:
        try:
            return self._host.tcp.connect(local, guest, self._host.now)
        except LocalError:
            return None

    # ------------------------------------------------------------------ both

    def _join(self, connection: Connection, stream: Stream, station: Station | None) -> None:
        self.counters["connections"] += 1
        self.relays[TcpRelay(connection, stream, self._done)] = station

    def _done(self, relay: TcpRelay) -> None:
        self.relays.pop(relay, None)

    def forget(self, station: Station) -> None:
        """A VM left: its connections are reset."""
        self._end(lambda owner: owner is station)

    def close(self) -> None:
        """Reset every connection."""
        self._end(lambda owner: True)

    def _end(self, ends: Callable[[Station | None], bool]) -> None:
        for relay in [each for each, owner in self.relays.items() if ends(owner)]:
            relay.abort()
        for connection, (stream, owner) in list(self._opening.items()):
            if ends(owner):
                del self._opening[connection]
                connection.on_event = None
                stream.abort()
                connection.ignore()
