"""Copying a disk, with all that its chain holds, into one new file.

Zeroes are not copied: the new file is sparse, or has no cluster there. It appears under its name
when it is whole.
"""

import os
from collections.abc import Callable
from pathlib import Path

from kasou.errors import ConfigError
from kasou.ports import Disk
from kasou.storage.create import new_file
from kasou.storage.disk import open_disk
from kasou.storage.qcow2.create import layout, write_empty
from kasou.storage.qcow2.image import Qcow2Disk

_CHUNK = 2 << 20
_ZEROES = bytes(_CHUNK)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes of all)."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    format: str = "qcow2",
    source_format: str | None = None,
    snapshot: str | None = None,
    cluster_size: int = 65536,
    progress: Progress | None = None,
) -> None:
    """Write the disk `source` (or its internal `snapshot`) to the new file `target`.

    The result has no backing file. Raises `ConfigError` when `source` cannot be opened or
    `target` exists, `HostError` when the host refuses a read or a write.
    """
    if format not in ("raw", "qcow2"):
        raise ConfigError(f"disk {target}: format {format!r}: expected raw or qcow2")
    with (
        open_disk(source, format=source_format, read_only=True, snapshot=snapshot) as disk,
        new_file(Path(target)) as file,
    ):
        if format == "raw":
            file.truncate(disk.size_bytes)
            _copy(disk, file.write, progress)
            return
        header = layout(disk.size_bytes, cluster_size=cluster_size)
        write_empty(file, header)
        image = Qcow2Disk(file, header)
        _copy(disk, image.write, progress)
        image.freeze()


def flatten(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Progress | None = None,
) -> None:
    """Write an overlay and all below it to one new qcow2 image. Raises as `convert` does."""
    convert(source, target, progress=progress)


def _copy(disk: Disk, write: Callable[[int, bytes], None], progress: Progress | None) -> None:
    size = disk.size_bytes
    for offset in range(0, size, _CHUNK):
        n = min(_CHUNK, size - offset)
        data = disk.read(offset, n)
        if data != _ZEROES[:n]:
            write(offset, data)
        if progress is not None:
            progress(offset + n, size)
