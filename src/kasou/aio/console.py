"""A VM's serial port, for programs: send keys, expect text."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

from kasou.aio.result import TimedOut
from kasou.control import operations as op
from kasou.control.client import ByteStream, ControlClient
from kasou.control.serial import TAIL_BYTES
from kasou.errors import HostError

KEPT_BYTES = 1 << 20
"""Output kept for `expect`; the oldest goes first."""
SHOWN_BYTES = 500


class Console:
    """The serial port of a VM. Attached at its first use; what came before is replayed.

    `expect` looks at what has come since the last match, so that questions and answers alternate.
    """

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._stream: ByteStream | None = None
        self._reading: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._data = bytearray()
        self._seen = 0
        self._ended = False

    @property
    def output(self) -> str:
        """The last of what the guest said, up to a MiB."""
        return self._data.decode("utf-8", "replace")

    async def attach(self) -> None:
        """Connect now, if that has not happened."""
        if self._stream is None or self._ended:
            self._stream = await self._client.open(op.Console(replay=TAIL_BYTES))
            self._ended = False
            self._data.clear()
            self._seen = 0
            self._reading = asyncio.create_task(self._read(self._stream))

    async def _read(self, stream: ByteStream) -> None:
        while data := await stream.read():
            async with self._changed:
                self._data += data
                if (over := len(self._data) - KEPT_BYTES) > 0:
                    del self._data[:over]
                    self._seen = max(0, self._seen - over)
                self._changed.notify_all()
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def send(self, text: str | bytes) -> None:
        r"""Type `text`; Enter is "\r"."""
        await self.attach()
        assert self._stream is not None
        await self._stream.write(text.encode() if isinstance(text, str) else text)

    async def send_line(self, text: str) -> None:
        """Type `text` and Enter."""
        await self.send(f"{text}\r")

    async def expect(self, pattern: str, timeout: float | None = 60.0) -> re.Match[bytes]:
        """Wait for `pattern` (a regular expression, over lines) and go on behind its match.

        Raises `TimedOut` with the last output, `HostError` when the machine ends before.
        """
        await self.attach()
        wanted = re.compile(pattern.encode(), re.MULTILINE | re.DOTALL)
        deadline = None if timeout is None else time.monotonic() + timeout
        async with self._changed:
            while True:
                if found := wanted.search(bytes(self._data), self._seen):
                    self._seen = found.end()
                    return found
                if self._ended:
                    raise HostError(f"the machine ended before {pattern!r} came; {self._last()}")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimedOut(f"{pattern!r} did not come in {timeout:g} s; {self._last()}")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), left)

    def _last(self) -> str:
        return f"last output: {bytes(self._data[-SHOWN_BYTES:]).decode('utf-8', 'replace')!r}"

    def close(self) -> None:
        """Detach; the guest does not notice."""
        if self._reading is not None:
            self._reading.cancel()
        if self._stream is not None:
            self._stream.close()
        self._stream = None
