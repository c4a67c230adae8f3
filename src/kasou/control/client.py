"""The other end of the control socket: requests to a VM's process, from asyncio.

Every request has a connection of its own; that costs 0.1 ms and leaves nothing to share or lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from kasou.control.messages import LENGTH, decode, decode_length, encode, error_from
from kasou.control.operations import Request
from kasou.control.socket_path import connected
from kasou.control.vm_directory import VmDirectory, no_such_vm
from kasou.errors import ConfigError, HostError, RemoteError
from kasou.json_values import from_json, to_json
from kasou.paths import runtime_directory

R = TypeVar("R")
Progress = Callable[[str], None]
PATIENCE_SECONDS = 10.0
"""How long a process that holds the lock may take to open its socket."""


class ByteStream:
    """A connection that carries plain bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, most: int = 1 << 16) -> bytes:
        """What has come, at least a byte; empty at the end."""
        try:
            return await self._reader.read(most)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises `HostError` when the VM's process has gone."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            raise HostError("the VM's process has gone") from None

    def end_input(self) -> None:
        """We send no more; reading goes on."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def close(self) -> None:
        """Both ways; may be called twice."""
        self._writer.close()


class ControlClient:
    """Asks the process of the VM in `directory`."""

    def __init__(self, directory: VmDirectory) -> None:
        self.directory = directory

    async def call(self, request: Request[R], progress: Progress | None = None) -> R:
        """The answer to `request`.

        Raises `ConfigError` when the VM does not run, and what its process raised.
        """
        reader, writer = await self._connect()
        try:
            return await self._ask(reader, writer, request, progress)
        finally:
            writer.close()

    async def open(self, request: Request[Any]) -> ByteStream:
        """The stream that a stream operation opens; errors as with `call`."""
        assert request.is_stream, request
        reader, writer = await self._connect()
        try:
            await self._ask(reader, writer, request, None)
        except BaseException:
            writer.close()
            raise
        return ByteStream(reader, writer)

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: Request[R],
        progress: Progress | None,
    ) -> R:
        try:
            writer.write(encode({"operation": request.operation, "arguments": to_json(request)}))
            await writer.drain()
            while True:
                length = decode_length(await reader.readexactly(LENGTH.size))
                message = decode(await reader.readexactly(length))
                if "progress" not in message:
                    break
                if progress is not None:
                    progress(str(message["progress"]))
        except (ConnectionError, asyncio.IncompleteReadError):
            raise HostError(f"{self.directory.name}: its process has gone") from None
        if "error" in message:
            raise error_from(message["error"])
        if "result" not in message:
            raise RemoteError(f"{self.directory.name}: an answer without a result")
        return from_json(request.answer, message["result"])

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        path = runtime_directory() / self.directory.socket_name
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        while True:
            try:
                client: socket.socket = connected(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if not self.directory.exists:
                    raise no_such_vm(self.directory.name) from None
                if not self.directory.is_locked():
                    with contextlib.suppress(OSError):  # stale: its process died
                        os.unlink(path)
                    raise not_running(self.directory) from None
                if loop.time() > deadline:
                    raise HostError(
                        f"{self.directory.name}: its process (pid {self.directory.holder()})"
                        " does not answer"
                    ) from None
                await asyncio.sleep(0.02)
            except OSError as problem:
                raise HostError(f"{path}: {problem.strerror}") from None
        client.setblocking(False)
        return await asyncio.open_unix_connection(sock=client, limit=1 << 18)


def not_running(directory: VmDirectory) -> ConfigError:
    """The error that says so, and how to start it."""
    state = directory.state().state
    return ConfigError(
        f"{directory.name}: {state}, not running; kasou start {directory.name} starts it"
    )
