"""The gateway's outside on this host: non-blocking sockets in one reactor.

Everything here is used by the network's thread alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable, Sequence

from kasou.control.network.reactor import READ, WRITE, Reactor
from kasou.control.network.resolver import Resolver
from kasou.errors import HostError
from kasou.net.gateway.outside import Accepted, Datagram, EchoReply, Failure
from kasou.net.wire.address import IpAddress, ip_text

_BATCH = 64
_DESCRIPTORS = 65536
_MAX_PIECES = 64  # of one sendmsg; the kernel's limit is 1024
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # Linux's; the socket module does not name them
_MSG_ERRQUEUE = getattr(socket, "MSG_ERRQUEUE", 0)
_FAILURES = {
    errno.ECONNREFUSED: Failure.REFUSED,
    errno.ETIMEDOUT: Failure.TIMED_OUT,
    errno.EACCES: Failure.PROHIBITED,
    errno.EPERM: Failure.PROHIBITED,
}


def allow_descriptors() -> None:
    """Every connection of a guest is a descriptor here; 1,024, the usual start, are soon used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _failure(number: int) -> Failure:
    return _FAILURES.get(number, Failure.UNREACHABLE)


def _family(address: IpAddress) -> socket.AddressFamily:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _packed(text: str) -> IpAddress:
    text = text.partition("%")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


class HostSockets(Reactor):
    """Implements `kasou.net.gateway.outside.Outside`."""

    def __init__(self) -> None:
        super().__init__()
        allow_descriptors()
        self._resolver = Resolver(self.post)
        self.spare = _spare()
        self._pings_refused: set[bool] = set()

    def close(self) -> None:
        """Let go of the selector. Sockets are their owners' to close."""
        super().close()
        if self.spare is not None:
            os.close(self.spare)

    # ------------------------------------------------------------------ Outside

    def connect(self, address: IpAddress, port: int) -> HostStream:
        """Begin to open a connection."""
        try:
            sock = socket.socket(_family(address), socket.SOCK_STREAM)
        except OSError as error:
            stream = HostStream(self, None)
            self._fail(stream, _failure(error.errno or 0))
            return stream
        sock.setblocking(False)
        stream = HostStream(self, sock)
        number = sock.connect_ex((ip_text(address), port))
        if number == errno.EINPROGRESS:
            stream.await_connect()
        else:
            self._fail(stream, _failure(number) if number else None)
        return stream

    def _fail(self, stream: HostStream, failure: Failure | None) -> None:
        self._posted.append(lambda: stream.connected(failure))

    def listen(self, address: IpAddress, port: int, on_accept: Accepted) -> HostListening:
        """Listen, on any free port for 0. Raises `HostError`."""
        sock = socket.socket(_family(address), socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bind(sock, address, port)
            sock.listen(128)
        except OSError as error:
            sock.close()
            raise HostError(_refusal("TCP", address, port, error)) from None
        return HostListening(self, sock, on_accept)

    def datagrams(self, address: IpAddress, port: int) -> HostDatagrams:
        """A UDP socket. Raises `HostError`."""
        try:
            sock = socket.socket(_family(address), socket.SOCK_DGRAM)
        except OSError as error:
            raise HostError(_refusal("UDP", address, port, error)) from None
        try:
            self._bind(sock, address, port)
        except OSError as error:
            sock.close()
            raise HostError(_refusal("UDP", address, port, error)) from None
        return HostDatagrams(self, sock)

    def echoes(self, six: bool) -> HostEchoes | None:
        """A ping socket; None where the host allows none (ping(7), `ping_group_range`)."""
        if six in self._pings_refused:
            return None
        family = socket.AF_INET6 if six else socket.AF_INET
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
        except OSError:
            self._pings_refused.add(six)
            return None
        return HostEchoes(self, sock, six)

    def name_servers(self) -> Sequence[IpAddress]:
        """The host's DNS servers."""
        return self._resolver.name_servers()

    def resolve(
        self, name: str, six: bool, on_resolved: Callable[[list[IpAddress] | None], None]
    ) -> None:
        """Ask the host's own resolver."""
        self._resolver.resolve(name, six, on_resolved)

    @staticmethod
    def _bind(sock: socket.socket, address: IpAddress, port: int) -> None:
        sock.setblocking(False)
        if len(address) == 16:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((ip_text(address), port))


def _refusal(protocol: str, address: IpAddress, port: int, error: OSError) -> str:
    where = f"[{ip_text(address)}]:{port}" if len(address) == 16 else f"{ip_text(address)}:{port}"
    hint = ""
    if error.errno == errno.EADDRINUSE:
        hint = "; choose another port, or 0 for any free one"
    elif error.errno == errno.EACCES:
        hint = "; ports below 1024 need privileges"
    return f"{protocol} {where} on the host: {error.strerror}{hint}"


class _Registered:
    """A socket and what the selector waits for on it."""

    def __init__(self, host: HostSockets, sock: socket.socket | None) -> None:
        self._host, self._sock = host, sock
        self._events = 0

    def _wait_for(self, events: int) -> None:
        sock = self._sock
        if sock is None or events == self._events:
            return
        if not events:
            self._host.unregister(sock)
        elif self._events:
            self._host.modify(sock, events, self._ready)
        else:
            self._host.register(sock, events, self._ready)
        self._events = events

    def _ready(self, mask: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Let go."""
        if self._sock is not None:
            self._wait_for(0)
            self._sock.close()
            self._sock = None


class HostStream(_Registered):
    """A TCP connection: `kasou.net.gateway.outside.Stream`."""

    def __init__(self, host: HostSockets, sock: socket.socket | None) -> None:
        super().__init__(host, sock)
        self.on_connected: Callable[[Failure | None], None] | None = None
        self.on_ready: Callable[[bool, bool], None] | None = None
        self._connecting = False

    def await_connect(self) -> None:
        """The connection is being opened."""
        self._connecting = True
        self._wait_for(WRITE)

    def connected(self, failure: Failure | None) -> None:
        """Tell how opening went, unless it was given up."""
        if self.on_connected is not None and (self._sock is not None or failure is not None):
            on_connected, self.on_connected = self.on_connected, None
            if failure is None:
                self.no_delay()
            on_connected(failure)

    def no_delay(self) -> None:
        """Bytes are passed on as they come."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _ready(self, mask: int) -> None:
        if self._sock is None:
            return
        if self._connecting:
            self._connecting = False
            self._wait_for(0)
            number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.connected(_failure(number) if number else None)
        elif self.on_ready is not None:
            self.on_ready(bool(mask & READ), bool(mask & WRITE))

    def send(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Give bytes to the kernel; how many it took. Raises `HostError`."""
        if self._sock is None:
            raise HostError("the connection is closed")
        try:
            if len(pieces) == 1:
                return self._sock.send(pieces[0])
            return self._sock.sendmsg(pieces[:_MAX_PIECES])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise HostError(f"sending: {error.strerror}") from None

    def receive(self, limit: int) -> bytes | None:
        """Bytes from the kernel, b"" at the end. Raises `HostError`."""
        if self._sock is None:
            raise HostError("the connection is closed")
        try:
            return self._sock.recv(limit)
        except BlockingIOError:
            return None
        except OSError as error:
            raise HostError(f"receiving: {error.strerror}") from None

    def want(self, readable: bool, writable: bool) -> None:
        """What `on_ready` shall be called for."""
        self._wait_for(READ * readable | WRITE * writable)

    def shutdown(self) -> None:
        """Send the end."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Let go with a reset."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()


class HostListening(_Registered):
    """A listening socket."""

    def __init__(self, host: HostSockets, sock: socket.socket, on_accept: Accepted) -> None:
        super().__init__(host, sock)
        self._on_accept = on_accept
        self.port: int = sock.getsockname()[1]
        self._wait_for(READ)

    def _ready(self, mask: int) -> None:
        for _ in range(_BATCH):
            if self._sock is None:
                return
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._drop_one()
                return
            sock.setblocking(False)
            stream = HostStream(self._host, sock)
            stream.no_delay()
            self._on_accept(stream, _packed(address[0]), address[1])

    def _drop_one(self) -> None:
        """No descriptor is left: lend ourselves one to refuse the client, else it is asked for ever."""
        spare = self._host.spare
        if spare is None or self._sock is None:
            return
        os.close(spare)
        with contextlib.suppress(OSError):
            self._sock.accept()[0].close()
        self._host.spare = _spare()


def _spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


class HostDatagrams(_Registered):
    """A UDP socket: `kasou.net.gateway.outside.Datagrams`."""

    def __init__(self, host: HostSockets, sock: socket.socket) -> None:
        super().__init__(host, sock)
        self.on_readable: Callable[[], None] | None = None
        self.on_failed: Callable[[IpAddress, int, Failure], None] | None = None
        self.port: int = sock.getsockname()[1]
        self._six = sock.family == socket.AF_INET6
        with contextlib.suppress(OSError):
            if self._six:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._texts: dict[IpAddress, str] = {}
        self._addresses: dict[str, IpAddress] = {}
        self._wait_for(READ)

    def send(self, payload: bytes, destination: IpAddress, port: int) -> None:
        """Send, or drop."""
        sock = self._sock
        if sock is None:
            return
        text = self._texts.get(destination)
        if text is None:
            if len(self._texts) > 1024:
                self._texts.clear()
            text = self._texts[destination] = ip_text(destination)
        try:
            sock.sendto(payload, (text, port))
        except BlockingIOError:
            return
        except OSError as error:
            if self._drain_errors():  # the error was an earlier datagram's: this one was not sent
                with contextlib.suppress(OSError):
                    sock.sendto(payload, (text, port))
            else:
                self._post_failure(destination, port, _failure(error.errno or 0))

    def receive(self) -> list[Datagram]:
        """What has come, at most a batch."""
        received: list[Datagram] = []
        sock = self._sock
        if sock is None:
            return received
        addresses = self._addresses
        for _ in range(_BATCH):
            try:
                payload, source = sock.recvfrom(65535)
            except BlockingIOError:
                break
            except OSError:
                self._drain_errors()
                continue
            address = addresses.get(source[0])
            if address is None:
                if len(addresses) > 1024:
                    addresses.clear()
                address = addresses[source[0]] = _packed(source[0])
            received.append(Datagram(payload, address, source[1]))
        if not received:
            self._drain_errors()
        return received

    def _ready(self, mask: int) -> None:
        if self.on_readable is not None:
            self.on_readable()
        elif self._sock is not None:
            self.receive()

    def _drain_errors(self) -> bool:
        """Read the errors that earlier datagrams met (ip(7), IP_RECVERR); whether there were any."""
        found = False
        while self._sock is not None and _MSG_ERRQUEUE:
            try:
                _, ancillary, _, address = self._sock.recvmsg(0, 512, _MSG_ERRQUEUE)
            except OSError:
                break
            found = True
            for _, kind, data in ancillary:
                if kind in (_IP_RECVERR, _IPV6_RECVERR) and len(data) >= 4 and address:
                    number = struct.unpack_from("I", data)[0]
                    if number != errno.EMSGSIZE:
                        self._post_failure(_packed(address[0]), address[1], _failure(number))
        return found

    def _post_failure(self, address: IpAddress, port: int, failure: Failure) -> None:
        def tell() -> None:
            if self._sock is not None and self.on_failed is not None:
                self.on_failed(address, port, failure)

        self._host.post(tell)


class HostEchoes(_Registered):
    """A ping socket (icmp(7)): the kernel puts its own identifier and the checksum in."""

    def __init__(self, host: HostSockets, sock: socket.socket, six: bool) -> None:
        super().__init__(host, sock)
        self.on_readable: Callable[[], None] | None = None
        self._request, self._reply = (128, 129) if six else (8, 0)
        sock.setblocking(False)
        self._wait_for(READ)

    def send(self, destination: IpAddress, sequence: int, data: bytes) -> None:
        """Send an echo request, or drop it."""
        if self._sock is not None:
            message = struct.pack(">BBHHH", self._request, 0, 0, 0, sequence) + data
            with contextlib.suppress(OSError):
                self._sock.sendto(message, (ip_text(destination), 0))

    def receive(self) -> list[EchoReply]:
        """The replies that have come."""
        replies: list[EchoReply] = []
        for _ in range(_BATCH):
            if self._sock is None:
                break
            try:
                message, source = self._sock.recvfrom(65535)
            except OSError:
                break
            if len(message) >= 8 and message[0] == self._reply:
                sequence = struct.unpack_from(">H", message, 6)[0]
                replies.append(EchoReply(_packed(source[0]), sequence, message[8:]))
        return replies

    def _ready(self, mask: int) -> None:
        if self.on_readable is not None:
            self.on_readable()
        else:
            self.receive()
