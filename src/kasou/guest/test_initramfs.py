import gzip
import shutil
import stat
import subprocess

import pytest

from kasou.errors import ConfigError
from kasou.guest.initramfs import Entry, Initramfs, read_cpio


def example() -> Initramfs:
    root = Initramfs()
    root.file("/usr/bin/tool", b"#!/bin/sh\n", 0o755)
    root.symlink("bin", "usr/bin")
    root.character_device("dev/console", 5, 1)
    root.block_device("dev/vda", 254, 0)
    root.directory("tmp", 0o1777)
    root.file("empty", b"")
    return root


def test_reads_back_what_it_wrote() -> None:
    root = example()
    assert list(read_cpio(root.to_cpio())) == list(root.entries.values())
    assert list(read_cpio(root.to_gzip())) == list(root.entries.values())


def test_parents_come_first_and_the_bytes_are_stable() -> None:
    assert [e.path for e in read_cpio(example().to_cpio())][:3] == [
        "usr",
        "usr/bin",
        "usr/bin/tool",
    ]
    assert example().to_gzip() == example().to_gzip()
    assert len(example().to_cpio()) % 512 == 0


def test_modes_and_devices() -> None:
    found = {entry.path: entry for entry in read_cpio(example().to_cpio())}
    assert found["dev/console"] == Entry("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
    assert found["tmp"].mode == stat.S_IFDIR | 0o1777
    assert found["bin"].data == b"usr/bin"


@pytest.mark.parametrize("cut", [0, 50, 109, 111, 300])
def test_damage_is_a_config_error(cut: int) -> None:
    with pytest.raises(ConfigError, match="thing: "):
        list(read_cpio(example().to_cpio()[:cut], "thing"))
    with pytest.raises(ConfigError, match="thing: "):
        list(read_cpio(gzip.compress(example().to_cpio())[: 20 + cut // 4], "thing"))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_agrees() -> None:
    listed = subprocess.run(["cpio", "-t"], input=example().to_cpio(), capture_output=True)
    assert b"usr/bin/tool" in listed.stdout.split()
