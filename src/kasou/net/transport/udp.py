"""UDP (RFC 768) with sockets: ports are claimed, datagrams are queued for who claimed them.

A socket is bound to an address and port, or to a port at any address; it may be connected to one
peer, whose datagrams it then takes alone. The most specific socket gets a datagram. What nobody
claims goes to `on_unclaimed` (a gateway's NAT), else the caller answers "port unreachable".
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from kasou.errors import LocalError
from kasou.net.network.interface import Packet
from kasou.net.wire.address import IpAddress
from kasou.net.wire.udp import UdpDatagram, parse_udp

MAX_QUEUED_BYTES = 256 << 10
EPHEMERAL = range(49152, 65536)  # RFC 6335 6
_MAX_PAYLOAD = 65535 - 8 - 20


class Received(NamedTuple):
    """A datagram as a socket gives it out."""

    payload: bytes
    source: IpAddress
    source_port: int
    destination: IpAddress


class Outgoing(NamedTuple):
    """A datagram to send. `source` None: the address that the route says."""

    source: IpAddress | None
    source_port: int
    destination: IpAddress
    destination_port: int
    payload: bytes


class UdpSocket:
    """One claimed port. `on_readable` is called when a datagram arrives in an empty queue."""

    def __init__(self, udp: Udp, address: IpAddress | None, port: int) -> None:
        self.address, self.port = address, port
        self.peer: tuple[IpAddress, int] | None = None
        self.on_readable: Callable[[UdpSocket], None] | None = None
        self.unreachable = False
        """Someone reported that a datagram could not be delivered; who reads it sets it back."""
        self._udp = udp
        self._queue: deque[Received] = deque()
        self._queued_bytes = 0
        self._closed = False

    def connect(self, address: IpAddress, port: int) -> None:
        """Take datagrams of one peer alone."""
        self.peer = address, port

    def send(
        self, payload: bytes, destination: IpAddress, port: int, source: IpAddress | None = None
    ) -> None:
        """Send a datagram. Raises `LocalError` when it is too long or the socket is closed."""
        if self._closed:
            raise LocalError("send on a closed UDP socket")
        if len(payload) > _MAX_PAYLOAD:
            raise LocalError(f"UDP payload of {len(payload)} bytes, more than {_MAX_PAYLOAD}")
        self._udp.output.append(
            Outgoing(source or self.address, self.port, destination, port, payload)
        )

    def receive(self) -> Received | None:
        """The oldest datagram, None when there is none."""
        if not self._queue:
            return None
        received = self._queue.popleft()
        self._queued_bytes -= len(received.payload)
        return received

    def close(self) -> None:
        """Give the port back."""
        if not self._closed:
            self._closed = True
            self._udp.release(self)

    def deliver(self, received: Received) -> bool:
        """Queue a datagram; False when there is no room."""
        if self._queued_bytes + len(received.payload) > MAX_QUEUED_BYTES:
            return False
        self._queue.append(received)
        self._queued_bytes += len(received.payload)
        if len(self._queue) == 1 and self.on_readable is not None:
            self.on_readable(self)
        return True


class Udp:
    """The sockets of one host."""

    def __init__(self, rng: random.Random) -> None:
        self.output: list[Outgoing] = []
        self.counters: Counter[str] = Counter()
        self.on_unclaimed: Callable[[UdpDatagram, Packet, int], bool] | None = None
        """Takes a datagram to a port that nobody claimed; False: it is unreachable."""
        self._rng = rng
        self._sockets: dict[int, list[UdpSocket]] = {}

    def bind(self, address: IpAddress | None = None, port: int = 0) -> UdpSocket:
        """Claim `port` (0: any free one) at `address` (None: at all). Raises `LocalError`."""
        if port == 0:
            start = self._rng.randrange(len(EPHEMERAL))
            free = (EPHEMERAL[(start + n) % len(EPHEMERAL)] for n in range(len(EPHEMERAL)))
            port = next((each for each in free if each not in self._sockets), 0)
            if port == 0:
                raise LocalError("every ephemeral UDP port is in use")
        elif not 0 < port < 65536:
            raise LocalError(f"{port} is not a port (1 to 65535)")
        elif any(
            each.address == address and each.peer is None for each in self._sockets.get(port, ())
        ):
            raise LocalError(f"UDP port {port} is in use")
        socket = UdpSocket(self, address, port)
        self._sockets.setdefault(port, []).append(socket)
        return socket

    def release(self, socket: UdpSocket) -> None:
        """Take a socket out; `UdpSocket.close` is how to say it."""
        sockets = self._sockets.get(socket.port, [])
        if socket in sockets:
            sockets.remove(socket)
        if not sockets:
            self._sockets.pop(socket.port, None)

    def find(
        self, local: IpAddress, port: int, remote: IpAddress, remote_port: int
    ) -> UdpSocket | None:
        """The most specific socket for a datagram from `remote` to `local`."""
        best, best_score = None, -1
        for each in self._sockets.get(port, ()):
            if each.peer is not None and each.peer != (remote, remote_port):
                continue
            if each.address is not None and each.address != local:
                continue
            score = 2 * (each.peer is not None) + (each.address is not None)
            if score > best_score:
                best, best_score = each, score
        return best

    def receive(self, packet: Packet, now: int) -> bool:
        """A datagram's packet; False when its port is unreachable. Raises `ParseError`."""
        datagram = parse_udp(packet.payload, packet.source, packet.destination, packet.trusted)
        socket = self.find(
            packet.destination, datagram.destination_port, packet.source, datagram.source_port
        )
        if socket is None:
            if self.on_unclaimed is not None:
                return self.on_unclaimed(datagram, packet, now)
            self.counters["unclaimed"] += 1
            return False
        received = Received(
            datagram.payload, packet.source, datagram.source_port, packet.destination
        )
        self.counters["received"] += 1
        if not socket.deliver(received):
            self.counters["queue_full"] += 1
        return True

    def to_send(self) -> list[Outgoing]:
        """The datagrams that leave now."""
        output, self.output = self.output, []
        return output
