"""Runs the harts: their threads, their sleep, and the one safe point where all of them stand still.

With the host's clock every hart has a thread of its own. With `--clock icount`, and on the reference
engine, all harts take turns in fixed slices on one thread. Harts never run on the main thread.

What has deadlines of its own besides the harts (the board's clock, a network that must be a
function of counted time) is a `Companion`. With counted time the turns serve it; otherwise a thread
does, once there is something to wait for.

The safe point: `park` makes every hart leave compiled code at an instruction boundary and wait, until
the last of those who parked them lets go. A hart that sleeps in `wfi` or is stopped counts as parked
once it has noticed. Nothing of the guest is in flight then: devices are served on harts' threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from kasou.engine.hart_state import TICK_NS, Exit
from kasou.guest.sbi import HartStatus
from kasou.machine.config import Outcome
from kasou.machine.core import NEVER, Core

if TYPE_CHECKING:
    from kasou.machine.machine import Machine

TURN = 20_000
"""Instructions a hart runs before the next one's turn, with one thread for all."""
HTIF_SLICE = {"interpreter": 500_000, "reference": 2_000}
"""Instructions between looks at `tohost`: some milliseconds."""


class Companion(Protocol):
    """Something beside the harts that lives in the guest's time."""

    def serve(self) -> int | None:
        """Do what is due; the ns until more will be, None if nothing waits."""
        ...


class Runner:
    """The threads of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.outcome: Outcome | None = None
        self.stopping = False
        self._done = threading.Event()
        self._problems: list[BaseException] = []
        self._local = threading.local()
        self._gate = threading.Condition()
        self._parkers = 0
        """How many want the harts to stand still."""
        self._moving = 0
        """Threads that are not waiting at the gate."""
        self.on_breakpoint: Callable[[int], None] | None = None
        """Called with the hart's number, on its thread, when it stops; the harts are then held."""
        self.companions: list[Companion] = []
        self._armed = threading.Event()
        self._timekeeper: threading.Thread | None = None

    @property
    def current(self) -> Core:
        """The hart whose thread this is; the first one on other threads."""
        core: Core = getattr(self._local, "core", self.machine.cores[0])
        return core

    # ------------------------------------------------------------------ parking
    @contextmanager
    def park(self) -> Iterator[None]:
        """All harts stand still inside; may nest, from any thread but a hart's own."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def hold(self, wait: bool = True) -> None:
        """Stop all harts at an instruction boundary, until `release` was called as often.

        A hart's own thread does not `wait`: it stops when it comes to the end of its slice.
        """
        with self._gate:
            self._parkers += 1
            if self._parkers == 1:
                for core in self.machine.cores:
                    core.request_exit()
            if wait:
                self._gate.wait_for(lambda: self._moving == 0)

    def release(self) -> None:
        """Let the harts go on, if nobody else holds them."""
        with self._gate:
            assert self._parkers > 0, "release without hold"
            self._parkers -= 1
            self._gate.notify_all()

    @property
    def parked(self) -> bool:
        """Whether somebody holds the harts."""
        return self._parkers > 0

    def step(self, core: Core) -> None:
        """Run one instruction of a hart on the caller's thread; all harts must be parked."""
        assert self.parked and not self._moving, "a step beside running harts"
        core.block.set("exit_request", 0)
        self._local.core = core
        try:
            core.run(core.count + 1)
        finally:
            del self._local.core

    def _breakpoint(self, core: Core) -> None:
        """A hart stands before a breakpoint: hold all for whoever debugs."""
        self.hold(wait=False)
        if self.on_breakpoint is not None:
            self.on_breakpoint(core.index)

    def _pass_gate(self) -> None:
        """Between slices: wait here while the harts are to stand still."""
        if not self._parkers:
            return
        with self._gate:
            self._moving -= 1
            self._gate.notify_all()
            self._gate.wait_for(lambda: not self._parkers or self.stopping)
            self._moving += 1

    # ------------------------------------------------------------------ companions
    def armed(self) -> None:
        """A companion has a new deadline; from any thread."""
        self._armed.set()
        if self._timekeeper is None and not self.machine.one_thread:
            self._timekeeper = threading.Thread(
                target=self._keep_time, name="timekeeper", daemon=True
            )
            self._timekeeper.start()

    def _serve_companions(self) -> int | None:
        """Serve them all; the ns until the first of them needs it again."""
        waits = [wait for one in self.companions if (wait := one.serve()) is not None]
        return min(waits, default=None)

    def _keep_time(self) -> None:
        while not self.stopping:
            wait = self._serve_companions()
            self._armed.wait(None if wait is None else min(wait / 1e9, 3600.0))
            self._armed.clear()
        self._timekeeper = None

    # ------------------------------------------------------------------ a run
    def finish(self, outcome: Outcome) -> None:
        """End the run; the first outcome stands. From any thread."""
        if self.outcome is None:
            self.outcome = outcome
        self.stopping = True
        for core in self.machine.cores:
            core.request_exit()
        with self._gate:
            self._gate.notify_all()
        self._armed.set()
        self._done.set()

    def run(self, end: float | None) -> Outcome:
        """Run until the guest ends or resets, or until `end` of the host's monotonic clock."""
        if self.outcome is not None and self.outcome.kind == "stopped":
            return self.outcome
        self.outcome, self.stopping = None, False
        self._done.clear()
        for core in self.machine.cores:
            core.block.set("exit_request", 0)
        bodies: list[tuple[Callable[..., None], tuple[Any, ...]]] = (
            [(self._take_turns, ())]
            if self.machine.one_thread
            else [(self._run_core, (core,)) for core in self.machine.cores]
        )
        threads = [
            threading.Thread(target=self._guard, args=(body, *args), name="hart", daemon=True)
            for body, args in bodies
        ]
        with self._gate:
            self._moving = len(threads)
        for thread in threads:
            thread.start()
        remaining = None if end is None else max(0.0, end - time.monotonic())
        if not self._done.wait(remaining):
            self.finish(Outcome("timeout"))
        for thread in threads:
            thread.join()
        if self._problems:
            raise self._problems[0]
        assert self.outcome is not None
        return self.outcome

    def _guard(self, body: Callable[..., None], *args: Any) -> None:
        try:
            body(*args)
        except BaseException as problem:  # carried to the caller of run()
            self._problems.append(problem)
            self.finish(Outcome("stopped"))
        finally:
            with self._gate:
                self._moving -= 1
                self._gate.notify_all()

    # ------------------------------------------------------------------ one thread a hart
    def _run_core(self, core: Core) -> None:
        self._local.core = core
        machine = self.machine
        limit = machine.config.max_instructions or NEVER
        while not self.stopping:
            self._pass_gate()
            if machine.statuses[core.index] != HartStatus.STARTED:
                core.wake.wait()
                core.wake.clear()
                continue
            until = (
                limit
                if machine.htif is None
                else min(limit, core.count + HTIF_SLICE[machine.config.engine])
            )
            reason = core.run(until)
            if reason == Exit.WFI:
                self.sleep(core)
            elif reason == Exit.DEBUG:
                self._breakpoint(core)
            self._after_slice(core, limit)

    def _after_slice(self, core: Core, limit: int) -> None:
        if self.machine.htif is not None:
            code = self.machine.htif.poll()
            if code is not None:
                self.finish(Outcome("exit", code))
        if core.count >= limit and not self.stopping:
            self.finish(Outcome("budget"))

    def sleep(self, core: Core) -> None:
        """`wfi`: until an interrupt is pending or a timer is due, or the harts are to park."""
        while not (self.stopping or self._parkers):
            core.wake.clear()
            if core.sees_interrupt() or self._parkers:
                break
            deadline = core.deadline()
            seconds = None if deadline is None else (deadline - core.time()) * TICK_NS / 1e9
            if seconds is None or seconds > 0:
                core.wake.wait(seconds if seconds is None else min(seconds, 3600.0))
        core.attend()

    # ------------------------------------------------------------------ one thread for all
    def _take_turns(self) -> None:
        """All harts on this thread, in slices of fixed length."""
        machine = self.machine
        limit = machine.config.max_instructions or NEVER
        alone = len(machine.cores) == 1
        while not self.stopping:
            self._pass_gate()
            idle, wait = True, self._serve_companions()
            for core in machine.cores:
                if machine.statuses[core.index] != HartStatus.STARTED or self.stopping:
                    continue
                self._local.core = core
                if core.asleep and not core.sees_interrupt():
                    continue
                core.asleep = False
                turn = HTIF_SLICE[machine.config.engine] if alone else TURN
                core.block.set("attention", NEVER)
                reason = core.run(min(limit, core.count + turn))
                core.asleep = reason == Exit.WFI
                if reason == Exit.DEBUG:
                    self._breakpoint(core)
                    break
                idle = idle and core.asleep
                self._after_slice(core, limit)
            if idle and not self.stopping:
                self._skip_to_deadline(wait)

    def _skip_to_deadline(self, wait: int | None) -> None:
        """Everyone sleeps: time jumps to the next timer, or input is waited for.

        `wait` is how many ns from now a companion needs to be served.
        """
        machine = self.machine
        running = [c for c in machine.cores if machine.statuses[c.index] == HartStatus.STARTED]
        if any(c.sees_interrupt() for c in running):
            return
        waits = [d - c.time() for c in running if (d := c.deadline()) is not None]
        if wait is not None:
            waits.append(-(-wait // TICK_NS))
        if waits:
            for core in machine.cores:
                core.block.set("time_offset", core.block.get("time_offset") + max(0, min(waits)))
            return
        for core in running:
            core.wake.wait(0.05)
            core.wake.clear()
