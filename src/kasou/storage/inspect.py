"""What an image is, and whether it is whole, without attaching it."""

import os
from dataclasses import dataclass
from pathlib import Path

from kasou.storage.disk import read_header
from kasou.storage.file import Cache
from kasou.storage.opening import open_file
from kasou.storage.qcow2.check import Check, Report
from kasou.storage.qcow2.header import MAGIC, ZSTD, Incompatible
from kasou.storage.qcow2.mend import mend_refcounts
from kasou.storage.qcow2.snapshots import Snapshot, read_snapshots


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """An image file: sizes in bytes, `disk_size` what the file takes on its file system.

    What only qcow2 has is None or empty for raw images.
    """

    path: Path
    format: str
    virtual_size: int
    disk_size: int
    backing_file: str | None = None
    backing_format: str | None = None
    version: int | None = None
    cluster_size: int | None = None
    refcount_bits: int | None = None
    lazy_refcounts: bool = False
    compression: str | None = None
    is_dirty: bool = False
    is_corrupt: bool = False
    snapshots: tuple[Snapshot, ...] = ()


def info(path: str | os.PathLike[str]) -> DiskInfo:
    """What the image at `path` is; also while a machine uses it. Raises `ConfigError`."""
    path = Path(path)
    file = open_file(path, read_only=True, locked=False)
    try:
        disk_size = os.stat(path).st_blocks * 512
        if file.read(0, 4) != MAGIC:
            return DiskInfo(path, "raw", file.size(), disk_size)
        header = read_header(file)
        return DiskInfo(
            path=path,
            format="qcow2",
            virtual_size=header.size,
            disk_size=disk_size,
            backing_file=header.backing_file,
            backing_format=header.backing_format,
            version=header.version,
            cluster_size=header.cluster_size,
            refcount_bits=1 << header.refcount_order,
            lazy_refcounts=header.is_lazy,
            compression="zstd" if header.compression_type == ZSTD else "zlib",
            is_dirty=bool(header.incompatible & Incompatible.DIRTY),
            is_corrupt=bool(header.incompatible & Incompatible.CORRUPT),
            snapshots=tuple(read_snapshots(file, header)),
        )
    finally:
        file.close()


def check(path: str | os.PathLike[str], *, repair: bool = False) -> Report:
    """Whether the qcow2 image at `path` is whole (a raw one always is).

    `repair` gives leaked clusters back and corrects refcounts and flags; the report is of what is
    then left. Raises `ConfigError` when it cannot be opened, is in use, or is beyond repair.
    """
    file = open_file(path, read_only=not repair, cache=Cache.WRITEBACK)
    try:
        if file.read(0, 4) != MAGIC:
            return Report()
        header = read_header(file)
        report = Check(file, header).run()
        unfinished = header.incompatible & (Incompatible.DIRTY | Incompatible.CORRUPT)
        if repair and (unfinished or not report.is_clean):
            report = Check(file, mend_refcounts(file, header)).run()
        elif header.incompatible & Incompatible.CORRUPT:
            report.corrupt("the image is marked corrupt")
        return report
    finally:
        file.close()
