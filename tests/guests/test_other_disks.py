"""Disks that bring their own kernel, started by U-Boot as a distribution's image is."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from guests.conftest import PROMPT, Session

from kasou.errors import HostError
from kasou.images import DefaultGuest
from kasou.images.boot_loader import boot_loader
from kasou.images.cloud_init import seed
from kasou.machine.machine import Drive, MachineConfig

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("mke2fs") is None, reason="not run: e2fsprogs is not installed"
    ),
]
SECTOR, FIRST = 512, 2048
EXTLINUX = """\
default one
label one
    linux /boot/Image
    initrd /boot/initrd
    append console=ttyS0 from-the-disk
"""


@pytest.fixture(scope="session")
def loader() -> Path:
    try:
        return boot_loader()
    except HostError as problem:
        pytest.skip(f"not run: U-Boot cannot be fetched: {problem}")


def make_disk(directory: Path, guest: DefaultGuest) -> Path:
    """One bootable ext4 partition with the guest's kernel, and extlinux's file that names it."""
    root = directory / "root"
    (root / "boot" / "extlinux").mkdir(parents=True)
    shutil.copy(guest.kernel, root / "boot" / "Image")
    shutil.copy(guest.initrd, root / "boot" / "initrd")
    (root / "boot" / "extlinux" / "extlinux.conf").write_text(EXTLINUX)
    partition, disk = directory / "partition.img", directory / "disk.img"
    size = 160 << 20
    with partition.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-F", "-d", str(root), str(partition)], check=True
    )
    entry = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", FIRST, size // SECTOR
    )
    with disk.open("wb") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.seek(FIRST * SECTOR)
        file.write(partition.read_bytes())
    return disk


def test_u_boot_starts_what_the_disk_brings(
    loader: Path, debian: DefaultGuest, tmp_path: Path
) -> None:
    seed_image = tmp_path / "seed.img"
    seed_image.write_bytes(seed(b"#cloud-config\n", "i", "h"))
    drives = (Drive(make_disk(tmp_path, debian)), Drive(seed_image, read_only=True))
    session = Session(MachineConfig(kernel=loader, drives=drives))
    session.start()
    session.wait_for(b"U-Boot 20")
    session.wait_for(PROMPT)
    assert b"from-the-disk" in session.type("cat /proc/cmdline")
    assert b"CIDATA" in session.type("head -c 60 /dev/vdb; echo")
    assert session.finish("poweroff").kind == "poweroff"
