"""`kasou.VM`: a virtual machine for ordinary, blocking Python.

Each method waits for the one of the same name in `kasou.aio`; what it does is written there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from kasou import aio
from kasou.aio import process as aio_process
from kasou.api.loop import blocking, same_arguments, wait_for
from kasou.control import operations as op
from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import VmDirectory


class Console:
    """The serial port of a VM; see `kasou.aio.Console`."""

    def __init__(self, behind: aio.Console) -> None:
        self._behind = behind

    attach = blocking(aio.Console.attach)
    send = blocking(aio.Console.send)
    send_line = blocking(aio.Console.send_line)

    def expect(self, pattern: str, timeout: float | None = 60.0) -> re.Match[bytes]:
        """Wait for `pattern` and go on behind its match; see `kasou.aio.Console.expect`."""
        return wait_for(self._behind.expect(pattern, timeout))

    @property
    def output(self) -> str:
        """The last of what the guest said, up to a MiB."""
        return self._behind.output


class Output:
    """What a process printed; see `kasou.aio.process.Output`."""

    def __init__(self, behind: aio_process.Output) -> None:
        self._behind = behind

    read = blocking(aio_process.Output.read)
    readline = blocking(aio_process.Output.readline)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line


class Process:
    """A process in the guest; see `kasou.aio.Process`."""

    def __init__(self, behind: aio.Process) -> None:
        self._behind = behind
        self.stdout = Output(behind.stdout)
        self.stderr = Output(behind.stderr)
        self.pid = behind.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._behind.poll()

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._behind.poll()

    def close(self) -> None:
        """Close the connection: a process that still runs is killed."""

        async def work() -> None:
            self._behind.close()

        wait_for(work())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    write = blocking(aio.Process.write)
    close_stdin = blocking(aio.Process.close_stdin)
    wait = blocking(aio.Process.wait)
    send_signal = blocking(aio.Process.send_signal)
    terminate = blocking(aio.Process.terminate)
    kill = blocking(aio.Process.kill)
    resize = blocking(aio.Process.resize)
    communicate = blocking(aio.Process.communicate)


class VM:
    """A virtual machine; arguments and meaning as `kasou.aio.VM`.

    with kasou.VM("debian:trixie", memory="512M", seed=42) as vm:
        vm.run("apt-get install -y nginx", check=True, timeout=600)
    """

    @same_arguments(aio.VM.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._behind = aio.VM(*args, **kwargs)

    @classmethod
    def _over(cls, behind: aio.VM) -> Self:
        vm = cls.__new__(cls)
        vm._behind = behind
        return vm

    @classmethod
    def open(cls, name: str) -> Self:
        """The VM called `name`, running or not; see `kasou.aio.VM.open`."""
        return cls._over(wait_for(aio.VM.open(name)))

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str | None = None) -> Self:
        """A VM that goes on from a saved one's file; see `kasou.aio.VM.load`."""
        return cls._over(wait_for(aio.VM.load(path, name)))

    def __enter__(self) -> Self:
        wait_for(self._behind.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._behind)

    # ------------------------------------------------------------------ looking
    @property
    def name(self) -> str:
        """What `kasou ls` calls it."""
        return self._behind.name

    @property
    def directory(self) -> VmDirectory:
        """Its files."""
        return self._behind.directory

    @property
    def config(self) -> VmConfig:
        """What it is made of."""
        return self._behind.config

    @property
    def ports(self) -> dict[int, tuple[str, int]]:
        """Where a guest's TCP port is reached on the host: guest port to (address, port)."""
        return self._behind.ports

    @property
    def console(self) -> Console:
        """Its serial port."""
        return Console(self._behind.console)

    info = blocking(aio.VM.info)

    # ------------------------------------------------------------------ life
    start = blocking(aio.VM.start)
    close = blocking(aio.VM.close)
    hold = blocking(aio.VM.hold)
    release = blocking(aio.VM.release)
    keep = blocking(aio.VM.keep)
    stop = blocking(aio.VM.stop)
    kill = blocking(aio.VM.kill)
    wait = blocking(aio.VM.wait)
    pause = blocking(aio.VM.pause)
    resume = blocking(aio.VM.resume)
    remove = blocking(aio.VM.remove)
    forward = blocking(aio.VM.forward)
    unforward = blocking(aio.VM.unforward)

    # ------------------------------------------------------------------ the guest
    run = blocking(aio.VM.run)
    put = blocking(aio.VM.put)
    get = blocking(aio.VM.get)
    succeed = blocking(aio.VM.succeed)
    fail = blocking(aio.VM.fail)
    wait_until_succeeds = blocking(aio.VM.wait_until_succeeds)
    wait_until_fails = blocking(aio.VM.wait_until_fails)
    wait_for_agent = blocking(aio.VM.wait_for_agent)
    wait_for_open_port = blocking(aio.VM.wait_for_open_port)
    wait_for_unit = blocking(aio.VM.wait_for_unit)

    @same_arguments(aio.VM.popen)
    def popen(self, *args: Any, **kwargs: Any) -> Process:  # noqa: D102
        return Process(wait_for(self._behind.popen(*args, **kwargs)))

    # ------------------------------------------------------------------ snapshots, forks
    snapshot = blocking(aio.VM.snapshot)
    snapshots = blocking(aio.VM.snapshots)
    restore = blocking(aio.VM.restore)
    remove_snapshot = blocking(aio.VM.remove_snapshot)
    save = blocking(aio.VM.save)

    def fork(self) -> Self:
        """A live copy, running; see `kasou.aio.VM.fork`."""
        return self._over(wait_for(self._behind.fork()))

    def fork_many(self, n: int, names: Sequence[str] | None = None) -> list[Self]:
        """`n` live copies at once; see `kasou.aio.VM.fork_many`."""
        return [self._over(copy) for copy in wait_for(self._behind.fork_many(n, names))]


Snapshot = op.SnapshotInfo
