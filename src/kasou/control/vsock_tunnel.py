"""A client's connection carried on to a port of the guest, over vsock.

The device calls back on harts' threads with the board's lock held: callbacks only leave a note and wake
the control loop. What the guest sends is given back its room once the client has taken it, so a slow
client holds up its own connection and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kasou.control.server import Pump, copy_both_ways
from kasou.errors import GuestError, HostError

if TYPE_CHECKING:
    from kasou.devices.virtio.vsock_stream import VsockStream
    from kasou.machine.machine import Machine

RETRY_SECONDS = 0.1
"""Between attempts at a port where nobody listens yet."""


class GuestStream:
    """One connection to the guest, for coroutines of the control loop."""

    def __init__(self, machine: Machine, port: int) -> None:
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._read_woken, self._write_woken = asyncio.Event(), asyncio.Event()
        self._data: list[bytes] = []
        self._connected = self._eof = self._writable = False
        self._closed: str | None = None
        vsock = machine.plugged.vsock
        assert vsock is not None, "only VMs with an agent are asked for a tunnel"
        with machine.lock:
            self._stream: VsockStream = vsock.connect_to(port)
            self._stream.on_connected = self._note_connected
            self._stream.on_data = self._note_data
            self._stream.on_writable = self._note_writable
            self._stream.on_eof = self._note_eof
            self._stream.on_closed = self._note_closed

    # ---- callbacks, any thread
    def _wake(self) -> None:
        def wake() -> None:
            self._read_woken.set()
            self._write_woken.set()

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(wake)

    def _note_connected(self) -> None:
        self._connected = True
        self._wake()

    def _note_data(self, data: bytes) -> None:
        self._data.append(data)
        self._wake()

    def _note_writable(self) -> None:
        self._writable = True
        self._wake()

    def _note_eof(self) -> None:
        self._eof = True
        self._wake()

    def _note_closed(self, reason: str) -> None:
        self._closed = reason
        self._wake()

    # ---- coroutines; one reads and one writes at the same time
    async def connected(self) -> bool:
        """Wait for the guest's word: whether someone listens there."""
        while not self._connected and self._closed is None:
            await self._wait(self._read_woken)
        return self._connected

    async def read(self) -> bytes:
        """What the guest sent; empty at the end."""
        while True:
            with self._machine.lock:
                data, self._data = b"".join(self._data), []
                if data and self._closed is None:
                    self._stream.consume(len(data))
            if data or self._eof or self._closed is not None:
                return data
            await self._wait(self._read_woken)

    async def write(self, data: bytes) -> None:
        """Send all of `data`; silently nothing once the connection has ended."""
        while data and self._closed is None:
            with self._machine.lock:
                self._writable = False
                taken = self._stream.write(data)
            data = data[taken:]
            while data and not self._writable and self._closed is None:
                await self._wait(self._write_woken)

    @staticmethod
    async def _wait(woken: asyncio.Event) -> None:
        await woken.wait()
        woken.clear()

    def end_input(self) -> None:
        """We send no more."""
        with self._machine.lock:
            self._stream.shutdown()

    def close(self) -> None:
        """Give it up."""
        with self._machine.lock:
            if self._closed is None:
                self._stream.reset()


async def connect(machine: Machine, port: int, timeout: float, name: str) -> GuestStream:
    """A connection to the guest's `port`, waiting up to `timeout` seconds for a listener.

    Raises `HostError` when there is none by then.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        stream = GuestStream(machine, port)
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + 0.5)):
                if await stream.connected():
                    return stream
        except TimeoutError:
            pass
        except BaseException:
            stream.close()
            raise
        stream.close()
        if loop.time() >= deadline:
            raise HostError(
                f"{name}: the guest does not answer on vsock port {port}"
                f" (waited {timeout:g} s); is it still starting? see kasou logs {name}"
            )
        await asyncio.sleep(RETRY_SECONDS)


async def open_tunnel(machine: Machine, port: int, timeout: float, name: str) -> Pump:
    """What carries a client's bytes to the guest's `port` and back; errors as with `connect`."""
    stream = await connect(machine, port, timeout, name)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await copy_both_ways(reader, writer, stream.read, stream.write, stream.end_input)
        finally:
            stream.close()

    return pump


async def ask_guest(
    machine: Machine, do: str, fields: Mapping[str, object], timeout: float, name: str
) -> Mapping[str, object]:
    """One question to the guest's agent, and its answer.

    Raises `HostError` when it does not answer within `timeout` seconds, `GuestError` with the
    reason when it cannot do it.
    """
    from kasou.guest.agent.client import Answer, Client, Failed
    from kasou.guest.agent.protocol import PORT

    stream = await connect(machine, PORT, timeout, name)
    try:
        client = Client(do, fields)
        await stream.write(client.to_send())
        async with asyncio.timeout(timeout):
            while True:
                data = await stream.read()
                for event in client.receive(data) if data else client.receive_eof():
                    if isinstance(event, Answer):
                        return event.value
                    if isinstance(event, Failed):
                        raise GuestError(f"{name}: {do}: {event.message}")
    except TimeoutError:
        raise HostError(f"{name}: the guest's agent did not answer in {timeout:g} s") from None
    finally:
        stream.close()


async def run_in_guest(
    machine: Machine, command: Sequence[str], timeout: float, name: str
) -> tuple[int, bytes]:
    """Run `command` through the guest's agent: its exit status and standard output.

    Raises `HostError` when it does not end within `timeout` seconds, `GuestError` when it cannot start.
    """
    from kasou.guest.agent.client import ExecClient, Exit, Failed, Stdout
    from kasou.guest.agent.protocol import PORT

    stream = await connect(machine, PORT, timeout, name)
    output = bytearray()
    try:
        client = ExecClient(list(command))
        client.close_stdin()
        await stream.write(client.to_send())
        async with asyncio.timeout(timeout):
            while True:
                data = await stream.read()
                for event in client.receive(data) if data else client.receive_eof():
                    if isinstance(event, Stdout):
                        output += event.data
                    elif isinstance(event, Exit):
                        return event.status, bytes(output)
                    elif isinstance(event, Failed):
                        raise GuestError(f"{name}: {command[0]}: {event.message}")
                if more := client.to_send():
                    await stream.write(more)
    except TimeoutError:
        raise HostError(f"{name}: {command[0]} did not end in {timeout:g} s") from None
    finally:
        stream.close()
