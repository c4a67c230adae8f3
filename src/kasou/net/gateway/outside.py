"""What the gateway asks of the host: streams, datagrams, echoes and names, none of which blocks.

Callbacks come on the thread that drives the gateway, between its calls, never from within a call
made here. `HostError` is the only error raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from kasou.net.wire.address import IpAddress


class Failure(Enum):
    """Why something could not be reached."""

    REFUSED = "connection refused"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"
    PROHIBITED = "prohibited by the host"


class Stream(Protocol):
    """A TCP connection of the host."""

    on_connected: Callable[[Failure | None], None] | None
    """Called once after `Outside.connect`."""
    on_ready: Callable[[bool, bool], None] | None
    """Called with (readable, writable) for what `want` asked for, again and again while it holds."""

    def send(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Give bytes to the host; how many it took, 0 when it has no room. Raises `HostError`."""
        ...

    def receive(self, limit: int) -> bytes | None:
        """At most `limit` bytes; b"" at the end, None when nothing came. Raises `HostError`."""
        ...

    def want(self, readable: bool, writable: bool) -> None:
        """What `on_ready` shall be called for from now on."""
        ...

    def shutdown(self) -> None:
        """No more will be sent; receiving goes on."""
        ...

    def close(self) -> None:
        """Let go; what was sent is still delivered."""
        ...

    def abort(self) -> None:
        """Let go with a reset."""
        ...


class Datagram(NamedTuple):
    """A datagram from the host's network."""

    payload: bytes
    source: IpAddress
    source_port: int


class Datagrams(Protocol):
    """A UDP socket of the host."""

    on_readable: Callable[[], None] | None
    on_failed: Callable[[IpAddress, int, Failure], None] | None
    """Something sent to this address and port could not be delivered."""

    @property
    def port(self) -> int:
        """The port it is bound to."""
        ...

    def send(self, payload: bytes, destination: IpAddress, port: int) -> None:
        """Send, or drop when there is no room, as UDP does."""
        ...

    def receive(self) -> list[Datagram]:
        """What has come, at most a batch; call again on the next `on_readable`."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class EchoReply(NamedTuple):
    """An answered ping."""

    source: IpAddress
    sequence: int
    data: bytes


class Echoes(Protocol):
    """A ping socket of the host: one identifier."""

    on_readable: Callable[[], None] | None

    def send(self, destination: IpAddress, sequence: int, data: bytes) -> None:
        """Send an echo request, or drop it."""
        ...

    def receive(self) -> list[EchoReply]:
        """The replies that have come."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class HostListener(Protocol):
    """A listening socket of the host."""

    @property
    def port(self) -> int:
        """The port it listens on."""
        ...

    def close(self) -> None:
        """Listen no longer."""
        ...


Accepted = Callable[[Stream, IpAddress, int], None]
"""Takes a stream that a client opened, the client's address and port."""


class Outside(Protocol):
    """The host."""

    def connect(self, address: IpAddress, port: int) -> Stream:
        """Begin to open a connection; `on_connected` tells how it went."""
        ...

    def listen(self, address: IpAddress, port: int, on_accept: Accepted) -> HostListener:
        """Listen, on any free port for 0. Raises `HostError`."""
        ...

    def datagrams(self, address: IpAddress, port: int) -> Datagrams:
        """A UDP socket bound to `address` (the unspecified one of a family: any) and `port`.

        Raises `HostError`.
        """
        ...

    def echoes(self, six: bool) -> Echoes | None:
        """A ping socket for IPv4 or (`six`) IPv6; None where the host allows none."""
        ...

    def name_servers(self) -> Sequence[IpAddress]:
        """The host's DNS servers, best first; empty when it has none."""
        ...

    def resolve(
        self, name: str, six: bool, on_resolved: Callable[[list[IpAddress] | None], None]
    ) -> None:
        """Ask the host's own resolver (files and all); None: there is no such name."""
        ...
