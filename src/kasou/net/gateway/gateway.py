"""The gateway itself: one host on the network that answers for all the world (see the package).

    frames of a VM --> who speaks from where (Owners) --> Host
                          TCP SYN to anywhere  --> connect on the host's side, then SYN-ACK
                          UDP, ping            --> UdpNat, PingNat
                          DHCP, DNS, RA        --> its own servers

The guest's SYN is answered only when the host's connection is open: refused there is refused here.
The gateway's own address leads to the host's loopback; other addresses of the network are VMs',
which the switch reaches without us, so a packet to one of them here is undeliverable.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kasou.errors import ConfigError
from kasou.net.gateway.config import GatewayConfig
from kasou.net.gateway.dhcpv4 import Dhcpv4Server
from kasou.net.gateway.dns import DnsForwarder
from kasou.net.gateway.egress import Egress, EgressPolicy
from kasou.net.gateway.forward import Forward, Forwarded
from kasou.net.gateway.names import LocalNames
from kasou.net.gateway.outside import Failure, HostListener, Outside
from kasou.net.gateway.ping_nat import PingNat
from kasou.net.gateway.plan import AddressPlan
from kasou.net.gateway.services import serve_dhcpv4, serve_dhcpv6, serve_dns
from kasou.net.gateway.station import Owners, Station
from kasou.net.gateway.tcp_nat import TcpNat
from kasou.net.gateway.udp_nat import UdpForward, UdpNat
from kasou.net.network.advertiser import RouterAdvertiser
from kasou.net.network.interface import Packet
from kasou.net.network.ip import Echo
from kasou.net.stack import Host
from kasou.net.transport.tcp import Endpoint, TcpConfig
from kasou.net.wire.address import (
    ANY4,
    ANY6,
    IpAddress,
    MacAddress,
    ip_text,
    is_multicast,
)
from kasou.net.wire.icmpv4 import Unreachable
from kasou.net.wire.icmpv6 import Unreachable6
from kasou.net.wire.ipv4 import Ipv4Header, Protocol
from kasou.net.wire.ipv6 import Ipv6Header
from kasou.net.wire.ndp import PrefixInformation, RouterAdvertisement
from kasou.net.wire.udp import UdpDatagram
from kasou.ports import Frame


@dataclass(frozen=True, slots=True)
class EgressDenied:
    """A VM was refused a flow: `target` is an address and port, or a name that it asked for."""

    station: str
    protocol: str
    target: str

    def __str__(self) -> str:
        return (
            f"{self.station}: {self.protocol} to {self.target} is not allowed by its egress rules"
        )


@dataclass(slots=True, eq=False)
class OpenForward(Forwarded):
    """A forward and the sockets that stand for it."""

    station: Station
    _listener: HostListener | None = None
    _udp: UdpForward | None = None


def advertisement(config: GatewayConfig) -> RouterAdvertisement:
    """What the gateway says of itself as an IPv6 router."""
    assert config.network6 is not None and config.dns6 is not None
    return RouterAdvertisement(
        other=True,
        source_mac=config.mac,
        mtu=config.mtu,
        prefixes=(PrefixInformation(config.network6, valid=86400, preferred=14400),),
        name_servers=(config.dns6,),
        search=(config.domain,),
    )


class _GatewayHost(Host):
    """A guest that is still booting answers no ARP: connections to it go on trying."""

    def undeliverable(self, frame: Frame, now: int) -> None:
        self.ip.counters["undeliverable"] += 1


class Gateway:
    """See the module. `on_denied` is told what egress rules refused."""

    def __init__(
        self,
        config: GatewayConfig,
        outside: Outside,
        rng: random.Random,
        now: int,
        *,
        on_denied: Callable[[EgressDenied], None] = lambda event: None,
        tcp: TcpConfig | None = None,
    ) -> None:
        self.config, self.outside, self.on_denied = config, outside, on_denied
        self.stations: dict[str, Station] = {}
        self.owners = Owners()
        self.forwards: list[OpenForward] = []
        self.host = host = _GatewayHost(rng, accept_any=True, tcp=tcp)
        ipv6 = config.network6 is not None
        self.interface = host.add_interface("lan", config.mac, config.mtu, ipv6=ipv6, router=True)
        self.plan = plan = AddressPlan(config)
        for address in plan.own:
            length = config.network4.length if len(address) == 4 else 64
            host.add_address(self.interface, address, length)
        names = LocalNames(
            config.domain, plan.gateways, self._addresses_of, self._name_at, plan.is_local
        )
        self.dhcpv4 = Dhcpv4Server(config, self._name_of)
        self.dns = DnsForwarder(outside, names, rng, self._name_denied)
        self.udp = UdpNat(outside, self._send_udp, self._udp_unreachable)
        self.pings = PingNat(outside, self._send_echo_reply)
        self.tcp = TcpNat(host, outside, plan, self.owners.of, self._allowed, self._syn_failed)
        host.udp.on_unclaimed = self._on_datagram
        host.ip.on_echo = self._on_echo
        serve_dhcpv4(host, self.interface, self.dhcpv4)
        self.advertiser: RouterAdvertiser | None = None
        if config.network6 is not None:
            serve_dhcpv6(host, self.interface, config)
            self.advertiser = RouterAdvertiser(self.interface, advertisement(config), rng, now)
        for address in plan.own:
            serve_dns(host, address, self.dns, self.owners.of)

    # ------------------------------------------------------------------ VMs

    def add_station(
        self, name: str, mac: MacAddress, egress: EgressPolicy | None = None
    ) -> Station:
        """A VM joined. Raises `ConfigError` when its name is taken or no address is left."""
        if name in self.stations:
            raise ConfigError(f"the network has a VM named {name!r} already")
        if any(each.mac == mac for each in self.stations.values()):
            raise ConfigError(f"the network has a VM with the MAC address {mac.hex(':')} already")
        address = self.dhcpv4.reserve(mac)
        if address is None:
            raise ConfigError(f"{self.config.network4} has no address left")
        station = Station(name, mac, address, Egress(egress or EgressPolicy()))
        self.stations[name] = station
        return station

    def remove_station(self, station: Station) -> None:
        """A VM left: its forwards, connections and flows end."""
        for opened in [each for each in self.forwards if each.station is station]:
            self.remove_forward(opened)
        self.reset_connections(station)
        self.owners.release(station)
        self.dhcpv4.release(station.mac)
        del self.stations[station.name]

    def reset_connections(self, station: Station) -> None:
        """End the connections, flows and queries of a VM that stays."""
        self.tcp.forget(station)
        self.udp.forget(station)
        self.pings.forget(station)
        self.dns.forget(station)

    def add_forward(self, forward: Forward, station: Station) -> OpenForward:
        """Open a port of the host that leads to `station`. Raises `HostError`."""
        if forward.protocol == "udp":
            udp = self.udp.open_forward(forward, station, self.config.gateway4)
            opened = OpenForward(forward, udp.port, station, None, udp)
        else:
            opened = OpenForward(forward, 0, station)
            opened._listener = self.outside.listen(
                forward.host,
                forward.host_port,
                lambda stream, address, port: self.tcp.accepted(
                    forward, station, stream, (address, port)
                ),
            )
            opened.port = opened._listener.port
        self.forwards.append(opened)
        return opened

    def remove_forward(self, opened: OpenForward) -> None:
        """Close the port; connections that came through it go on."""
        self.forwards.remove(opened)
        if opened._listener is not None:
            opened._listener.close()
        if opened._udp is not None:
            self.udp.close_forward(opened._udp)

    def close(self) -> None:
        """End everything; guests' connections are reset."""
        for station in list(self.stations.values()):
            self.remove_station(station)
        self.tcp.close()
        self.udp.close()
        self.pings.close()

    # ------------------------------------------------------------------ the verbs

    def receive(self, station: Station | None, frames: Sequence[Frame], now: int) -> None:
        """Frames that `station` sent to the gateway or to all (None: someone who is no VM)."""
        self._tick(now)
        if station is not None:
            frames = [frame for frame in frames if self._may_speak(station, frame.data)]
        self.host.receive(self.interface, frames, now)

    def tick(self, now: int) -> None:
        """Say what time it is, before callbacks from outside."""
        self._tick(now)

    def _tick(self, now: int) -> None:
        self.host.now = self.udp.now = self.pings.now = self.dns.now = now

    def to_send(self, now: int) -> list[Frame]:
        """Frames for the network."""
        self._tick(now)
        self.host.deliver_events()
        return [frame for _, frames in self.host.to_send(now) for frame in frames]

    def deadline(self) -> int | None:
        """When `handle_timer` is due, ns."""
        times = [
            self.host.deadline(), self.udp.deadline(), self.pings.deadline(), self.dns.deadline(),
            self.advertiser.deadline() if self.advertiser else None,
        ]  # fmt: skip
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: int) -> None:
        """Let time pass up to `now`."""
        self._tick(now)
        self.host.handle_timer(now)
        for each in (self.udp, self.pings, self.dns, self.advertiser):
            due = each.deadline() if each is not None else None
            if each is not None and due is not None and due <= now:
                each.handle_timer(now)

    # ------------------------------------------------------------------ addresses

    def _may_speak(self, station: Station, data: bytes) -> bool:
        """Whether a frame's network source is `station`'s to use; it is noted if so."""
        kind = data[12:14]
        if kind == b"\x08\x00":
            source = data[26:30]
        elif kind == b"\x86\xdd":
            source = data[22:38]
        elif kind == b"\x08\x06":
            source = data[28:32]
        else:
            return False
        if self.owners.of(source) is station:
            return True
        if source in (ANY4, ANY6):
            return True
        if not self.plan.is_guests(source):
            station.spoofed += 1
            return False
        return self.owners.claim(station, source)

    def _allowed(
        self, station: Station | None, protocol: str, destination: IpAddress, port: int
    ) -> bool:
        """Whether egress rules admit a new flow; who is no VM of ours has none."""
        if station is None:
            return all(each.unrestricted for each in self.stations.values())
        policy = station.egress.policy
        if policy.everything or station.egress.allows(destination, self.host.now):
            return True
        if destination in self.plan.gateways and policy.host:
            return True
        station.egress.denied += 1
        target = f"{ip_text(destination)}:{port}" if port else ip_text(destination)
        self.on_denied(EgressDenied(station.name, protocol, target))
        return False

    def _name_denied(self, station: Station, name: str) -> None:
        self.on_denied(EgressDenied(station.name, "dns", name))

    def _addresses_of(self, name: str) -> Sequence[IpAddress] | None:
        station = self.stations.get(name)
        if station is None:
            lower = (each for key, each in self.stations.items() if key.lower() == name)
            station = next(lower, None)
        if station is None:
            return None
        network6 = self.config.network6
        six = [each for each in station.addresses if network6 is not None and each in network6]
        return [station.address4, *sorted(six)]

    def _name_at(self, address: IpAddress) -> str | None:
        owner = self.owners.of(address)
        if owner is not None:
            return owner.name
        return next(
            (name for name, each in self.stations.items() if each.address4 == address), None
        )

    def _name_of(self, mac: MacAddress) -> str | None:
        return next((name for name, each in self.stations.items() if each.mac == mac), None)

    # ------------------------------------------------------------------ UDP and ICMP

    def _on_datagram(self, datagram: UdpDatagram, packet: Packet, now: int) -> bool:
        guest = packet.source, datagram.source_port
        peer = packet.destination, datagram.destination_port
        if self.udp.answers_client(guest, peer, datagram.payload, now):
            return True
        if is_multicast(packet.destination) or packet.destination in self.interface.broadcasts:
            return True
        host_address = self.plan.host_address(packet.destination)
        if host_address is None:
            if packet.destination in self.plan.own:
                return False
            self.host.ip.report(packet, Unreachable.HOST, Unreachable6.ADDRESS, now)
            return True
        station = self.owners.of(packet.source)
        if not self._allowed(station, "udp", packet.destination, datagram.destination_port):
            code4 = Unreachable.ADMINISTRATIVELY_PROHIBITED
            code6 = Unreachable6.ADMINISTRATIVELY_PROHIBITED
            self.host.ip.report(packet, code4, code6, now, self.plan.own_address(packet.source))
            return True
        self.udp.receive(station, guest, peer, host_address, datagram.payload, now)
        return True

    def _send_udp(
        self, source: IpAddress, source_port: int, guest: IpAddress, port: int, payload: bytes
    ) -> None:
        body = UdpDatagram(source_port, port, payload).emit(source, guest)
        self.host.ip.send(source, guest, Protocol.UDP, body, self.host.now)

    def _udp_unreachable(
        self, guest: tuple[IpAddress, int], peer: tuple[IpAddress, int], failure: Failure
    ) -> None:
        header = UdpDatagram(guest[1], peer[1], b"").emit(guest[0], peer[0])
        self._report(guest, peer, Protocol.UDP, header, failure)

    def _syn_failed(self, guest: Endpoint, peer: Endpoint, header: bytes, failure: Failure) -> None:
        self._report(guest, peer, Protocol.TCP, header, failure)

    def _report(
        self,
        guest: tuple[IpAddress, int],
        peer: tuple[IpAddress, int],
        protocol: Protocol,
        quoted: bytes,
        failure: Failure,
    ) -> None:
        """Send `guest` the ICMP error about its packet to `peer` whose payload began `quoted`."""
        source, destination = guest[0], peer[0]
        header: Ipv4Header | Ipv6Header
        if len(source) == 4:
            header = Ipv4Header(source, destination, protocol)
        else:
            header = Ipv6Header(source, destination, protocol)
        view = memoryview(quoted)
        packet = Packet(source, destination, protocol, view, view, header, True)
        code4, code6 = Unreachable.HOST, Unreachable6.ADDRESS
        origin: IpAddress | None = self.plan.own_address(source)
        if failure is Failure.REFUSED:
            code4, code6, origin = Unreachable.PORT, Unreachable6.PORT, destination
        elif failure is Failure.PROHIBITED:
            code4 = Unreachable.ADMINISTRATIVELY_PROHIBITED
            code6 = Unreachable6.ADMINISTRATIVELY_PROHIBITED
        self.host.ip.report(packet, code4, code6, self.host.now, origin)

    def _on_echo(self, echo: Echo, now: int) -> None:
        host_address = self.plan.host_address(echo.destination)
        station = self.owners.of(echo.source)
        guest, peer = (echo.source, 0), (echo.destination, 0)
        protocol = Protocol.ICMP if len(echo.source) == 4 else Protocol.ICMPV6
        kind = 8 if protocol is Protocol.ICMP else 128
        quoted = bytes((kind, 0, 0, 0)) + (echo.identifier << 16 | echo.sequence).to_bytes(4, "big")
        if host_address is None:
            self._report(guest, peer, protocol, quoted, Failure.UNREACHABLE)
        elif not self._allowed(station, "ping", echo.destination, 0) or not self.pings.receive(
            station, echo, host_address, now
        ):
            self._report(guest, peer, protocol, quoted, Failure.PROHIBITED)

    def _send_echo_reply(self, echo: Echo) -> None:
        self.host.ip.send_echo(echo, self.host.now, reply=True)
