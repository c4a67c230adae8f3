import random
from pathlib import Path

import pytest

from kasou.errors import ConfigError, HostError
from kasou.ports import VectorDisk
from kasou.storage.create import create_qcow2, create_raw
from kasou.storage.disk import OpenDisk, open_disk
from kasou.storage.file import Cache
from kasou.storage.inspect import info
from kasou.storage.opening import open_file

MODES = [mode.value for mode in Cache]


def open_or_skip(path: Path, format: str, cache: str) -> OpenDisk:
    try:
        return open_disk(path, format=format, cache=cache)
    except ConfigError as error:
        if "by-pass" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("cache", MODES)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_every_cache_mode(format: str, cache: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    if format == "raw":
        create_raw(path, 1 << 20)
    else:
        create_qcow2(path, 1 << 20, cluster_size=4096)
    disk = open_or_skip(path, format=format, cache=cache)
    assert isinstance(disk, VectorDisk)
    rng = random.Random(1)
    wanted = bytearray(1 << 20)
    for _ in range(60):
        n = rng.randrange(1, 40) * 512
        at = rng.randrange(((1 << 20) - n) // 512) * 512
        data = rng.randbytes(n)
        cut = rng.randrange(n + 1)
        wanted[at : at + n] = data
        if rng.random() < 0.5:
            disk.writev(at, [data[:cut], memoryview(data)[cut:]])
        else:
            disk.write(at, data)
        got = bytearray(n)
        disk.readv(at, [memoryview(got)[:cut], memoryview(got)[cut:]])
        assert got == data
    disk.write_zeroes(0, 5120, True)
    wanted[:5120] = bytes(5120)
    disk.flush()
    assert disk.read(0, 1 << 20) == wanted
    disk.close()
    with open_disk(path, format=format, read_only=True) as disk:
        assert disk.read(0, 1 << 20) == wanted
    if format == "raw":
        assert path.stat().st_size == 1 << 20


def test_past_the_page_cache_at_odd_places(tmp_path: Path) -> None:
    """A direct file is not longer than what was written, whatever the medium's unit."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * 10)
    try:
        file = open_file(path, cache=Cache.NONE)
    except ConfigError as error:
        pytest.skip(str(error))
    file.write(8, b"bcdef")
    assert file.read(0, 100) == b"a" * 8 + b"bcdef"
    file.write(5000, b"z" * 3000000)
    assert file.size() == 3005000
    assert file.read(4999, 3) == b"\0zz"
    file.close()
    assert path.read_bytes() == (b"a" * 8 + b"bcdef").ljust(5000, b"\0") + b"z" * 3000000


def test_unknown_cache_mode(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of writeback, none"):
        open_disk(tmp_path / "image", cache="fast")
    with pytest.raises(ConfigError, match="expected one of raw, qcow2"):
        open_disk(tmp_path / "image", format="vmdk")


def test_a_guessed_raw_disk_stays_raw(tmp_path: Path) -> None:
    path = tmp_path / "image"
    create_raw(path, 4096)
    header = b"QFI\xfb" + bytes(508)
    with open_disk(path) as disk:
        for write in (disk.write, lambda at, data: disk.writev(at, [data[:2], data[2:]])):
            with pytest.raises(HostError, match="format=raw") as caught:
                write(0, header)
            assert caught.value.errno == 1
        disk.write(512, header)
        disk.write(0, b"x" * 512)
    with open_disk(path, format="raw") as disk:
        disk.write(0, header)
    with pytest.raises(ConfigError):
        open_disk(path)
    with pytest.raises(ConfigError):
        info(path)


def test_discarded_space_is_given_back(tmp_path: Path) -> None:
    for name in ("raw", "qcow2"):
        path = tmp_path / name
        create_raw(path, 8 << 20) if name == "raw" else create_qcow2(path, 8 << 20)
        with open_disk(path, format=name) as disk:
            disk.write(0, b"x" * (8 << 20))
            disk.flush()
            full = path.stat().st_blocks
            disk.discard(0, 4 << 20)
            disk.flush()
            assert path.stat().st_blocks * 512 < full * 512 - (3 << 20)
            disk.write_zeroes(4 << 20, 4 << 20, True)
            disk.flush()
            assert path.stat().st_blocks * 512 < 1 << 20
            assert disk.read(0, 8 << 20) == bytes(8 << 20)


@pytest.mark.parametrize("size", [700, 65536 + 100])
def test_an_odd_backing_file(size: int, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * size)
    create_qcow2(tmp_path / "top", 1 << 20, backing="base", backing_format="raw", cluster_size=512)
    with open_disk(tmp_path / "top") as disk:
        assert disk.read(0, 1 << 20) == (b"b" * size).ljust(1 << 20, b"\0")
        view = bytearray(size + 1000 & ~511)
        disk.readv(0, [memoryview(view)])
        assert view[:size] == b"b" * size and not any(view[size:])


def test_new_files_do_not_replace(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        create_qcow2(path, 4096)
    for bad in ({"size": 100}, {"size": 4096, "cluster_size": 1000}, {"size": 1 << 60}):
        with pytest.raises(ConfigError):
            create_qcow2(tmp_path / "other", **bad)  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["image"]
    create_qcow2(path, 4096, replace=True)
    assert info(path).virtual_size == 4096
