"""What a running VM does with moments of itself: snapshots, restore, forks, save.

A moment is taken with all harts parked: harts and devices are copied, RAM is frozen (the machine goes
on with copies of the pages it writes), the disks go on in new images. That takes milliseconds;
writing it down, or giving it to forks, happens while the VM runs on.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kasou.control import disks, snapshots
from kasou.control import operations as op
from kasou.control.assembly import Handlers, Origin, mac_address
from kasou.control.snapshots import Settings, describe_machine
from kasou.control.start import await_ready
from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import VmDirectory, free_name
from kasou.errors import ConfigError, HostError

if TYPE_CHECKING:
    from kasou.control.running_vm import RunningVm
    from kasou.vmm.snapshot import Description

FORK_SECONDS = 30.0
MOST_FORKS = 1000


class Moments:
    """The operations of `vm` that take a moment or go back to one."""

    def __init__(self, vm: RunningVm) -> None:
        self.vm = vm
        self.handlers: Handlers = {
            "snapshot_create": self.create,
            "snapshot_restore": self.restore,
            "snapshot_remove": self.remove,
            "fork": self.fork,
            "save": self.save,
        }

    def take(self) -> Origin:
        """This moment. `vm.changing` is held. Raises `ConfigError`, `HostError`."""
        from kasou.machine.state import save

        vm = self.vm
        vm.refuse_ended()
        vm.current.disks.check_snapshot()
        vm.current.disks.flush()
        machine = vm.machine
        with machine.parked():
            state = save(machine)
            tops = vm.current.disks.freeze()
            memory = machine.memory.freeze()
        return Origin(memory, state, tops, vm.restored_from)

    # ------------------------------------------------------------------ snapshots
    def create(self, request: op.SnapshotCreate) -> op.SnapshotInfo:
        """Keep this moment as a file; it becomes the parent of the next."""
        vm, directory = self.vm, self.vm.directory
        with vm.changing:
            name = request.name or snapshots.free_name(directory)
            path = snapshots.path_of(directory, name)
            if path.exists():
                raise ConfigError(
                    f"{directory.name} has a snapshot {name};"
                    f" kasou snapshot rm {directory.name} {name} removes it"
                )
            moment = self.take()
            self._write(path, moment, name, request.comment)
            vm.restored_from = name
            vm.say("paused" if vm.is_paused else "running")
        return snapshots.information(path, name)

    def _write(
        self,
        path: Path,
        moment: Origin,
        name: str,
        comment: str,
        attachments: dict[str, Path] | None = None,
    ) -> None:
        from kasou.vmm.snapshot import write

        settings = Settings(self.vm.config, dict(moment.tops), moment.snapshot)
        about = self._description(name, comment, settings)
        write(path, moment.memory, moment.state, about, attachments)

    def _description(self, name: str, comment: str, settings: Settings) -> Description:
        from kasou import __version__
        from kasou.vmm.snapshot import Description

        config = self.vm.config
        return Description(
            memory_bytes=config.memory,
            harts=config.cpus,
            clock=config.clock,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            kasou=__version__,
            name=name,
            comment=comment,
            settings=describe_machine(settings),
        )

    def restore(self, request: op.SnapshotRestore) -> op.SnapshotInfo:
        """Exchange the machine for the one of a snapshot."""
        vm = self.vm
        path = snapshots.find(vm.directory, request.name)
        with vm.changing:
            vm.refuse_ended()
            origin = origin_of(path, request.name)
            vm.exchange(vm.assemble(origin), request.name)
            vm.renew(origin)
        snapshots.collect(vm.directory, vm.current.disks.tops)
        return snapshots.information(path, request.name)

    def remove(self, request: op.SnapshotRemove) -> op.Done:
        """Forget a snapshot."""
        with self.vm.changing:
            snapshots.remove(self.vm.directory, request.name)
            if self.vm.restored_from == request.name:
                self.vm.restored_from = None
                self.vm.say("paused" if self.vm.is_paused else "running")
        return op.Done()

    # ------------------------------------------------------------------ save
    def save(self, request: op.Save) -> op.Done:
        """All of it as one file; by default it ends there."""
        vm = self.vm
        path = Path(request.path)
        if path.is_dir():
            raise ConfigError(f"{path}: is a directory; name a file")
        with vm.changing:
            moment = self.take()
            if request.stop and not vm.is_paused:
                vm.machine.pause()
            try:
                files = snapshots.attachments(vm.directory, vm.config, dict(moment.tops))
                self._write(path, moment, vm.config.name, "", files)
            except BaseException:
                if request.stop and not vm.is_paused:
                    vm.machine.resume()
                raise
        if request.stop:
            vm.end_now()
        return op.Done()

    # ------------------------------------------------------------------ forks
    def fork(self, request: op.Fork) -> op.Forked:
        """Live copies; all run when this returns. Raises what kept one from running."""
        vm = self.vm
        if vm.zygote is None:
            raise ConfigError(f"{vm.config.name}: was started in a way that cannot be forked")
        if not 1 <= len(request.names) <= MOST_FORKS:
            raise ConfigError(f"{len(request.names)} forks: 1 to {MOST_FORKS} at once")
        if any(not drive.read_only and not drive.snapshot for drive in vm.config.drives):
            vm.current.disks.check_snapshot()
        with vm.changing:
            moment = self.take()
        made: list[tuple[VmDirectory, int]] = []
        try:
            for name in request.names:
                made.append(self._begin(name, moment, request.ephemeral))
            for directory, ready in made:
                await_ready(directory.name, ready, FORK_SECONDS)
        except BaseException as problem:
            for directory, _ in made:
                if not directory.is_locked():
                    directory.remove()
            if isinstance(problem, EOFError):
                raise HostError("a fork's process died before it ran") from None
            raise
        finally:
            for _, ready in made:
                os.close(ready)
        return op.Forked(tuple(directory.name for directory, _ in made))

    def _begin(self, name: str, moment: Origin, ephemeral: bool) -> tuple[VmDirectory, int]:
        """Start one fork; its directory, and the file that says when it runs."""
        from kasou.vmm.fork import pack

        vm = self.vm
        assert vm.zygote is not None
        stem = vm.config.name.split("-fork-")[0]
        directory = self._make((name,) if name else fork_names(stem, ephemeral), ephemeral)
        try:
            disks.hand_over(vm.directory, directory, moment.tops)
            settings = {"name": directory.name, "tops": dict(moment.tops)}
            payload, files = pack(moment.memory, moment.state, settings)
            read, write = os.pipe()
            try:
                vm.zygote.spawn("kasou.control.process:be_fork", payload, [write, *files])
            except BaseException:
                os.close(read)
                raise
            finally:
                os.close(write)
        except BaseException:
            directory.remove()
            raise
        return directory, read

    def _make(self, names: Iterable[str], ephemeral: bool) -> VmDirectory:
        """The fork's directory, under the first of `names` that is free."""
        problem: ConfigError | None = None
        for name in names:
            config = replace(
                self.vm.config,
                name=name,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                parent=self.vm.config.name,
                ports=(),  # the host's ports are taken
                mac=self._mac(name),
                ephemeral=ephemeral,
                held=ephemeral,
            )
            directory = VmDirectory(name)
            try:
                directory.create(config)
            except ConfigError as taken:
                problem = taken
                continue
            self._link_boot_files(directory, config)
            return directory
        raise problem or ConfigError("no name for the fork")

    def _mac(self, name: str) -> str | None:
        """The fork's address: another one where it meets us, ours on a network of its own."""
        config = self.vm.config
        if config.network is None:
            return config.mac
        return mac_address(name, config.created, config.seed, config.network)

    def _link_boot_files(self, directory: VmDirectory, config: VmConfig) -> None:
        """Kernel and initrd that lie in our directory become links in the fork's."""
        changes: dict[str, str] = {}
        for field in ("kernel", "initrd", "bios"):
            value = getattr(config, field)
            if value is not None and Path(value).parent == self.vm.directory.path:
                disks.link(Path(value), directory.path / Path(value).name)
                changes[field] = str(directory.path / Path(value).name)
        if changes:
            directory.write_config(replace(config, **changes))  # type: ignore[arg-type]


def origin_of(path: Path, name: str | None) -> Origin:
    """The moment in a snapshot's file. Raises `ConfigError` when it is damaged."""
    file = snapshots.open_file(path)
    tops = snapshots.settings_of(file).tops
    return Origin(file.memory(), file.state, tops, name)


def fork_names(stem: str, ephemeral: bool) -> Iterable[str]:
    """Names for a fork. One that vanishes gets a name that no later VM will have."""
    if ephemeral:
        return (f"{stem[:40]}-fork-{secrets.token_hex(4)}" for _ in range(3))
    return free_name(f"{stem}-fork")
