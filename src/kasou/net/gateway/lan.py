"""For tests: a network, an outside made of lists, and guests that are hosts of our own stack.

Time is virtual: `Lan.run` moves frames until nothing moves, then goes to the next deadline.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kasou.errors import HostError
from kasou.net.gateway.config import GatewayConfig
from kasou.net.gateway.egress import EgressPolicy
from kasou.net.gateway.gateway import EgressDenied
from kasou.net.gateway.network import VirtualNetwork
from kasou.net.gateway.outside import Accepted, Datagram, EchoReply, Failure
from kasou.net.stack import Host
from kasou.net.wire.address import IpAddress, mac
from kasou.ports import Frame


class FakeStream:
    """A stream whose other end is the test. `room` is what `send` takes, None without limit."""

    def __init__(self, address: IpAddress = b"", port: int = 0) -> None:
        self.address, self.port = address, port
        self.on_connected: Callable[[Failure | None], None] | None = None
        self.on_ready: Callable[[bool, bool], None] | None = None
        self.sent = bytearray()
        self.room: int | None = None
        self.to_read: list[bytes] = []
        self.wanted = (False, False)
        self.is_shut = self.is_closed = self.is_aborted = self.is_broken = False

    def send(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Take bytes, as far as there is room."""
        if self.is_broken:
            raise HostError("broken")
        data = b"".join(pieces)
        if self.room is not None:
            data = data[: self.room]
            self.room -= len(data)
        self.sent += data
        return len(data)

    def receive(self, limit: int) -> bytes | None:
        """What the test put in `to_read`."""
        if self.is_broken:
            raise HostError("broken")
        if not self.to_read:
            return None
        data = self.to_read.pop(0)
        if len(data) > limit:
            self.to_read.insert(0, data[limit:])
        return data[:limit]

    def want(self, readable: bool, writable: bool) -> None:
        """Remember."""
        self.wanted = readable, writable

    def shutdown(self) -> None:
        """Remember."""
        self.is_shut = True

    def close(self) -> None:
        """Remember."""
        self.is_closed = True

    def abort(self) -> None:
        """Remember."""
        self.is_closed = self.is_aborted = True

    def arrive(self, *data: bytes) -> None:
        """Bytes come from the other end; b"" is its end."""
        self.to_read += data

    @property
    def is_ready(self) -> bool:
        """Whether `on_ready` is due."""
        readable = self.wanted[0] and (bool(self.to_read) or self.is_broken)
        return not self.is_closed and (readable or (self.wanted[1] and self.room != 0))

    def ready(self) -> None:
        """Tell what it is ready for."""
        if self.on_ready is not None:
            self.on_ready(self.wanted[0] and bool(self.to_read or self.is_broken), self.wanted[1])


@dataclass(eq=False)
class FakeDatagrams:
    """A UDP socket whose network is the test."""

    address: IpAddress
    port: int
    on_readable: Callable[[], None] | None = None
    on_failed: Callable[[IpAddress, int, Failure], None] | None = None
    sent: list[tuple[bytes, IpAddress, int]] = field(default_factory=list)
    inbox: list[Datagram] = field(default_factory=list)
    is_closed: bool = False

    def send(self, payload: bytes, destination: IpAddress, port: int) -> None:
        """Remember."""
        self.sent.append((payload, destination, port))

    def receive(self) -> list[Datagram]:
        """What arrived."""
        inbox, self.inbox = self.inbox, []
        return inbox

    def close(self) -> None:
        """Remember."""
        self.is_closed = True

    def arrive(self, payload: bytes, source: IpAddress, port: int) -> None:
        """A datagram comes."""
        self.inbox.append(Datagram(payload, source, port))
        if self.on_readable is not None:
            self.on_readable()


@dataclass(eq=False)
class FakeEchoes:
    """A ping socket whose network is the test."""

    on_readable: Callable[[], None] | None = None
    sent: list[tuple[IpAddress, int, bytes]] = field(default_factory=list)
    inbox: list[EchoReply] = field(default_factory=list)
    is_closed: bool = False

    def send(self, destination: IpAddress, sequence: int, data: bytes) -> None:
        """Remember."""
        self.sent.append((destination, sequence, data))

    def receive(self) -> list[EchoReply]:
        """What arrived."""
        inbox, self.inbox = self.inbox, []
        return inbox

    def close(self) -> None:
        """Remember."""
        self.is_closed = True


@dataclass(eq=False)
class FakeListener:
    """A listening socket; `accept` is a client that connects."""

    address: IpAddress
    port: int
    accept: Accepted
    is_closed: bool = False

    def close(self) -> None:
        """Remember."""
        self.is_closed = True


class FakeOutside:
    """An `Outside` that remembers what it was asked and does what the test says."""

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.sockets: list[FakeDatagrams] = []
        self.echo_sockets: list[FakeEchoes] = []
        self.listeners: list[FakeListener] = []
        self.servers: list[IpAddress] = []
        self.hosts: dict[str, list[IpAddress]] = {}
        self.ping_allowed = True
        self.ports_in_use: set[int] = set()
        self.resolving: list[tuple[str, bool]] = []
        self.answers: list[tuple[Callable[[list[IpAddress] | None], None], str, bool]] = []

    def connect(self, address: IpAddress, port: int) -> FakeStream:
        """A stream that the test connects."""
        self.streams.append(FakeStream(address, port))
        return self.streams[-1]

    def listen(self, address: IpAddress, port: int, on_accept: Accepted) -> FakeListener:
        """A listener; ports in `ports_in_use` are refused."""
        if port in self.ports_in_use:
            raise HostError(f"port {port} is in use")
        self.listeners.append(FakeListener(address, port or 40000 + len(self.listeners), on_accept))
        return self.listeners[-1]

    def datagrams(self, address: IpAddress, port: int) -> FakeDatagrams:
        """A UDP socket."""
        self.sockets.append(FakeDatagrams(address, port or 50000 + len(self.sockets)))
        return self.sockets[-1]

    def echoes(self, six: bool) -> FakeEchoes | None:
        """A ping socket, if `ping_allowed`."""
        if not self.ping_allowed:
            return None
        self.echo_sockets.append(FakeEchoes())
        return self.echo_sockets[-1]

    def name_servers(self) -> list[IpAddress]:
        """`servers`."""
        return self.servers

    def resolve(
        self, name: str, six: bool, on_resolved: Callable[[list[IpAddress] | None], None]
    ) -> None:
        """Answered by `Lan.run` from `hosts`."""
        self.answers.append((on_resolved, name, six))


class Guest:
    """A VM: a host of our own stack on a port."""

    def __init__(self, lan: Lan, name: str, mac_text: str, egress: str | None) -> None:
        policy = EgressPolicy.parse(egress) if egress else None
        self.port = lan.network.add_port(name, mac(mac_text), policy)
        self.host = Host(random.Random(len(name)))
        self.interface = self.host.add_interface("eth0", mac(mac_text))
        self.frames: list[Frame] = []  # all that were received, for those who look at bytes

    @property
    def address(self) -> IpAddress:
        """The address that DHCP would give."""
        return self.port.station.address4

    def configure(self, config: GatewayConfig) -> None:
        """Set by hand what DHCP would."""
        self.host.add_address(self.interface, self.address, config.network4.length)
        self.host.add_default_route(self.interface, config.gateway4)


class Lan:
    """A network with guests; see the module."""

    def __init__(self, config: GatewayConfig | None = None, seed: int = 1) -> None:
        self.now = 0
        self.config = config or GatewayConfig()
        self.outside = FakeOutside()
        self.denied: list[EgressDenied] = []
        self.network = VirtualNetwork(
            self.config, self.outside, random.Random(seed), 0, on_denied=self.denied.append
        )
        self.guests: dict[str, Guest] = {}

    def add(
        self,
        name: str = "vm",
        mac_text: str = "52:54:00:12:34:56",
        egress: str | None = None,
        configured: bool = True,
    ) -> Guest:
        """A new guest, `configured` as if by DHCP."""
        guest = self.guests[name] = Guest(self, name, mac_text, egress)
        if configured:
            guest.configure(self.config)
        return guest

    def exchange(self) -> bool:
        """Move frames once; whether any moved."""
        moved = False
        for stream in [each for each in self.outside.streams if each.is_ready]:
            self.network.gateway.tick(self.now)
            stream.ready()
            moved = True
        answers, self.outside.answers = self.outside.answers, []
        for on_resolved, name, six in answers:
            found = self.outside.hosts.get(name)
            size = 16 if six else 4
            on_resolved(None if found is None else [each for each in found if len(each) == size])
            moved = True
        for guest in list(self.guests.values()):
            guest.host.deliver_events()
            for _, frames in guest.host.to_send(self.now):
                self.network.receive(guest.port, frames, self.now)
                moved = True
        for port, frames in self.network.to_send(self.now):
            moved = True
            guest = self.guests[port.name]
            guest.frames += frames
            guest.host.receive(guest.interface, frames, self.now)
        return moved

    def settle(self) -> None:
        """Move frames until nothing moves, at one moment."""
        for _ in range(10_000):
            if not self.exchange():
                return
        raise AssertionError("the network does not come to rest")

    def run(self, until: Callable[[], bool] | None = None, seconds: float = 10) -> None:
        """Let at most `seconds` pass, or (which must come) what `until` says."""
        end = self.now + int(seconds * 1e9)
        while True:
            self.settle()
            if until is not None and until():
                return
            times = [self.network.deadline()]
            times += [guest.host.deadline() for guest in self.guests.values()]
            due = min((time for time in times if time is not None), default=end)
            if due >= end:
                break
            self.now = max(self.now, due)
            self.network.handle_timer(self.now)
            for guest in self.guests.values():
                guest.host.handle_timer(self.now)
        self.now = end
        if until is not None:
            raise AssertionError(f"it did not come within {seconds} s")
