"""The servers of the network on the gateway's host: DHCP, DHCPv6 and DNS at their ports."""

from __future__ import annotations

from collections.abc import Callable

from kasou.net.gateway.config import GatewayConfig
from kasou.net.gateway.dhcpv4 import Dhcpv4Server
from kasou.net.gateway.dhcpv6 import Dhcpv6Server
from kasou.net.gateway.dns import DnsForwarder
from kasou.net.gateway.station import Station
from kasou.net.network.interface import Interface
from kasou.net.stack import Host
from kasou.net.transport.tcp import Connection, Event
from kasou.net.transport.udp import Received, UdpSocket
from kasou.net.wire import dhcpv4, dhcpv6
from kasou.net.wire.address import ALL_DHCP_AGENTS, IpAddress, is_link_local
from kasou.net.wire.error import ParseError
from kasou.net.wire.ipv4 import Protocol
from kasou.net.wire.udp import UdpDatagram

StationAt = Callable[[IpAddress], Station | None]
_MAX_UNREAD = 1 << 16
DNS_IDLE_NS = 60 * 1_000_000_000


def serve_dhcpv4(host: Host, interface: Interface, server: Dhcpv4Server) -> None:
    """Answer DHCP clients on `interface`."""
    own = server.config.gateway4

    def readable(socket: UdpSocket) -> None:
        while (received := socket.receive()) is not None:
            try:
                message = dhcpv4.parse_dhcpv4(received.payload)
            except ParseError:
                interface.statistics.malformed += 1
                continue
            answered = server.receive(message, host.now)
            if answered is not None:
                answer, to = answered
                datagram = UdpDatagram(dhcpv4.SERVER_PORT, dhcpv4.CLIENT_PORT, answer.emit())
                host.ip.send(
                    own, to, Protocol.UDP, datagram.emit(own, to), host.now, interface=interface
                )

    host.udp.bind(None, dhcpv4.SERVER_PORT).on_readable = readable


def serve_dhcpv6(host: Host, interface: Interface, config: GatewayConfig) -> None:
    """Answer DHCPv6 clients on `interface`."""
    server = Dhcpv6Server(config)
    interface.groups.add(ALL_DHCP_AGENTS)

    def readable(socket: UdpSocket) -> None:
        while (received := socket.receive()) is not None:
            if len(received.source) != 16 or not is_link_local(received.source):
                continue
            try:
                answer = server.receive(dhcpv6.parse_dhcpv6(received.payload))
            except ParseError:
                interface.statistics.malformed += 1
                continue
            if answer is not None:
                own = interface.link_local
                socket.send(answer.emit(), received.source, received.source_port, own)

    host.udp.bind(None, dhcpv6.SERVER_PORT).on_readable = readable


def serve_dns(
    host: Host, address: IpAddress, forwarder: DnsForwarder, station_at: StationAt
) -> None:
    """Answer queries to `address`, over UDP and TCP."""

    def answer(to: Received) -> Callable[[bytes], None]:
        return lambda wire: socket.send(wire, to.source, to.source_port)

    def readable(socket: UdpSocket) -> None:
        while (received := socket.receive()) is not None:
            station = station_at(received.source)
            forwarder.receive(received.payload, station, False, answer(received), host.now)

    socket = host.udp.bind(address, 53)
    socket.on_readable = readable

    def accept(connection: Connection) -> None:
        DnsConnection(host, connection, forwarder, station_at)

    host.tcp.listen(address, 53, accept)


class DnsConnection:
    """DNS over TCP (RFC 7766): each message after its length in two bytes.

    Queries may follow one another without waiting; answers come as they are found. A client may
    close its half first and is still answered.
    """

    def __init__(
        self, host: Host, connection: Connection, forwarder: DnsForwarder, station_at: StationAt
    ) -> None:
        self._host, self._connection, self._forwarder = host, connection, forwarder
        self._station = station_at(connection.remote.address)
        self._received = bytearray()
        self._unanswered = 0
        self._over = False
        connection.set_keepalive(DNS_IDLE_NS)
        connection.on_event = self._on_event
        self._read()
        if connection.remote_closed:
            self._on_event(connection, Event.REMOTE_CLOSED)

    def _on_event(self, connection: Connection, event: Event) -> None:
        if event is Event.READABLE:
            self._read()
        elif event is Event.CLOSED:
            self._over = True
        elif event is Event.REMOTE_CLOSED:
            self._close_when_answered()

    def _read(self) -> None:
        received = self._received
        self._unanswered += 1  # of these none is answered last before all are seen
        while data := self._connection.read():
            received += data
            if len(received) > 2 * _MAX_UNREAD:
                self._over = True
                self._connection.abort()
                return
            self._take_queries()
        self._unanswered -= 1
        self._close_when_answered()

    def _take_queries(self) -> None:
        received = self._received
        while len(received) >= 2:
            size = int.from_bytes(received[:2], "big")
            if len(received) < 2 + size:
                break
            wire = bytes(received[2 : 2 + size])
            del received[: 2 + size]
            self._unanswered += 1
            if not self._forwarder.receive(wire, self._station, True, self._reply, self._host.now):
                self._unanswered -= 1

    def _reply(self, wire: bytes) -> None:
        self._unanswered -= 1
        connection = self._connection
        if self._over:
            return
        if connection.writable < len(wire) + 2:  # it reads none of its answers
            self._over = True
            connection.abort()
            return
        connection.write(len(wire).to_bytes(2, "big") + wire)
        self._close_when_answered()

    def _close_when_answered(self) -> None:
        if self._connection.remote_closed and not self._unanswered and not self._over:
            self._over = True
            self._connection.close()
