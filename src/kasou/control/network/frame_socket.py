"""Frames with their offloads over a Unix stream socket, and requests beside them.

    length 4 | kind 1 | flags 1 | csum start 2 | csum offset 2 | gso size 2 | gso headers 2 | data

Little-endian; `length` is that of `data`. Kind 1 is a frame: flags say whether it has a checksum to
be finished (1), is trusted (2), and which `Gso` it has (4, 8, 12: tcp4, tcp6, udp). Kind 0 is an
object in JSON. A reader that met anything else has lost its place: the connection ends.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any, Literal

from kasou.control.network.reactor import READ, WRITE, Handler, Reactor
from kasou.errors import RemoteError
from kasou.ports import Frame, Gso

_HEADER = Struct("<IBBHHHH")
_OBJECT, _FRAME = 0, 1
_CSUM, _TRUSTED = 1, 2
_KINDS: tuple[Literal["tcp4", "tcp6", "udp"], ...] = ("tcp4", "tcp6", "udp")
MAX_DATA = 1 << 18
MAX_WAITING = 8 << 20
"""Bytes that wait for a reader; frames beyond it are dropped, as a wire would."""
_READ_BYTES = 1 << 18
_PIECES = 128

Object = dict[str, Any]


def encode(item: Frame | Object) -> tuple[bytes, bytes]:
    """An item as a header and its data."""
    if not isinstance(item, Frame):
        data = json.dumps(item).encode()
        return _HEADER.pack(len(data), _OBJECT, 0, 0, 0, 0, 0), data
    start, offset = item.csum or (0, 0)
    flags = _CSUM * (item.csum is not None) | _TRUSTED * item.trusted
    size = headers = 0
    if item.gso is not None:
        flags |= 1 + _KINDS.index(item.gso.kind) << 2
        size, headers = item.gso.size, item.gso.headers
    head = _HEADER.pack(len(item.data), _FRAME, flags, start, offset, size, headers)
    return head, item.data


class Decoder:
    """Items out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame | Object]:
        """The items that `data` completes. Raises `RemoteError`."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while at + _HEADER.size <= len(buffer):
                length, kind, flags, *rest = _HEADER.unpack_from(buffer, at)
                if length > MAX_DATA or kind > _FRAME or flags >> 4:
                    raise RemoteError(f"network socket: an item of kind {kind}, {length} bytes")
                end = at + _HEADER.size + length
                if end > len(buffer):
                    break
                body = bytes(memoryview(buffer)[at + _HEADER.size : end])
                at = end
                yield _object(body) if kind == _OBJECT else _frame(body, flags, *rest)
        finally:
            del buffer[:at]


def _object(body: bytes) -> Object:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RemoteError("network socket: a request that is no JSON object")
    return value


def _frame(body: bytes, flags: int, start: int, offset: int, size: int, headers: int) -> Frame:
    gso = Gso(_KINDS[(flags >> 2) - 1], size, headers) if flags >> 2 else None
    return Frame(body, (start, offset) if flags & _CSUM else None, gso, bool(flags & _TRUSTED))


class FrameSocket:
    """One end, on the thread of a `Reactor`. It is waited for after `start`."""

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        self.dropped = 0
        self.is_closed = False
        self._reactor, self._sock = reactor, sock
        self._decoder = Decoder()
        self._waiting: deque[bytes | memoryview] = deque()
        self._waiting_bytes = 0
        self._events = READ
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, 1 << 20)

    def receive(self) -> list[Frame | Object] | None:
        """What has come; None when the other end is gone. Raises `RemoteError`."""
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return list(self._decoder.feed(data)) if data else None

    def send_object(self, item: Object) -> None:
        """Send a request or an answer, in order with the frames."""
        self._append(item)
        self.flush()

    def send_frames(self, frames: Iterable[Frame]) -> None:
        """Send frames, or drop those for which there is no room."""
        for frame in frames:
            if self._waiting_bytes + len(frame.data) > MAX_WAITING:
                self.dropped += 1
            else:
                self._append(frame)
        self.flush()

    def _append(self, item: Frame | Object) -> None:
        head, data = encode(item)
        self._waiting.append(head)
        self._waiting.append(data)
        self._waiting_bytes += len(head) + len(data)

    def flush(self) -> None:
        """Give the kernel what it takes; the rest goes when there is room."""
        waiting = self._waiting
        while waiting and not self.is_closed:
            pieces = [waiting[n] for n in range(min(_PIECES, len(waiting)))]
            try:
                sent = self._sock.sendmsg(pieces)
            except BlockingIOError:
                break
            except OSError:
                waiting.clear()  # the other end is gone: the next receive says so
                self._waiting_bytes = 0
                break
            self._waiting_bytes -= sent
            while sent:
                first = waiting[0]
                if len(first) > sent:
                    waiting[0] = memoryview(first)[sent:]
                    break
                sent -= len(first)
                waiting.popleft()
        self._wait_for(READ | WRITE if waiting else READ)

    def start(self, ready: Handler) -> None:
        """Call `ready` when something has come or can be sent."""
        self._handler = ready
        self._reactor.register(self._sock, self._events, ready)

    def _wait_for(self, events: int) -> None:
        if events != self._events and not self.is_closed:
            self._events = events
            self._reactor.modify(self._sock, events, self._handler)

    def close(self) -> None:
        """Let go."""
        if not self.is_closed:
            self.is_closed = True
            self._reactor.unregister(self._sock)
            self._sock.close()
