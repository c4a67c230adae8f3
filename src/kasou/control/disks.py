"""A VM's disks: chains of images, of which only the top one is written.

    disk-base (shared, never written)  <-  disk-1f.qcow2  <-  disk-4a.qcow2     what the VM writes
                                           frozen: a snapshot or a fork is of it

A snapshot freezes the top image and the VM goes on in a new one over it; a fork's first image stands
on the frozen one, which is linked into its own directory, as the image's base is: images name each
other by names in that directory, and no VM depends on another's files.
`disks.json` names the tops. Images that neither the VM nor a snapshot needs are deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kasou.control.vm_config import DriveConfig, VmConfig
from kasou.control.vm_directory import VmDirectory, replace
from kasou.errors import ConfigError, HostError

if TYPE_CHECKING:
    from kasou.storage.disk import OpenDisk

OWN = "disk"
"""The name of the VM's own disk; drives are called drive0, drive1 ..."""

MOST_IMAGES = 200

Tops = dict[str, str]
"""The file, in the directory of disks, that is at the top of each disk's chain."""


def disks_directory(directory: VmDirectory) -> Path:
    """Where a VM's images are."""
    return directory.path / "disks"


def read_tops(directory: VmDirectory) -> Tops:
    """The tops as they are; empty before the first start. Raises `ConfigError`."""
    path = directory.path / "disks.json"
    try:
        tops = json.loads(path.read_text())
        return {str(name): os.path.basename(str(file)) for name, file in tops.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as problem:
        raise ConfigError(f"{path}: damaged ({problem})") from None


class VmDisks:
    """The open disks of a running VM, in the order in which the guest sees them.

    `frozen` are tops to go on from, of a snapshot or a fork; None goes on where the VM was.
    Raises `ConfigError` and `HostError`.
    """

    def __init__(
        self, directory: VmDirectory, config: VmConfig, frozen: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.config = config
        self.tops: Tops = {}
        self.open: list[OpenDisk] = []
        self._layered: dict[str, OpenDisk] = {}
        """Those of which snapshots can be taken."""
        self._direct: list[DriveConfig] = []
        try:
            self._open_all(read_tops(directory) if frozen is None else None, frozen or {})
        except BaseException:
            self.close()
            raise
        if self.tops:
            self._write_tops()

    def _open_all(self, current: Tops | None, frozen: Mapping[str, str]) -> None:
        if self.config.disk is not None:
            self._open_layered(OWN, Path(self.config.disk), "qcow2", current, frozen)
        for number, drive in enumerate(self.config.drives):
            if drive.snapshot:
                name = f"drive{number}"
                self._open_layered(name, Path(drive.path), drive.format, current, frozen)
                continue
            from kasou.storage.disk import open_disk

            disk = open_disk(
                drive.path, format=drive.format, read_only=drive.read_only, cache=drive.cache
            )
            self.open.append(disk)
            if not drive.read_only:
                self._direct.append(drive)

    def _open_layered(
        self,
        name: str,
        base: Path,
        base_format: str | None,
        current: Tops | None,
        frozen: Mapping[str, str],
    ) -> None:
        from kasou.storage.disk import open_disk

        where = disks_directory(self.directory)
        where.mkdir(exist_ok=True)
        if current is not None and name in current:
            disk = open_disk(where / current[name])
        else:
            below = where / f"{name}-base"
            if name in frozen:
                below, base_format = where / os.path.basename(frozen[name]), "qcow2"
            elif not os.path.lexists(below):
                link(base, below)
            path = self._new_path(name)
            _overlay(path, below, base_format)
            disk = open_disk(path)
        self.open.append(disk)
        self._layered[name] = disk
        self.tops[name] = disk.path.name

    def _new_path(self, name: str) -> Path:
        return disks_directory(self.directory) / f"{name}-{secrets.token_hex(4)}.qcow2"

    def check_snapshot(self) -> None:
        """Raises `ConfigError` when a disk is written directly, so that no moment can be kept."""
        if self._direct:
            raise ConfigError(
                f"{self._direct[0].path}: this disk is written directly, so no snapshot can be"
                f" taken; give it as --drive {self._direct[0].path},snapshot (or ,ro)"
            )

    def flush(self) -> None:
        """Bring what was written to stable storage, so that `freeze` is short."""
        for disk in self._layered.values():
            disk.flush()

    def freeze(self) -> Tops:
        """Keep the disks as they are now, and go on in new images; the frozen tops.

        The harts must be parked. Raises `HostError`; the disks then go on as they were.
        """
        frozen = dict(self.tops)
        for name, disk in self._layered.items():
            disk.push(self._new_path(name))
            self.tops[name] = disk.path.name
        if frozen:
            self._write_tops()
        return frozen

    def _write_tops(self) -> None:
        replace(self.directory.path / "disks.json", json.dumps(self.tops) + "\n")

    def close(self) -> None:
        """Flush and let go of the files."""
        for disk in self.open:
            with contextlib.suppress(OSError, HostError):
                disk.close()
        self.open.clear()


def _overlay(path: Path, below: Path, below_format: str | None) -> None:
    from kasou.storage.create import create_qcow2
    from kasou.storage.disk import open_disk

    with open_disk(below, format=below_format, read_only=True) as base:
        size, format = base.size_bytes, base.format
    create_qcow2(path, size, backing=below.name, backing_format=format)


def link(source: Path, target: Path) -> None:
    """Another name for a file: a hard link, or a symbolic one from another file system."""
    source = source.resolve()
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        os.symlink(source, target)


def chain(path: Path) -> list[Path]:
    """The image at `path` and all below it, top first. Raises `ConfigError`."""
    from kasou.storage.disk import backing_path, read_header
    from kasou.storage.opening import open_file

    found = [path]
    while len(found) < MOST_IMAGES:
        file = open_file(path, read_only=True, locked=False)
        try:
            header = read_header(file)
        finally:
            file.close()
        if header.backing_file is None:
            return found
        path = backing_path(path, header.backing_file)
        found.append(path)
        if header.backing_format != "qcow2":
            return found
    raise ConfigError(f"disk {path}: more than {MOST_IMAGES} images, one on the other")


def hand_over(source: VmDirectory, target: VmDirectory, frozen: Mapping[str, str]) -> None:
    """Link the images that `frozen` stands on into another VM's directory. Raises `HostError`."""
    link_chains(disks_directory(source), disks_directory(target), frozen)


def link_chains(source: Path, target: Path, frozen: Mapping[str, str]) -> None:
    """Link the images that `frozen` stands on from one directory into another, made if need be."""
    for top in frozen.values():
        target.mkdir(exist_ok=True)
        for image in chain(source / top):
            if image.parent != source:
                break  # a backing file that its user named by its whole path
            link(image, target / image.name)


def delete_unneeded(directory: VmDirectory, tops: Iterable[Mapping[str, str]]) -> None:
    """Delete the images of a VM that none of `tops` stands on."""
    where = disks_directory(directory)
    needed: set[str] = set()
    try:
        for one in tops:
            for top in one.values():
                needed |= {image.name for image in chain(where / top)}
        for image in where.iterdir():
            if image.name not in needed and not image.name.startswith("."):
                image.unlink()
    except (OSError, ConfigError):
        return  # better too many files than too few
