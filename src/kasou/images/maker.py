"""The machine that makes an image: it unpacks an archive on an empty disk and lets dpkg finish there.

    vda    the new disk, which becomes the image
    vdb    the archive of unpacked packages, read-only

It is an ordinary machine on the kernel that the image will run, with a file system in memory that has
busybox, mke2fs and the drivers. Its console tells how far it is, and why it failed if it did.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasou.errors import HostError
from kasou.guest.initramfs import Entry, Initramfs
from kasou.images.modules import Module
from kasou.images.progress import Report
from kasou.ports import Disk

MEMORY = 1 << 30
SECONDS = 3600.0
TAIL_LINES = 30
IDENTITY = "6b61736f-7500-4000-8000-000000000001"
"""The file system's UUID and hash seed: the same for every image, so that builds repeat."""
JOURNAL_MEGABYTES = 16
APPLETS = (
    "sh", "mount", "umount", "insmod", "tar", "chroot", "poweroff", "sync", "switch_root", "date",
    "usleep",
)  # fmt: skip
DRIVERS = ("virtio_mmio", "virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
"""Modules that the small file systems need; those that the kernel has built in are left out."""

MAKE = """\
#!/bin/sh
# Makes the image. The journal comes last: until then nothing has to survive.
export PATH=/usr/bin:/usr/sbin E2FSPROGS_FAKE_TIME=@TIME@
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
@INSMOD@
fail() { echo "kasou-build: failed: $1"; sync; poweroff -f; }
date -s @@TIME@ >/dev/null
echo "kasou-build: making the file system"
/usr/sbin/mke2fs -q -t ext4 -F -m 1 -U @IDENTITY@ -O ^has_journal \\
    -E hash_seed=@IDENTITY@,root_owner=0:0,nodiscard,assume_storage_prezeroed=1 /dev/vda ||
    fail mke2fs
mount -t ext4 -o noatime /dev/vda /mnt || fail mount
echo "kasou-build: unpacking"
tar -xf /dev/vdb -C /mnt || fail "unpacking the packages"
mount -t proc proc /mnt/proc
mount -t sysfs sysfs /mnt/sys
mount -t devtmpfs devtmpfs /mnt/dev
mount -t tmpfs tmpfs /mnt/tmp
mount -t tmpfs tmpfs /mnt/run
echo "kasou-build: configuring"
chroot /mnt /finish || fail "configuring the packages"
umount /mnt/proc /mnt/sys /mnt/dev /mnt/tmp /mnt/run
umount /mnt || fail "the file system stayed in use"
echo "kasou-build: checking"
/usr/sbin/tune2fs -J size=@JOURNAL@ -O has_journal /dev/vda >/dev/null || fail "tune2fs"
/usr/sbin/e2fsck -f -n /dev/vda || fail "e2fsck"
sync
echo "kasou-build: done"
poweroff -f
"""

BOOT = """\
#!/bin/sh
# Finds the disk and becomes its init. Made by kasou.
export PATH=/usr/bin
mount -t proc proc /proc
mount -t devtmpfs -o mode=0755 devtmpfs /dev
@INSMOD@
root=/dev/vda init=/sbin/init
read -r line </proc/cmdline
for word in $line; do
    case $word in root=*) root=${word#root=} ;; init=*) init=${word#init=} ;; esac
done
give_up() { echo "kasou: $1; this shell is all there is"; exec sh </dev/console >/dev/console 2>&1; }
n=0
until [ -b $root ]; do
    n=$((n+1)); [ $n -le 100 ] || give_up "no disk $root after 5 s"
    usleep 50000
done
mount -t ext4 -o noatime $root /mnt || give_up "$root cannot be mounted"
umount /proc
mount -o move /dev /mnt/dev
exec switch_root /mnt $init
"""


@dataclass(frozen=True, slots=True)
class Tools:
    """What goes into the small file systems: busybox, modules in loading order, other files."""

    busybox: bytes
    modules: Sequence[Module]
    others: Sequence[Entry] = ()


def boot_initrd(tools: Tools) -> bytes:
    """The initrd with which the finished image boots."""
    return _initrd(tools, BOOT, ())


def _initrd(tools: Tools, script: str, others: Sequence[Entry]) -> bytes:
    root = Initramfs()
    for path in ("dev", "proc", "sys", "mnt", "usr/bin", "usr/lib", "usr/sbin", "etc", "tmp"):
        root.directory(path)
    for path in ("bin", "lib", "sbin"):
        root.symlink(path, f"usr/{path}")
    root.character_device("dev/console", 5, 1)
    root.character_device("dev/null", 1, 3, 0o666)
    root.file("usr/bin/busybox", tools.busybox, 0o755)
    for applet in APPLETS:
        root.symlink(f"usr/bin/{applet}", "busybox")
    for entry in others:
        root.add(entry)
    for module in tools.modules:
        root.file(f"usr/lib/{module.file}", module.data)
    loading = "\n".join(f"insmod /usr/lib/{module.file}" for module in tools.modules)
    root.file("init", script.replace("@INSMOD@", loading).encode(), 0o755)
    return root.to_cpio()


def make(
    kernel: Path,
    tools: Tools,
    disk: Disk,
    archive: Disk,
    directory: Path,
    packages: int,
    time: int,
    report: Report,
) -> dict[str, Any]:
    """Unpack `archive` on `disk` and finish it; `directory` takes the initrd meanwhile.

    The machine counts its time, so that the same packages make the same image. Returns the machine's
    statistics. Raises `HostError` with what the console said last when it fails or takes more than
    `SECONDS`.
    """
    from kasou.machine.machine import Machine, MachineConfig, Peripherals

    script = MAKE.replace("@TIME@", str(time)).replace("@IDENTITY@", IDENTITY)
    script = script.replace("@JOURNAL@", str(JOURNAL_MEGABYTES))
    initrd = directory / "make.cpio"
    initrd.write_bytes(_initrd(tools, script, tools.others))
    watch = Watch(packages, report)
    machine = Machine(
        MachineConfig(
            memory=MEMORY, kernel=kernel, initrd=initrd, reboot=False, seed=1, clock="icount",
            append="console=ttyS0 panic=-1 quiet",
        ),
        watch.console,
        Peripherals(disks=(disk, archive)),
    )  # fmt: skip
    problems: list[BaseException] = []

    def run() -> None:
        try:
            machine.run(SECONDS)
        except BaseException as problem:
            problems.append(problem)

    worker = threading.Thread(target=run, name="image maker", daemon=True)
    worker.start()
    try:
        worker.join()
    finally:
        machine.stop()
        worker.join(10)
    if problems:
        raise problems[0]
    if not watch.done:
        kind = machine.outcome.kind if machine.outcome else "timeout"
        raise HostError(f"the image could not be made: {watch.why(kind)}")
    return machine.statistics()


class Watch:
    """Reads the console of the machine that makes the image."""

    def __init__(self, packages: int, report: Report) -> None:
        self._packages, self._report = packages, report
        self._line = bytearray()
        self._lines: list[str] = []
        self._configured = 0
        self.done = False
        self.failure = ""

    def console(self, data: bytes) -> None:
        """Bytes that the machine printed."""
        self._line += data
        while b"\n" in self._line:
            line, _, rest = self._line.partition(b"\n")
            self._line = bytearray(rest)
            self._read(re.sub(r"\x1b\[[0-9;]*m", "", line.decode(errors="replace")).strip())

    def _read(self, line: str) -> None:
        if not line:
            return
        self._lines = [*self._lines[1 - TAIL_LINES :], line]
        if line.startswith("kasou-build: failed: "):
            self.failure = self.failure or line.removeprefix("kasou-build: failed: ")
        elif line == "kasou-build: done":
            self.done = True
        elif line.startswith("Setting up "):
            self._configured = min(self._configured + 1, self._packages)
            self._report.advance(
                "configuring packages", self._configured, self._packages, "packages"
            )
        elif line.startswith("kasou-build: "):
            self._report.step(f"in the machine: {line.removeprefix('kasou-build: ')}")

    def why(self, kind: str) -> str:
        """What went wrong, for a person."""
        said = "".join(f"\n    {line}" for line in self._lines)
        return f"{self.failure or f'the machine ended by {kind}'}; its console said last:{said}"
