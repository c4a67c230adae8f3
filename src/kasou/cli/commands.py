"""Commands in the guest: exec, shell, cp.

`exec` gives its words to the guest as they are; no shell sees them. It returns the command's exit
code. Otherwise:

| code | meaning |
|---|---|
| 124 | `--timeout` passed; the command was killed |
| 125 | it could not be carried to the guest: the VM does not run, or has no agent |
| 126, 127 | the guest cannot run the program, or has none of that name |
| 128 + N | signal N ended the command |
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kasou.cli.main import INTERRUPTED, TIMEOUT, fail
from kasou.cli.options import UsageError
from kasou.cli.output import Json, Name, Patience, print_json
from kasou.units import format_size

if TYPE_CHECKING:
    from kasou.aio import Process

commands = typer.Typer()

CHUNK = 1 << 16
BROKEN_PIPE = 141
LOGIN = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -l')

# fmt: off
Env     = Annotated[Optional[list[str]], typer.Option("--env", "-e", metavar="NAME=VALUE", help="Set a variable; may be repeated.")]  # noqa: UP045, E501
Cwd     = Annotated[Optional[str], typer.Option("--cwd", "-w", metavar="PATH", help="Run it in this directory.")]  # noqa: UP045, E501
User    = Annotated[Optional[str], typer.Option("--user", "-u", metavar="NAME", help="Run it as this user; default root.")]  # noqa: UP045, E501
# fmt: on


@commands.command(context_settings={"allow_interspersed_args": False})
def exec(
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="The program, and its arguments; no shell is implied.")],  # noqa: E501
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal; the default when this is one.")] = False,  # noqa: E501
    no_tty: Annotated[bool, typer.Option("--no-tty", "-T", help="Give it none.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass standard input on: the default.")] = False,  # noqa: E501
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Its standard input is empty.")] = False,
    env: Env = None,
    cwd: Cwd = None,
    user: User = None,
    timeout: Annotated[Optional[float], typer.Option(metavar="SECONDS", help="Kill it after this long; exit code 124.")] = None,  # noqa: UP045, E501
) -> int:  # fmt: skip
    """Run a program in a VM; the exit code is the program's."""
    if command[0] == "--":  # kasou exec NAME -- COMMAND, as people write
        command = command[1:]
        if not command:
            raise UsageError("exec: no command behind --")
    if tty and no_tty:
        raise UsageError("give either -t or -T")
    if interactive and no_stdin:
        raise UsageError("give either -i or -n")
    if timeout is not None and not 0 < timeout <= 1e6:
        raise UsageError(f"--timeout {timeout:g}: more than 0, at most 1000000")
    wants_tty = tty or (not no_tty and not no_stdin and sys.stdin.isatty() and sys.stdout.isatty())
    return execute(name, command, environment(env), cwd, user, wants_tty, not no_stdin, timeout)


@commands.command()
def shell(name: Name, env: Env = None, cwd: Cwd = None, user: User = None) -> int:
    """Log in to a VM on this terminal; the exit code is the shell's."""
    return execute(
        name, LOGIN, environment(env), cwd, user, sys.stdin.isatty(), stdin=True, timeout=None
    )


@commands.command()
def cp(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE... TARGET", help="One side is VM:PATH.")],
    user: User = None,
    json: Json = False,
) -> int:  # fmt: skip
    """Copy files and trees into a VM or out of it: kasou cp site/ web:/var/www; kasou cp web:/etc ."""
    if len(sources) < 2:
        raise UsageError("cp: write SOURCE... TARGET")
    *sources, target = sources
    machine, guest_target = in_guest(target)
    pairs = [in_guest(source) for source in sources]
    in_vms = [name is not None for name, _ in pairs]
    if any(in_vms) if machine is not None else not all(in_vms):
        raise UsageError("cp: one side is in a VM (VM:PATH), the other on this host")

    from kasou.aio import VM

    async def work(progress: Any) -> None:
        from kasou.aio.copies import get, put

        for source, (name, path) in zip(sources, pairs, strict=True):
            if machine is not None:
                vm = await VM.open(machine)
                await put(vm.client, source, guest_target, user, progress)
            else:
                assert name is not None
                vm = await VM.open(name)
                await get(vm.client, path, target, user, progress)

    with Patience("copying") as patience:
        asyncio.run(work(lambda done: patience.progress(format_size(done))))
    if json:
        print_json({"copied": sources, "to": target})
    return 0


def in_guest(word: str) -> tuple[str | None, str]:
    """(VM, path in it) of `VM:PATH`; (None, path) of a path of the host."""
    name, colon, path = word.partition(":")
    if not colon or "/" in name or not name:
        return None, word
    return name, path or "."


def environment(words: Sequence[str] | None) -> dict[str, str]:
    """The variables of `-e NAME=VALUE`; `-e NAME` passes ours on. Raises `UsageError`."""
    values: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not name:
            raise UsageError(f"--env {word}: write NAME=VALUE")
        values[name] = value if equals else os.environ.get(name, "")
    return values


def execute(
    name: str,
    command: Sequence[str],
    env: dict[str, str],
    cwd: str | None,
    user: str | None,
    tty: bool,
    stdin: bool,
    timeout: float | None,
) -> int:
    """Run `command` in the VM `name` on this process's standard files; its exit code."""
    from kasou.aio import VM
    from kasou.control.vm_directory import find

    find(name)

    async def begin() -> Process:
        vm = VM._of(find(name), owned=False)
        size: tuple[int, int] | None = None
        if tty:
            size = terminal_size()
            env.setdefault("TERM", os.environ.get("TERM", "xterm-256color"))
        return await vm.popen(list(command), env=env, cwd=cwd, user=user, tty=size, stdin=stdin)

    if tty:
        return on_terminal(name, begin, timeout)
    return asyncio.run(on_pipes(name, begin, stdin, timeout))


async def on_pipes(name: str, begin: Any, stdin: bool, timeout: float | None) -> int:
    """Standard files as plain bytes; SIGINT and SIGTERM are passed on, a second one ends us."""
    loop = asyncio.get_running_loop()
    interrupted: list[int] = []
    with Patience(f"waiting for {name}'s agent"):
        process: Process = await begin()

    def passed_on(number: int) -> None:
        if interrupted:
            process.close()
            os._exit(128 + number)
        interrupted.append(number)
        sending.append(loop.create_task(process.send_signal(number)))

    sending: list[asyncio.Task[None]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, passed_on, number)

    def type_it() -> None:
        with contextlib.suppress(Exception):  # the loop has ended
            while data := os.read(0, CHUNK):
                asyncio.run_coroutine_threadsafe(process.write(data), loop).result()
            asyncio.run_coroutine_threadsafe(process.close_stdin(), loop).result()

    if stdin:
        threading.Thread(target=type_it, daemon=True).start()

    async def print_it(output: Any, file: int) -> None:
        while data := await output.read(CHUNK):
            await asyncio.to_thread(write_all, file, data)

    try:
        async with asyncio.timeout(timeout):
            await asyncio.gather(print_it(process.stdout, 1), print_it(process.stderr, 2))
            return await process.wait()
    except TimeoutError:
        return fail(f"{name}: the command still ran after {timeout:g} s; killed", TIMEOUT)
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        process.close()


def terminal_size() -> tuple[int, int]:
    """Columns and rows of this terminal; 80 and 24 when it is none."""
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return 80, 24
    return columns, rows


def write_all(file: int, data: bytes) -> None:
    """Write all of `data` to a file descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def on_terminal(name: str, begin: Any, timeout: float | None) -> int:
    """This terminal is the command's; its size follows."""
    from kasou.api.loop import private_loop, wait_for
    from kasou.control.terminal import Terminal
    from kasou.errors import KasouError

    with Patience(f"waiting for {name}'s agent"):
        process: Process = wait_for(begin())
    ended = threading.Event()

    def resized(columns: int, rows: int) -> None:
        asyncio.run_coroutine_threadsafe(process.resize(columns, rows), private_loop())

    terminal = Terminal(resized=resized, escape_times=0)

    async def print_it() -> None:
        try:
            while data := await process.stdout.read(CHUNK):
                await asyncio.to_thread(terminal.write, data)
        finally:
            ended.set()
            terminal.wake()

    def typed(data: bytes) -> None:
        with contextlib.suppress(KasouError):
            wait_for(process.write(data))

    def give_up() -> None:
        ended.set()
        terminal.wake()

    deadline = None if timeout is None else time.monotonic() + timeout
    if deadline is not None:
        timer = threading.Timer(timeout or 0, give_up)
        timer.daemon = True
        timer.start()
    asyncio.run_coroutine_threadsafe(print_it(), private_loop())
    try:
        with terminal:
            terminal.run(typed, ended.is_set, time.monotonic)
        if terminal.ended_by is not None:
            return INTERRUPTED
        if deadline is not None and time.monotonic() >= deadline and process.poll() is None:
            return fail(f"{name}: the command still ran after {timeout:g} s; killed", TIMEOUT)
        return wait_for(process.wait(timeout=5.0))
    finally:
        private_loop().call_soon_threadsafe(process.close)
