"""A selector that other threads can wake: what a network's thread waits in."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

Handler = Callable[[int], None]
"""Called with what is ready: `READ`, `WRITE` or both."""


class Reactor:
    """Sockets and what they are waited for. Only `post` and `wake` may be called by other threads."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._posted: deque[Callable[[], None]] = deque()
        self._sleeping = False
        if hasattr(os, "eventfd"):
            self._wake_read = self._wake_write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._wake_read, self._wake_write = os.pipe()
            os.set_blocking(self._wake_read, False)
            os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, READ, self._woken)

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` in the next `poll`. From any thread."""
        self._posted.append(action)
        self.wake()

    def wake(self) -> None:
        """End a `poll` that waits, or keep the next one from waiting. From any thread."""
        if self._sleeping:
            self._sleeping = False
            with contextlib.suppress(OSError):  # a full pipe wakes as well
                os.write(self._wake_write, b"\1\0\0\0\0\0\0\0")

    def wait(
        self, timeout_s: float | None, is_idle: Callable[[], bool]
    ) -> list[tuple[Handler, int]]:
        """What is ready, at most after `timeout_s`; for `run`.

        `is_idle` is asked once more after wakers have begun to look, so that none is missed.
        """
        self._sleeping = True
        if self._posted or not is_idle():
            timeout_s = 0
        ready = self._selector.select(timeout_s)
        self._sleeping = False
        return [(key.data, mask) for key, mask in ready]

    def run(self, ready: list[tuple[Handler, int]]) -> None:
        """Handle what `wait` gave, and what was posted."""
        for handler, mask in ready:
            handler(mask)
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    def register(self, sock: socket.socket, events: int, handler: Handler) -> None:
        """Call `handler` with what `sock` is ready for."""
        self._selector.register(sock, events, handler)

    def modify(self, sock: socket.socket, events: int, handler: Handler) -> None:
        """Wait for other `events`."""
        self._selector.modify(sock, events, handler)

    def unregister(self, sock: socket.socket) -> None:
        """Wait for `sock` no longer."""
        self._selector.unregister(sock)

    def close(self) -> None:
        """Let go of the selector. Sockets are their owners' to close."""
        self._selector.close()
        for descriptor in {self._wake_read, self._wake_write}:
            os.close(descriptor)

    def _woken(self, mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
