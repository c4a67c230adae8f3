"""The serial port's outside: a bounded log, and whoever is attached.

Rules:

* `write` is called by harts with the board's lock held. It never waits: bytes go into a buffer, and
  the control thread takes them from there to the log and to those attached.
* The log keeps the last `LOG_BYTES` to twice that: `console.log`, and `console.log.1` before it.
* Who reads too slowly loses the oldest bytes, and is told how many.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

LOG_BYTES = 4 << 20
TAIL_BYTES = 64 << 10
BACKLOG_BYTES = 1 << 20


class Attachment:
    """One reader of the serial port; used on the control thread's loop."""

    def __init__(self, first: bytes) -> None:
        import asyncio  # not at the top: the machine starts before it is needed

        self._buffer = bytearray(first)
        self._skipped = 0
        self._ready = asyncio.Event()
        self._closed = False
        if first:
            self._ready.set()

    def offer(self, data: bytes) -> None:
        """More output; the oldest goes when there is too much."""
        self._buffer += data
        if (over := len(self._buffer) - BACKLOG_BYTES) > 0:
            del self._buffer[:over]
            self._skipped += over
        self._ready.set()

    def close(self) -> None:
        """There will be no more output."""
        self._closed = True
        self._ready.set()

    async def read(self) -> bytes:
        """What has come, at least a byte; empty at the end."""
        await self._ready.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._skipped:
            data = b"\r\n[kasou: %d bytes skipped]\r\n" % self._skipped + data
            self._skipped = 0
        if not self._closed:
            self._ready.clear()
        return data


class SerialLog:
    """Takes what the guest's serial port sends. `path` is the log; its directory is made.

    A log that cannot be written (a full disk) is given up silently: the guest goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tail = bytearray()
        """The last `TAIL_BYTES`; of the control thread."""
        self._pending = bytearray()
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        self._attached: set[Attachment] = set()
        self._file = -1
        self._size = 0
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        self._size = os.fstat(self._file).st_size

    # ---- any thread
    def write(self, data: bytes) -> None:
        """Bytes from the guest."""
        with self._lock:
            first = not self._pending
            self._pending += data
            if len(self._pending) > BACKLOG_BYTES:
                del self._pending[:-BACKLOG_BYTES]
            wake = self._wake
        if first and wake is not None:
            wake()

    # ---- the control thread
    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on `loop` carries the bytes away."""

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self.flush)

        with self._lock:
            self._wake = wake
        self.flush()

    def flush(self) -> None:
        """Take what is pending to the log and to those attached."""
        with self._lock:
            data, self._pending = bytes(self._pending), bytearray()
        if not data:
            return
        self.tail += data
        del self.tail[:-TAIL_BYTES]
        for attachment in self._attached:
            attachment.offer(data)
        if self._file < 0:
            return
        try:
            os.write(self._file, data)
            self._size += len(data)
            if self._size > LOG_BYTES:
                os.replace(self.path, self.path.with_name(self.path.name + ".1"))
                os.close(self._file)
                self._open()
        except OSError:
            self._file = -1

    def attach(self, replay: int) -> Attachment:
        """A new reader, who is given the last `replay` bytes first."""
        self.flush()
        attachment = Attachment(bytes(self.tail[-replay:]) if replay > 0 else b"")
        self._attached.add(attachment)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """A reader has gone."""
        self._attached.discard(attachment)

    def end(self) -> None:
        """The guest will say nothing more: readers get the rest and the end."""
        self.flush()
        for attachment in self._attached:
            attachment.close()
