"""A TCP connection as an asyncio transport.

What the program writes goes to the connection's send buffer as far as there is room, the rest
waits here and counts towards the high-water mark. What arrives is left in the connection while
reading is paused, which closes the receive window: the peer feels it.
"""

from __future__ import annotations

import asyncio
from asyncio.constants import _SendfileMode
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from kasou.errors import LocalError
from kasou.net.loop.socket_view import SocketView
from kasou.net.transport.tcp import Connection, Event

if TYPE_CHECKING:
    from kasou.net.loop.server import StackServer
    from kasou.net.loop.stack_loop import StackLoop

Data = bytes | bytearray | memoryview
_HIGH = 64 * 1024
_HELPING = 256 * 1024
"""Bytes given to the protocol in one turn of the loop, at most."""


def error_of(event: Event, connection: Connection) -> OSError:
    """The exception that asyncio's own transports give for it."""
    where = f"{connection.local} -> {connection.remote}"
    if event is Event.REFUSED:
        return ConnectionRefusedError(111, f"Connect call failed {where}")
    if event is Event.TIMED_OUT:
        return TimeoutError(110, f"Connection timed out: {where}")
    if event is Event.UNREACHABLE:
        return OSError(113, f"No route to host: {where}")
    return ConnectionResetError(104, f"Connection reset by peer: {where}")


class StreamTransport(asyncio.Transport):
    """An established connection and its protocol."""

    # asyncio.base_events asks transports for these.
    _start_tls_compatible = True
    _sendfile_compatible = _SendfileMode.FALLBACK

    def __init__(
        self,
        loop: StackLoop,
        connection: Connection,
        protocol: asyncio.BaseProtocol,
        server: StackServer | None = None,
    ) -> None:
        view = SocketView.of(connection)
        names = {"sockname": view.getsockname(), "peername": view.getpeername()}
        super().__init__({"socket": view, **names})
        self._loop = loop
        self._connection = connection
        self._protocol = protocol
        self._server = server
        self._waiting: deque[Data] = deque()
        self._waiting_bytes = 0
        self._high, self._low = _HIGH, _HIGH // 4
        self._writing_paused = False
        self._reading_paused = False
        self._closing = False
        self._eof_written = False
        self._eof_told = False
        self._over = False
        self._lost = False
        connection.owner = self
        connection.on_event = self._on_event
        loop.transports.add(self)

    def start(self) -> None:
        """Introduce the protocol; call once, from the loop."""
        self._protocol.connection_made(self)
        self._loop.call_soon(self._read)

    def __repr__(self) -> str:
        return f"<StreamTransport {self._connection}>"

    # ---- from the connection

    def _on_event(self, connection: Connection, event: Event) -> None:
        # Events are delivered outside of any handle: what the program does belongs into one.
        self._loop.call_soon(self._handle, event)

    def _handle(self, event: Event) -> None:
        if event is Event.READABLE or event is Event.REMOTE_CLOSED:
            self._read()
        elif event is Event.WRITABLE:
            self._write_waiting()
        elif event in (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE, Event.REFUSED):
            self._lose(error_of(event, self._connection))
        elif event is Event.CLOSED:
            self._over = True  # what was not read yet is still handed on
            self._read()

    def _read(self) -> None:
        """Hand on one helping of data, or the end; as with a kernel's socket, never both at once."""
        connection = self._connection
        if self._reading_paused or self._closing or self._lost:
            return
        views = connection.peek(_HELPING)
        if views:
            data = bytes(views[0]) if len(views) == 1 else b"".join(views)
            connection.consume(len(data))
            self._loop.call_soon(self._read)
            try:
                self._give(data)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal(error, "Fatal error: protocol.data_received() call failed.")
        elif connection.remote_closed and not self._eof_told:
            self._eof_told = True
            try:
                keep = cast(asyncio.Protocol, self._protocol).eof_received()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal(error, "Fatal error: protocol.eof_received() call failed.")
                return
            if not keep:
                self.close()
        elif self._over:
            self._lose(None)

    def _give(self, data: bytes) -> None:
        protocol = self._protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            cast(asyncio.Protocol, protocol).data_received(data)
            return
        view = memoryview(data)
        while len(view):
            buffer = protocol.get_buffer(len(view))
            room = memoryview(buffer)
            n = min(len(room), len(view))
            if not n:
                raise RuntimeError("get_buffer() returned an empty buffer")
            room[:n] = view[:n]
            protocol.buffer_updated(n)
            view = view[n:]

    def _lose(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._closing = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._loop.transports.discard(self)
        self._loop.call_soon(self._connection_lost, error)

    def _connection_lost(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(cast("Exception | None", error))
        finally:
            if self._server is not None:
                self._server.detach(self)
                self._server = None

    def _fatal(self, error: BaseException, message: str) -> None:
        if not isinstance(error, OSError):
            self._loop.call_exception_handler(
                {
                    "message": message,
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
        self._connection.abort()
        self._lose(error)

    # ---- asyncio.BaseTransport

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Switch to another protocol (start_tls does)."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The present protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it is closed or will be."""
        return self._closing

    def close(self) -> None:
        """Send what was written, then close; `connection_lost` follows."""
        if self._closing:
            return
        self._closing = True
        if not self._waiting:
            # In the next turn, as asyncio's own transports: what was just written leaves first.
            self._loop.call_soon(self._finish)

    def _finish(self) -> None:
        """Everything written is in the connection's hands: as a kernel, it goes on by itself."""
        if self._lost:
            return
        connection = self._connection
        connection.close()
        connection.discard_input()
        self._loop.flush_soon()
        self._lose(None)

    def abort(self) -> None:
        """Reset the connection."""
        self._closing = True
        self._connection.abort()
        self._loop.flush_soon()
        self._lose(None)

    # ---- asyncio.ReadTransport

    def is_reading(self) -> bool:
        """Whether data is handed on."""
        return not self._reading_paused and not self._closing

    def pause_reading(self) -> None:
        """Leave data in the connection; its window closes."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        """Hand on what has come, and what comes."""
        if self._reading_paused:
            self._reading_paused = False
            self._loop.call_soon(self._read)

    # ---- asyncio.WriteTransport

    def write(self, data: Data) -> None:
        """Queue `data`; never blocks. Above the high-water mark the protocol is told to pause."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expected a bytes-like object, got {type(data).__name__}")
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._lost or not len(data):
            return
        if isinstance(data, memoryview) and (data.itemsize != 1 or data.ndim != 1):
            data = data.cast("B")
        if not self._waiting:
            data = data[self._put(data) :]
        if len(data):
            self._waiting.append(bytes(data))
            self._waiting_bytes += len(data)
            self._may_pause()

    def writelines(self, list_of_data: Any) -> None:
        """Queue several pieces."""
        self.write(b"".join(list_of_data))

    def _put(self, data: Data) -> int:
        self._loop.flush_soon()
        try:
            return self._connection.write(data)
        except LocalError:
            return len(data)  # it is over, which the protocol is about to hear

    def _write_waiting(self) -> None:
        while self._waiting:
            data = self._waiting.popleft()
            taken = self._put(data)
            self._waiting_bytes -= taken
            if taken < len(data):
                self._waiting.appendleft(data[taken:])
                break
        if self._writing_paused and self._waiting_bytes <= self._low:
            self._writing_paused = False
            self._protocol_call("resume_writing")
        if not self._waiting:
            if self._closing and not self._lost:
                self._finish()
            elif self._eof_written:
                self._connection.close()
                self._loop.flush_soon()

    def _may_pause(self) -> None:
        if self._waiting_bytes > self._high and not self._writing_paused:
            self._writing_paused = True
            self._protocol_call("pause_writing")

    def _protocol_call(self, name: str) -> None:
        try:
            getattr(self._protocol, name)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._loop.call_exception_handler(
                {
                    "message": f"protocol.{name}() failed",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )

    def can_write_eof(self) -> bool:
        """TCP can close one direction."""
        return True

    def write_eof(self) -> None:
        """FIN after what was written; reading goes on."""
        if self._closing or self._eof_written:
            return
        self._eof_written = True
        if not self._waiting:
            self._connection.close()
            self._loop.flush_soon()

    def get_write_buffer_size(self) -> int:
        """Bytes that did not fit the connection's send buffer."""
        return self._waiting_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Low and high water, bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See asyncio. Raises `ValueError` unless high >= low >= 0."""
        if high is None:
            high = _HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._may_pause()
