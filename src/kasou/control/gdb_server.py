"""A TCP port for GDB: `target remote HOST:PORT`. One debugger at a time; the machine outlives it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from kasou.debug.gdb_protocol import SIGINT, SIGTRAP, GdbConnection
from kasou.debug.target import MachineTarget
from kasou.errors import ConfigError

if TYPE_CHECKING:
    from kasou.machine.machine import Machine

PORT = 1234
"""Where QEMU's `-s` listens."""


class GdbServer:
    """Listens at once; the machine is held from a debugger's arrival until it says go or leaves.

    `wait` holds the machine before its first instruction, as QEMU's `-S`. Raises `ConfigError` when the
    port cannot be had.
    """

    def __init__(
        self, machine: Machine, host: str = "127.0.0.1", port: int = PORT, wait: bool = False
    ) -> None:
        self._machine = machine
        self._waiting = wait
        self._connection: GdbConnection | None = None
        self._peer: socket.socket | None = None
        self._lock = threading.Lock()
        try:
            self._listener = socket.create_server((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"gdb: {host}:{port} cannot be listened on: {error}") from None
        self.port: int = self._listener.getsockname()[1]
        if wait:
            machine.runner.hold()
        threading.Thread(target=self._serve, name="gdb", daemon=True).start()

    def close(self) -> None:
        """The machine has ended: tell the debugger, and stop listening."""
        outcome = self._machine.outcome
        with self._lock:
            if self._connection is not None:
                self._connection.ended(outcome.code if outcome else 0)
                self._flush()
        # A socket that another thread waits on is only woken by a shutdown.
        for one in (self._listener, self._peer):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._debug(peer)

    def _debug(self, peer: socket.socket) -> None:
        target = MachineTarget(self._machine, self._stopped)
        if self._waiting:
            self._waiting = False
            self._machine.runner.release()  # the target holds the machine now
        connection = GdbConnection(target)
        with self._lock:
            self._connection, self._peer = connection, peer
        try:
            while not connection.closed and (data := peer.recv(65536)):
                interrupted = data == b"\x03"
                self._signal = SIGINT if interrupted else SIGTRAP
                connection.receive(data)
                with self._lock:
                    self._flush()
        except OSError:
            pass  # it has gone
        finally:
            with self._lock:
                self._connection = self._peer = None
            target.close()

    _signal = SIGTRAP

    def _stopped(self, hart: int) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.stopped(hart, self._signal)
                self._flush()

    def _flush(self) -> None:
        """Send what waits; the caller holds the lock."""
        if self._connection is not None and self._peer is not None:
            data = self._connection.to_send()
            if data:
                with contextlib.suppress(OSError):
                    self._peer.sendall(data)
