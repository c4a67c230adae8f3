"""The control server: requests from a unix socket to the VM, on a thread and an asyncio loop.

Blocking operations run on worker threads, so that one that takes long (a snapshot) keeps nobody
else from asking. Streams are pumped with bounded buffers both ways: a client that does not read
stops being read from, and never the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from kasou.control.assembly import Handlers
from kasou.control.messages import LENGTH, decode, decode_length, describe, encode
from kasou.control.operations import OPERATIONS, Request
from kasou.control.serial import SerialLog
from kasou.control.socket_path import bound
from kasou.errors import RemoteError
from kasou.json_values import from_json, to_json

BUFFER_BYTES = 256 << 10

Pump = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What a stream operation answers with: carries bytes until one side closes."""


class Operated(Protocol):
    """A VM: for each row of `OPERATIONS` a handler of that name.

    A plain function may block, a coroutine runs on the control loop and must not. Both take the
    request and give the answer; those of stream operations are coroutines and give a `Pump`.
    """

    serial: SerialLog

    @property
    def handlers(self) -> Handlers:
        """What carries out each operation, by its name."""
        ...

    def serving(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop on which coroutines will run; called on it, before the first request."""
        ...


class ControlServer:
    """Serves `vm` at `socket_path` on its own thread from `start` to `close`."""

    def __init__(self, vm: Operated, socket_path: Path) -> None:
        self.vm = vm
        self.path = socket_path
        self.loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="kasou-control", daemon=True)
        self._ready = threading.Event()
        self._closing: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Bind the socket and serve. Raises `HostError` when it cannot be bound."""
        self._socket = bound(self.path)
        self._thread.start()

    def close(self) -> None:
        """Say goodbye to everyone, remove the socket, and join the thread."""
        if not self._thread.is_alive():
            return
        self._ready.wait(5)
        loop, closing = self.loop, self._closing
        if loop is not None and closing is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(closing.set)
        self._thread.join(5)
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    # ------------------------------------------------------------------ the control thread
    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self.vm.serving(self.loop)
        server = await asyncio.start_unix_server(self._accepted, sock=self._socket)
        self._ready.set()
        async with server:
            await self._closing.wait()
            server.close()
            self.vm.serial.end()
            if self._tasks:  # answers on their way, the console's last words
                await asyncio.wait(self._tasks, timeout=0.5)
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=1)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, RemoteError):
            pass  # gone, or not one of our clients
        except asyncio.CancelledError:
            pass  # the server closes
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether another may follow on this connection."""
        length = decode_length(await reader.readexactly(LENGTH.size))
        message = decode(await reader.readexactly(length))
        pump: Pump | None = None
        try:
            request = request_from(message)
            answer = await self._carry_out(request)
            if request.is_stream:
                pump, answer = answer, request.answer()
            reply = {"result": to_json(answer)}
        except Exception as problem:  # the client is told, whatever it is
            reply = {"error": describe(problem)}
        writer.write(encode(reply))
        await writer.drain()
        if pump is None:
            return True
        await pump(reader, writer)
        return False

    async def _carry_out(self, request: Request[Any]) -> Any:
        method = self.vm.handlers[request.operation]
        if inspect.iscoroutinefunction(method):
            return await method(request)
        return await asyncio.to_thread(method, request)


def request_from(message: dict[str, Any]) -> Request[Any]:
    """The request that a message carries. Raises `RemoteError`."""
    name = message.get("operation")
    kind = OPERATIONS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise RemoteError(f"no operation is called {name!r:.60}")
    return from_json(kind, message.get("arguments", {}), str(name))


async def copy_both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    read: Callable[[], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    end_of_input: Callable[[], None] | None = None,
) -> None:
    """Carry bytes between a client and `read`/`write` until `read` gives none.

    When the client sends no more `end_of_input()` is called; without one, all ends then.
    """

    async def inward() -> None:
        while data := await reader.read(BUFFER_BYTES):
            await write(data)
        if end_of_input is not None:
            end_of_input()
            await asyncio.Future()  # the other direction says when it is over

    async def outward() -> None:
        while data := await read():
            writer.write(data)
            await writer.drain()

    tasks = [asyncio.ensure_future(inward()), asyncio.ensure_future(outward())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
