import gc
import os
import select
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from kasou.errors import HostError, RemoteError
from kasou.guest.kernels import assembled
from kasou.machine.machine import Machine, MachineConfig
from kasou.machine.state import restore, save
from kasou.vmm.fork import pack, unpack
from kasou.vmm.zygote import Zygote

CONFIG = MachineConfig(memory=16 << 20, seed=5)


def reply(payload: bytes, files: list[int]) -> None:
    """Entry of a forked process: says what it was given."""
    given = b"".join(os.pread(fd, 100, 0) for fd in files[1:])
    os.write(files[0], payload + given)


def go_on(payload: bytes, files: list[int]) -> None:
    """Entry of a forked process: goes on as the machine, typing the last command."""
    output, *rest = files
    memory, state, settings = unpack(payload, rest)
    config = replace(CONFIG, kernel=assembled("tiny"))
    machine = Machine(config, lambda data: void(os.write(output, data)), ram=memory)
    restore(machine, state)
    machine.console_input(str(settings["command"]).encode() + b"\npoweroff\n")
    machine.run(30)


def void(_: object) -> None:
    """Nothing."""


@pytest.fixture
def zygote() -> "Zygote":
    """In a process of its own, for pytest may have threads."""
    return Zygote(["kasou.machine.machine", "kasou.engine.interpreter"])


def drain(fd: int, seconds: float = 20.0) -> bytes:
    out, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            piece = os.read(fd, 65536)
            if not piece:
                return out
            out += piece
    raise AssertionError(f"still open after {seconds} s: {out!r}")


def test_files_and_bytes_arrive(zygote: Zygote) -> None:
    memory = os.memfd_create("x")
    os.write(memory, b" and a file")
    for n in range(3):
        ours, theirs = os.pipe()
        pid = zygote.spawn(f"{__name__}:reply", b"bytes %d" % n, [theirs, memory])
        os.close(theirs)
        assert pid > 1 and drain(ours) == b"bytes %d and a file" % n
        os.close(ours)
    os.close(memory)
    zygote.close()
    zygote.close()
    with pytest.raises(HostError, match="does not answer"):
        zygote.spawn(f"{__name__}:reply", b"")


def test_forks_of_a_running_machine(zygote: Zygote) -> None:
    """Three copies of a machine each carry out another command; the first goes on as well."""
    import threading

    output = bytearray()
    machine = Machine(replace(CONFIG, kernel=assembled("tiny")), output.extend)
    thread = threading.Thread(target=machine.run, args=(60,), daemon=True)
    thread.start()
    while b"tiny> " not in output:
        time.sleep(0.01)
    with machine.parked():
        state, memory = save(machine), machine.memory.freeze()
    for command, answer in (("hart", b"this is hart 0"), ("trap", b"trapped:"), ("x", b"no such")):
        ours, theirs = os.pipe()
        payload, files = pack(memory, state, {"command": command})
        zygote.spawn(f"{__name__}:go_on", payload, [theirs, *files])
        os.close(theirs)
        said = drain(ours)
        assert answer in said and said.endswith(b"bye\r\n")
        os.close(ours)
    assert b"bye" not in output
    machine.console_input(b"poweroff\n")
    thread.join(20)
    assert output.endswith(b"bye\r\n")
    zygote.close()


def test_it_ends_with_its_parent() -> None:
    code = (
        "from kasou.vmm.zygote import Zygote; import os; z = Zygote(); print(z.pid, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    pid = int(ended.stdout)
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.05)
    raise AssertionError("the zygote lives on")


def test_nonsense_is_refused() -> None:
    machine = Machine(replace(CONFIG, kernel=assembled("tiny")), lambda _: None)
    payload, files = pack(machine.memory.freeze(), save(machine), {})
    for bad in (b"", b"[]", payload[:-5], payload.replace(b"[[0,", b"[[99999999,", 1)):
        with pytest.raises(RemoteError):
            unpack(bad, [os.dup(fd) for fd in files])
    gc.collect()
