"""Several loops in one thread and one virtual time, joined by cables that may be bad.

Loops take turns. When all of them wait, time jumps to the first thing that any waits for, or that
is on a wire: a test of a minute of retransmissions takes milliseconds, and a seed repeats it. While
a loop's executor is at work, time stands and the thread waits for real.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from kasou.errors import LocalError
from kasou.net.link.offload import complete, segment
from kasou.net.loop.clock import VirtualClock
from kasou.net.loop.stack_loop import StackLoop
from kasou.net.physical.link import SimulatedLink
from kasou.ports import Frame, FrameSink

T = TypeVar("T")


class CableEnd:
    """A `Port`: what is sent here arrives at the other end, through `link` if there is one."""

    def __init__(self, clock: VirtualClock, link: SimulatedLink | None) -> None:
        self.clock, self.link = clock, link
        self.peer: CableEnd | None = None
        self.sink: FrameSink | None = None

    def send(self, frames: Sequence[Frame]) -> None:
        """Frames as they are on a perfect cable; cut and checksummed on a simulated link."""
        if self.link is None:
            if self.peer is not None and self.peer.sink is not None:
                self.peer.sink(frames)
            return
        for frame in frames:
            for piece in segment(frame):
                self.link.send(complete(piece).data, self.clock.now())

    def attach(self, sink: FrameSink | None) -> None:
        """See `Port`."""
        self.sink = sink

    def deliver(self) -> bool:
        """Hand what has arrived on the link to the other end; False when nothing has."""
        if self.link is None or self.peer is None:
            return False
        arrived = self.link.receive(self.clock.now())
        if arrived and self.peer.sink is not None:
            self.peer.sink([Frame(data) for data in arrived])
        return bool(arrived)


class Cable:
    """Two ends, `a` and `b`; a `SimulatedLink` for each direction, or None for a perfect one."""

    def __init__(
        self,
        clock: VirtualClock,
        there: SimulatedLink | None = None,
        back: SimulatedLink | None = None,
    ) -> None:
        self.a, self.b = CableEnd(clock, there), CableEnd(clock, back)
        self.a.peer, self.b.peer = self.b, self.a


class Simulation:
    """Loops, cables and their time. All loops share `clock`."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.loops: list[StackLoop] = []
        self.cables: list[Cable] = []

    def run_until_complete(self, loop: StackLoop, main: Awaitable[T]) -> T:
        """Run all loops until `main`, to be awaited on `loop`, is done.

        Raises `LocalError` when it never will be: nothing is under way and nothing is waited for.
        """
        future = asyncio.ensure_future(main, loop=loop)
        while not future.done():
            if not self.turn():
                future.cancel()
                raise LocalError("simulation: every loop waits and nothing will ever come")
        return future.result()

    def turn(self) -> bool:
        """Each loop once; let time pass if all wait. False when nothing can ever happen."""
        self.clock.woken.clear()
        for loop in self.loops:
            _run_once(loop)
        delivered = [end.deliver() for cable in self.cables for end in (cable.a, cable.b)]
        if any(delivered) or not all(loop.is_idle and not loop.has_work for loop in self.loops):
            return True
        if any(loop.executing for loop in self.loops):
            self.clock.woken.wait(timeout=10)
            return True
        links = [end.link for cable in self.cables for end in (cable.a, cable.b)]
        due = [loop.idle_until for loop in self.loops]
        due += [link.deadline() for link in links if link is not None]
        soonest = min((at for at in due if at is not None), default=None)
        if soonest is None:
            return False
        self.clock.time = max(self.clock.time, soonest)
        return True


def _run_once(loop: StackLoop) -> None:
    """One turn of `loop` as `run_forever` would make it."""
    hooks = sys.get_asyncgen_hooks()
    running = asyncio._get_running_loop()
    private: Any = loop
    private._thread_id = threading.get_ident()
    sys.set_asyncgen_hooks(
        firstiter=private._asyncgen_firstiter_hook, finalizer=private._asyncgen_finalizer_hook
    )
    asyncio._set_running_loop(loop)
    try:
        private._run_once()
    finally:
        asyncio._set_running_loop(running)
        private._thread_id = None
        sys.set_asyncgen_hooks(*hooks)
