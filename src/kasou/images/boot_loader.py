"""The boot loader for disks that bring their own kernel: U-Boot, from Debian's package `u-boot-qemu`.

Its build `qemu-riscv64_smode` runs where a kernel would, in S-mode on the machine's SBI. It finds a
partition with `extlinux/extlinux.conf` or `EFI/BOOT/BOOTRISCV64.EFI` and hands it the device tree that
it was given; that is how distributions' own images start. (U-Boot's documentation, "Distro boot")

The host's own copy is used where that package is installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kasou.errors import HostError
from kasou.images.progress import Report, TerminalReport
from kasou.images.store import downloads_directory, only_one
from kasou.paths import cache_directory

if TYPE_CHECKING:
    from kasou.images.archive import Archive

PACKAGE, SUITE = "u-boot-qemu", "trixie"
INSIDE = "usr/lib/u-boot/qemu-riscv64_smode/uboot.elf"
INDICES = ("main/binary-riscv64", "main/binary-amd64", "main/binary-arm64")
"""It is for every architecture, so any of these will do."""


def boot_loader(
    mirror: str | None = None, progress: Report | None = None, root: Path = Path("/")
) -> Path:
    """An ELF file to be booted like a kernel; fetched and verified the first time.

    Raises `HostError` when it cannot be had. `root` is where the host's packages are installed.
    """
    if (installed := root / INSIDE).exists():
        return installed
    kept = cache_directory() / "firmware" / "u-boot.elf"
    if kept.exists():
        return kept
    with only_one("u-boot"):
        if kept.exists():
            return kept
        if progress is not None:
            return _fetch(kept, mirror, progress)
        with TerminalReport() as report:
            return _fetch(kept, mirror, report)


def _fetch(target: Path, mirror: str | None, report: Report) -> Path:
    from kasou.images.archive import open_archive
    from kasou.images.mirror import candidates

    problem: HostError | None = None
    for archive in open_archive(candidates(mirror), SUITE, downloads_directory(), report):
        try:
            report.step(f"fetching {PACKAGE} from {archive.mirror}")
            data = _file(archive)
        except HostError as error:
            problem = error
            continue
        fresh = target.with_suffix(f".{os.getpid()}.new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(data)
            fresh.replace(target)
        except OSError as error:
            raise HostError(f"{target}: cannot be written ({error.strerror})") from None
        return target
    assert problem is not None, "an archive that was found has no fault"
    raise problem


def _file(archive: Archive) -> bytes:
    """The file out of the package, looked up in the first index that can be verified."""
    from kasou.images.archive import IndexMismatch, read_deb

    for index in INDICES:
        try:
            package = archive.find(index, PACKAGE)
        except IndexMismatch:
            continue
        if package is None:
            raise HostError(f"{archive.mirror}: {archive.suite} has no package {PACKAGE}")
        found = read_deb(archive.fetch(package), lambda name: name == INSIDE)
        if INSIDE not in found:
            raise HostError(f"{PACKAGE} {package.version}: has no {INSIDE}")
        return found[INSIDE]
    raise HostError(f"{archive.mirror}: no index that names {PACKAGE} can be verified now")
