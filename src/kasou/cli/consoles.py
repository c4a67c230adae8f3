"""A VM's serial port on this terminal: console, logs."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from kasou.cli.output import Name, say
from kasou.control.serial import TAIL_BYTES

commands = typer.Typer()

POLL_SECONDS = 0.2
CHUNK = 1 << 16
UNSAFE = re.compile(
    rb"\x1b(?!\[[0-9;]*m)(?:\[[0-?]*[ -/]*[@-~]|[PX^_\]].*?(?:\x1b\\|\x07)|.)?"
    rb"|[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]",
    re.DOTALL,
)
"""What a log must not do to the reader's terminal: all control sequences but colours."""


@commands.command()
def console(
    name: Name,
    replay: Annotated[bool, typer.Option(help="Begin with what was said last.")] = True,
) -> int:
    """Use a VM's serial port from this terminal; Ctrl-] detaches."""
    from kasou.api.loop import wait_for
    from kasou.control import operations as op
    from kasou.control.client import ControlClient
    from kasou.control.vm_directory import find

    client = ControlClient(find(name))
    stream = wait_for(client.open(op.Console(replay=TAIL_BYTES // 16 if replay else 0)))
    say_how = sys.stdin.isatty()
    if say_how:
        say(f"{name}: attached; Ctrl-] detaches")
    ended_here = carry(stream, escape_times=1)
    if say_how:
        say(f"{name}: {'detached' if ended_here else 'ended'}")
    return 0


def carry(stream: object, escape_times: int) -> bool:
    """Carry bytes between this terminal and a `ByteStream`; True when it ended on our side."""
    import asyncio
    import threading

    from kasou.api.loop import private_loop, wait_for
    from kasou.control.client import ByteStream
    from kasou.control.terminal import Terminal
    from kasou.errors import KasouError

    assert isinstance(stream, ByteStream)
    ended = threading.Event()
    terminal = Terminal(escape_times=escape_times)

    async def outward() -> None:
        try:
            while data := await stream.read():
                await asyncio.to_thread(terminal.write, data)
        finally:
            ended.set()
            terminal.wake()

    def typed(data: bytes) -> None:
        try:
            wait_for(stream.write(data))
        except KasouError:
            ended.set()

    reading = asyncio.run_coroutine_threadsafe(outward(), private_loop())
    with terminal:
        terminal.run(typed, ended.is_set, time.monotonic)
    reading.cancel()
    private_loop().call_soon_threadsafe(stream.close)
    return not ended.is_set()


@commands.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more comes.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", help="The last N lines; 0: all.")
    ] = 0,
) -> int:
    """Print what a VM's serial port said."""
    from kasou.control.vm_directory import find

    vm = find(name)
    path = vm.console_log
    text = _read(path.with_name(path.name + ".1")) + _read(path)
    place = os.stat(path) if path.exists() else None
    if lines > 0:
        text = b"".join(text.splitlines(keepends=True)[-lines:])
    _write(text)
    at, inode = (place.st_size, place.st_ino) if place else (0, 0)
    while follow:
        running = vm.is_locked()
        try:
            status = os.stat(path)
            if status.st_ino != inode:  # a new file has begun
                if inode:
                    _write(_read(path.with_name(path.name + ".1"), at))
                at, inode = 0, status.st_ino
            more = _read(path, at)
        except FileNotFoundError:
            more = b""
        if more:
            _write(more)
            at += len(more)
        elif not running:
            break
        else:
            time.sleep(POLL_SECONDS)
    return 0


def _read(path: Path, at: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read()
    except FileNotFoundError:
        return b""


def _write(data: bytes) -> None:
    if sys.stdout.isatty():
        data = UNSAFE.sub(b"", data)
    view = memoryview(data)
    while view:
        view = view[os.write(1, view[:CHUNK]) :]
