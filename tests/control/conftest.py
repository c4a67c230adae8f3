"""VMs for the tests of control, API and command line.

`fake_vm` is a control server in this process whose guest is the real agent, run here as a process on
a unix socket: commands in "the guest" run on the host. `home` is a KASOU_HOME of the test's own whose
compiled engine is that of the user's cache.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kasou.control import operations as op
from kasou.control.running_vm import describe
from kasou.control.serial import SerialLog
from kasou.control.server import ControlServer, Pump, copy_both_ways
from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import VmDirectory, VmState, all_vms
from kasou.errors import ConfigError
from kasou.paths import cache_directory, runtime_directory

KASOU = [sys.executable, "-c", "from kasou.cli.main import main; main()"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    compiled = cache_directory() / "engine"
    compiled.mkdir(parents=True, exist_ok=True)
    home = tmp_path / "home"
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "engine").symlink_to(compiled)
    monkeypatch.setenv("KASOU_HOME", str(home))
    yield home
    for vm in all_vms():  # what a failed test left running
        if (pid := vm.holder()) and pid != os.getpid():
            os.kill(pid, 9)


class FakeVm:
    """Answers as a VM's process would; its guest is an agent on a unix socket."""

    def __init__(self, directory: VmDirectory, config: VmConfig, agent: Path) -> None:
        self.directory, self.config, self.agent = directory, config, agent
        self.serial = SerialLog(directory.console_log)
        self.typed = bytearray()
        self.handlers = {
            "info": self.info, "tunnel": self.tunnel, "console": self.console, "stop": self.stop,
        }  # fmt: skip

    def serving(self, loop: asyncio.AbstractEventLoop) -> None:
        self.serial.start(loop)

    def info(self, request: op.Info) -> op.VmInfo:
        return describe(self.config, self.directory, VmState("running", os.getpid(), time.time()))

    def stop(self, request: op.Stop) -> op.Ended:
        raise ConfigError("evil \x1b[31mred\r\nline")

    async def tunnel(self, request: op.Tunnel) -> Pump:
        reader, writer = await asyncio.open_unix_connection(str(self.agent))

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        async def pump(inside: asyncio.StreamReader, outside: asyncio.StreamWriter) -> None:
            try:
                await copy_both_ways(
                    inside, outside, lambda: reader.read(65536), write, writer.write_eof
                )
            finally:
                writer.close()

        return pump

    async def console(self, request: op.Console) -> Pump:
        attachment = self.serial.attach(request.replay)

        async def write(data: bytes) -> None:
            self.typed += data

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await copy_both_ways(reader, writer, attachment.read, write, lambda: None)

        return pump


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from kasou.guest.agent.bundle import agent_script

    directory = tmp_path_factory.mktemp("agent")
    script, path = directory / "agent.py", directory / "socket"
    script.write_bytes(agent_script())
    command = [sys.executable, "-I", "-S", str(script), "--unix", str(path)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        yield path
        process.kill()


@pytest.fixture
def fake_vm(home: Path, agent: Path) -> Iterator[FakeVm]:
    config = VmConfig(name="fake", created="2026-01-01T00:00:00+00:00", agent=True)
    directory = VmDirectory("fake")
    directory.create(config)
    lock = directory.lock()
    vm = FakeVm(directory, config, agent)
    server = ControlServer(vm, runtime_directory() / directory.socket_name)
    server.start()
    yield vm
    server.close()
    os.close(lock)
    directory.remove()


def kasou(
    *arguments: str, input: bytes | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command line; standard output and error as text."""
    done = subprocess.run([*KASOU, *arguments], input=input, capture_output=True, timeout=timeout)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
