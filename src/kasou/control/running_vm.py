"""A VM that runs in this process: its machine, and the operations on it.

One thread runs the machine (`run`), the control thread serves requests, and operations that change
the machine's state take turns by `changing`. The machine may be exchanged for another one, as it was
in a snapshot: `run` goes on with that. `handlers` are the rows of `operations`, some from here, the
others from `moments` and `vm_network`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from kasou.control import operations as op
from kasou.control import warm
from kasou.control.assembly import Assembled, Handlers, Origin, assemble
from kasou.control.disks import read_tops
from kasou.control.serial import SerialLog
from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import State, VmDirectory, VmState
from kasou.errors import ConfigError, HostError, KasouError

if TYPE_CHECKING:
    import asyncio

    from kasou.control.moments import Moments
    from kasou.control.server import Pump
    from kasou.control.vm_network import VmNetwork
    from kasou.machine.config import Nic
    from kasou.machine.machine import Machine
    from kasou.vmm.zygote import Zygote

log = logging.getLogger("kasou.control")

GRACE_SECONDS = 15.0
"""How long a held VM waits for the first one to hold it."""
BOOT_SECONDS = 600.0
PROMPT_SECONDS = 60.0
RENEWAL_SECONDS = 2.0
"""How long a command waits for the guest to be corrected first."""
SETTLE_SECONDS = 0.5
END_SECONDS = 30.0
"""How long a machine may take to stop and flush before its process is killed."""


class RunningVm:
    """The VM of `directory`, whose lock the caller holds.

    `terminal` gets what the serial port sends, besides the log. `origin` is what it goes on from.
    Raises `ConfigError` and `HostError` for what cannot be built.
    """

    def __init__(
        self,
        directory: VmDirectory,
        config: VmConfig,
        terminal: Callable[[bytes], None] | None = None,
        origin: Origin | None = None,
        zygote: Zygote | None = None,
    ) -> None:
        self.directory = directory
        self.config = config
        self.zygote = zygote
        self.serial = SerialLog(directory.console_log)
        self.started = time.time()
        self.ended: op.Ended | None = None
        self.changing = threading.Lock()
        """Held by whoever pauses, saves or exchanges the machine."""
        self.restored_from = origin.snapshot if origin else None
        self.is_ephemeral, self.is_held = config.ephemeral, config.held
        self._terminal = terminal
        self._finished = threading.Event()
        self._holders = 0
        self._next: Assembled | None = None
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renewing: object = None
        self._first = config.agent and not read_tops(directory) and origin is None
        """It has never run before."""
        self._to_keep: str | None = None
        """The warm start that this VM is to make before anybody uses it."""
        self._free = threading.Event()
        """Set once users may type and run commands."""
        self._typed = bytearray()
        self._untold: Origin | None = None
        """What the guest is still to be corrected for, once somebody uses it."""
        self._prompts = False
        """The console asked for a command under another name."""
        if self._first and config.warm is not None:
            origin = warm.lend(config.warm, directory)
            if origin is None:
                self._to_keep = config.warm
        if self._to_keep is None:
            self._free.set()
        self._woke = origin
        self.network: VmNetwork | None = None
        if config.networked:
            from kasou.control.vm_network import VmNetwork

            self.network = VmNetwork(config)
        try:
            self.current: Assembled = self.assemble(origin)
        except BaseException:
            if self.network is not None:
                self.network.close()
            raise
        self.say("running")

    @cached_property
    def handlers(self) -> Handlers:
        """What carries out each operation; made when the first request comes."""
        from kasou.control.moments import Moments

        return {
            "info": self.info, "stop": self.stop, "wait": self.wait, "pause": self.pause,
            "resume": self.resume, "keep": self.keep, "hold": self.hold,
            "console": self.console, "tunnel": self.tunnel, **Moments(self).handlers,
            **dict.fromkeys(
                ("port_list", "port_add", "port_remove", "capture"), self._no_network
            ),
            **(self.network.handlers if self.network is not None else {}),
        }  # fmt: skip

    @property
    def is_paused(self) -> bool:
        """Whether its harts are held still."""
        return self.machine.is_paused

    @property
    def machine(self) -> Machine:
        """The machine that runs now."""
        return self.current.machine

    def assemble(self, origin: Origin | None) -> Assembled:
        """A machine of this VM, from power-on or from `origin`; errors as for the VM."""
        nics: tuple[Nic, ...] = ()
        if self.network is not None:
            from kasou.machine.config import Nic

            assert self.config.mac is not None
            nics = (Nic(self.network.wire, bytes.fromhex(self.config.mac.replace(":", ""))),)
        made = assemble(self.config, self.directory, nics, self._console_output, origin)
        made.machine.on_paused = partial(self._disk_paused, made.machine)
        if self.network is not None:
            self.network.serve(made.machine)
        return made

    # ------------------------------------------------------------------ life
    def run(self, timeout: float | None = None) -> op.Ended:
        """Run the machine, and those it is exchanged for, to the end; write down how it was."""
        if self.is_held:
            timer = threading.Timer(GRACE_SECONDS, self._nobody_holds)
            timer.daemon = True
            timer.start()
        try:
            while True:
                outcome = self.machine.run(timeout)
                if self._next is None:
                    break
                self.current.disks.close()
                self.current, self._next = self._next, None
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

    def exchange(self, assembled: Assembled, snapshot: str | None) -> None:
        """Go on with another machine; `changing` is held. The one that ran is dropped."""
        self.refuse_ended()
        if self.is_paused:
            self.machine.resume()
        self._next = assembled
        old = self.current
        self.machine.stop()
        deadline = time.monotonic() + END_SECONDS
        while self.current is old:
            if self._finished.is_set() or time.monotonic() > deadline:
                raise HostError(f"{self.config.name}: the machine did not stop")
            time.sleep(0.001)
        self.restored_from = snapshot
        self.say("running")

    def _end(self, ended: op.Ended) -> None:
        self.current.disks.close()
        if self.network is not None:
            self.network.close()
        self.ended = ended
        with contextlib.suppress(KasouError):
            if self.is_ephemeral:
                self.directory.remove()
            elif self.directory.exists:
                self.say("stopped")
        self._finished.set()
        for loop, event in self._waiting:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)

    def say(self, state: State) -> None:
        """Write down how it is."""
        ended = self.ended or op.Ended("")
        self.directory.write_state(
            VmState(
                state, os.getpid(), self.started, ended.kind or None, ended.code, ended.message,
                self.restored_from,
            )
        )  # fmt: skip

    def _console_output(self, data: bytes) -> None:
        if self._terminal is not None:
            self._terminal(data)
        self.serial.write(data)

    def _nobody_holds(self) -> None:
        if self.is_held and self._holders == 0:
            self.machine.stop()

    def _disk_paused(self, machine: Machine) -> None:
        """The machine has paused because the host could not do what a disk was asked."""
        log.error(
            "%s: paused: %s; make room, then kasou resume %s",
            self.config.name, machine.disk_error, self.config.name,
        )  # fmt: skip
        self.say("paused")

    def refuse_ended(self) -> None:
        """Raises `ConfigError` when the machine has ended."""
        if self._finished.is_set():
            raise ConfigError(f"{self.config.name}: has ended")

    # ------------------------------------------------------------------ looking
    def info(self, request: op.Info) -> op.VmInfo:
        """What it is and how it does."""
        return describe(
            replace(self.config, ephemeral=self.is_ephemeral),
            self.directory,
            VmState("paused" if self.is_paused else "running", os.getpid(), self.started),
            statistics=self.machine.statistics(),
            ports=self.network.forwards() if self.network is not None else (),
            address=self.network.address if self.network is not None else None,
        )

    # ------------------------------------------------------------------ ending
    async def wait(self, request: op.Wait) -> op.Ended:
        """The machine's end."""
        return await self._end_of_machine()

    async def _end_of_machine(self) -> op.Ended:
        import asyncio

        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        if not self._finished.is_set():
            await event.wait()
        assert self.ended is not None
        return self.ended

    async def stop(self, request: op.Stop) -> op.Ended:
        """End it: by the power button, or at once."""
        import asyncio

        if not request.force:
            try:
                async with asyncio.timeout(request.timeout):
                    await self._press_power_button(request.timeout)
                    return await self._end_of_machine()
            except TimeoutError:
                if not request.then_force:
                    raise HostError(
                        f"{self.config.name}: still running {request.timeout:g} s after it was"
                        f" asked to power off; kasou stop --force {self.config.name} ends it at once"
                    ) from None
            except KasouError:
                if not request.then_force:
                    raise
        await asyncio.to_thread(self.end_now)
        return await self._end_of_machine()

    def stop_now(self) -> None:
        """End the machine at once; `run` returns."""
        self.machine.stop()

    def end_now(self) -> None:
        """Stop the machine and wait for its disks to be closed."""
        self.machine.stop()
        if not self._finished.wait(END_SECONDS):
            os.kill(os.getpid(), signal.SIGKILL)

    async def _press_power_button(self, timeout: float) -> None:
        import asyncio

        name = self.config.name
        if self.is_paused:
            await asyncio.to_thread(self.resume, op.Resume())
        if self.machine.plugged.vsock is None:
            raise ConfigError(
                f"{name}: its guest runs no agent to power it off;"
                f" kasou stop --force {name} ends it at once"
            )
        from kasou.control.vsock_tunnel import ask_guest

        await ask_guest(self.machine, "poweroff", {}, timeout, name)

    # ------------------------------------------------------------------ waking up
    def serving(self, loop: asyncio.AbstractEventLoop) -> None:
        """The control loop runs: what had to wait for it."""
        self._loop = loop
        self.serial.start(loop)
        if self._woke is not None and self._woke.is_quiet(self.config):
            self._untold = self._woke  # a fork that nobody uses should cost nothing
        elif self._woke is not None or self._first or self.config.mounts:
            self.renew(self._woke)
        if self._to_keep is not None:
            loop.create_task(self._keep_warm(self._to_keep))

    def renew(self, origin: Origin | None) -> None:
        """Have the guest corrected in the background (`kasou.control.renewal`).

        Not with counted time, for the run must stay the same; and not before a warm start is kept, which
        belongs to nobody: this is called again afterwards.
        """
        is_left_alone = self.machine.icount or self.machine.plugged.vsock is None
        if is_left_alone or self._loop is None or self._to_keep is not None:
            return
        from kasou.control import renewal

        loop, first = self._loop, self._first
        prompts = self._prompts or (origin is not None and origin.is_warm)
        self._prompts = False
        work = partial(renewal.renew, self.machine, self.config, origin, first, prompts)

        def begin() -> None:
            self._renewing = loop.create_task(work())

        loop.call_soon_threadsafe(begin)

    async def _keep_warm(self, key: str) -> None:
        """Once the guest has booted, keep this moment for others; then let its users at it."""
        import asyncio

        from kasou.control.moments import Moments
        from kasou.control.vsock_tunnel import run_in_guest

        try:
            await run_in_guest(
                self.machine, ["systemctl", "is-system-running", "--wait"], BOOT_SECONDS,
                self.config.name,
            )  # fmt: skip
            async with asyncio.timeout(PROMPT_SECONDS):
                while not bytes(self.serial.tail[-64:]).rstrip().endswith((b"#", b"$")):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(SETTLE_SECONDS)
            await asyncio.to_thread(self._keep_moment, key, Moments(self))
        except (KasouError, TimeoutError) as problem:
            log.warning("%s: no warm start is kept: %s", self.config.name, problem)
        finally:
            self._to_keep = None
            self._prompts = True
            self.renew(self._woke)
            self._let_users_in()

    def _keep_moment(self, key: str, moments: Moments) -> None:
        with self.changing:
            moment = moments.take()
        warm.keep(key, self.directory, self.config, moment)

    def _used(self) -> bool:
        """Somebody uses it: a fork's guest is told now that it is one; whether it was not before."""
        origin, self._untold = self._untold, None
        if origin is None:
            return False
        self.machine.board.become_a_copy()
        self.renew(origin)
        return True

    def console_input(self, data: bytes) -> None:
        """Bytes typed at the serial port; kept back until users are let in. From any thread."""
        if not self._free.is_set():
            with self.changing:
                if not self._free.is_set():
                    self._typed += data
                    return
        self._used()
        self.machine.console_input(data)

    def _let_users_in(self) -> None:
        with self.changing:
            typed = bytes(self._typed)
            self._typed.clear()
            self._free.set()
        if typed:
            self.machine.console_input(typed)

    # ------------------------------------------------------------------ pausing
    def pause(self, request: op.Pause) -> op.Done:
        """Stop the harts."""
        with self.changing:
            self.refuse_ended()
            if not self.is_paused:
                self.machine.pause()
                self.say("paused")
        return op.Done()

    def resume(self, request: op.Resume) -> op.Done:
        """Let the harts go on."""
        with self.changing:
            self.refuse_ended()
            if self.is_paused:
                self.machine.resume()
                self.say("paused" if self.is_paused else "running")
        return op.Done()

    def keep(self, request: op.Keep) -> op.Done:
        """Make an ephemeral VM an ordinary one."""
        self.is_ephemeral = self.is_held = False
        self.config = replace(self.config, ephemeral=False, held=False)
        self.directory.write_config(self.config)
        return op.Done()

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
                self._nobody_holds()

        return pump

    async def console(self, request: op.Console) -> Pump:
        """The serial port."""
        import asyncio

        from kasou.control.server import copy_both_ways

        attachment = self.serial.attach(request.replay)

        async def write(data: bytes) -> None:
            await asyncio.to_thread(self.console_input, data)

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await copy_both_ways(reader, writer, attachment.read, write, lambda: None)
            finally:
                self.serial.detach(attachment)

        return pump

    async def tunnel(self, request: op.Tunnel) -> Pump:
        """A stream to a vsock port of the guest."""
        import asyncio

        from kasou.control.vsock_tunnel import open_tunnel

        name = self.config.name
        if self.machine.plugged.vsock is None:
            raise ConfigError(
                f"{name}: its image has no agent of kasou's; use kasou console {name}"
            )
        self.refuse_ended()
        if self.is_paused:
            raise ConfigError(f"{name}: is paused; kasou resume {name} lets it go on")
        while not self._free.is_set():
            await asyncio.sleep(0.02)
        if await asyncio.to_thread(self._used):
            await asyncio.sleep(0)  # so that the renewal has begun
        if isinstance(self._renewing, asyncio.Task) and not self._renewing.done():
            await asyncio.wait([self._renewing], timeout=RENEWAL_SECONDS)
        return await open_tunnel(self.machine, request.port, request.timeout, name)

    def _no_network(self, request: op.Request[Any]) -> Any:
        raise ConfigError(f"{self.config.name}: was made without a network")


def describe(
    config: VmConfig,
    directory: VmDirectory,
    state: VmState,
    statistics: dict[str, Any] | None = None,
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
