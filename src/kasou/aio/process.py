"""A process in the guest: what is typed goes there, what it prints comes here.

The client's side of the agent (`kasou.guest.agent.client`) on a tunnel through the VM's process.
Output that nobody reads is held back, in the guest, as with a pipe; `communicate` reads both streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

from kasou.aio.result import TimedOut
from kasou.control import operations as op
from kasou.control.client import ByteStream, ControlClient
from kasou.errors import ConfigError, HostError, KasouError, RemoteError
from kasou.guest.agent.client import (
    Answer,
    Client,
    Exit,
    Failed,
    ProcessClient,
    Room,
    Started,
    Stderr,
    Stdout,
)
from kasou.guest.agent.protocol import PORT

MOST_UNREAD = 1 << 20
AGENT_SECONDS = 300.0
"""How long a guest may take to start its agent."""


class Output:
    """What a process printed, to be read."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._ended = False

    async def feed(self, data: bytes) -> None:
        """More of it; waits while too much is unread."""
        self._buffer += data
        self._changed.set()
        if len(self._buffer) >= MOST_UNREAD:
            self._drained.clear()
            await self._drained.wait()

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        self._changed.set()

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes, at least one; all to the end without `n`. Empty at the end."""
        parts: list[bytes] = []
        while True:
            if self._buffer:
                data = bytes(self._buffer if n < 0 else self._buffer[:n])
                del self._buffer[: len(data)]
                self._drained.set()
                if n >= 0:
                    return data
                parts.append(data)
            elif self._ended or n == 0:
                return b"".join(parts)
            else:
                self._changed.clear()
                await self._changed.wait()

    async def readline(self) -> bytes:
        """One line with its end; empty at the end."""
        while b"\n" not in self._buffer and not self._ended:
            self._drained.set()  # a line may be longer than what is held back
            self._changed.clear()
            await self._changed.wait()
        at = self._buffer.find(b"\n") + 1 or len(self._buffer)
        data = bytes(self._buffer[:at])
        del self._buffer[:at]
        self._drained.set()
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line


class Process:
    """A process in the guest that was started by `VM.popen`. `pid` is its number there."""

    def __init__(self, stream: ByteStream, client: ProcessClient) -> None:
        self._stream = stream
        self._client = client
        self.stdout = Output()
        self.stderr = Output()
        self.pid = 0
        self.info: Mapping[str, Any] = {}
        self.returncode: int | None = None
        self._started = asyncio.Event()
        self._ended = asyncio.Event()
        self._room = asyncio.Event()
        self._sending = asyncio.Lock()
        self._problem: KasouError | None = None
        self._task = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        try:
            while not self._client.done:
                data = await self._stream.read()
                events = self._client.receive(data) if data else self._client.receive_eof()
                for event in events:
                    await self._handle(event)
        except KasouError as problem:
            self._problem = problem
        finally:
            if self.returncode is None and self._problem is None:
                self._problem = HostError("the connection to the guest was closed")
            self.stdout.end()
            self.stderr.end()
            self._started.set()
            self._ended.set()
            self._room.set()
            self._stream.close()

    async def _handle(self, event: object) -> None:
        match event:
            case Stdout(data):
                await self.stdout.feed(data)
            case Stderr(data):
                await self.stderr.feed(data)
            case Started(pid, info):
                self.pid, self.info = pid, info
                self._started.set()
            case Room():
                self._room.set()
            case Exit(status, _):
                self.returncode = status
            case Failed():
                self._problem = error_of(event)

    async def start(self) -> None:
        """Wait until it runs, or has ended. Raises what kept it from starting."""
        await self._send()
        await self._started.wait()
        if self._problem is not None:
            raise self._problem

    async def _send(self) -> None:
        async with self._sending:
            if data := self._client.to_send():
                with contextlib.suppress(HostError):  # the pump learns of the end
                    await self._stream.write(data)

    # ------------------------------------------------------------------ standard input
    async def write(self, data: bytes | str) -> None:
        """Type `data`; what the process will not read any more is dropped."""
        view = data.encode() if isinstance(data, str) else data
        while view and not self._ended.is_set():
            self._room.clear()
            taken = self._client.write_stdin(view)
            view = view[taken:]
            await self._send()
            if view and not taken:
                await self._room.wait()

    async def close_stdin(self) -> None:
        """There is no more to read for it."""
        self._client.close_stdin()
        await self._send()

    # ------------------------------------------------------------------ life
    async def wait(self, timeout: float | None = None) -> int:
        """Its exit code, 128 + N for signal N. Raises `TimedOut`; it then runs on."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            raise TimedOut(f"the process still ran after {timeout:g} s") from None
        if self._problem is not None:
            raise self._problem
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.returncode if self._ended.is_set() else None

    async def send_signal(self, number: int) -> None:
        """Send it a signal, and its children in the same process group."""
        self._client.kill(number)
        await self._send()

    async def terminate(self) -> None:
        """SIGTERM."""
        await self.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL."""
        await self.send_signal(signal.SIGKILL)

    async def resize(self, columns: int, rows: int) -> None:
        """Its terminal has a new size."""
        self._client.resize(columns, rows)
        await self._send()

    async def communicate(
        self, input: bytes | str | None = None, timeout: float | None = None
    ) -> tuple[bytes, bytes]:
        """Type `input`, read all it prints, wait for its end. Raises `TimedOut`."""

        async def type_it() -> None:
            if input is not None:
                await self.write(input)
            await self.close_stdin()

        try:
            async with asyncio.timeout(timeout):
                _, out, err = await asyncio.gather(
                    type_it(), self.stdout.read(), self.stderr.read()
                )
        except TimeoutError:
            raise TimedOut(f"the process still ran after {timeout:g} s") from None
        await self.wait()
        return out, err

    def close(self) -> None:
        """Close the connection: a process that still runs is killed."""
        self._stream.close()
        self._task.cancel()


async def ask(
    control: ControlClient,
    do: str,
    fields: Mapping[str, object] | None = None,
    agent_timeout: float = AGENT_SECONDS,
) -> Mapping[str, Any]:
    """One question to the agent, and its answer. Raises what it answers instead."""
    stream = await control.open(op.Tunnel(PORT, agent_timeout))
    try:
        client = Client(do, fields)
        await stream.write(client.to_send())
        while True:
            data = await stream.read()
            for event in client.receive(data) if data else client.receive_eof():
                if isinstance(event, Answer):
                    return event.value
                if isinstance(event, Failed):
                    raise error_of(event)
    finally:
        stream.close()


async def begin(
    control: ControlClient, client: ProcessClient, agent_timeout: float = AGENT_SECONDS
) -> Process:
    """Start what `client` asks for. Raises what kept it from starting."""
    process = Process(await control.open(op.Tunnel(PORT, agent_timeout)), client)
    try:
        await process.start()
    except BaseException:
        process.close()
        raise
    return process


def error_of(failed: Failed) -> KasouError:
    """The exception for what the agent could not do."""
    if failed.errno == "EPROTO":
        return RemoteError(failed.message)
    if failed.errno == "ECONNRESET":
        return HostError(f"{failed.message}; did the guest end?")
    return ConfigError(f"guest: {failed.message}")
