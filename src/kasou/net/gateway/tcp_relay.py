"""A TCP connection of a guest and one of the host, joined: bytes pass, and so do the ends.

    guest --our TCP--> Connection -- TcpRelay -- Stream --host's TCP--> the world

Nothing piles up here. To the host: what it does not take stays in the connection's receive queue,
whose window closes on the guest. To the guest: what its send buffer does not take, less than one
read, waits here, and the host's socket is not read until it is gone. An end of one half is an end of
that half on the other side; a failure on one side is a reset on the other.
"""

from __future__ import annotations

from collections.abc import Callable

from kasou.errors import HostError
from kasou.net.gateway.outside import Stream
from kasou.net.transport.tcp import Connection, Event

READ_BYTES = 128 << 10
_READS = 4  # before others get their turn
_KEEPALIVE_NS = 3600 * 1_000_000_000


class TcpRelay:
    """One joined pair. `on_done` is called once, when neither side is left."""

    __slots__ = (
        "_ended", "_guest_gone", "_pending", "_shut", "_started", "_wanted",
        "connection", "from_guest", "on_done", "stream", "to_guest",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, stream: Stream, on_done: Callable[[TcpRelay], None]
    ) -> None:
        self.connection, self.stream, self.on_done = connection, stream, on_done
        self.from_guest = self.to_guest = 0  # bytes
        self._pending: memoryview | None = None
        self._wanted = (False, False)  # what the stream was told
        self._shut = False  # the host knows that the guest sends no more
        self._guest_gone = False
        self._ended = False  # the host sends no more
        self._started = False
        connection.on_event = self._on_event
        stream.on_ready = self._on_ready

    def start(self) -> None:
        """Both sides are open: let bytes pass."""
        self._started = True
        self.connection.set_nodelay(True)
        self.connection.set_keepalive(_KEEPALIVE_NS)
        self._want(True, False)
        self._to_host()

    def abort(self) -> None:
        """Reset both sides."""
        self.connection.abort()
        self._finish(reset=True)

    def _on_event(self, connection: Connection, event: Event) -> None:
        if event is Event.READABLE or event is Event.REMOTE_CLOSED:
            if self._started:
                self._to_host()
        elif event is Event.WRITABLE:
            if self._started:
                self._to_guest()
        elif event is Event.ESTABLISHED:
            self.start()
        elif event is Event.CLOSED:
            if connection.error is None and not self._shut and self._started:
                self._guest_gone = True  # both ends are said, but the host has not taken all yet
                return self._to_host()
            self._finish(reset=connection.error is not None)

    def _on_ready(self, readable: bool, writable: bool) -> None:
        if writable and self._wanted[1]:
            self._to_host()
        if readable and self._wanted[0]:
            self._to_guest()

    def _to_host(self) -> None:
        connection, stream = self.connection, self.stream
        blocked = False
        try:
            while connection.readable:
                pieces = connection.peek(1 << 20)
                taken = stream.send(pieces)
                if taken:
                    connection.consume(taken)
                    self.from_guest += taken
                if taken < sum(map(len, pieces)):
                    blocked = True
                    break
            if connection.remote_closed and not connection.readable and not self._shut:
                self._shut = True
                stream.shutdown()
        except HostError:
            return self._host_broke()
        if self._guest_gone and self._shut:
            return self._finish(reset=False)
        self._want(self._wanted[0], blocked)

    def _to_guest(self) -> None:
        connection = self.connection
        if self._pending is not None:
            taken = connection.write(self._pending)
            self._pending = self._pending[taken:] if taken < len(self._pending) else None
        reads = 0
        try:
            while self._pending is None and not self._ended and reads < _READS:
                data = self.stream.receive(READ_BYTES)
                if data is None:
                    break
                if not data:
                    self._ended = True
                    connection.close()
                    break
                reads += 1
                self.to_guest += len(data)
                taken = connection.write(data)
                if taken < len(data):
                    self._pending = memoryview(data)[taken:]
        except HostError:
            return self._host_broke()
        self._want(self._pending is None and not self._ended, self._wanted[1])

    def _host_broke(self) -> None:
        """The host's connection was reset: so is the guest's."""
        self.connection.abort()
        self._finish(reset=True)

    def _want(self, readable: bool, writable: bool) -> None:
        if (readable, writable) != self._wanted:
            self._wanted = readable, writable
            self.stream.want(readable, writable)

    def _finish(self, reset: bool) -> None:
        self.connection.on_event = None
        self.stream.on_ready = None
        if reset:
            self.stream.abort()
        else:
            self.stream.close()
        self._pending = None
        self.on_done(self)
