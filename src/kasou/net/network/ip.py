"""IP on a host's interfaces, both versions: where packets go, what comes in, what is answered.

Receiving: a packet to one of our addresses (or any, where `accept_any`: a gateway that ends every
connection itself) is reassembled and given to the handler of its protocol. Echo requests are
answered here; errors that others report go to `on_error` with the packet that they quote. A host
does not forward.

Sending: the source address and the link follow from the routing table; packets larger than the
path's MTU are fragmented, or refused when they say "don't fragment".
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from kasou.net.network.fragmentation import fragment4, fragment6
from kasou.net.network.icmp import RateLimit, error4, error6
from kasou.net.network.interface import Interface, Packet
from kasou.net.network.path_mtu import PathMtu
from kasou.net.network.reassembly import TIMEOUT4_NS, TIMEOUT6_NS, Reassembler
from kasou.net.network.routing import Route, RoutingTable
from kasou.net.wire.address import IpAddress, is_loopback, is_multicast
from kasou.net.wire.error import ParseError
from kasou.net.wire.icmpv4 import IcmpType, Icmpv4, Unreachable, parse_icmpv4
from kasou.net.wire.icmpv6 import Icmpv6, Icmpv6Type, Unreachable6, parse_icmpv6
from kasou.net.wire.ipv4 import Ipv4Header, Protocol, parse_ipv4
from kasou.net.wire.ipv6 import Ipv6Header, parse_ipv6
from kasou.ports import Frame


class IcmpError(NamedTuple):
    """What someone reported: of our packet `quoted` (its start), from `reporter`.

    `type` and `code` are those of ICMP or ICMPv6 by the family; `mtu` is None unless the packet was
    too big.
    """

    reporter: IpAddress
    type: int
    code: int
    mtu: int | None
    source: IpAddress
    destination: IpAddress
    protocol: int
    quoted: memoryview


class Echo(NamedTuple):
    """An echo request or reply, from `source` to `destination`."""

    source: IpAddress
    destination: IpAddress
    identifier: int
    sequence: int
    data: bytes


Handler = Callable[[Packet, int], None]


class IpLayer:
    """Interfaces, routes, reassembly and ICMP of one host."""

    def __init__(self, rng: random.Random, *, accept_any: bool = False) -> None:
        self.accept_any = accept_any
        self.interfaces: list[Interface] = []
        self.routes: RoutingTable[Interface] = RoutingTable()
        self.path_mtu = PathMtu()
        self.handlers: dict[int, Handler] = {
            Protocol.ICMP: self._receive_icmpv4,
            Protocol.ICMPV6: self._receive_icmpv6,
        }
        self.counters: Counter[str] = Counter()
        self.on_error: Callable[[IcmpError, int], None] | None = None
        self.on_echo: Callable[[Echo, int], None] | None = None
        """An echo request to an address that is not ours (`accept_any`)."""
        self.on_echo_reply: Callable[[Echo, int], None] | None = None
        self._rng = rng
        self._identification = rng.randrange(1 << 32)
        self._reassembly4: Reassembler[Ipv4Header] = Reassembler(TIMEOUT4_NS)
        self._reassembly6: Reassembler[Ipv6Header] = Reassembler(TIMEOUT6_NS)
        self._limit = RateLimit()
        self._looped: list[Packet] = []

    def add_interface(self, interface: Interface) -> None:
        """Attach a link; its addresses are reachable from now on by `connected`."""
        self.interfaces.append(interface)
        for address in interface.addresses:
            self.connected(interface, address)

    def connected(self, interface: Interface, address: IpAddress) -> None:
        """The network of one of `interface`'s addresses is on that link."""
        self.routes.add(Route(interface.addresses[address], interface))

    def add_address(self, interface: Interface, address: IpAddress, length: int) -> None:
        """Own an address of a network that is on that link."""
        interface.add_address(address, length)
        self.connected(interface, address)

    def owns(self, address: IpAddress) -> bool:
        """Whether `address` is ours."""
        return any(address in each.addresses for each in self.interfaces)

    # ------------------------------------------------------------------ receiving

    def receive(self, interface: Interface, frames: Sequence[Frame], now: int) -> None:
        """Frames arrived at `interface`; malformed ones are counted."""
        for frame in frames:
            try:
                packet = interface.receive(frame, now)
                if packet is not None:
                    self._accept(interface, packet, now)
            except ParseError:
                interface.statistics.malformed += 1

    def _accept(self, interface: Interface, packet: Packet, now: int) -> None:
        destination = packet.destination
        if not (
            destination in interface.addresses
            or self._is_ours(interface, destination)
            or (self.accept_any and not is_multicast(destination))
        ):
            self.counters["not_ours"] += 1
            return
        if is_multicast(packet.source) or is_loopback(packet.source) or is_loopback(destination):
            self.counters["martian"] += 1
            return
        header = packet.header
        if header is not None and header.is_fragment:
            whole = self._reassemble(header, packet, now)
            if whole is None:
                return
            packet = whole
        self._deliver(packet, now)

    def _is_ours(self, interface: Interface, destination: IpAddress) -> bool:
        if destination in interface.groups or destination in interface.broadcasts:
            return True
        return self.owns(destination)

    def _deliver(self, packet: Packet, now: int) -> None:
        handler = self.handlers.get(packet.protocol)
        if handler is not None:
            handler(packet, now)
        elif packet.protocol != 59:
            self.counters["unknown_protocol"] += 1
            self.report(packet, Unreachable.PROTOCOL, None, now)

    def _reassemble(
        self, header: Ipv4Header | Ipv6Header, packet: Packet, now: int
    ) -> Packet | None:
        key_head = header.source, header.destination, header.protocol
        if isinstance(header, Ipv4Header):
            done4 = self._reassembly4.receive(
                (*key_head, header.identification),
                header, header.offset, header.more_fragments, packet.payload, now,
            )  # fmt: skip
            if done4 is None:
                return None
            first4, payload = replace(done4[0], more_fragments=False), memoryview(done4[1])
            whole = first4.emit(len(payload)) + payload
            return packet._replace(
                payload=payload, whole=memoryview(whole), header=first4, trusted=False
            )
        piece = header.fragment
        assert piece is not None
        done6 = self._reassembly6.receive(
            (header.source, header.destination, 0, piece.identification),
            header, piece.offset, piece.more, packet.payload, now,
        )  # fmt: skip
        if done6 is None:
            return None
        first6, joined = done6
        unfragmented = replace(first6, fragment=None)
        reparsed, rest = parse_ipv6(unfragmented.emit(len(joined)) + joined)
        return Packet(
            reparsed.source, reparsed.destination, reparsed.protocol, rest,
            memoryview(reparsed.emit(len(rest)) + rest), reparsed, False,
        )  # fmt: skip

    # ------------------------------------------------------------------ sending

    def mtu_to(self, destination: IpAddress, now: int) -> int:
        """The IP MTU towards `destination`, bytes."""
        hop = self.routes.lookup(destination)
        return self.path_mtu.lookup(destination, hop[0].mtu if hop else 1500, now)

    def source_for(self, destination: IpAddress) -> IpAddress | None:
        """The own address from which packets to `destination` are sent; None: no route."""
        hop = self.routes.lookup(destination)
        if hop is not None:
            return hop[0].source_for(hop[1] if len(hop[1]) == 4 else destination)
        return destination if self.owns(destination) else None

    def send(
        self,
        source: IpAddress,
        destination: IpAddress,
        protocol: int,
        payload: bytes,
        now: int,
        *,
        hop_limit: int = 64,
        traffic_class: int = 0,
        dont_fragment: bool = False,
        interface: Interface | None = None,
    ) -> bool:
        """Send one packet; False when there is no route, or it is too big and may not be cut.

        `interface` is needed for destinations that every link has: multicast, link-local.
        """
        if self.owns(destination):
            self._loop_back(source, destination, protocol, payload)
            return True
        hop = (interface, destination) if interface else self.routes.lookup(destination)
        if hop is None or hop[0] is None:
            self.counters["no_route"] += 1
            return False
        link, next_hop = hop
        mtu = self.path_mtu.lookup(destination, link.mtu, now)
        self._identification = self._identification + 1 & 0xFFFF_FFFF
        if len(destination) == 4:
            header4 = Ipv4Header(
                source, destination, protocol, hop_limit, self._identification & 0xFFFF,
                dont_fragment, traffic_class=traffic_class,
            )  # fmt: skip
            if dont_fragment and 20 + len(payload) > mtu:
                return False
            pieces = fragment4(header4, payload, mtu)
        else:
            header6 = Ipv6Header(source, destination, protocol, hop_limit, traffic_class)
            if dont_fragment and 40 + len(payload) > mtu:
                return False
            pieces = fragment6(header6, payload, mtu, self._identification)
        for piece in pieces:
            link.transmit(piece, next_hop, now)
        return True

    def _loop_back(
        self, source: IpAddress, destination: IpAddress, protocol: int, payload: bytes
    ) -> None:
        header: Ipv4Header | Ipv6Header
        if len(destination) == 4:
            header = Ipv4Header(source, destination, protocol)
        else:
            header = Ipv6Header(source, destination, protocol)
        whole = memoryview(header.emit(len(payload)) + payload)
        view = whole[len(whole) - len(payload) :]
        self._looped.append(Packet(source, destination, protocol, view, whole, header, True))

    def deliver_looped(self, now: int) -> bool:
        """Receive what was sent to ourselves; False when there was nothing."""
        packets, self._looped = self._looped, []
        for packet in packets:
            try:
                self._deliver(packet, now)
            except ParseError:
                self.counters["malformed"] += 1
        return bool(packets)

    # ------------------------------------------------------------------ ICMP

    def report(
        self,
        packet: Packet,
        code4: Unreachable,
        code6: Unreachable6 | None,
        now: int,
        source: IpAddress | None = None,
    ) -> None:
        """Tell the sender of `packet` that it cannot be delivered, from `source` (default: ours).

        `code6` None means Parameter Problem, unrecognized next header (RFC 4443 3.4).
        """
        header = packet.header
        if len(packet.source) == 4:
            if not isinstance(header, Ipv4Header):
                header, _ = parse_ipv4(packet.whole, big=True)
            message4 = error4(
                header, packet.payload, IcmpType.DESTINATION_UNREACHABLE, code4
            )  # fmt: skip
            if message4 is not None:
                self._send_error(message4.emit(), Protocol.ICMP, packet, source, now)
            return
        if not isinstance(header, Ipv6Header):
            header, _ = parse_ipv6(packet.whole, big=True)
        kind = Icmpv6Type.PARAMETER_PROBLEM
        code, rest = 1, 6
        if code6 is not None:
            kind, code, rest = Icmpv6Type.DESTINATION_UNREACHABLE, int(code6), 0
        message6 = error6(header, packet.payload, kind, code, rest)
        origin = source or self.source_for(packet.source)
        if message6 is not None and origin is not None:
            body = message6.emit(origin, packet.source)
            self._send_error(body, Protocol.ICMPV6, packet, origin, now)

    def _send_error(
        self, body: bytes, protocol: int, about: Packet, source: IpAddress | None, now: int
    ) -> None:
        if source is None:
            source = about.destination if self.owns(about.destination) else None
            source = source or self.source_for(about.source)
        if source is None or not self._limit.allows(now):
            self.counters["errors_withheld"] += 1
            return
        self.counters["errors_sent"] += 1
        self.send(source, about.source, protocol, body, now)

    def send_echo(self, echo: Echo, now: int, *, reply: bool = False, hop_limit: int = 64) -> bool:
        """Send an echo request, or a reply, from `echo.source`; False when there is no route."""
        rest = echo.identifier << 16 | echo.sequence
        if len(echo.destination) == 4:
            kind = IcmpType.ECHO_REPLY if reply else IcmpType.ECHO
            body, protocol = Icmpv4(kind, 0, rest, echo.data).emit(), Protocol.ICMP
        else:
            kind6 = Icmpv6Type.ECHO_REPLY if reply else Icmpv6Type.ECHO_REQUEST
            message = Icmpv6(kind6, 0, rest, echo.data)
            body, protocol = message.emit(echo.source, echo.destination), Protocol.ICMPV6
        interface = self._link_of(echo.source, echo.destination)
        return self.send(
            echo.source, echo.destination, protocol, body, now,
            hop_limit=hop_limit, interface=interface,
        )  # fmt: skip

    def _link_of(self, source: IpAddress, destination: IpAddress) -> Interface | None:
        """The link that a link-local or multicast destination is on, by the address we speak from."""
        if destination[:2] != b"\xfe\x80" and not is_multicast(destination):
            return None
        return next((each for each in self.interfaces if source in each.addresses), None)

    def _receive_icmpv4(self, packet: Packet, now: int) -> None:
        message = parse_icmpv4(packet.payload)
        if message.type in (IcmpType.ECHO, IcmpType.ECHO_REPLY) and message.code == 0:
            self._echoed(packet, message.rest, message.data, message.type == IcmpType.ECHO, now)
        elif message.is_error and len(message.data) >= 20:
            too_big = (message.type, message.code) == (3, Unreachable.FRAGMENTATION_NEEDED)
            quoted = memoryview(message.data)
            length = (quoted[0] & 15) * 4
            if quoted[0] >> 4 != 4 or not 20 <= length <= len(quoted):
                raise ParseError("ICMP error quotes no IPv4 packet")
            mtu = message.rest & 0xFFFF if too_big else None
            size = int.from_bytes(quoted[2:4], "big")
            ends = bytes(quoted[12:16]), bytes(quoted[16:20])
            error = IcmpError(
                packet.source, message.type, message.code, mtu, *ends, quoted[9], quoted[length:]
            )
            self._reported(error, size, now)

    def _receive_icmpv6(self, packet: Packet, now: int) -> None:
        message = parse_icmpv6(packet.payload, packet.source, packet.destination)
        if message.type in (Icmpv6Type.ECHO_REQUEST, Icmpv6Type.ECHO_REPLY):
            request = message.type == Icmpv6Type.ECHO_REQUEST
            self._echoed(packet, message.rest, message.data, request, now)
        elif message.is_error and len(message.data) >= 40:
            quoted = memoryview(message.data)
            mtu = message.rest if message.type == Icmpv6Type.PACKET_TOO_BIG else None
            error = IcmpError(
                packet.source, message.type, message.code, mtu,
                bytes(quoted[8:24]), bytes(quoted[24:40]), quoted[6], quoted[40:],
            )  # fmt: skip
            self._reported(error, int.from_bytes(quoted[4:6], "big") + 40, now)

    def _echoed(self, packet: Packet, rest: int, data: bytes, request: bool, now: int) -> None:
        echo = Echo(packet.source, packet.destination, rest >> 16, rest & 0xFFFF, data)
        if not request:
            if self.on_echo_reply is not None:
                self.on_echo_reply(echo, now)
            return
        answer_from: IpAddress | None = packet.destination
        if not self.owns(packet.destination):
            if not is_multicast(packet.destination):
                if self.on_echo is not None:
                    self.on_echo(echo, now)
                return
            if len(packet.destination) == 4:
                return  # RFC 1122 3.2.2.6: an echo to many may be discarded
            answer_from = self._source_on_link(packet.source)
        if answer_from is not None:
            answer = Echo(answer_from, packet.source, echo.identifier, echo.sequence, data)
            self.send_echo(answer, now, reply=True)

    def _source_on_link(self, near: IpAddress) -> IpAddress | None:
        hop = self.routes.lookup(near)
        return hop[0].source_for(near) if hop else None

    def _reported(self, error: IcmpError, packet_bytes: int, now: int) -> None:
        if error.mtu is not None:
            mtu = self.path_mtu.too_big(error.destination, error.mtu, packet_bytes, now)
            error = error._replace(mtu=mtu)
        if self.on_error is not None:
            self.on_error(error, now)

    # ------------------------------------------------------------------ time

    def deadline(self) -> int | None:
        """When `handle_timer` is due, ns."""
        times = [each.deadline() for each in self.interfaces]
        times += [self._reassembly4.deadline(), self._reassembly6.deadline()]
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: int) -> list[Frame]:
        """Let time pass; gives back the frames whose next hop does not answer."""
        for gone4 in self._reassembly4.handle_timer(now):
            if gone4.first is not None:
                message = error4(gone4.first, gone4.payload, IcmpType.TIME_EXCEEDED, 1)
                source = self.source_for(gone4.first.source)
                if message is not None and source is not None and self._limit.allows(now):
                    self.send(source, gone4.first.source, Protocol.ICMP, message.emit(), now)
        for gone6 in self._reassembly6.handle_timer(now):
            if gone6.first is not None:
                origin = self.source_for(gone6.first.source)
                message6 = error6(gone6.first, gone6.payload, Icmpv6Type.TIME_EXCEEDED, 1)
                if message6 is not None and origin is not None and self._limit.allows(now):
                    body = message6.emit(origin, gone6.first.source)
                    self.send(origin, gone6.first.source, Protocol.ICMPV6, body, now)
        failed: list[Frame] = []
        for interface in self.interfaces:
            due = interface.deadline()
            if due is not None and due <= now:
                failed += interface.handle_timer(now)
        return failed
