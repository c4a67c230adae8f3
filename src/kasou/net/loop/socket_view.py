"""What `transport.get_extra_info("socket")` gives: names and options, no file descriptor.

Programs ask it for addresses and set options on it. The options that mean something to our TCP are
obeyed, others are remembered and given back, as a kernel does that knows them.
"""

from __future__ import annotations

import socket
from typing import Any

from kasou.net.transport.tcp import Connection
from kasou.net.wire.address import ip_text

_SECOND = 1_000_000_000
SocketAddress = tuple[str, int] | tuple[str, int, int, int]


def socket_address(address: bytes, port: int) -> SocketAddress:
    """An address and port as Python's sockets name them."""
    text = ip_text(address)
    return (text, port) if len(address) == 4 else (text, port, 0, 0)


class SocketView:
    """Looks like `asyncio.trsock.TransportSocket`."""

    def __init__(
        self,
        kind: socket.SocketKind,
        local: SocketAddress,
        remote: SocketAddress | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.family = socket.AF_INET if len(local) == 2 else socket.AF_INET6
        self.type = kind
        stream = kind is socket.SOCK_STREAM
        self.proto = socket.IPPROTO_TCP if stream else socket.IPPROTO_UDP
        self._local, self._remote = local, remote
        self._connection = connection
        self._options: dict[tuple[int, int], Any] = {}

    @classmethod
    def of(cls, connection: Connection) -> SocketView:
        """The view of one TCP connection."""
        local, remote = connection.local, connection.remote
        names = (socket_address(*local), socket_address(*remote))
        return cls(socket.SOCK_STREAM, *names, connection)

    def __repr__(self) -> str:
        return f"<SocketView {self.type.name} {self._local} {self._remote}>"

    def fileno(self) -> int:
        """There is none."""
        return -1

    def getsockname(self) -> SocketAddress:
        """The local name."""
        return self._local

    def getpeername(self) -> SocketAddress:
        """The remote name. Raises `OSError` when there is no peer."""
        if self._remote is None:
            raise OSError(107, "Transport endpoint is not connected")
        return self._remote

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        """What was set, else 0 (or as many zero bytes)."""
        default: int | bytes = bytes(length) if length else 0
        return self._options.get((level, option), default)

    def setsockopt(self, level: int, option: int, value: Any, length: int | None = None) -> None:
        """Remember; TCP_NODELAY and the keepalives act at once."""
        self._options[level, option] = value
        connection = self._connection
        if connection is None:
            return
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_NODELAY):
            connection.set_nodelay(bool(value))
            return
        keepalive = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        names = [getattr(socket, name, None) for name in keepalive]
        is_switch = (level, option) == (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if is_switch or (level == socket.IPPROTO_TCP and option in names):
            idle, interval, probes = (
                self.getsockopt(socket.IPPROTO_TCP, name) if name is not None else 0
                for name in names
            )
            on = self.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            connection.set_keepalive(
                (idle or 7200) * _SECOND if on else None, interval * _SECOND or None, probes or None
            )

    def gettimeout(self) -> float:
        """Never blocks."""
        return 0.0

    def setblocking(self, flag: bool) -> None:
        """Only non-blocking. Raises `ValueError` otherwise."""
        if flag:
            raise ValueError("a socket of the stack's loop cannot block")

    def settimeout(self, timeout: float | None) -> None:
        """Only 0. Raises `ValueError` otherwise."""
        if timeout != 0:
            raise ValueError("a socket of the stack's loop cannot block")
