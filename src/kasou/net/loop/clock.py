"""Whose time a loop lives in, and how it waits.

This is the one place of `net` with a clock and a lock in it: an event loop has to wait for real
where its packets come from real machines. Everything else is still told the time.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Time in ns, and sleep that can be ended from any thread."""

    def now(self) -> int:
        """The time, never less than before."""
        ...

    def wait(self, until: int | None) -> None:
        """Sleep until `until` (None: for ever) or until `wake`, whichever is first."""
        ...

    def wake(self) -> None:
        """End the present wait, or the next if there is none. May be called on any thread."""
        ...


class MonotonicClock:
    """The host's monotonic clock."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def now(self) -> int:
        """`CLOCK_MONOTONIC`."""
        return time.monotonic_ns()

    def wait(self, until: int | None) -> None:
        """Sleep; see `Clock`."""
        if until is None:
            self._woken.wait()
        else:
            self._woken.wait(max(0, until - time.monotonic_ns()) / 1e9)
        self._woken.clear()

    def wake(self) -> None:
        """See `Clock`."""
        self._woken.set()


class VirtualClock:
    """Time that a `Simulation` sets; `wait` returns at once, the simulation knows what for."""

    def __init__(self, start: int = 0) -> None:
        self.time = start
        self.woken = threading.Event()

    def now(self) -> int:
        """What the simulation says."""
        return self.time

    def wait(self, until: int | None) -> None:
        """Return at once."""

    def wake(self) -> None:
        """See `Clock`: the simulation may be waiting for an executor."""
        self.woken.set()
