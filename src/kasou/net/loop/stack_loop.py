"""The event loop. asyncio's `BaseEventLoop` runs callbacks and timers; its selector is the stack.

One turn: send what is to be sent, wait until a frame, a timer of the stack or one of the program
is due, take what arrived, tell connections' owners, run what is ready.
"""

from __future__ import annotations

import asyncio
import socket
import ssl as ssl_module
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from kasou.errors import LocalError
from kasou.net.loop.clock import Clock, MonotonicClock
from kasou.net.loop.datagram import StackDatagramTransport
from kasou.net.loop.names import (
    Names,
    address_info,
    numeric_name,
    packed_address,
    port_number,
    resolve,
)
from kasou.net.loop.server import StackServer
from kasou.net.loop.socket_view import SocketAddress, socket_address
from kasou.net.loop.transport import StreamTransport, error_of
from kasou.net.network.interface import Interface
from kasou.net.stack import Host
from kasou.net.transport.tcp import Connection, Endpoint, Event
from kasou.net.wire.address import ANY4, ANY6, IpAddress
from kasou.ports import Frame, Port


class StackLoop(asyncio.BaseEventLoop):
    """An event loop on `host`. Not thread-safe but for what asyncio says is, and attached ports."""

    def __init__(self, host: Host, clock: Clock | None = None, names: Names | None = None) -> None:
        super().__init__()
        self.host = host
        self.clock: Clock = clock or MonotonicClock()
        self.names: Names = names if names is not None else {}
        self.transports: set[asyncio.BaseTransport] = set()
        self.executing = 0  # jobs of executors that are not done
        self.idle_until: int | None = None
        self.is_idle = False
        self._ready: deque[Any]  # asyncio's
        self._selector = self  # what BaseEventLoop calls select() on
        self._clock_resolution = 1e-6
        self._inbox: deque[tuple[Interface, Sequence[Frame]]] = deque()
        self._wires: dict[int, Port] = {}

    def attach(self, interface: Interface, port: Port) -> None:
        """Let `interface` speak on the wire of which `port` is an end. Frames may come on any thread."""

        def sink(frames: Sequence[Frame]) -> None:
            self._inbox.append((interface, frames))
            self.clock.wake()

        self._wires[id(interface)] = port
        port.attach(sink)

    # ---- what BaseEventLoop asks for

    def time(self) -> float:
        """Seconds of the clock."""
        return self.clock.now() / 1e9

    def select(self, timeout: float | None) -> list[Any]:
        """One turn of the stack, waiting at most `timeout` seconds."""
        host, clock = self.host, self.clock
        self._flush()
        now = clock.now()
        until = None if timeout is None else now + int(timeout * 1e9 + 0.999)
        due = host.deadline()
        if due is not None and (until is None or due < until):
            until = due
        self.idle_until = until
        self.is_idle = not self._inbox and not self._ready and (until is None or until > now)
        if self.is_idle:
            clock.wait(until)
            now = clock.now()
        inbox = self._inbox
        for _ in range(len(inbox)):
            interface, frames = inbox.popleft()
            host.receive(interface, frames, now)
        due = host.deadline()
        if due is not None and due <= now:
            host.handle_timer(now)
        host.deliver_events()
        return []

    @property
    def has_work(self) -> bool:
        """Whether a turn would not wait."""
        return bool(self._ready or self._inbox)

    def _flush(self) -> None:
        for interface, frames in self.host.to_send(self.clock.now()):
            port = self._wires.get(id(interface))
            if port is not None:
                port.send(frames)

    def flush_soon(self) -> None:
        """Something was written: it leaves with the next turn, which comes at once."""
        if not self._ready:
            self.call_soon(_nothing)

    def _process_events(self, event_list: list[Any]) -> None:
        pass  # `select` has told everybody

    def _write_to_self(self) -> None:
        self.clock.wake()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """As asyncio; while jobs run, virtual time stands."""
        future = super().run_in_executor(executor, func, *args)
        self.executing += 1
        future.add_done_callback(self._executed)
        return future

    def _executed(self, future: object) -> None:
        self.executing -= 1

    def close(self) -> None:
        """Give back ports and connections, then close."""
        if self.is_closed():
            return
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        for transport in list(self.transports):
            cast(asyncio.DatagramTransport, transport).abort()
        self._flush()
        for port in self._wires.values():
            port.attach(None)
        super().close()

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Any, *args: Any
    ) -> None:
        """Signals belong to the process, not to a host on a network. Raises."""
        raise NotImplementedError("a loop on the stack takes no signals")

    def remove_signal_handler(self, sig: int) -> bool:
        """None can have been added."""
        return False

    # ---- names

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As `socket.getaddrinfo`, with `names` in the resolver's place."""
        addresses = await self.resolve(host, passive=bool(flags & socket.AI_PASSIVE))
        found = address_info(addresses, port_number(port), family, type, proto)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r}: name or service not known")
        return found

    async def resolve(self, host: Any, passive: bool = False) -> Sequence[IpAddress]:
        """The addresses of a name, numeric or not. Raises `socket.gaierror`."""
        own = [address for each in self.host.ip.interfaces for address in each.addresses]
        return await resolve(self.names, own, host, passive)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> tuple[str, str]:
        """The numeric form, always."""
        return sockaddr[0], str(sockaddr[1])

    # ---- streams

    async def create_connection(
        self,
        protocol_factory: Callable[[], Any],
        host: Any = None,
        port: Any = None,
        *,
        ssl: bool | ssl_module.SSLContext | None = None,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: Any = None,
        local_addr: tuple[str, int] | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        **ignored: Any,
    ) -> tuple[asyncio.Transport, Any]:
        """Connect to the first address of `host` that answers; see asyncio."""
        _refuse_socket(sock)
        if server_hostname is not None and not ssl:
            raise ValueError("server_hostname is only meaningful with ssl")
        if ssl and server_hostname is None:
            if not host:
                raise ValueError("You must set server_hostname when using ssl without a host")
            server_hostname = host
        number = port_number(port)
        local: Endpoint | None = None
        if local_addr is not None:
            local = Endpoint((await self.resolve(local_addr[0]))[0], local_addr[1])
        errors: list[OSError] = []
        for *_, name in await self.getaddrinfo(
            host, number, family=family, type=socket.SOCK_STREAM, flags=flags
        ):
            try:
                connection = await self._connect(packed_address(name[0]), number, local)
                break
            except OSError as error:
                errors.append(error)
        else:
            raise errors[0]
        protocol = protocol_factory()
        if not ssl:
            transport = StreamTransport(self, connection, protocol)
            transport.start()
            return transport, protocol
        waiter = self.create_future()
        secured = self._secure(
            connection, protocol, ssl, waiter, server_hostname=server_hostname,
            handshake=ssl_handshake_timeout, shutdown=ssl_shutdown_timeout,
        )  # fmt: skip
        try:
            await waiter
        except BaseException:
            secured.close()
            raise
        return secured, protocol

    async def _connect(self, address: IpAddress, port: int, local: Endpoint | None) -> Connection:
        source = local.address if local and len(local.address) == len(address) else None
        source = source or self.host.ip.source_for(address)
        remote = Endpoint(address, port)
        if source is None:
            raise OSError(101, f"Network is unreachable: {remote}")
        opened = self.create_future()

        def on_event(connection: Connection, event: Event) -> None:
            if opened.done():
                return
            if event is Event.ESTABLISHED:
                connection.on_event = None  # what follows waits for the transport
                opened.set_result(None)
            elif event is not Event.READABLE:
                opened.set_exception(error_of(connection.error or event, connection))

        try:
            connection = self.host.tcp.connect(
                Endpoint(source, local.port if local else 0), remote, self.clock.now()
            )
        except LocalError as error:
            raise OSError(98, str(error)) from error
        connection.on_event = on_event
        self.flush_soon()
        try:
            await opened
        except asyncio.CancelledError:
            connection.abort()
            self.flush_soon()
            raise
        return connection

    def _secure(
        self,
        connection: Connection,
        protocol: Any,
        context: bool | ssl_module.SSLContext,
        waiter: Any,
        *,
        server: StackServer | None = None,
        server_hostname: str | None = None,
        handshake: float | None = None,
        shutdown: float | None = None,
    ) -> asyncio.Transport:
        """asyncio's TLS between `protocol` and the connection."""
        tls = asyncio.sslproto.SSLProtocol(  # type: ignore[attr-defined]
            self,
            protocol,
            _context(context, server is not None),
            waiter,
            server is not None,
            server_hostname,
            ssl_handshake_timeout=handshake,
            ssl_shutdown_timeout=shutdown,
        )
        transport = StreamTransport(self, connection, tls, server)
        if server is not None:
            server.attach(transport)
        transport.start()
        return cast(asyncio.Transport, tls._app_transport)

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], Any],
        host: Any = None,
        port: Any = None,
        *,
        family: int = 0,
        flags: int = socket.AI_PASSIVE,
        sock: Any = None,
        backlog: int = 100,
        ssl: ssl_module.SSLContext | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
        **ignored: Any,
    ) -> StackServer:
        """Listen; see asyncio. No host, or an unspecified one, is any address of the stack."""
        _refuse_socket(sock)
        if isinstance(ssl, bool):
            raise TypeError("ssl argument must be an SSLContext or None")
        number = port_number(port)
        hosts = [host] if host is None or isinstance(host, (str, bytes)) else list(host)
        names: dict[IpAddress | None, SocketAddress] = {}
        for each in hosts:
            for address in await self.resolve(each, passive=True):
                unspecified = address in (ANY4, ANY6)
                key = None if unspecified else address
                names.setdefault(key, socket_address(address, number))

        def accept(connection: Connection, server: StackServer) -> None:
            self.call_soon(self._accepted, connection, server, protocol_factory, ssl, (
                ssl_handshake_timeout, ssl_shutdown_timeout
            ))  # fmt: skip

        server = StackServer(self, list(names.items()), accept, backlog)
        if start_serving:
            try:
                server.listen()
            except LocalError as error:
                raise OSError(98, str(error)) from error
        return server

    def _accepted(
        self,
        connection: Connection,
        server: StackServer,
        protocol_factory: Callable[[], Any],
        context: ssl_module.SSLContext | None,
        timeouts: tuple[float | None, float | None],
    ) -> None:
        try:
            protocol = protocol_factory()
        except BaseException:
            connection.abort()
            raise
        if context is not None:
            self._secure(
                connection, protocol, context, None, server=server,
                handshake=timeouts[0], shutdown=timeouts[1],
            )  # fmt: skip
            return
        transport = StreamTransport(self, connection, protocol, server)
        server.attach(transport)
        transport.start()

    # ---- datagrams

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], Any],
        local_addr: Any = None,
        remote_addr: Any = None,
        *,
        family: int = 0,
        sock: Any = None,
        **ignored: Any,
    ) -> tuple[StackDatagramTransport, Any]:
        """A UDP socket, bound and connected as asked; see asyncio."""
        _refuse_socket(sock)
        address, port = None, 0
        if local_addr is not None:
            address = (await self.resolve(local_addr[0], passive=True))[0]
            port = port_number(local_addr[1])
        unspecified = address in (None, ANY4, ANY6)
        try:
            udp = self.host.udp.bind(None if unspecified else address, port)
        except LocalError as error:
            raise OSError(98, str(error)) from error
        if remote_addr is not None:
            remotes = await self.resolve(remote_addr[0])
            fitting = [each for each in remotes if family in (0, _family(each))]
            udp.connect((fitting or remotes)[0], port_number(remote_addr[1]))
            if unspecified:
                address = self.host.ip.source_for((fitting or remotes)[0])
        if address is None and family == socket.AF_INET6:
            address = ANY6
        protocol = protocol_factory()
        transport = StackDatagramTransport(self, udp, protocol, address, numeric_name)
        transport.start()
        return transport, protocol


def _nothing() -> None:
    pass


def _family(address: IpAddress) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _refuse_socket(sock: Any) -> None:
    if sock is not None:
        raise NotImplementedError("a loop on the stack has no sockets of the operating system")


def _context(context: bool | ssl_module.SSLContext, server: bool) -> ssl_module.SSLContext:
    if isinstance(context, ssl_module.SSLContext):
        return context
    return ssl_module.create_default_context()
