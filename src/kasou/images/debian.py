"""The minimal guest, made from Debian's own packages.

    debian-installer-13-netboot-riscv64    the kernel, and most modules (in the installer's initrd)
    busybox-static                         the user space
    scsi-modules-*-di, ext4-modules-*-di   drivers for disks and their file system

Nothing is executed and no root is needed: packages are read as archives, and the initrd is written
by `kasou.guest.initramfs`.

The first of these packages is in the index of every architecture (`Architecture: all`), the others
only in riscv64's. While a mirror is being updated, that index may not be the one that was signed;
then the guest is made without the others, with the installer's own busybox and no disk drivers, and
a warning says so. What cannot be verified is never used.
"""

import hashlib
import io
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from kasou.errors import ConfigError, HostError
from kasou.guest.initramfs import Entry, read_cpio
from kasou.guest.kernel_image import load_kernel
from kasou.images import modules, store, userland
from kasou.images.archive import Archive, IndexMismatch, Package, read_deb
from kasou.images.catalogue import Recipe

RISCV64 = "main/binary-riscv64"
INSTALLER_RISCV64 = "main/debian-installer/binary-riscv64"
OTHER_INDICES = ("main/binary-amd64", "main/binary-arm64")
BUSYBOX = "busybox-static"
UDEBS = ("scsi-modules", "ext4-modules")
DRIVERS = re.compile(r"/kernel/(drivers/block|fs|lib|crypto|arch|net/9p|net/vmw_vsock)/.*\.ko")
"""Where in a kernel's package their modules are, and what those need."""

AT_BOOT = ("virtio_mmio", "virtio_rng", "virtio_blk", "virtio_net", "virtio_balloon")
ON_DEMAND = ("crc32c_generic", "ext4", "9p", "9pnet_virtio", "vmw_vsock_virtio_transport")
"""Those among them that the packages at hand have."""
LIBRARY_DIRECTORIES = ("usr/lib/riscv64-linux-gnu", "usr/lib")
INTERPRETER = "usr/lib/ld-linux-riscv64-lp64d.so.1"
REDUCED = "the disk drivers and most commands (the installer's busybox stands in)"
NO_DISK = "the disk drivers"


@dataclass(slots=True)
class Parts:
    """The packages that an image is made from, as far as they could be had."""

    installer: Package
    busybox: Package | None = None
    missing: str = ""
    why: str = ""
    fetched: list[Package] = field(default_factory=list)

    def digest(self) -> str:
        """Names these inputs and the program that uses them."""
        text = repr((self.installer, self.busybox, self.missing))
        sources = (Path(__file__), Path(modules.__file__), Path(userland.__file__))
        for source in sources:
            text += hashlib.sha256(source.read_bytes()).hexdigest()
        return hashlib.sha256(text.encode()).hexdigest()


def find_parts(archive: Archive, recipe: Recipe) -> Parts:
    """Look up the packages. Raises `HostError` when not even the kernel's can be verified."""
    try:
        installer = _found(archive, RISCV64, recipe.installer)
        return Parts(installer, _found(archive, RISCV64, BUSYBOX))
    except IndexMismatch as problem:
        for index in OTHER_INDICES:
            try:
                installer = _found(archive, index, recipe.installer)
            except HostError:
                continue
            return Parts(installer, missing=REDUCED, why=str(problem))
        raise


def build(archive: Archive, recipe: Recipe, parts: Parts, now: datetime) -> store.Image:
    """Fetch the packages, put the guest together and keep it."""
    report = archive.report
    if parts.why:
        report.warn(parts.why)
    report.step(f"fetching {parts.installer.name} {parts.installer.version}")
    kernel, installer = _read_installer(_fetch(archive, parts, parts.installer))
    release = _release(installer)
    drivers = {path: entry.data for path, entry in installer.items() if ".ko" in path}
    if parts.busybox is None:
        binaries, applets = _installer_binaries(installer)
    else:
        binaries, applets = _static_busybox(_fetch(archive, parts, parts.busybox))
        drivers |= _disk_drivers(archive, parts, release)
    report.step(f"putting together {recipe.name} (Linux {release})")
    found = modules.resolve(drivers, AT_BOOT + ON_DEMAND)
    names = {module.name for module in found}
    on_demand = {module.name for module in modules.resolve(drivers, ON_DEMAND)}
    at_boot = [module.name for module in found if module.name not in on_demand]
    root = userland.build(
        userland.Userland(binaries, applets, found, at_boot, release, archive.release.version)
    )
    if "virtio_mmio" not in names:
        raise HostError(f"{parts.installer.name}: has no virtio_mmio among its modules")
    if parts.missing:
        report.warn(
            f"{recipe.name} is made without {parts.missing}, for they cannot be verified now;"
            f" run `kasou pull {recipe.name}` again later"
        )
    image = store.Image(
        name=recipe.name,
        description=recipe.description,
        created=now.isoformat(timespec="seconds"),
        size=0,
        kernel_version=release,
        debian_version=archive.release.version,
        packages={package.name: package.version for package in parts.fetched},
        signed=archive.release.is_signed,
        missing=parts.missing,
        append=recipe.append,
        inputs=parts.digest(),
        directory="",
    )
    return store.store(image, {store.KERNEL: kernel, store.INITRD: root.to_cpio()})


def _found(archive: Archive, index: str, name: str) -> Package:
    package = archive.find(index, name)
    if package is None:
        raise HostError(f"{archive.mirror}: {archive.suite} has no package {name}")
    return package


def _fetch(archive: Archive, parts: Parts, package: Package) -> Path:
    path = archive.fetch(package)
    parts.fetched.append(package)
    return path


def _read_installer(path: Path) -> tuple[bytes, dict[str, Entry]]:
    """The kernel, and the files of the installer's initrd by path."""
    files = read_deb(path, lambda name: name.endswith(("/linux", "/initrd.gz")))
    try:
        kernel = next(data for name, data in files.items() if name.endswith("/linux"))
        initrd = next(data for name, data in files.items() if name.endswith("/initrd.gz"))
        load_kernel(kernel, f"{path.name}: linux")
        return kernel, {entry.path: entry for entry in read_cpio(initrd, f"{path.name}: initrd")}
    except StopIteration:
        raise HostError(f"{path}: no kernel and initrd in it") from None
    except ConfigError as error:
        raise HostError(str(error)) from None


def _release(installer: Mapping[str, Entry]) -> str:
    """The kernel's version: the directory in which its modules are."""
    for path in installer:
        parts = path.split("/")
        if parts[:3] == ["usr", "lib", "modules"] and len(parts) > 3:
            return parts[3]
        if parts[:2] == ["lib", "modules"] and len(parts) > 2:
            return parts[2]
    raise HostError("the installer's initrd has no kernel modules")


def _disk_drivers(archive: Archive, parts: Parts, release: str) -> dict[str, bytes]:
    """Modules from the installer's optional packages, or from the whole kernel's where those have gone.

    Mirrors drop the former earlier than the installer that needs them. Without both the guest has no
    disks.
    """
    drivers: dict[str, bytes] = {}
    try:
        for udeb in UDEBS:
            package = _found(archive, INSTALLER_RISCV64, f"{udeb}-{release}-di")
            drivers |= read_deb(_fetch(archive, parts, package), lambda name: ".ko" in name)
        return drivers
    except HostError as error:
        problem = error
    try:
        package = _found(archive, RISCV64, f"linux-image-{release}")
        archive.report.step(f"fetching {package.name} for its drivers ({problem})")
        path = _fetch(archive, parts, package)
        return read_deb(path, lambda name: DRIVERS.search(name) is not None)
    except HostError:
        archive.report.warn(str(problem))
        parts.missing = NO_DISK
    return drivers


def _static_busybox(path: Path) -> tuple[list[Entry], list[str]]:
    data = read_busybox(path)
    return [Entry("usr/bin/busybox", stat.S_IFREG | 0o755, data)], _applets(data)


def read_busybox(path: Path) -> bytes:
    """The program in the package `busybox-static`. Raises `HostError`."""
    for data in read_deb(path, lambda name: name in ("usr/bin/busybox", "bin/busybox")).values():
        return data
    raise HostError(f"{path}: no busybox in it")


def _installer_binaries(installer: Mapping[str, Entry]) -> tuple[list[Entry], list[str]]:
    """The installer's busybox and kmod, with the libraries that they name."""
    wanted = ["usr/bin/busybox", "usr/bin/kmod", INTERPRETER]
    chosen: dict[str, Entry] = {}
    while wanted:
        path = wanted.pop()
        entry = installer.get(path)
        if path in chosen or entry is None:
            continue
        chosen[path] = entry
        if stat.S_ISLNK(entry.mode):
            directory = path.rpartition("/")[0]
            wanted.append(f"{directory}/{entry.data.decode()}")
            continue
        wanted += [f"{place}/{name}" for name in _needed(entry) for place in LIBRARY_DIRECTORIES]
    if "usr/bin/busybox" not in chosen or INTERPRETER not in chosen:
        raise HostError("the installer's initrd has no busybox that could be used")
    links = [
        Entry(f"usr/sbin/{name}", stat.S_IFLNK | 0o777, b"../bin/kmod")
        for name in ("insmod", "modprobe", "lsmod", "rmmod")
        if "usr/bin/kmod" in chosen
    ]
    return [*chosen.values(), *links], _applets(chosen["usr/bin/busybox"].data)


def _needed(entry: Entry) -> list[str]:
    """The shared libraries that a program names."""
    try:
        dynamic = ELFFile(io.BytesIO(entry.data)).get_section_by_name(".dynamic")
        if not isinstance(dynamic, DynamicSection):
            return []
        tags = dynamic.iter_tags("DT_NEEDED")
        return [str(tag.needed) for tag in tags]  # type: ignore[attr-defined]
    except ELFError as error:
        raise HostError(f"{entry.path}: not a program ({error})") from None


def _applets(busybox: bytes) -> list[str]:
    """The names that busybox answers to: its table of them begins with `[` and `[[`."""
    start = busybox.find(b"[\0[[\0")
    end = busybox.find(b"\0\0", start)
    if start < 0 or end < 0:
        raise HostError("busybox: no table of its commands in it")
    return busybox[start:end].decode(errors="replace").split("\0")
