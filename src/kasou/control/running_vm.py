"""A VM that runs in this process: its machine, and the operations on it.

One thread runs the machine (`run`), the control thread serves requests, and operations that change
the machine's state take turns by `_changing`. Methods are named as the rows of `operations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kasou.control import operations as op
from kasou.control.assembly import Plugged, build, plug
from kasou.control.serial import Attachment, SerialLog
from kasou.control.server import Pump, copy_both_ways
from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import State, VmDirectory, VmState
from kasou.errors import ConfigError, HostError, KasouError

if TYPE_CHECKING:
    from kasou.machine.machine import Machine

GRACE_SECONDS = 15.0
"""How long a held VM waits for the first one to hold it."""
POWER_DOWN_SECONDS = 60.0


class RunningVm:
    """The VM of `directory`, whose lock the caller holds.

    `terminal` gets what the serial port sends, besides the log. Raises `ConfigError` and
    `HostError` for what cannot be built.
    """

    def __init__(
        self,
        directory: VmDirectory,
        config: VmConfig,
        terminal: Callable[[bytes], None] | None = None,
    ) -> None:
        self.directory = directory
        self.config = config
        self.serial = SerialLog(directory.console_log)
        self.started = time.time()
        self.ended: op.Ended | None = None
        self._terminal = terminal
        self._finished = threading.Event()
        self._changing = threading.Lock()
        self._paused = False
        self._removed = False
        self._holders = 0
        self._asked_to_end: str | None = None
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.plugged: Plugged = plug(config, directory)
        try:
            self.machine: Machine = build(config, self.plugged, self._console_output)
        except BaseException:
            self.plugged.close()
            raise
        self._say("running")

    # ------------------------------------------------------------------ life
    def run(self, timeout: float | None = None) -> op.Ended:
        """Run the machine to its end on this thread, then write down how it was."""
        if self.config.held:
            threading.Timer(GRACE_SECONDS, self._nobody_holds).start()
        try:
            outcome = self.machine.run(timeout)
            ended = op.Ended(outcome.kind, outcome.code)
        except KasouError as problem:
            ended = op.Ended("failed", 125, str(problem))
            raise
        except BaseException as problem:
            ended = op.Ended("failed", 125, f"{type(problem).__name__}: {problem}")
            raise
        finally:
            self._end(ended)
        return ended

    def _end(self, ended: op.Ended) -> None:
        self.plugged.close()
        self.ended = ended
        if self.config.ephemeral:
            with contextlib.suppress(KasouError):
                self.directory.remove()
        elif self.directory.exists:
            with contextlib.suppress(KasouError):
                self._say("stopped")
        self._finished.set()
        for loop, event in self._waiting:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

    def _say(self, state: State) -> None:
        ended = self.ended or op.Ended("")
        self.directory.write_state(
            VmState(state, os.getpid(), self.started, ended.kind or None, ended.code, ended.message)
        )

    def _console_output(self, data: bytes) -> None:
        if self._terminal is not None:
            self._terminal(data)
        self.serial.write(data)

    def _nobody_holds(self) -> None:
        if self._holders == 0:
            self.machine.stop()

    # ------------------------------------------------------------------ looking
    def info(self, request: op.Info) -> op.VmInfo:
        """What it is and how it does."""
        return describe(
            self.config,
            self.directory,
            VmState("paused" if self._paused else "running", os.getpid(), self.started),
            statistics=self.machine.statistics(),
            ports=self._forwards(),
        )

    # ------------------------------------------------------------------ ending
    async def wait(self, request: op.Wait) -> op.Ended:
        """The machine's end."""
        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        if not self._finished.is_set():
            await event.wait()
        assert self.ended is not None
        return self.ended

    def stop(self, request: op.Stop) -> op.Ended:
        """End it: by the power button, or at once."""
        if not request.force:
            self._press_power_button()
            if self._finished.wait(request.timeout):
                assert self.ended is not None
                return self.ended
            if not request.then_force:
                raise HostError(
                    f"{self.config.name}: still running {request.timeout:g} s after it was asked to"
                    f" power off; kasou stop --force {self.config.name} ends it at once"
                )
        self.machine.stop()
        if not self._finished.wait(POWER_DOWN_SECONDS):
            os.kill(os.getpid(), signal.SIGKILL)
        assert self.ended is not None
        return self.ended

    def _press_power_button(self) -> None:
        if self._paused:
            self.resume(op.Resume())
        raise ConfigError(
            f"{self.config.name}: its guest runs no agent to power it off;"
            f" kasou stop --force {self.config.name} ends it at once"
        )

    def pause(self, request: op.Pause) -> op.Done:
        """Stop the harts."""
        with self._changing:
            self._refuse_ended()
            if not self._paused:
                self.machine.pause()
                self._paused = True
                self._say("paused")
        return op.Done()

    def resume(self, request: op.Resume) -> op.Done:
        """Let the harts go on."""
        with self._changing:
            self._refuse_ended()
            if self._paused:
                self.machine.resume()
                self._paused = False
                self._say("running")
        return op.Done()

    def _refuse_ended(self) -> None:
        if self._finished.is_set():
            raise ConfigError(f"{self.config.name}: has ended")

    # ------------------------------------------------------------------ streams
    async def hold(self, request: op.Hold) -> Pump:
        """One more who holds it."""
        self._holders += 1

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(4096):
                    pass
            finally:
                self._holders -= 1
                if self._holders == 0 and self.config.held:
                    self.machine.stop()

        return pump

    async def console(self, request: op.Console) -> Pump:
        """The serial port."""
        attachment: Attachment = self.serial.attach(request.replay)

        async def write(data: bytes) -> None:
            await asyncio.to_thread(self.machine.console_input, data)

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await copy_both_ways(reader, writer, attachment.read, write, lambda: None)
            finally:
                self.serial.detach(attachment)

        return pump

    async def tunnel(self, request: op.Tunnel) -> Pump:
        """A stream to a vsock port of the guest."""
        raise ConfigError(f"{self.config.name}: its guest has no agent to talk to")

    async def capture(self, request: op.Capture) -> Pump:
        """Frames as pcapng."""
        raise ConfigError(f"{self.config.name}: has no network to capture")

    # ------------------------------------------------------------------ network
    def _forwards(self) -> tuple[op.PortForward, ...]:
        return ()

    def port_list(self, request: op.PortList) -> op.PortForwards:
        """The forwarded ports."""
        return op.PortForwards(self._forwards())

    def port_add(self, request: op.PortAdd) -> op.PortForward:
        """Forward one more."""
        raise ConfigError(f"{self.config.name}: has no network")

    def port_remove(self, request: op.PortRemove) -> op.Done:
        """Forward one less."""
        raise ConfigError(f"{self.config.name}: has no network")

    # ------------------------------------------------------------------ snapshots
    def snapshot_create(self, request: op.SnapshotCreate) -> op.SnapshotInfo:
        """Keep this moment."""
        raise ConfigError("snapshots: not in this version of kasou")

    def snapshot_restore(self, request: op.SnapshotRestore) -> op.SnapshotInfo:
        """Go back."""
        raise ConfigError("snapshots: not in this version of kasou")

    def snapshot_remove(self, request: op.SnapshotRemove) -> op.Done:
        """Forget one."""
        raise ConfigError("snapshots: not in this version of kasou")

    def fork(self, request: op.Fork) -> op.Forked:
        """Live copies."""
        raise ConfigError("forks: not in this version of kasou")

    def save(self, request: op.Save) -> op.Done:
        """The whole VM as a file."""
        raise ConfigError("save: not in this version of kasou")


def describe(
    config: VmConfig,
    directory: VmDirectory,
    state: VmState,
    statistics: dict[str, object] | None = None,
    ports: tuple[op.PortForward, ...] = (),
    address: str | None = None,
) -> op.VmInfo:
    """A VM as `kasou info` shows it, running or not."""
    return op.VmInfo(
        name=config.name,
        state=state.state,
        image=config.image,
        cpus=config.cpus,
        memory=config.memory,
        created=config.created,
        pid=state.pid if state.state in ("running", "paused") else None,
        started=state.started,
        ended=op.Ended(state.ended, state.code, state.message) if state.ended else None,
        ports=ports,
        network=config.network,
        address=address,
        clock=config.clock,
        seed=config.seed,
        technique=config.technique,
        ephemeral=config.ephemeral,
        parent=config.parent,
        agent=config.agent,
        directory=str(directory.path),
        console_log=str(directory.console_log),
        statistics=statistics or {},
    )
