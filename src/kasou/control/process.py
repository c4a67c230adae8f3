"""A VM's process: `python -m kasou.control.process NAME READY_FD`.

It leaves its starter's session, takes the VM's lock, builds the machine, serves the control socket
and runs to the machine's end. On `READY_FD` it writes one line: `{"ready": PID}`, or the error as
JSON; after that nobody listens. SIGTERM and SIGINT end the machine at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading

LOG_BYTES = 1 << 20


def main() -> None:
    """Fork once, so that the starter need not wait for us, and be the VM."""
    name, ready = sys.argv[1], int(sys.argv[2])
    if os.fork():
        os._exit(0)
    os.setsid()
    report = os.fdopen(ready, "w")
    try:
        code = be(name, report)
    except BaseException as problem:
        from kasou.control.messages import describe

        with contextlib.suppress(OSError, ValueError):
            report.write(json.dumps({"error": describe(problem)}) + "\n")
            report.close()
        raise SystemExit(125) from problem
    sys.exit(code)


def be(name: str, report: object) -> int:
    """Run the VM called `name`; the process's exit code."""
    from kasou.control.running_vm import RunningVm
    from kasou.control.server import ControlServer
    from kasou.control.vm_directory import VmDirectory
    from kasou.paths import runtime_directory

    directory = VmDirectory(name)
    config = directory.read_config()
    directory.lock()
    vm = RunningVm(directory, config)
    server = ControlServer(vm, runtime_directory() / directory.socket_name)
    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: vm.machine.stop())
    problems: list[BaseException] = []

    def work() -> None:
        try:
            vm.run()
        except BaseException as problem:
            problems.append(problem)

    worker = threading.Thread(target=work, name="kasou-machine")
    worker.start()
    with report as file:  # type: ignore[attr-defined]
        file.write(json.dumps({"ready": os.getpid()}) + "\n")
    worker.join()
    server.close()
    if problems:
        raise problems[0]
    return 0


if __name__ == "__main__":
    main()
