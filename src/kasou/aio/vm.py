"""A virtual machine as an object of asyncio: launch, run commands, snapshot, fork.

Everything goes through the VM's control socket; this process holds no part of the machine, and any
number of them may use one VM. `kasou.api` has the same names without `await`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from kasou.aio.commands import Guest
from kasou.aio.console import Console
from kasou.aio.definition import create, define
from kasou.control import operations as op
from kasou.control.client import ByteStream, ControlClient
from kasou.control.running_vm import describe
from kasou.control.snapshots import SUFFIX, list_all, open_file, unpack
from kasou.control.snapshots import find as find_snapshot
from kasou.control.snapshots import remove as remove_snapshot
from kasou.control.start import start
from kasou.control.vm_config import DriveConfig, MountConfig, VmConfig
from kasou.control.vm_directory import VmDirectory, find, free_name
from kasou.errors import ConfigError, KasouError

RELEASE_SECONDS = 15.0


class VM(Guest):
    """A virtual machine.

        async with VM("debian:trixie", memory="512M", seed=42) as vm:
            await vm.run("apt-get install -y nginx", check=True, timeout=600)

    Nothing happens before `start` (or `async with`). Without `name` it is ephemeral: it ends and
    its files vanish with the `with` block, `close`, or this process, however that dies. With a
    `name` it stays, and the block's end powers it off.
    """

    def __init__(
        self,
        image: str | None = None,
        *,
        name: str | None = None,
        cpus: int = 1,
        memory: str | int = "512M",
        ports: Iterable[str] = (),
        mounts: Iterable[str | tuple[str, str] | MountConfig] = (),
        network: str | Literal[False] | None = None,
        egress: str = "allow",
        drives: Iterable[str | DriveConfig] = (),
        kernel: str | os.PathLike[str] | None = None,
        initrd: str | os.PathLike[str] | None = None,
        append: str | None = None,
        bios: str | os.PathLike[str] | None = None,
        cloud_init: str | os.PathLike[str] | None = None,
        disk_errors: str = "report",
        seed: int | None = None,
        clock: str = "host",
        technique: str = "direct",
        paging: str = "direct",
        io: str = "virtio",
        scheduler: str = "direct",
        engine: str = "interpreter",
        mirror: str | None = None,
    ) -> None:
        self._wanted: dict[str, Any] | None = {
            "image": image, "name": name, "cpus": cpus, "memory": memory, "ports": tuple(ports),
            "mounts": tuple(mounts), "network": network, "egress": egress,
            "drives": tuple(drives), "kernel": kernel, "initrd": initrd, "append": append,
            "bios": bios, "cloud_init": cloud_init, "disk_errors": disk_errors, "seed": seed, "clock": clock,
            "technique": technique, "paging": paging, "io": io, "scheduler": scheduler,
            "engine": engine, "mirror": mirror, "ephemeral": name is None, "held": name is None,
        }  # fmt: skip
        self._directory: VmDirectory | None = None
        self._client: ControlClient | None = None
        self._hold: ByteStream | None = None
        self._console: Console | None = None
        self._owned = True
        self.ports: dict[int, tuple[str, int]] = {}
        """Where a guest's TCP port is reached on the host: guest port to (address, port)."""

    # ------------------------------------------------------------------ existing VMs
    @classmethod
    async def open(cls, name: str) -> Self:
        """The VM called `name`, running or not; closing the object leaves it as it is.

        Raises `ConfigError` when there is none.
        """
        vm = cls._of(find(name), owned=False)
        if vm.directory.is_locked():
            await vm._look()
        return vm

    @classmethod
    async def load(cls, path: str | os.PathLike[str], name: str | None = None) -> Self:
        """A VM that goes on from a file that `save` wrote; without `name` it is ephemeral.

        Raises `ConfigError` when the file is damaged or foreign.
        """
        file = Path(path).absolute()

        def make() -> VmDirectory:
            stem = file.name.removesuffix(SUFFIX) or "vm"
            directory = unpack(file, name or next(free_name(stem)), ephemeral=name is None)
            try:
                start(directory, file)
            except BaseException:
                directory.remove()
                raise
            return directory

        vm = cls._of(await asyncio.to_thread(make), owned=True)
        await vm._look()
        return vm

    @staticmethod
    def saved_name(path: Path) -> str:
        """What the VM in a saved file was called, or the like if that name is taken.

        Raises `ConfigError` when the file is damaged or foreign.
        """
        stem = open_file(path).description.name or "vm"
        return stem if not VmDirectory(stem).exists else next(free_name(stem))

    @classmethod
    def _of(cls, directory: VmDirectory, owned: bool) -> Self:
        vm = cls()
        vm._wanted = None
        vm._directory = directory
        vm._client = ControlClient(directory)
        vm._owned = owned
        return vm

    @property
    def name(self) -> str:
        """What `kasou ls` calls it. Raises `ConfigError` before the start."""
        return self.directory.name

    @property
    def directory(self) -> VmDirectory:
        """Its files. Raises `ConfigError` before the start."""
        if self._directory is None:
            raise ConfigError("the VM was not started; use it as a context manager, or start()")
        return self._directory

    @property
    def client(self) -> ControlClient:
        """Its control socket. Raises `ConfigError` before the start."""
        if self._client is None:
            raise ConfigError("the VM was not started; use it as a context manager, or start()")
        return self._client

    @property
    def config(self) -> VmConfig:
        """What it is made of."""
        return self.directory.read_config()

    @property
    def console(self) -> Console:
        """Its serial port."""
        if self._console is None:
            self._console = Console(self.client)
        return self._console

    # ------------------------------------------------------------------ life
    async def __aenter__(self) -> Self:
        if self._directory is None or not self._directory.is_locked():
            await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Launch it, or boot it again after it has stopped. Raises what keeps it from starting."""
        if self._directory is None:
            assert self._wanted is not None
            wanted = self._wanted
            self._directory = await asyncio.to_thread(lambda: create(define(**wanted)))
            self._client = ControlClient(self._directory)
        try:
            await asyncio.to_thread(start, self._directory)
        except BaseException:
            if self._wanted is not None and self._wanted["ephemeral"]:
                self._directory.remove()
                self._directory = self._client = None
            raise
        await self._look()

    async def _look(self) -> None:
        """Hold it if it wants to be held, and learn its ports."""
        if self._owned and self._hold is None and self.config.held:
            self._hold = await self.client.open(op.Hold())
        self._learn_ports((await self.client.call(op.Info())).ports)

    def _learn_ports(self, forwards: Iterable[op.PortForward]) -> None:
        self.ports = {
            one.guest_port: (one.host, one.host_port) for one in forwards if one.protocol == "tcp"
        }

    async def hold(self) -> None:
        """Keep a held VM alive as long as this object (and this process) is; see `release`."""
        if self._hold is None:
            self._hold = await self.client.open(op.Hold())

    async def release(self) -> None:
        """Hold it no longer: an ephemeral VM ends when nobody holds it."""
        if self._hold is not None:
            self._hold.close()
            self._hold = None

    async def keep(self) -> None:
        """Make an ephemeral VM one that stays, under its name; `close` leaves it as it is."""
        await self.client.call(op.Keep())
        self._owned = False

    async def close(self) -> None:
        """Let go of it: an ephemeral VM ends and is removed, one with a name is powered off.

        A VM that was only opened stays as it is.
        """
        if self._console is not None:
            self._console.close()
            self._console = None
        if self._directory is None:
            return
        if self._owned and self._directory.is_locked():
            with contextlib.suppress(ConfigError):  # it ended meanwhile
                if self._is_ephemeral():
                    await self.client.call(op.Stop(force=True))
                else:
                    await self.client.call(op.Stop(then_force=True))
        if self._hold is not None:
            self._hold.close()
            self._hold = None
        if self._owned and self._is_ephemeral() and not self._directory.is_locked():
            await asyncio.to_thread(self._directory.remove)  # its process died before it could

    def _is_ephemeral(self) -> bool:
        with contextlib.suppress(KasouError):
            return self.config.ephemeral
        return True  # it has vanished already

    async def info(self) -> op.VmInfo:
        """What it is and how it does, running or not."""
        directory = self.directory
        if directory.is_locked():
            with contextlib.suppress(ConfigError):
                return await self.client.call(op.Info())
        return describe(directory.read_config(), directory, directory.state())

    async def stop(self, timeout: float = 60.0, force: bool = False) -> op.Ended:
        """Power it off and wait; `force` ends it at once. Raises `HostError` after `timeout`."""
        ended = await self.client.call(op.Stop(force=force, timeout=timeout))
        await self._released()
        return ended

    async def _released(self) -> None:
        """Wait for the end of its process, which answers before it has wholly ended."""
        deadline = time.monotonic() + RELEASE_SECONDS
        while self.directory.is_locked() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def kill(self) -> op.Ended:
        """End it at once, as if the plug were pulled."""
        return await self.stop(force=True)

    async def wait(self) -> op.Ended:
        """Wait for its end."""
        ended = await self.client.call(op.Wait())
        await self._released()
        return ended

    async def pause(self) -> None:
        """Stop its harts; its memory and connections stay."""
        await self.client.call(op.Pause())

    async def resume(self) -> None:
        """Let its harts go on."""
        await self.client.call(op.Resume())

    async def remove(self, force: bool = False) -> None:
        """Delete it with its disks and snapshots. Raises `ConfigError` while it runs."""
        if self.directory.is_locked():
            if not force:
                raise ConfigError(
                    f"{self.name}: is running; kasou stop {self.name} first, or rm -f"
                )
            with contextlib.suppress(KasouError):
                await self.kill()
        await asyncio.to_thread(self.directory.remove)

    # ------------------------------------------------------------------ ports
    async def forward(self, spec: str) -> op.PortForward:
        """Forward one more port, written as for `-p`: `8080:80`, `127.0.0.1:5353:53/udp`."""
        made = await self.client.call(op.PortAdd(spec))
        self._learn_ports((await self.client.call(op.PortList())).ports)
        return made

    async def unforward(self, spec: str) -> None:
        """No longer forward a port of the host."""
        await self.client.call(op.PortRemove(spec))
        self._learn_ports((await self.client.call(op.PortList())).ports)

    # ------------------------------------------------------------------ snapshots, forks
    async def snapshot(self, comment: str = "", name: str | None = None) -> op.SnapshotInfo:
        """Keep this moment: memory, devices, disks. It goes on running."""
        return await self.client.call(op.SnapshotCreate(name, comment))

    async def restore(self, snapshot: op.SnapshotInfo | str) -> None:
        """Go back to a snapshot of its own; what happened since is dropped."""
        name = snapshot if isinstance(snapshot, str) else snapshot.name
        if self._console is not None:
            self._console.close()
            self._console = None
        if self.directory.is_locked():
            await self.client.call(op.SnapshotRestore(name))
        else:
            await asyncio.to_thread(start, self.directory, find_snapshot(self.directory, name))
        await self._look()

    async def fork(self) -> Self:
        """A live copy, running; ephemeral, sharing memory and disk until either writes."""
        (copy,) = await self.fork_many(1)
        return copy

    async def fork_many(self, n: int, names: Sequence[str] | None = None) -> list[Self]:
        """`n` live copies at once; with `names` they stay like other named VMs."""
        forked = await self.client.call(op.Fork(tuple(names or [""] * n), names is None))
        copies = [self._of(VmDirectory(name), owned=True) for name in forked.names]
        for copy in copies:
            await copy._look()
        return copies

    async def fork_named(self, names: Sequence[str]) -> list[str]:
        """Live copies that stay, without objects for them; an empty name is chosen. Their names."""
        return list((await self.client.call(op.Fork(tuple(names), False))).names)

    async def snapshots(self) -> list[op.SnapshotInfo]:
        """Its snapshots, oldest first."""
        return await asyncio.to_thread(list_all, self.directory)

    async def remove_snapshot(self, snapshot: op.SnapshotInfo | str) -> None:
        """Forget a snapshot; those made after it stay whole."""
        name = snapshot if isinstance(snapshot, str) else snapshot.name
        if self.directory.is_locked():
            await self.client.call(op.SnapshotRemove(name))
        else:
            await asyncio.to_thread(remove_snapshot, self.directory, name)

    async def save(self, path: str | os.PathLike[str], stop: bool = True) -> None:
        """Write all of it into one file, from which `load` goes on; it ends unless `stop` is False."""
        await self.client.call(op.Save(str(Path(path).absolute()), stop))
        if stop:
            await self._released()

    def __repr__(self) -> str:
        return f"<VM {self._directory.name if self._directory else 'not started'}>"
