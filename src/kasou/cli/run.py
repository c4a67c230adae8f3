"""`kasou run`: builds the machine, lends it the terminal, and turns its end into an exit code."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kasou.cli.main import INTERRUPTED, TIMEOUT, fail
from kasou.cli.options import RunOptions, UsageError, parse_drive, parse_size
from kasou.control.terminal import Terminal
from kasou.errors import ConfigError, HostError

if TYPE_CHECKING:
    from kasou.machine.lockstep import Lockstep
    from kasou.machine.machine import Machine, MachineConfig, Outcome

ENGINES = ("interpreter", "reference")
CLOCKS = ("host", "icount")
MOST_HARTS = 8
LONGEST_SECONDS = 1e6
STOP_SECONDS = 5.0
"""How long a machine may take to stop before the process ends under it."""


def execute(options: RunOptions) -> int:
    """Run the machine that `options` describe on this process's terminal; the exit code."""
    check(options)
    config = configure(options)
    from kasou.machine.machine import Machine

    machine: Machine | Lockstep | None = None

    def resized(columns: int, rows: int) -> None:
        resize = getattr(machine, "console_resized", None)
        if resize is not None:
            resize(columns, rows)

    terminal = Terminal(resized=resized)
    if options.lockstep:
        from kasou.machine.lockstep import Lockstep

        machine = Lockstep(config, console_output=terminal.write)
    else:
        machine = Machine(config, console_output=terminal.write)
    if terminal.is_tty:
        print("kasou: Ctrl-] three times within a second ends the machine", file=sys.stderr)
    started = time.monotonic()
    outcome = run_on(machine, terminal, options.timeout)
    if isinstance(machine, Machine):
        pass
    elif machine.difference is not None:
        print(machine.difference.report(), file=sys.stderr)
    else:
        print(f"kasou: the engines agree on all of {machine.steps} instructions", file=sys.stderr)
    if options.json:
        report(machine, outcome, terminal, time.monotonic() - started)
    return exit_code(outcome, terminal, options)


def check(options: RunOptions) -> None:
    """Refuse options that contradict each other. Raises `UsageError`."""
    if options.engine not in ENGINES:
        raise UsageError(f"--engine {options.engine}: not one of {', '.join(ENGINES)}")
    if options.clock not in CLOCKS:
        raise UsageError(f"--clock {options.clock}: not one of {', '.join(CLOCKS)}")
    if not 1 <= options.smp <= MOST_HARTS:
        raise UsageError(f"--smp {options.smp}: a board has 1 to {MOST_HARTS} harts")
    if options.timeout is not None and not 0 < options.timeout <= LONGEST_SECONDS:
        raise UsageError(f"--timeout {options.timeout:g}: more than 0, at most {LONGEST_SECONDS:g}")
    if options.max_instructions is not None and options.max_instructions <= 0:
        raise UsageError(f"--max-instructions {options.max_instructions}: must be more than 0")
    if options.image is not None and options.kernel is not None:
        raise UsageError(f"give either the image {options.image} or --kernel, not both")
    if options.initrd is not None and options.kernel is None and options.bios is not None:
        raise UsageError("--initrd: needs --kernel")
    if options.bios == "none" and options.kernel is None and options.image is None:
        raise UsageError("--bios none: needs --kernel FILE, a bare-metal ELF or flat binary")


def configure(options: RunOptions) -> MachineConfig:
    """The machine's configuration: sizes read, files found, the image's parts filled in."""
    from kasou.machine.machine import Drive, MachineConfig

    memory = parse_size(options.memory)
    drives = tuple(
        Drive(existing("--drive", path), read_only)
        for path, read_only in map(parse_drive, options.drive)
    )
    bios = options.bios
    if bios is not None and bios != "none":
        bios = str(existing("--bios", bios))
    kernel = existing("--kernel", options.kernel) if options.kernel else None
    initrd = existing("--initrd", options.initrd) if options.initrd else None
    append = options.append or ""
    if kernel is None and (options.image is not None or bios is None):
        from kasou.cli.images import boot_files

        files = boot_files(options.image or "debian", options.mirror)
        kernel = files.kernel
        initrd = initrd or files.initrd
        append = f"{files.append} {append}".strip()
    return MachineConfig(
        memory=memory,
        harts=options.smp,
        engine=options.engine,
        clock=options.clock,
        seed=options.seed,
        bios=bios,
        kernel=kernel,
        initrd=initrd,
        append=append,
        drives=drives,
        reboot=not options.no_reboot,
        max_instructions=options.max_instructions,
    )


def existing(option: str, name: str) -> Path:
    """The file that `option` names. Raises `ConfigError` when it cannot be read."""
    path = Path(name)
    if not path.exists():
        raise ConfigError(f"{option} {name}: no such file")
    if path.is_dir():
        raise ConfigError(f"{option} {name}: is a directory, not a file")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{option} {name}: not readable; check its permissions")
    return path


def run_on(
    machine: Machine | Lockstep, terminal: Terminal, timeout: float | None
) -> Outcome | None:
    """Run the machine beside the terminal's loop; None if it was ended from this side."""
    outcomes: list[Outcome] = []
    problems: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            outcomes.append(machine.run(timeout))
        except BaseException as problem:
            problems.append(problem)
        finally:
            done.set()
            terminal.wake()

    worker = threading.Thread(target=work, name="kasou-machine", daemon=True)
    with terminal:
        worker.start()
        try:
            terminal.run(machine.console_input, done.is_set, time.monotonic)
        finally:
            if not done.is_set():
                machine.stop()
            worker.join(STOP_SECONDS)
    if worker.is_alive():
        fail(f"the machine did not stop within {STOP_SECONDS:g} s; ending the process", 0)
        os._exit(INTERRUPTED)
    if problems:
        raise problems[0]
    if terminal.ended_by or terminal.output_closed:
        return None
    return outcomes[0]


def exit_code(outcome: Outcome | None, terminal: Terminal, options: RunOptions) -> int:
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
    machine: Machine | Lockstep, outcome: Outcome | None, terminal: Terminal, seconds: float
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
