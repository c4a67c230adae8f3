"""A VM's process: `python -m kasou.control.process NAME READY_FD [SNAPSHOT]`, or a fork's.

It leaves its starter's session, takes the VM's lock, builds the machine, serves the control socket
and runs to the machine's end. On its ready file it writes one line: `{"ready": PID}`, or the error as
JSON; after that nobody listens. SIGTERM and SIGINT end the machine at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from kasou.control.running_vm import RunningVm
    from kasou.control.vm_directory import VmDirectory


def main() -> None:
    """Fork once, so that the starter need not wait for us, and be the VM."""
    name, ready, *snapshot = sys.argv[1:]
    if os.fork():
        os._exit(0)
    os.setsid()

    def build(directory: VmDirectory) -> RunningVm:
        from kasou.control.assembly import preload
        from kasou.control.moments import origin_of
        from kasou.control.running_vm import RunningVm
        from kasou.vmm.zygote import Zygote

        config = directory.read_config()
        preload(config.networked)
        zygote = Zygote()
        origin = None
        if snapshot:
            path = Path(snapshot[0])
            inside = path.parent == directory.snapshots and not path.name.startswith(".")
            origin = origin_of(path, path.stem if inside else None)
        return RunningVm(directory, config, origin=origin, zygote=zygote)

    sys.exit(be(name, os.fdopen(int(ready), "w"), build))


def be_fork(payload: bytes, files: list[int]) -> None:
    """Entry of a process that the zygote made: go on as a fork."""
    from kasou.control.assembly import Origin
    from kasou.control.running_vm import RunningVm
    from kasou.vmm.fork import unpack
    from kasou.vmm.zygote import Zygote

    ready, *rest = files
    zygote = Zygote()
    memory, state, settings = unpack(payload, rest)

    def build(directory: VmDirectory) -> RunningVm:
        from kasou.control.start import process_log

        log = process_log(directory)
        log.parent.mkdir(parents=True, exist_ok=True)
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.dup2(errors, 2)
        os.close(errors)
        origin = Origin(memory, state, settings["tops"], is_fork=True)
        return RunningVm(directory, directory.read_config(), origin=origin, zygote=zygote)

    sys.exit(be(settings["name"], os.fdopen(ready, "w"), build))


def be(name: str, ready: TextIO, build: Callable[[VmDirectory], RunningVm]) -> int:
    """Run the VM called `name`; the process's exit code."""
    from kasou.control.messages import describe
    from kasou.control.server import ControlServer
    from kasou.control.vm_directory import VmDirectory
    from kasou.paths import runtime_directory

    directory = VmDirectory(name)
    problems: list[BaseException] = []
    try:
        directory.lock()
        vm = build(directory)
        server = ControlServer(vm, runtime_directory() / directory.socket_name)
        server.start()
    except BaseException as problem:
        with contextlib.suppress(OSError, ValueError):
            ready.write(json.dumps({"error": describe(problem)}) + "\n")
            ready.close()
        raise
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: vm.machine.stop())

    def work() -> None:
        try:
            vm.run()
        except BaseException as problem:
            problems.append(problem)

    worker = threading.Thread(target=work, name="kasou-machine")
    worker.start()
    with contextlib.suppress(OSError), ready:  # whoever started us may have gone
        ready.write(json.dumps({"ready": os.getpid()}) + "\n")
    worker.join()
    server.close()
    if vm.zygote is not None:
        vm.zygote.close()
    if problems:
        raise problems[0]
    return 0


if __name__ == "__main__":
    main()
