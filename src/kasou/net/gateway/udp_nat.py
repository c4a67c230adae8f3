"""UDP of the guests as sockets of the host, and of the host's clients as datagrams to guests.

One host socket stands for one (guest address, guest port): all who are spoken to from there see one
source, as through a common home router (endpoint-independent mapping, RFC 4787 4.1), and only those
addresses that were spoken to may answer (address-dependent filtering, RFC 4787 5). A flow ends after
`IDLE_NS` without a datagram, sooner if nothing ever came back.

A forward's clients each look to the guest like a port of the gateway (or like themselves, where
their address is kept); what the guest answers there goes back to that client.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from kasou.errors import HostError
from kasou.net.gateway.forward import Forward
from kasou.net.gateway.outside import Datagrams, Failure, Outside
from kasou.net.gateway.station import Station
from kasou.net.wire.address import ANY4, ANY6, IpAddress

_SECOND = 1_000_000_000
IDLE_NS, ONE_WAY_NS = 300 * _SECOND, 60 * _SECOND  # RFC 4787 4.3 asks for 2 minutes at least
SWEEP_NS = 10 * _SECOND
MAX_FLOWS = 1024
MAX_PEERS = 256
_FIRST_CLIENT_PORT, _LAST_CLIENT_PORT = 32768, 60999

Endpoint = tuple[IpAddress, int]
SendToGuest = Callable[[IpAddress, int, IpAddress, int, bytes], None]
"""Sends a datagram: source address and port, destination address and port, payload."""
Unreachable = Callable[[Endpoint, Endpoint, Failure], None]
"""Tells a guest (first) that its datagrams to a peer (second) cannot be delivered."""


@dataclass(slots=True, eq=False)
class _Flow:
    """A guest's socket. `peers`: host-side address -> the address the guest uses for it."""

    guest: Endpoint
    station: Station | None
    socket: Datagrams
    used: int
    answered: bool = False
    peers: dict[IpAddress, IpAddress] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Client:
    """A client of a forward, and where the guest sees it."""

    forward: UdpForward
    address: Endpoint
    guest: Endpoint
    seen_at: Endpoint
    used: int


@dataclass(slots=True, eq=False)
class UdpForward:
    """A forward that is open."""

    forward: Forward
    station: Station
    socket: Datagrams

    @property
    def port(self) -> int:
        """The host's port."""
        return self.socket.port


class UdpNat:
    """All flows. `now` of callbacks from outside is the time of the last call in."""

    def __init__(self, outside: Outside, send: SendToGuest, unreachable: Unreachable) -> None:
        self.now = 0
        self.counters: Counter[str] = Counter()
        self._outside, self._send, self._unreachable = outside, send, unreachable
        self._flows: OrderedDict[Endpoint, _Flow] = OrderedDict()
        self._clients: OrderedDict[tuple[int, Endpoint], _Client] = OrderedDict()
        self._client_at: dict[tuple[Endpoint, Endpoint], _Client] = {}
        self._next_port = _FIRST_CLIENT_PORT
        self._sweep_at: int | None = None

    def __len__(self) -> int:
        return len(self._flows) + len(self._clients)

    # ------------------------------------------------------------------ guest to host

    def answers_client(self, guest: Endpoint, peer: Endpoint, payload: bytes, now: int) -> bool:
        """Whether a datagram was for a forward's client; it is then sent there."""
        client = self._client_at.get((guest, peer))
        if client is None:
            return False
        self.now = client.used = now
        client.forward.socket.send(payload, *client.address)
        self.counters["to_host"] += 1
        return True

    def receive(
        self,
        station: Station | None,
        guest: Endpoint,
        peer: Endpoint,
        host_address: IpAddress,
        payload: bytes,
        now: int,
    ) -> None:
        """A guest's datagram to `peer`, which is `host_address` for the host."""
        self.now = now
        flow = self._flows.get(guest)
        if flow is None:
            try:
                flow = self._open(guest, station, len(host_address) == 16, now)
            except HostError:
                self.counters["no_socket"] += 1
                return
        elif now - flow.used > _SECOND:
            self._flows.move_to_end(guest)
        flow.used = now
        if host_address not in flow.peers:
            if len(flow.peers) >= MAX_PEERS:
                del flow.peers[next(iter(flow.peers))]
            flow.peers[host_address] = peer[0]
        flow.socket.send(payload, host_address, peer[1])
        self.counters["to_host"] += 1

    def _open(self, guest: Endpoint, station: Station | None, six: bool, now: int) -> _Flow:
        mine = [flow for flow in self._flows.values() if flow.station is station]
        if len(mine) >= MAX_FLOWS:
            self._close(mine[0])
            self.counters["evicted"] += 1
        socket = self._outside.datagrams(ANY6 if six else ANY4, 0)
        flow = self._flows[guest] = _Flow(guest, station, socket, now)
        socket.on_readable = lambda: self._from_peers(flow)
        socket.on_failed = lambda address, port, failure: self._failed(flow, address, port, failure)
        return flow

    def _from_peers(self, flow: _Flow) -> None:
        send, (address, port), peers = self._send, flow.guest, flow.peers
        for datagram in flow.socket.receive():
            shown = peers.get(datagram.source)
            if shown is None:
                self.counters["unasked"] += 1
                continue
            flow.used, flow.answered = self.now, True
            self.counters["to_guest"] += 1
            send(shown, datagram.source_port, address, port, datagram.payload)

    def _failed(self, flow: _Flow, address: IpAddress, port: int, failure: Failure) -> None:
        shown = flow.peers.get(address)
        if shown is not None:
            self._unreachable(flow.guest, (shown, port), failure)

    # ------------------------------------------------------------------ forwards

    def open_forward(self, forward: Forward, station: Station, gateway: IpAddress) -> UdpForward:
        """Begin a forward to `station`. Raises `HostError` when the port cannot be had."""
        socket = self._outside.datagrams(forward.host, forward.host_port)
        opened = UdpForward(forward, station, socket)
        socket.on_readable = lambda: self._from_clients(opened, gateway)
        return opened

    def close_forward(self, opened: UdpForward) -> None:
        """End a forward and what its clients had."""
        opened.socket.close()
        for key, client in list(self._clients.items()):
            if client.forward is opened:
                self._forget(key, client)

    def _from_clients(self, opened: UdpForward, gateway: IpAddress) -> None:
        guest = opened.station.address4, opened.forward.guest_port
        for datagram in opened.socket.receive():
            address = datagram.source, datagram.source_port
            client = self._clients.get((id(opened), address))
            if client is None:
                client = self._admit(opened, address, guest, gateway)
            client.used = self.now
            self.counters["to_guest"] += 1
            self._send(*client.seen_at, *guest, datagram.payload)

    def _admit(
        self, opened: UdpForward, address: Endpoint, guest: Endpoint, gateway: IpAddress
    ) -> _Client:
        if len(self._clients) >= MAX_FLOWS:
            self._forget(*next(iter(self._clients.items())))
        seen_at = address
        loopback = address[0][0] == 127
        if not opened.forward.keep_source or len(address[0]) != 4 or loopback:
            seen_at = gateway, self._free_port(guest, gateway)
        client = _Client(opened, address, guest, seen_at, self.now)
        self._clients[id(opened), address] = self._client_at[guest, seen_at] = client
        return client

    def _free_port(self, guest: Endpoint, gateway: IpAddress) -> int:
        while True:  # fewer clients than ports
            self._next_port += 1
            if self._next_port > _LAST_CLIENT_PORT:
                self._next_port = _FIRST_CLIENT_PORT
            if (guest, (gateway, self._next_port)) not in self._client_at:
                return self._next_port

    # ------------------------------------------------------------------ time and ends

    def deadline(self) -> int | None:
        """When flows are next looked through, ns; every `SWEEP_NS` while there are any."""
        if not self._flows and not self._clients:
            self._sweep_at = None
        elif self._sweep_at is None:
            self._sweep_at = self.now + SWEEP_NS
        return self._sweep_at

    def handle_timer(self, now: int) -> None:
        """End what was idle too long."""
        self.now = now
        self._sweep_at = None
        for flow in list(self._flows.values()):
            if now - flow.used >= (IDLE_NS if flow.answered else ONE_WAY_NS):
                self._close(flow)
        for key, client in list(self._clients.items()):
            if now - client.used >= IDLE_NS:
                self._forget(key, client)

    def forget(self, station: Station) -> None:
        """A VM left: its flows end."""
        for flow in [each for each in self._flows.values() if each.station is station]:
            self._close(flow)

    def close(self) -> None:
        """End every flow."""
        for flow in list(self._flows.values()):
            self._close(flow)

    def _close(self, flow: _Flow) -> None:
        flow.socket.close()
        del self._flows[flow.guest]

    def _forget(self, key: tuple[int, Endpoint], client: _Client) -> None:
        del self._clients[key]
        self._client_at.pop((client.guest, client.seen_at), None)
