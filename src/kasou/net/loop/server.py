"""A listening port as an `asyncio.Server`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kasou.net.loop.socket_view import SocketAddress, SocketView
from kasou.net.loop.transport import StreamTransport
from kasou.net.transport.tcp import Connection, Listener
from kasou.net.wire.address import IpAddress

if TYPE_CHECKING:
    from kasou.net.loop.stack_loop import StackLoop

Accept = Callable[[Connection, "StackServer"], None]


class StackServer(asyncio.AbstractServer):
    """Ports that accept connections for one protocol factory.

    `names` are (address to listen on or None, its name for `getsockname`).
    """

    def __init__(
        self,
        loop: StackLoop,
        names: Sequence[tuple[IpAddress | None, SocketAddress]],
        accept: Accept,
        backlog: int,
    ) -> None:
        self._loop = loop
        self._names = list(names)
        self._accept = accept
        self._backlog = backlog
        self._listeners: list[Listener] | None = None
        self._active: set[StreamTransport] = set()
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []
        self._forever: asyncio.Future[None] | None = None
        self._views: tuple[SocketView, ...] = ()

    @property
    def sockets(self) -> tuple[SocketView, ...]:
        """A view of each port; none once closed."""
        return () if self._closed else self._views

    def listen(self) -> None:
        """Take the ports. Raises `LocalError` when one is in use."""
        if self._listeners is not None:
            return
        self._listeners = []
        tcp = self._loop.host.tcp
        port = 0  # one ephemeral port for all addresses, as getsockname()[1] is asked once
        views = []
        try:
            for address, name in self._names:
                listener = tcp.listen(
                    address, name[1] or port, self._accepted, backlog=self._backlog
                )
                self._listeners.append(listener)
                port = listener.port
                full: Any = (name[0], listener.port, *name[2:])
                views.append(SocketView(socket.SOCK_STREAM, full))
        except BaseException:
            self.close()
            raise
        self._views = tuple(views)

    def _accepted(self, connection: Connection) -> None:
        self._accept(connection, self)

    def attach(self, transport: StreamTransport) -> None:
        """A connection of this server is open."""
        self._active.add(transport)

    def detach(self, transport: StreamTransport) -> None:
        """It is not any more."""
        self._active.discard(transport)
        self._wake()

    def _wake(self) -> None:
        if self._closed and not self._active:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()

    # ---- asyncio.AbstractServer

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop it serves on."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether connections are accepted."""
        return self._listeners is not None and not self._closed

    async def start_serving(self) -> None:
        """Begin to accept."""
        self.listen()

    async def serve_forever(self) -> None:
        """Accept until cancelled or closed."""
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        self.listen()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Stop accepting; open connections stay."""
        if self._closed:
            return
        self._closed = True
        for listener in self._listeners or ():
            listener.close()
        self._loop.flush_soon()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._wake()

    async def wait_closed(self) -> None:
        """Wait until it is closed and its connections are."""
        if self._closed and not self._active:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def close_clients(self) -> None:
        """Close every open connection."""
        for transport in list(self._active):
            transport.close()

    def abort_clients(self) -> None:
        """Reset every open connection."""
        for transport in list(self._active):
            transport.abort()
