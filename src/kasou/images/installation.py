"""A whole Debian on a disk: chosen, fetched, unpacked without root, and finished in a machine of ours.

    packages   which, by their dependencies
    archive    their files, verified
    unpacked   all of them as one archive, dpkg's records included; with the files of `system`
    maker      a machine that makes a file system, unpacks the archive in it and configures it

The image is the kernel of the package, an initrd that mounts the disk, and the disk as qcow2.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kasou.errors import ConfigError, HostError
from kasou.guest.agent.bundle import agent_script, systemd_unit
from kasou.guest.initramfs import Entry
from kasou.guest.kernel_image import load_kernel
from kasou.images import maker, modules, programs, store, system, unpacked
from kasou.images.archive import Archive, Package, read_deb
from kasou.images.catalogue import Recipe
from kasou.images.debian import BUSYBOX, RISCV64, read_busybox
from kasou.images.packages import Index, alternatives, read_index
from kasou.storage.convert import convert
from kasou.storage.create import create_raw
from kasou.storage.disk import open_disk

DISK_BYTES = 8 << 30
"""What the guest sees; the file holds what is written."""
FILE_SYSTEM_TOOLS = "e2fsprogs"
TOOLS = ("usr/sbin/mke2fs", "usr/sbin/tune2fs", "usr/sbin/e2fsck")
DEFAULTS = "etc/mke2fs.conf"


@dataclass(frozen=True, slots=True)
class Selection:
    """The packages of a system, and those that are only used to make it."""

    packages: Sequence[Package]
    kernel: Package
    tools: Sequence[Package]
    busybox: Package
    missing: str = ""

    def digest(self) -> str:
        """Names these inputs and the program that uses them."""
        text = repr((self.packages, self.busybox)) + systemd_unit()
        for module in (maker, modules, programs, system, unpacked):
            text += Path(str(module.__file__)).read_text()
        return hashlib.sha256(text.encode() + agent_script()).hexdigest()


def find_parts(archive: Archive, _recipe: Recipe) -> Selection:
    """Choose the packages. Raises `HostError` when something is not to be had."""
    index = read_index(archive.index(RISCV64))
    kernel = _kernel(index)
    names = index.resolve([*index.base, *system.PACKAGES, kernel], system.WITHOUT)
    tools = index.resolve([FILE_SYSTEM_TOOLS])
    return Selection(
        [index.package(name) for name in names],
        index.package(kernel),
        [index.package(name) for name in tools if name in names],
        index.package(BUSYBOX),
    )


def _kernel(index: Index) -> str:
    """The kernel's package, which that with the lasting name depends on."""
    stanza = index.fields.get(system.KERNEL, {})
    for ways in alternatives(stanza.get("Depends", "")):
        for way in ways:
            if way.name.startswith("linux-image-") and way.name in index.fields:
                return way.name
    raise HostError(f"the archive has no kernel by the name of {system.KERNEL}")


def build(archive: Archive, recipe: Recipe, chosen: Selection, now: datetime) -> store.Image:
    """Fetch the packages, make the image in a machine and keep it. Raises `HostError`."""
    report = archive.report
    megabytes = sum(package.size for package in chosen.packages) / 1e6
    report.step(f"fetching {len(chosen.packages)} packages, {megabytes:.0f} MB, where not here yet")
    everything = [*chosen.packages, chosen.busybox]
    paths = dict(zip((one.name for one in everything), archive.fetch_all(everything), strict=True))
    with store.workshop(recipe.name) as directory:
        report.step("unpacking")
        kernel, drivers = _read_kernel(paths[chosen.kernel.name])
        kernel_path = directory / store.KERNEL
        kernel_path.write_bytes(kernel)
        tools = maker.Tools(
            read_busybox(paths[chosen.busybox.name]),
            [modules.unpacked(one) for one in modules.resolve(drivers, maker.DRIVERS)],
            _file_system_tools([paths[package.name] for package in chosen.tools]),
        )
        tar, raw, disk = directory / "root.tar", directory / "disk.raw", directory / store.DISK
        unpacked.write(
            tar,
            [paths[package.name] for package in chosen.packages],
            system.files(archive.mirror, archive.suite),
            system.STANZAS,
            archive.release.time,
            lambda done, all_: report.advance("unpacking", done, all_, "packages"),
        )
        create_raw(raw, DISK_BYTES)
        with (
            open_disk(raw, format="raw", cache="unsafe") as new,
            open_disk(tar, format="raw", read_only=True) as source,
        ):
            maker.make(
                kernel_path, tools, new, source, directory,
                len(chosen.packages), archive.release.time, report,
            )  # fmt: skip
        report.step("storing the image")
        convert(raw, disk, source_format="raw")
        disk.chmod(0o444)
        image = store.Image(
            name=recipe.name,
            description=recipe.description,
            created=now.isoformat(timespec="seconds"),
            size=0,
            kernel_version=chosen.kernel.name.removeprefix("linux-image-"),
            debian_version=archive.release.version or archive.release.codename,
            packages={package.name: package.version for package in chosen.packages},
            signed=archive.release.is_signed,
            missing="",
            append=recipe.append,
            inputs=chosen.digest(),
            directory="",
            has_disk=True,
            agent=True,
        )
        initrd = maker.boot_initrd(tools)
        return store.store(
            image, {store.KERNEL: kernel_path, store.INITRD: initrd, store.DISK: disk}
        )


def _read_kernel(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The kernel, and its drivers for disks and file systems by path."""
    wanted = re.compile(r"boot/vmlinu|.*/kernel/(drivers/(block|virtio)|fs|lib|crypto|arch)/.*\.ko")
    files = read_deb(path, lambda name: wanted.match(name) is not None)
    kernels = [data for name, data in files.items() if name.startswith("boot/vmlinu")]
    if not kernels:
        raise HostError(f"{path}: no kernel in it")
    try:
        load_kernel(kernels[0], f"{path.name}: vmlinux")
    except ConfigError as error:
        raise HostError(str(error)) from None
    return kernels[0], {name: data for name, data in files.items() if ".ko" in name}


def _file_system_tools(paths: Sequence[Path]) -> list[Entry]:
    """mke2fs and its kin, with their libraries and defaults."""
    found: dict[str, bytes] = {}
    for path in paths:
        found |= read_deb(path, lambda name: name in (*TOOLS, DEFAULTS) or ".so" in name)
    absent = [name for name in (*TOOLS, DEFAULTS) if name not in found]
    if absent:
        raise HostError(f"{FILE_SYSTEM_TOOLS}: has no {', '.join(absent)}")
    libraries = {name: data for name, data in found.items() if ".so" in name}
    files = programs.with_libraries({name: found[name] for name in TOOLS}, libraries)
    return [*files, Entry(DEFAULTS, stat.S_IFREG | 0o644, found[DEFAULTS])]
