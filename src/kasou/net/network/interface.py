"""A station on a link: frames to packets and packets to frames, ARP and Neighbor Discovery.

    frames --receive--> Packet (to the layer above)  |  ARP, NDP answered here
    link_header / transmit <-- IP packets; those whose next hop is not known yet wait

A `Packet` points into its frame; a 64 KiB unit is not copied. The commonest kind, TCP in IPv4
without options, is taken apart with few steps; `parse_ipv4` says what those mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from kasou.net.link.neighbor import NeighborCache
from kasou.net.wire.address import (
    ALL_NODES,
    ANY4,
    ANY6,
    BROADCAST,
    BROADCAST4,
    LINK_LOCAL_PREFIX,
    IpAddress,
    MacAddress,
    Prefix,
    eui64,
    is_multicast,
    multicast_mac,
    solicited_node,
)
from kasou.net.wire.arp import Arp, ArpOperation, parse_arp
from kasou.net.wire.checksum import ones_complement_sum
from kasou.net.wire.error import ParseError
from kasou.net.wire.ethernet import EtherType, parse_ethernet
from kasou.net.wire.icmpv6 import Icmpv6, parse_icmpv6
from kasou.net.wire.ipv4 import Ipv4Header, Protocol, parse_ipv4
from kasou.net.wire.ipv6 import Ipv6Header, parse_ipv6
from kasou.net.wire.ndp import (
    NeighborAdvertisement,
    NeighborSolicitation,
    RouterAdvertisement,
    RouterSolicitation,
    parse_ndp,
)
from kasou.ports import Frame

IPV4, IPV6, ARP = (
    kind.to_bytes(2, "big") for kind in (EtherType.IPV4, EtherType.IPV6, EtherType.ARP)
)
_FAST4 = Struct(">HBxH2xHBB2x4s4s")  # from byte 12 of a frame


class Packet(NamedTuple):
    """An IP packet as received; `payload` is the upper layer's, `whole` begins at the IP header.

    `trusted`: its transport checksum need not be verified.
    """

    source: IpAddress
    destination: IpAddress
    protocol: int
    payload: memoryview
    whole: memoryview
    header: Ipv4Header | Ipv6Header | None
    trusted: bool


@dataclass(slots=True)
class InterfaceStatistics:
    """Frames of an interface."""

    received: int = 0
    sent: int = 0
    malformed: int = 0
    not_ours: int = 0


class Interface:
    """One network card of a host: its MAC, its addresses, and who is near.

    `mtu` is that of IP, bytes. A `router` says so in its advertisements. `groups` are the multicast
    addresses that are listened to beside those every node must.
    """

    def __init__(
        self,
        name: str,
        mac: MacAddress,
        mtu: int = 1500,
        *,
        ipv6: bool = True,
        router: bool = False,
    ) -> None:
        self.name, self.mac, self.mtu, self.router = name, mac, mtu, router
        self.addresses: dict[IpAddress, Prefix] = {}
        self.tentative: set[IpAddress] = set()
        self.groups: set[IpAddress] = {ALL_NODES} if ipv6 else set()
        self.broadcasts: set[IpAddress] = {BROADCAST4}
        self.neighbors: NeighborCache[Frame] = NeighborCache()
        self.statistics = InterfaceStatistics()
        self.output: list[Frame] = []
        self.on_router_solicitation: Callable[[IpAddress, RouterSolicitation, int], None] | None = (
            None
        )
        self.on_router_advertisement: (
            Callable[[IpAddress, RouterAdvertisement, int], None] | None
        ) = None
        self.on_duplicate: Callable[[IpAddress, int], None] | None = None
        self.link_local = eui64(LINK_LOCAL_PREFIX, mac) if ipv6 else None
        if self.link_local is not None:
            self.add_address(self.link_local, 64)

    def add_address(self, address: IpAddress, length: int) -> None:
        """Own `address`; the first `length` bits of it are on this link."""
        net = Prefix(bytes(len(address)), 0)
        if length:
            bits = 8 * len(address)
            top = int.from_bytes(address, "big") >> bits - length << bits - length
            net = Prefix(top.to_bytes(len(address), "big"), length)
        self.addresses[address] = net
        if len(address) == 16:
            self.groups.add(solicited_node(address))
        elif length < 31:
            self.broadcasts.add(net.broadcast)

    def remove_address(self, address: IpAddress) -> None:
        """Own `address` no longer."""
        self.addresses.pop(address, None)
        self.tentative.discard(address)

    # ------------------------------------------------------------------ receiving

    def receive(self, frame: Frame, now: int) -> Packet | None:
        """The IP packet in `frame`; None when it was for this layer, or for nobody here.

        Raises `ParseError` when it is malformed.
        """
        data = frame.data
        self.statistics.received += 1
        if data[:6] != self.mac and not (data and data[0] & 1):
            self.statistics.not_ours += 1
            return None
        trusted = frame.trusted or frame.csum is not None
        if len(data) >= 34:
            kind, version, total, fragment, _, protocol, source, destination = _FAST4.unpack_from(
                data, 12
            )
            if (
                kind == EtherType.IPV4
                and version == 0x45
                and protocol == Protocol.TCP
                and not fragment & 0x3FFF
                and (20 <= total <= len(data) - 14 or (total == 0 and frame.gso is not None))
            ):
                whole = memoryview(data)[14 : 14 + total if total else None]
                if ones_complement_sum(whole[:20]) != 0xFFFF:
                    raise ParseError("IPv4 header checksum is wrong")
                return Packet(source, destination, protocol, whole[20:], whole, None, trusted)
        ethernet, at = parse_ethernet(data)
        if ethernet.vlan is not None and ethernet.vlan.vid:
            self.statistics.not_ours += 1
            return None
        view = memoryview(data)[at:]
        if ethernet.type == EtherType.IPV4:
            header4, payload = parse_ipv4(view, big=frame.gso is not None)
            whole = view[: 20 + len(header4.options) + len(payload)]
            return Packet(
                header4.source,
                header4.destination,
                header4.protocol,
                payload,
                whole,
                header4,
                trusted,
            )
        if ethernet.type == EtherType.IPV6:
            return self._receive6(view, frame.gso is not None, trusted, now)
        if ethernet.type == EtherType.ARP:
            self._receive_arp(parse_arp(view), now)
        else:
            self.statistics.not_ours += 1
        return None

    def _receive6(self, view: memoryview, big: bool, trusted: bool, now: int) -> Packet | None:
        header, payload = parse_ipv6(view, big=big)
        if header.protocol == Protocol.ICMPV6 and payload and 133 <= payload[0] <= 137:
            if header.fragment is None and header.hop_limit == 255:  # RFC 4861 6.1, RFC 6980
                self._receive_ndp(header, payload, now)
            return None
        whole = view[: len(view)]
        return Packet(
            header.source, header.destination, header.protocol, payload, whole, header, trusted
        )

    def _receive_arp(self, arp: Arp, now: int) -> None:
        if arp.sender_mac[0] & 1:
            raise ParseError("ARP from a group address")
        ours = arp.target_ip in self.addresses
        if arp.sender_ip != ANY4 and arp.sender_ip not in self.addresses:
            confirmed = arp.operation is ArpOperation.REPLY and ours
            ready = self.neighbors.learn(
                arp.sender_ip, arp.sender_mac, now, confirmed=confirmed, create=ours
            )
            self._release(ready, arp.sender_mac)
        if ours and arp.operation is ArpOperation.REQUEST:
            reply = Arp(ArpOperation.REPLY, self.mac, arp.target_ip, arp.sender_mac, arp.sender_ip)
            self._emit(arp.sender_mac + self.mac + ARP + reply.emit())

    def _receive_ndp(self, header: Ipv6Header, payload: memoryview, now: int) -> None:
        source = header.source
        message = parse_ndp(parse_icmpv6(payload, source, header.destination))
        match message:
            case NeighborSolicitation():
                self._solicited(source, message, now)
            case NeighborAdvertisement(target, target_mac):
                if target in self.tentative and self.on_duplicate is not None:
                    self.on_duplicate(target, now)
                elif target_mac is not None and target not in self.addresses:
                    ready = self.neighbors.learn(
                        target, target_mac, now, confirmed=message.solicited, create=False
                    )
                    self._release(ready, target_mac)
            case RouterSolicitation():
                if message.source_mac is not None and source != ANY6:
                    self.neighbors.learn(source, message.source_mac, now, confirmed=False)
                if self.on_router_solicitation is not None:
                    self.on_router_solicitation(source, message, now)
            case RouterAdvertisement() if header.source[:2] == b"\xfe\x80":
                if message.source_mac is not None:
                    self.neighbors.learn(source, message.source_mac, now, confirmed=False)
                if self.on_router_advertisement is not None:
                    self.on_router_advertisement(source, message, now)

    def _solicited(self, source: IpAddress, asked: NeighborSolicitation, now: int) -> None:
        target = asked.target
        if target in self.tentative:
            if source == ANY6 and self.on_duplicate is not None:
                self.on_duplicate(target, now)  # another node probes for the same address
            return
        if target not in self.addresses:
            return
        if source != ANY6 and asked.source_mac is not None and source not in self.addresses:
            ready = self.neighbors.learn(source, asked.source_mac, now, confirmed=False)
            self._release(ready, asked.source_mac)
        answer = NeighborAdvertisement(target, self.mac, self.router, source != ANY6, True)
        to = ALL_NODES if source == ANY6 else source
        self.send_icmpv6(answer.to_icmpv6(), target, to, now, hop_limit=255)

    # ------------------------------------------------------------------ sending

    def link_header(self, next_hop: IpAddress, kind: bytes, now: int) -> bytes | None:
        """The Ethernet header of a packet to `next_hop`; None while its MAC is being asked for."""
        if is_multicast(next_hop):
            return multicast_mac(next_hop) + self.mac + kind
        if next_hop in self.broadcasts:
            return BROADCAST + self.mac + kind
        found = self.neighbors.lookup(next_hop, now)
        return None if found is None else found + self.mac + kind

    def wait(self, next_hop: IpAddress, frame: Frame) -> None:
        """Keep a frame whose `link_header` is not known; its first six bytes will be replaced."""
        self.neighbors.wait(next_hop, frame)
        self._solicit()

    def transmit(self, packet: bytes, next_hop: IpAddress, now: int) -> None:
        """Send one IP packet to `next_hop`, or let it wait until that is known."""
        kind = IPV4 if packet[0] >> 4 == 4 else IPV6
        header = self.link_header(next_hop, kind, now)
        if header is not None:
            self.output.append(Frame(header + packet, trusted=True))
        else:
            self.wait(next_hop, Frame(bytes(6) + self.mac + kind + packet, trusted=True))

    def send_icmpv6(
        self,
        message: Icmpv6,
        source: IpAddress,
        destination: IpAddress,
        now: int,
        hop_limit: int = 64,
    ) -> None:
        """Send an ICMPv6 message to a destination on this link."""
        body = message.emit(source, destination)
        header = Ipv6Header(source, destination, Protocol.ICMPV6, hop_limit)
        self.transmit(header.emit(len(body)) + body, destination, now)

    def announce(self, address: IpAddress, now: int) -> None:
        """Tell the link that `address` is here (gratuitous ARP, unsolicited advertisement)."""
        if len(address) == 4:
            arp = Arp(ArpOperation.REQUEST, self.mac, address, bytes(6), address)
            self._emit(BROADCAST + self.mac + ARP + arp.emit())
        else:
            advertisement = NeighborAdvertisement(address, self.mac, self.router, False, True)
            self.send_icmpv6(advertisement.to_icmpv6(), address, ALL_NODES, now, hop_limit=255)

    def to_send(self, now: int) -> list[Frame]:
        """The frames that leave now."""
        self._solicit()
        frames, self.output = self.output, []
        self.statistics.sent += len(frames)
        return frames

    def deadline(self) -> int | None:
        """When `handle_timer` is due, ns."""
        return self.neighbors.deadline()

    def handle_timer(self, now: int) -> list[Frame]:
        """Ask neighbors again; gives back the frames that cannot be delivered."""
        failed = self.neighbors.handle_timer(now)
        self._solicit()
        return failed

    def _solicit(self) -> None:
        for address, known in self.neighbors.to_solicit():
            source = self.source_for(address)
            if source is None:
                continue
            if len(address) == 4:
                arp = Arp(ArpOperation.REQUEST, self.mac, source, bytes(6), address)
                self._emit((known or BROADCAST) + self.mac + ARP + arp.emit())
                continue
            body = NeighborSolicitation(address, self.mac).to_icmpv6()
            to = address if known else solicited_node(address)
            message = body.emit(source, to)
            packet = Ipv6Header(source, to, Protocol.ICMPV6, 255).emit(len(message)) + message
            self._emit((known or multicast_mac(to)) + self.mac + IPV6 + packet)

    def source_for(self, destination: IpAddress) -> IpAddress | None:
        """The own address from which to speak to `destination` (RFC 6724 5, in short)."""
        best = None
        for address, net in self.addresses.items():
            if len(address) != len(destination) or address in self.tentative:
                continue
            if destination in net:
                return address
            local = address[:2] == b"\xfe\x80"
            if best is None or (best[:2] == b"\xfe\x80" and not local):
                best = address
        return best

    def _release(self, frames: list[Frame], mac: MacAddress) -> None:
        self.output += [frame._replace(data=mac + frame.data[6:]) for frame in frames]

    def _emit(self, data: bytes) -> None:
        self.output.append(Frame(data, trusted=True))
