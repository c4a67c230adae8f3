"""`kasou run`: builds the machine, lends it the terminal, and turns its end into an exit code."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kasou.cli.main import INTERRUPTED, TIMEOUT, fail
from kasou.cli.options import RunOptions, UsageError
from kasou.control.terminal import Terminal
from kasou.errors import ConfigError, HostError, KasouError

if TYPE_CHECKING:
    from kasou.control.gdb_server import GdbServer
    from kasou.control.operations import Ended
    from kasou.control.running_vm import RunningVm
    from kasou.control.server import ControlServer
    from kasou.control.vm_config import VmConfig
    from kasou.control.vm_directory import VmDirectory
    from kasou.machine.config import Outcome
    from kasou.machine.lockstep import Lockstep
    from kasou.machine.machine import Machine

LONGEST_SECONDS = 1e6
SERVE_AFTER_SECONDS = 0.05
"""The control server waits for the machine's first steps: its imports cost as much as they do."""
T = TypeVar("T")
STOP_SECONDS = 5.0
"""How long a machine may take to stop before the process ends under it."""


def execute(options: RunOptions) -> int:
    """Run the machine that `options` describe on this process's terminal; the exit code."""
    check(options)
    from kasou.aio.definition import define

    config = define(
        "minimal" if options.minimal else options.image, name=options.name, cpus=options.cpus,
        memory=options.memory, bios=options.bios, kernel=options.kernel, initrd=options.initrd,
        append=options.append, drives=options.drive, mounts=options.volume, ports=options.port,
        network=False if options.network == "none" else options.network, egress=options.egress,
        cloud_init=options.cloud_init, disk_errors=options.disk_errors, seed=options.seed, clock=options.clock,
        technique=options.technique, paging=options.paging, io=options.io,
        scheduler=options.scheduler, engine=options.engine, reboot=not options.no_reboot,
        max_instructions=options.max_instructions, ephemeral=options.name is None,
        mirror=options.mirror,
    )  # fmt: skip
    if options.lockstep:
        return in_lockstep(config, options)
    return foreground(config, options)


def foreground(
    config: VmConfig, options: RunOptions, gdb: str | None = None, stopped: bool = False
) -> int:
    """Be the process of a new VM, on this terminal; the exit code.

    `gdb` is HOST:PORT for a debugger; with `stopped` the machine waits for it to say go.
    """
    from kasou.aio.definition import create

    directory = create(config)
    terminal = Terminal()
    started = time.monotonic()
    try:
        directory.lock()
        config = directory.read_config()
        vm = running(directory, config, terminal)
        debugger = debugged(vm, gdb, stopped)
    except BaseException:
        directory.remove()
        raise
    if terminal.is_tty:
        kept = "" if options.name else "; -n NAME would keep it"
        say(f"{config.name}: Ctrl-] three times within a second ends it{kept}")
    server = Serving(vm)
    try:
        ended = run_on(vm.run, vm.console_input, vm.stop_now, terminal, options.timeout)
    finally:
        server.close()
        if debugger is not None:
            debugger.close()
    if options.json:
        report(vm.machine, ended, terminal, time.monotonic() - started)
    return exit_code(ended, terminal, options)


def running(directory: VmDirectory, config: VmConfig, terminal: Terminal) -> RunningVm:
    """The VM in this process, and the child that gives birth to its forks."""
    from kasou.control.running_vm import RunningVm
    from kasou.engine import object_cache
    from kasou.machine import machine
    from kasou.vmm.zygote import Zygote

    assert machine
    zygote = None
    if config.engine == "interpreter":
        object_cache.load()
        zygote = Zygote()  # now: there are no threads yet
    return RunningVm(directory, config, terminal.write, zygote=zygote)


def debugged(vm: RunningVm, gdb: str | None, stopped: bool) -> GdbServer | None:
    """GDB's port, if one is wanted; a machine that starts stopped without one is paused."""
    if gdb is None:
        if stopped:
            from kasou.control.operations import Pause

            vm.pause(Pause())
            say(f"{vm.config.name}: is paused; kasou resume {vm.config.name} starts it")
        return None
    from kasou.control.gdb_server import GdbServer

    host, _, port = gdb.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"gdb {gdb}: not HOST:PORT")
    return GdbServer(vm.machine, host or "127.0.0.1", int(port), stopped)


class Serving:
    """The VM's control server, started once the machine is under way."""

    def __init__(self, vm: RunningVm) -> None:
        self.vm = vm
        self._closed = threading.Event()
        self._server: ControlServer | None = None
        self._thread = threading.Thread(target=self._start, name="kasou-serve", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        if self._closed.wait(SERVE_AFTER_SECONDS):
            return
        from kasou.control.server import ControlServer
        from kasou.paths import runtime_directory

        try:
            server = ControlServer(self.vm, runtime_directory() / self.vm.directory.socket_name)
            server.start()
            self._server = server
        except KasouError as problem:  # it runs all the same
            say(f"warning: {self.vm.directory.name} cannot be reached by other commands: {problem}")

    def close(self) -> None:
        """Say goodbye to everyone."""
        self._closed.set()
        self._thread.join()
        if self._server is not None:
            self._server.close()
        if self.vm.zygote is not None:
            self.vm.zygote.close()


def in_lockstep(config: VmConfig, options: RunOptions) -> int:
    """Both engines beside each other; no VM that others could see."""
    from kasou.control.assembly import machine_config
    from kasou.machine.config import Drive
    from kasou.machine.lockstep import Lockstep

    terminal = Terminal()
    drives = tuple(Drive(Path(drive.path), drive.read_only) for drive in config.drives)
    machine = Lockstep(
        dataclasses.replace(machine_config(config), drives=drives), console_output=terminal.write
    )
    started = time.monotonic()
    ended = run_on(machine.run, machine.console_input, machine.stop, terminal, options.timeout)
    if machine.difference is not None:
        print(machine.difference.report(), file=sys.stderr)
    else:
        say(f"the engines agree on all of {machine.steps} instructions")
    if options.json:
        report(machine, ended, terminal, time.monotonic() - started)
    return exit_code(ended, terminal, options)


def say(text: str) -> None:
    """A line for a person, on standard error."""
    print(f"kasou: {text}", file=sys.stderr, flush=True)


def check(options: RunOptions) -> None:
    """Refuse options that contradict each other. Raises `UsageError`."""
    from kasou.control.vm_config import CLOCKS, ENGINES, MOST_CPUS
    from kasou.units import parse_size

    if options.engine not in ENGINES:
        raise UsageError(f"--engine {options.engine}: not one of {', '.join(ENGINES)}")
    if options.clock not in CLOCKS:
        raise UsageError(f"--clock {options.clock}: not one of {', '.join(CLOCKS)}")
    if not 1 <= options.cpus <= MOST_CPUS:
        raise UsageError(f"--cpus {options.cpus}: a board has 1 to {MOST_CPUS} harts")
    if options.timeout is not None and not 0 < options.timeout <= LONGEST_SECONDS:
        raise UsageError(f"--timeout {options.timeout:g}: more than 0, at most {LONGEST_SECONDS:g}")
    if options.max_instructions is not None and options.max_instructions <= 0:
        raise UsageError(f"--max-instructions {options.max_instructions}: must be more than 0")
    if options.image is not None and options.kernel is not None:
        raise UsageError(f"give either the image {options.image} or --kernel, not both")
    if options.minimal and (options.image is not None or options.kernel is not None):
        raise UsageError("--minimal is an image of its own: give no other, and no --kernel")
    if options.initrd is not None and options.kernel is None and options.bios is not None:
        raise UsageError("--initrd: needs --kernel")
    if options.bios == "none" and options.kernel is None and options.image is None:
        raise UsageError("--bios none: needs --kernel FILE, a bare-metal ELF or flat binary")
    try:
        parse_size(options.memory)
    except ConfigError as problem:
        raise UsageError(f"--memory {problem}") from None


def run_on(
    run: Callable[[float | None], T],
    receive: Callable[[bytes], None],
    stop: Callable[[], None],
    terminal: Terminal,
    timeout: float | None,
) -> T | None:
    """`run` a machine beside the terminal's loop; None if it was ended from this side."""
    outcomes: list[T] = []
    problems: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            outcomes.append(run(timeout))
        except BaseException as problem:
            problems.append(problem)
        finally:
            done.set()
            terminal.wake()

    worker = threading.Thread(target=work, name="kasou-machine", daemon=True)
    with terminal:
        worker.start()
        try:
            terminal.run(receive, done.is_set, time.monotonic)
        finally:
            if not done.is_set():
                stop()
            worker.join(STOP_SECONDS)
    if worker.is_alive():
        fail(f"the machine did not stop within {STOP_SECONDS:g} s; ending the process", 0)
        os._exit(INTERRUPTED)
    if problems:
        raise problems[0]
    if terminal.ended_by or terminal.output_closed:
        return None
    return outcomes[0]


def exit_code(outcome: Outcome | Ended | None, terminal: Terminal, options: RunOptions) -> int:
    """The process's exit code for the machine's end."""
    if outcome is None:
        if terminal.ended_by is None:
            raise HostError("standard output was closed by its reader; the machine was ended")
        return INTERRUPTED
    match outcome.kind:
        case "timeout":
            return fail(f"the machine was still running after {options.timeout:g} s", TIMEOUT)
        case "stopped":
            return INTERRUPTED
        case "reset" | "budget":
            return 0
    if outcome.code == 0:
        return 0
    # A process's code is 8 bits: a failure must not become success by losing its high ones.
    return outcome.code & 0xFF or 1


def report(
    machine: Machine | Lockstep,
    outcome: Outcome | Ended | None,
    terminal: Terminal,
    seconds: float,
) -> None:
    """Print how it ended, as one line of JSON, on standard error: stdout is the guest's."""
    import json

    ended = {
        "kind": outcome.kind if outcome else "stopped",
        "code": outcome.code if outcome else INTERRUPTED,
        "ended_by": terminal.ended_by,
        "seconds": round(seconds, 6),
        "statistics": machine.statistics(),
    }
    print(json.dumps(ended), file=sys.stderr)
