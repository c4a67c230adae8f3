"""The snapshots of a VM: a tree of moments, each a file in its directory.

A file holds RAM, harts and devices (`kasou.vmm.snapshot`); of the disks it names the frozen images,
which stay in the VM's directory. The parent of a snapshot is the one the VM had come from. To
travel, a VM is *saved*: then the file holds disks, kernel and all.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasou.control.disks import Tops, chain, delete_unneeded, disks_directory, read_tops
from kasou.control.operations import SnapshotInfo
from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import VmDirectory
from kasou.errors import ConfigError, HostError, KasouError
from kasou.json_values import from_json, to_json

if TYPE_CHECKING:
    from kasou.vmm.snapshot import SnapshotFile

SUFFIX = ".kasou"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SUSPENDED = ".suspended"
"""The file, among the snapshots, that a suspended VM goes on from; not one of the tree."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a snapshot keeps besides the machine. `tops` are the frozen images of its disks."""

    config: VmConfig
    tops: Tops = field(default_factory=dict)
    parent: str | None = None


def path_of(directory: VmDirectory, name: str) -> Path:
    """The file of the snapshot `name`; it need not exist. Raises `ConfigError` for a bad name."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r}: not a name for a snapshot; letters, digits, '.', '_' and '-', beginning"
            " with a letter or digit"
        )
    return directory.snapshots / f"{name}{SUFFIX}"


def free_name(directory: VmDirectory) -> str:
    """A name that no snapshot of the VM has: 1, 2, 3 ..."""
    for number in itertools.count(1):
        if not path_of(directory, str(number)).exists():
            return str(number)
    raise AssertionError("numbers do not end")


def find(directory: VmDirectory, name: str) -> Path:
    """The file of a snapshot. Raises `ConfigError` with the nearest name when there is none."""
    path = path_of(directory, name)
    if path.exists():
        return path
    names = [path.stem for path in files(directory)]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"kasou snapshot ls {directory.name} lists them"
    raise ConfigError(f"{directory.name} has no snapshot {name}; {hint}")


def files(directory: VmDirectory) -> list[Path]:
    """All snapshots, oldest first."""
    with contextlib.suppress(OSError):
        found = [p for p in directory.snapshots.iterdir() if NAME.fullmatch(p.name)]
        return sorted(
            (p for p in found if p.suffix == SUFFIX), key=lambda p: (p.stat().st_mtime_ns, p.name)
        )
    return []


def open_file(path: Path) -> SnapshotFile:
    """A snapshot's file, its contents checked. Raises `ConfigError` with what is wrong with it."""
    from kasou.vmm.snapshot import SnapshotFile

    return SnapshotFile(path)


def settings_of(file: SnapshotFile) -> Settings:
    """What we put in it. Raises `ConfigError`."""
    return from_json(Settings, file.description.settings, f"snapshot {file.path}", ConfigError)


def list_all(directory: VmDirectory) -> list[SnapshotInfo]:
    """The snapshots of a VM, oldest first; damaged ones say so in their comment."""
    current = directory.read_state().restored_from
    return [_info(path, current) for path in files(directory)]


def _info(path: Path, current: str | None) -> SnapshotInfo:
    try:
        file = open_file(path)
        settings = settings_of(file)
        size = os.stat(path).st_blocks * 512
        about = file.description
        return SnapshotInfo(
            path.stem, about.comment, about.created, settings.parent, size, path.stem == current
        )
    except KasouError as problem:
        return SnapshotInfo(path.stem, f"unusable: {problem}", "", None, 0, path.stem == current)


def information(path: Path, current: str | None) -> SnapshotInfo:
    """One snapshot. Raises `ConfigError` when it is damaged."""
    open_file(path)
    return _info(path, current)


def remove(directory: VmDirectory, name: str) -> None:
    """Delete a snapshot; its children become its parent's. Raises `ConfigError`, `HostError`."""
    path = find(directory, name)
    try:
        path.unlink()
    except OSError as problem:
        raise HostError(f"{path}: cannot be removed ({problem.strerror})") from None
    collect(directory)


def collect(directory: VmDirectory, current: Mapping[str, str] | None = None) -> None:
    """Delete images that are needed no more."""
    tops: list[Mapping[str, str]] = [current if current is not None else read_tops(directory)]
    paths = files(directory)
    if (suspended := directory.snapshots / f"{SUSPENDED}{SUFFIX}").exists():
        paths.append(suspended)
    for path in paths:
        try:
            tops.append(settings_of(open_file(path)).tops)
        except KasouError:
            return  # what a damaged snapshot needs is not known
    delete_unneeded(directory, tops)


# ---------------------------------------------------------------------- VMs as one file
def attachments(directory: VmDirectory, config: VmConfig, tops: Tops) -> dict[str, Path]:
    """All files that a VM needs elsewhere, by the name they have in a saved VM."""
    found: dict[str, Path] = {}
    for field_name in ("kernel", "initrd", "bios"):
        value = getattr(config, field_name)
        if value is not None and value != "none":
            found[field_name] = Path(value)
    for top in tops.values():
        for image in chain(disks_directory(directory) / top):
            if image.parent != disks_directory(directory):
                raise ConfigError(
                    f"{image}: a disk that stands on a file of another's; its VM"
                    " cannot be saved into one file"
                )
            found[f"disks/{image.name}"] = image
    return found


def unpack(path: Path, name: str, ephemeral: bool = False) -> VmDirectory:
    """Make a VM called `name` of a saved one; it is not started. An ephemeral one is held, too.

    Raises `ConfigError` when the file is damaged or foreign, `HostError` for a full disk.
    """
    file = open_file(path)
    settings = settings_of(file)
    there = {one.name for one in file.manifest.attachments}
    if not there and settings.config.kernel is not None:
        raise ConfigError(f"{path}: a snapshot that lives in its VM's directory, not a saved VM")
    if any(drive for drive in settings.config.drives if not Path(drive.path).exists()):
        missing = next(d.path for d in settings.config.drives if not Path(d.path).exists())
        raise ConfigError(f"{path}: its VM uses the disk {missing}, which is not here")
    directory = VmDirectory(name)
    changes: dict[str, Any] = {"name": name, "ephemeral": ephemeral, "held": ephemeral}
    for field_name in ("kernel", "initrd", "bios"):
        if field_name in there:
            changes[field_name] = str(directory.path / field_name)
    config = replace(settings.config, **changes)
    directory.create(config)
    try:
        disks_directory(directory).mkdir()
        for one in sorted(there):
            target = directory.path / one
            if target.parent not in (directory.path, disks_directory(directory)):
                raise ConfigError(f"{path}: a file in it is called {one!r}")
            file.extract(one, target)
    except BaseException:
        directory.remove()
        raise
    return directory


def describe_machine(settings: Settings) -> dict[str, Any]:
    """`settings` as a snapshot keeps them."""
    data = to_json(settings)
    assert isinstance(data, dict)
    return data
