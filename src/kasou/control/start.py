"""Starting a VM's process, and knowing that it started."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from kasou.control.messages import error_from
from kasou.control.vm_directory import VmDirectory
from kasou.errors import ConfigError, HostError
from kasou.paths import state_directory

READY_SECONDS = 120.0
"""Building a machine reads its kernel and may compile its engine: seconds at worst."""


def start(directory: VmDirectory, restore: Path | None = None) -> int:
    """Start the process of a VM that is at rest, and wait until it runs; its pid.

    `restore` is a snapshot's file to go on from. Raises what kept it from starting.
    """
    if directory.is_locked():
        raise ConfigError(f"{directory.name}: is running already")
    log = process_log(directory)
    log.parent.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe()
    command = [sys.executable, "-m", "kasou.control.process", directory.name, str(write)]
    if restore is not None:
        command.append(str(restore))
    try:
        with open(log, "wb") as errors:
            starter = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                pass_fds=(write,), cwd="/", env=_environment(),
            )  # fmt: skip
        os.close(write)
        write = -1
        starter.wait()
        return _await_ready(directory, read)
    except OSError as problem:
        raise HostError(f"{directory.name}: cannot be started ({problem.strerror})") from None
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


def _environment() -> dict[str, str]:
    """Ours, with `sys.path` as it is here: kasou may be imported from a checkout."""
    paths = [os.path.abspath(path or ".") for path in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _await_ready(directory: VmDirectory, read: int) -> int:
    try:
        return await_ready(directory.name, read, READY_SECONDS)
    except EOFError:
        raise HostError(f"{directory.name}: its process died: {last_words(directory)}") from None


def await_ready(name: str, ready: int, seconds: float) -> int:
    """Wait until a VM's process says on `ready` that it runs; its pid.

    Raises what it says kept it from running, `HostError` after `seconds`, `EOFError` when it died.
    """
    deadline = time.monotonic() + seconds
    said = b""
    while not said.endswith(b"\n"):
        readable, _, _ = select.select([ready], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise HostError(f"{name}: did not start within {seconds:g} s")
        part = os.read(ready, 65536)
        if not part:
            raise EOFError
        said += part
    answer = json.loads(said)
    if "error" in answer:
        raise error_from(answer["error"])
    return int(answer["ready"])


def process_log(directory: VmDirectory) -> Path:
    """Where the process's own complaints go."""
    return state_directory() / "vms" / directory.name / "process.log"


def last_words(directory: VmDirectory) -> str:
    """The last line its process wrote, for an error message."""
    try:
        with open(process_log(directory), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it left no message"
