"""A host: interfaces, IP, UDP and TCP joined to one station on a network.

    host.receive(interface, frames, now)   frames that arrived
    host.handle_timer(now)                 when deadline() is reached
    host.deliver_events()                  calls the owners of connections and listeners
    host.to_send(now)                      -> [(interface, frames)] that leave

Call them in this order; programs use `host.tcp`, `host.udp` and `host.ping` in between, and only
`to_send` makes their wishes frames. TCP's large units leave as one frame with a `Gso`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from struct import unpack_from

from kasou.net.link.offload import segment
from kasou.net.network.interface import IPV4, IPV6, Interface, Packet
from kasou.net.network.ip import Echo, IcmpError, IpLayer
from kasou.net.network.routing import Route
from kasou.net.transport.tcp import Endpoint, OutgoingSegment, Tcp, TcpConfig
from kasou.net.transport.udp import Outgoing, Udp
from kasou.net.wire.address import (
    ANY4,
    ANY6,
    IpAddress,
    MacAddress,
    Prefix,
    is_link_local,
    is_multicast,
)
from kasou.net.wire.error import ParseError
from kasou.net.wire.icmpv4 import Unreachable
from kasou.net.wire.icmpv6 import Unreachable6
from kasou.net.wire.ipv4 import Ipv4Header, Protocol, parse_ipv4
from kasou.net.wire.ipv6 import Ipv6Header, parse_ipv6
from kasou.net.wire.udp import UdpDatagram
from kasou.ports import Frame, Gso

_DEFAULT4, _DEFAULT6 = Prefix(ANY4, 0), Prefix(ANY6, 0)


class Host:
    """One station with all five layers but the application."""

    def __init__(
        self, rng: random.Random, *, accept_any: bool = False, tcp: TcpConfig | None = None
    ) -> None:
        self.now = 0
        """The time of the last call, ns."""
        self.ip = IpLayer(rng, accept_any=accept_any)
        self.udp = Udp(rng)
        self.tcp = Tcp(rng, config=tcp or TcpConfig(), mtu_to=self._mtu_to)
        self.ip.handlers[Protocol.TCP] = self._receive_tcp
        self.ip.handlers[Protocol.UDP] = self._receive_udp
        self.ip.on_error = self._icmp_error
        self.ip.on_echo_reply = self._echo_reply
        self._rng = rng
        self._pings: dict[tuple[int, int], Callable[[Echo], None]] = {}
        self._identification = rng.randrange(1 << 16)

    # ------------------------------------------------------------------ configuration

    def add_interface(
        self,
        name: str,
        mac: MacAddress,
        mtu: int = 1500,
        *,
        ipv6: bool = True,
        router: bool = False,
    ) -> Interface:
        """Attach a link."""
        interface = Interface(name, mac, mtu, ipv6=ipv6, router=router)
        self.ip.add_interface(interface)
        return interface

    def add_address(self, interface: Interface, address: IpAddress, length: int) -> None:
        """Own `address`, of a network of `length` bits that is on that link."""
        self.ip.add_address(interface, address, length)

    def add_default_route(self, interface: Interface, gateway: IpAddress) -> None:
        """Send to `gateway` what no other route takes."""
        prefix = _DEFAULT4 if len(gateway) == 4 else _DEFAULT6
        self.ip.routes.add(Route(prefix, interface, gateway))

    def _mtu_to(self, destination: IpAddress) -> int:
        return self.ip.mtu_to(destination, self.now)

    # ------------------------------------------------------------------ the five verbs

    def receive(self, interface: Interface, frames: Sequence[Frame], now: int) -> None:
        """Frames that arrived at `interface`, oldest first. Never raises for what is in them."""
        self.now = now
        if any(frame.gso is not None and frame.gso.kind == "udp" for frame in frames):
            frames = self._cut_udp(interface, frames)
        self.ip.receive(interface, frames, now)

    def to_send(self, now: int) -> list[tuple[Interface, list[Frame]]]:
        """The frames that leave now, by interface."""
        self.now = now
        while True:
            for datagram in self.udp.to_send():
                source = datagram.source or self.ip.source_for(datagram.destination)
                if source is not None:
                    self._send_udp(source, datagram, now)
            for unit in self.tcp.to_send(now):
                self._send_tcp(unit, now)
            if not self.ip.deliver_looped(now):
                break
            self.deliver_events()
        out = [(interface, interface.to_send(now)) for interface in self.ip.interfaces]
        return [(interface, frames) for interface, frames in out if frames]

    def deliver_events(self) -> None:
        """Tell owners of connections what happened."""
        self.tcp.deliver_events()

    def deadline(self) -> int | None:
        """When `handle_timer` is due, ns; None when only a frame or a program can change things."""
        times = (self.ip.deadline(), self.tcp.deadline())
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: int) -> None:
        """Let time pass up to `now`."""
        self.now = now
        due = self.ip.deadline()
        if due is not None and due <= now:
            for frame in self.ip.handle_timer(now):
                self.undeliverable(frame, now)
        due = self.tcp.deadline()
        if due is not None and due <= now:
            self.tcp.handle_timer(now)

    def ping(
        self,
        destination: IpAddress,
        identifier: int,
        sequence: int,
        data: bytes,
        on_reply: Callable[[Echo], None],
    ) -> bool:
        """Send an echo request; False when there is no route. `cancel_ping` ends the wait."""
        source = self.ip.source_for(destination)
        if source is None:
            return False
        self._pings[identifier, sequence] = on_reply
        return self.ip.send_echo(Echo(source, destination, identifier, sequence, data), self.now)

    def cancel_ping(self, identifier: int, sequence: int) -> None:
        """Wait no longer for a reply."""
        self._pings.pop((identifier, sequence), None)

    # ------------------------------------------------------------------ between the layers

    def _receive_tcp(self, packet: Packet, now: int) -> None:
        whole = packet.whole
        ecn = whole[1] & 3 if len(packet.source) == 4 else whole[1] >> 4 & 3
        self.tcp.receive(
            packet.source, packet.destination, packet.payload, now, trusted=packet.trusted, ecn=ecn
        )

    def _receive_udp(self, packet: Packet, now: int) -> None:
        if not self.udp.receive(packet, now):
            self.ip.report(packet, Unreachable.PORT, Unreachable6.PORT, now)

    def _cut_udp(self, interface: Interface, frames: Sequence[Frame]) -> list[Frame]:
        """UDP units (USO) mean many datagrams; TCP ones a stretch of the stream, which stays one."""
        cut: list[Frame] = []
        for frame in frames:
            try:
                whole = frame.gso is None or frame.gso.kind != "udp"
                cut += [frame] if whole else segment(frame)
            except ParseError:
                interface.statistics.malformed += 1
        return cut

    def _send_udp(self, source: IpAddress, datagram: Outgoing, now: int) -> None:
        destination = datagram.destination
        body = UdpDatagram(
            datagram.source_port, datagram.destination_port, datagram.payload
        ).emit(source, destination)  # fmt: skip
        link = None
        if is_multicast(destination) or is_link_local(destination):
            link = next((each for each in self.ip.interfaces if source in each.addresses), None)
        self.ip.send(source, destination, Protocol.UDP, body, now, interface=link)

    def _send_tcp(self, unit: OutgoingSegment, now: int) -> None:
        destination = unit.destination
        if is_link_local(destination) and len(destination) == 16:
            link = next(
                (each for each in self.ip.interfaces if unit.source in each.addresses), None
            )
            hop = (link, destination) if link is not None else None
        else:
            hop = self.ip.routes.lookup(destination)
        if self.ip.owns(destination) or hop is None:
            self.ip.send(unit.source, destination, Protocol.TCP, unit.checksummed(), now)
            return
        interface, next_hop = hop
        assert interface is not None
        self._identification = self._identification + 1 & 0xFFFF
        if len(destination) == 4:
            kind = IPV4
            network = Ipv4Header(
                unit.source, destination, Protocol.TCP, 64, self._identification, True,
                traffic_class=unit.ecn,
            ).emit(unit.length)  # fmt: skip
        else:
            kind = IPV6
            network = Ipv6Header(
                unit.source, destination, Protocol.TCP, 64, unit.ecn
            ).emit(unit.length)  # fmt: skip
        link_header = interface.link_header(next_hop, kind, now)
        known = link_header is not None
        start = 14 + len(network)
        data = b"".join(
            (link_header or bytes(6) + interface.mac + kind, network, unit.header, *unit.payload)
        )
        gso = None
        if unit.gso_size is not None:
            name = "tcp4" if len(destination) == 4 else "tcp6"
            gso = Gso(name, unit.gso_size, start + len(unit.header))  # type: ignore[arg-type]
        frame = Frame(data, (start, 16), gso, True)
        if known:
            interface.output.append(frame)
        else:
            interface.wait(next_hop, frame)

    def _icmp_error(self, error: IcmpError, now: int) -> None:
        """Someone reported on a packet of ours: whoever sent it is told."""
        ports = error.quoted[:8]
        if len(ports) < 8:
            return
        local_port, remote_port, sequence = unpack_from(">HHI", ports)
        hard = error.type == (3 if len(error.source) == 4 else 1)  # Destination Unreachable
        if error.protocol == Protocol.UDP and hard:
            socket = self.udp.find(error.source, local_port, error.destination, remote_port)
            if socket is not None:
                socket.unreachable = True
                if socket.on_readable is not None:
                    socket.on_readable(socket)
        elif error.protocol == Protocol.TCP:
            local = Endpoint(error.source, local_port)
            remote = Endpoint(error.destination, remote_port)
            if error.mtu is not None:
                self.tcp.path_mtu_changed(local, remote, sequence, error.mtu, now)
            elif hard:
                self.tcp.unreachable(local, remote, sequence, now)

    def undeliverable(self, frame: Frame, now: int) -> None:
        """The next hop of one of our frames does not answer (RFC 1122 2.3.2.2)."""
        view = memoryview(frame.data)[14:]
        self.ip.counters["undeliverable"] += 1
        try:
            if view[0] >> 4 == 4:
                header4, payload = parse_ipv4(view, big=True)
                ends, protocol = (header4.source, header4.destination), header4.protocol
            else:
                header6, payload = parse_ipv6(view, big=True)
                ends, protocol = (header6.source, header6.destination), header6.protocol
        except ParseError as error:
            raise AssertionError(f"we sent a malformed frame: {error}") from None
        kind = 3 if len(ends[0]) == 4 else 1
        self._icmp_error(IcmpError(ends[0], kind, 1, None, *ends, protocol, payload), now)

    def _echo_reply(self, echo: Echo, now: int) -> None:
        on_reply = self._pings.pop((echo.identifier, echo.sequence), None)
        if on_reply is not None:
            on_reply(echo)
