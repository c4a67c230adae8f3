"""GDB itself against a machine: a teaching kernel debugged as a student would."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from kasou.control.gdb_server import GdbServer
from kasou.guest.kernels import assembled
from kasou.machine.machine import Machine, MachineConfig

GDB = shutil.which("gdb-multiarch")
TINY = 0x8020_0000


@pytest.fixture(params=["interpreter", "reference"])
def session(request: pytest.FixtureRequest) -> Iterator[tuple[Machine, GdbServer, bytearray]]:
    output = bytearray()
    config = MachineConfig(memory=32 << 20, kernel=assembled("tiny"), harts=2, engine=request.param)
    machine = Machine(config, output.extend)
    server = GdbServer(machine, port=0, wait=True)
    thread = threading.Thread(target=machine.run, args=(120,), daemon=True)
    thread.start()
    yield machine, server, output
    machine.stop()
    thread.join(20)
    server.close()
    assert not thread.is_alive()


def debug(server: GdbServer, *commands: str) -> str:
    if GDB is None:
        pytest.skip("not run: Debian's package gdb-multiarch is not installed")
    options = ["set architecture riscv:rv64", "set confirm off", "set remotetimeout 20"]
    all_of_them = [*options, f"target remote 127.0.0.1:{server.port}", *commands]
    arguments = [part for command in all_of_them for part in ("-ex", command)]
    ended = subprocess.run(
        [GDB, "-batch", "-nx", *arguments], capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return ended.stdout + ended.stderr


def test_a_session(session: tuple[Machine, GdbServer, bytearray]) -> None:
    machine, server, output = session
    time.sleep(0.2)
    assert not output and machine.cores[0].count == 0
    entry = machine.cores[0].block.get("pc")
    said = debug(
        server,
        "print/x $pc", "info threads", "stepi", "print/x $pc", "print $a0",
        "set $t0 = 0x1234567890", "print/x $t0", "x/2i $pc",
        "print/x $satp", "p/x *(int*)0x80200000", "set {int}0x81000000 = 0x600d",
        "print/x *(int*)0x81000000", "x/gx 0x10", "detach",
    )  # fmt: skip
    assert f"$1 = {entry:#x}" in said, said
    assert "Thread 1 " in said and "hart 1" in said
    assert f"$2 = {entry + 4:#x}" in said or f"$2 = {entry + 2:#x}" in said
    assert "= 0x1234567890" in said and "= 0x600d" in said
    assert "Cannot access memory at address 0x10" in said
    for _ in range(500):
        if b"tiny> " in output:
            break
        time.sleep(0.02)
    assert b"tiny> " in output


def test_breakpoints(session: tuple[Machine, GdbServer, bytearray]) -> None:
    """Where the console's characters are put: hit again and again, then deleted."""
    machine, server, output = session
    # the fourth instruction of the program, found by stepping as a debugger does
    said = debug(server, "stepi", "stepi", "stepi", "print/x $pc", "detach")
    place = int(said.rpartition("$1 = ")[2].split()[0], 16)
    for _ in range(500):
        if b"tiny> " in output:
            break
        time.sleep(0.02)
    said = debug(
        server,
        "info registers pc",
        f"break *{place:#x}",
        f"set $pc = {machine.entry:#x}",
        "continue",
        "print/x $pc",
        f"x/1hx {place:#x}",
        "delete",
        "stepi",
        "detach",
    )
    assert "Breakpoint 1, " in said, said
    assert f"$1 = {place:#x}" in said
    original = machine.memory.load(place, 2)
    assert f"{original:#06x}" in said  # the debugger reads the original
    assert original not in (0x0073, 0x9002)


def test_an_interrupted_machine(session: tuple[Machine, GdbServer, bytearray]) -> None:
    _, server, output = session
    if GDB is None:
        pytest.skip("not run: Debian's package gdb-multiarch is not installed")
    process = subprocess.Popen(
        [GDB, "-batch", "-nx", "-ex", "set architecture riscv:rv64",
         "-ex", f"target remote 127.0.0.1:{server.port}", "-ex", "continue", "-ex", "print $pc",
         "-ex", "kill"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    for _ in range(500):
        if b"tiny> " in output:
            break
        time.sleep(0.02)
    process.send_signal(2)
    said, _ = process.communicate(timeout=60)
    assert "received signal SIGINT" in said and "$1 = " in said, said
