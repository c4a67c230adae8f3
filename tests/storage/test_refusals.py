"""The host refuses: disk full, I/O errors. The guest gets an error with its errno, nothing breaks."""

from __future__ import annotations

import errno
import os
import random
import resource
from pathlib import Path

import pytest
from storage.history import History
from storage.images import Shape, empty
from storage.power_cut import BrokenFile, CutFile
from storage.workload import operations, perform

from kasou.errors import ConfigError, HostError
from kasou.storage.create import create_qcow2, create_raw
from kasou.storage.disk import open_disk
from kasou.storage.file import HostFile
from kasou.storage.inspect import check
from kasou.storage.qcow2.check import Check
from kasou.storage.qcow2.header import parse
from kasou.storage.qcow2.image import Qcow2Disk

SIZE = 256 << 10


@pytest.mark.parametrize("shape", [Shape(512, 64), Shape(4096), Shape(65536, 1)], ids=str)
def test_any_one_refusal(shape: Shape) -> None:
    """Each write and sync fails once in turn; work goes on and the image is whole at the end."""
    content = empty(SIZE, shape)
    met = 0
    for budget in range(120):
        file = BrokenFile(content, budget, errno.ENOSPC, failures=1 + budget % 3)
        history = History(bytes(SIZE))
        disk = Qcow2Disk(file, parse(content, "image", len(content)))
        for _, op in zip(range(40), operations(budget, SIZE), strict=False):
            try:
                perform(disk, op)
            except HostError as error:
                assert error.errno == errno.ENOSPC
                met += 1
                history.failed(op)
            else:
                history.apply(op)
        history.check_alive(disk.read(0, SIZE))
        file._failures = 0
        disk.close()
        header = parse(whole := file.read(0, file.size()), "image", file.size())
        report = Check(file, header).run()
        assert not report.corruptions, report.messages
        history.check_alive(
            Qcow2Disk(CutFile(whole, random.Random(0), 1), header, read_only=True).read(0, SIZE)
        )
    assert met > 50


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_full_disk(format: str, tmp_path: Path) -> None:
    """A limit on file size stands for a full file system; when there is room, it goes on."""
    path = tmp_path / "image"
    if format == "raw":
        path.touch()
        create_raw(path, 4 << 20, replace=True)
    else:
        create_qcow2(path, 4 << 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_disk(path, format=format) as disk:
        disk.write(0, b"a" * 65536)
        disk.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            with pytest.raises(HostError) as caught:
                for offset in range(65536, 4 << 20, 65536):
                    disk.write(offset, b"b" * 65536)
            assert caught.value.errno == errno.EFBIG
            assert str(path) in str(caught.value)
            disk.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        disk.write(3 << 20, b"c" * 65536)
        disk.flush()
        assert disk.read(0, 65536) == b"a" * 65536
        assert disk.read(3 << 20, 65536) == b"c" * 65536
    assert check(path).is_clean


def test_a_failed_flush_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    create_qcow2(path, SIZE)
    disk = open_disk(path)
    disk.write(0, b"x" * 512)

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(HostError) as caught:
        disk.flush()
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    with pytest.raises(HostError, match="earlier flush failed"):
        disk.flush()
    with pytest.raises(HostError):
        disk.close()
    assert not check(path).corruptions


def test_zeroing_without_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostFile, "_fallocate", lambda self, mode, offset, n: False)
    path = tmp_path / "image"
    path.write_bytes(b"x" * (3 << 20))
    with open_disk(path, format="raw") as disk:
        disk.write_zeroes(512, 2 << 20, True)
        disk.discard(0, 512)
        assert disk.read(0, 512) == b"x" * 512
        assert disk.read(512, 2 << 20) == bytes(2 << 20)
        assert disk.read(512 + (2 << 20), 512) == b"x" * 512


def test_a_push_that_fails_changes_nothing(tmp_path: Path) -> None:
    create_qcow2(tmp_path / "a", SIZE)
    (tmp_path / "b").write_bytes(b"precious")
    with open_disk(tmp_path / "a") as disk:
        disk.write(0, b"1" * 512)
        with pytest.raises(ConfigError, match="exists"):
            disk.push(tmp_path / "b")
        with pytest.raises(ConfigError):
            disk.push(tmp_path / "nowhere" / "b")
        disk.write(512, b"2" * 512)
        assert disk.read(0, 1024) == b"1" * 512 + b"2" * 512
    assert (tmp_path / "b").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
