from pathlib import Path

import pytest

from kasou.errors import ConfigError, HostError
from kasou.storage.raw import RawDisk


def image(directory: Path, n: int = 4096) -> Path:
    path = directory / "disk.img"
    path.write_bytes(bytes(n))
    return path


def test_keeps_what_is_written(tmp_path: Path) -> None:
    path = image(tmp_path)
    with RawDisk(path) as disk:
        assert (disk.size_bytes, disk.read_only) == (4096, False)
        disk.write(510, b"abcd")
        disk.flush()
        assert disk.read(508, 8) == b"\0\0abcd\0\0"
    assert path.read_bytes()[510:514] == b"abcd"
    disk.close()


def test_read_only(tmp_path: Path) -> None:
    path = image(tmp_path)
    with RawDisk(path, read_only=True) as disk, RawDisk(path, read_only=True):
        with pytest.raises(HostError, match="read-only"):
            disk.write(0, b"x")
        with pytest.raises(ConfigError, match="in use"):
            RawDisk(path)


def test_a_writer_is_alone(tmp_path: Path) -> None:
    path = image(tmp_path)
    with RawDisk(path), pytest.raises(ConfigError, match="in use"):
        RawDisk(path, read_only=True)
    RawDisk(path).close()


@pytest.mark.parametrize("n", [0, 1, 4095])
def test_whole_sectors(tmp_path: Path, n: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 512"):
        RawDisk(image(tmp_path, n))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        RawDisk(tmp_path / "none")
    with pytest.raises(ConfigError):
        RawDisk(tmp_path)
    with pytest.raises(ConfigError):
        RawDisk(tmp_path, read_only=True)


def test_truncated_in_use(tmp_path: Path) -> None:
    path = image(tmp_path)
    with RawDisk(path) as disk:
        path.write_bytes(b"")
        with pytest.raises(HostError, match="truncated"):
            disk.read(0, 512)
