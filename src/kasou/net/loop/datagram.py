"""A UDP socket as an asyncio datagram transport."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kasou.errors import LocalError
from kasou.net.loop.socket_view import SocketView, socket_address
from kasou.net.transport.udp import UdpSocket
from kasou.net.wire.address import ANY4, IpAddress

if TYPE_CHECKING:
    from kasou.net.loop.stack_loop import StackLoop


class StackDatagramTransport(asyncio.DatagramTransport):
    """Sends at once (nothing is ever queued here) and hands on what arrives."""

    def __init__(
        self,
        loop: StackLoop,
        udp: UdpSocket,
        protocol: asyncio.DatagramProtocol,
        local: IpAddress | None,
        numeric: Callable[[Any], tuple[IpAddress, int]],
    ) -> None:
        name = socket_address(local or ANY4, udp.port)
        peer = socket_address(*udp.peer) if udp.peer is not None else None
        view = SocketView(socket.SOCK_DGRAM, name, peer)
        super().__init__({"socket": view, "sockname": name, "peername": peer})
        self._loop, self._udp, self._protocol = loop, udp, protocol
        self._numeric = numeric
        self._closing = False
        udp.on_readable = self._readable
        loop.transports.add(self)

    def start(self) -> None:
        """Introduce the protocol; call once, from the loop."""
        self._protocol.connection_made(self)
        self._loop.call_soon(self._read)

    def _readable(self, udp: UdpSocket) -> None:
        self._loop.call_soon(self._read)

    def _read(self) -> None:
        if self._udp.unreachable:
            self._udp.unreachable = False
            if not self._closing:
                self._protocol.error_received(ConnectionRefusedError(111, "Connection refused"))
        while not self._closing and (received := self._udp.receive()) is not None:
            address = socket_address(received.source, received.source_port)
            self._protocol.datagram_received(received.payload, address)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send one datagram to `addr`, or the peer. A name must be numeric."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expected a bytes-like object, got {type(data).__name__}")
        if self._closing:
            return
        peer = self._udp.peer
        to = self._numeric(addr) if addr is not None else peer
        if to is None:
            raise ValueError("sendto without an address on a socket without a peer")
        if peer is not None and to != peer:
            raise ValueError(f"Invalid address: must be None or {socket_address(*peer)}")
        try:
            self._udp.send(bytes(data), *to)
        except LocalError as error:
            self._protocol.error_received(OSError(90, str(error)))
        self._loop.flush_soon()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closing

    def close(self) -> None:
        """Give the port back."""
        if not self._closing:
            self._closing = True
            self._udp.close()
            self._loop.transports.discard(self)
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """The same: nothing waits."""
        self.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Switch to another protocol."""
        assert isinstance(protocol, asyncio.DatagramProtocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The present protocol."""
        return self._protocol

    def get_write_buffer_size(self) -> int:
        """Nothing waits here."""
        return 0
