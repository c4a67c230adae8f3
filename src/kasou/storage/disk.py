"""Opening a disk by name: its format, its backing chain, its locks and cache mode.

Which format. `format="raw"` or `"qcow2"` is taken at its word. Without, a file that begins with
qcow2's magic number is qcow2, any other is raw; a raw disk so guessed refuses a write that would
put that magic number at its start, because the next guess would then let the guest name the files
that the host opens. The same holds for a backing file whose format the overlay does not name.

`OpenDisk.push` puts a new overlay on top of a disk in use: what was written so far stays in the
old file, which from then on never changes and may be the backing file of any number of overlays.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from kasou.errors import ConfigError
from kasou.storage.create import create_qcow2
from kasou.storage.file import Cache, File
from kasou.storage.opening import open_file
from kasou.storage.qcow2.header import MAGIC, Header, Incompatible, parse
from kasou.storage.qcow2.image import Qcow2Disk
from kasou.storage.qcow2.mend import mend_refcounts
from kasou.storage.qcow2.snapshots import find_snapshot
from kasou.storage.raw import RawDisk

MAX_CHAIN = 200
_FORMATS = ("raw", "qcow2")


class OpenDisk:
    """A disk in use: the image at the top of its chain, exchanged by `push`.

    It owns the whole chain. `push` must not run while another thread is inside another method.
    """

    def __init__(self, top: RawDisk | Qcow2Disk, cache: Cache) -> None:
        self._top = top
        self._cache = cache
        self._flushes = cache.flushes_each_write

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return self._top.path

    @property
    def format(self) -> str:
        """`raw` or `qcow2`, of the file that is written now."""
        return "qcow2" if isinstance(self._top, Qcow2Disk) else "raw"

    @property
    def chain(self) -> list[Path]:
        """All files, the one that is written first."""
        paths, disk = [], self._top
        while True:
            paths.append(disk.path)
            below = disk.backing if isinstance(disk, Qcow2Disk) else None
            if not isinstance(below, RawDisk | Qcow2Disk):
                return paths
            disk = below

    @property
    def size_bytes(self) -> int:
        """Capacity, a multiple of 512."""
        return self._top.size_bytes

    @property
    def read_only(self) -> bool:
        """Whether `write` is refused."""
        return self._top.read_only

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from byte `offset`; the caller stays inside. Raises `HostError`."""
        return self._top.read(offset, n)

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views` in order, from byte `offset`. Raises `HostError`."""
        self._top.readv(offset, views)

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at byte `offset`; the caller stays inside. Raises `HostError`."""
        self._top.write(offset, data)
        if self._flushes:
            self._top.flush()

    def writev(self, offset: int, views: Sequence[bytes | memoryview]) -> None:
        """Store `views` one after the other at byte `offset`. Raises `HostError`."""
        self._top.writev(offset, views)
        if self._flushes:
            self._top.flush()

    def flush(self) -> None:
        """Return once everything written is on stable storage. Raises `HostError`."""
        self._top.flush()

    def discard(self, offset: int, n: int) -> None:
        """The guest no longer needs these `n` bytes. Raises `HostError`."""
        self._top.discard(offset, n)

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None:
        """Make `n` bytes read as zero; with `unmap` their space is given up. Raises `HostError`."""
        self._top.write_zeroes(offset, n, unmap)
        if self._flushes:
            self._top.flush()

    def push(self, path: str | os.PathLike[str], *, cache: str | None = None) -> Path:
        """Go on in a new overlay at `path`; the file that is now frozen.

        Everything written before is in the frozen file and on stable storage. To keep the pause
        short when much is unwritten, call `flush` before the guest is stopped. The new file must
        not exist. After an error the disk goes on as before. Raises `ConfigError`, `HostError`.
        """
        old, path = self._top, Path(path)
        mode = Cache.named(cache) if cache else self._cache
        below = old.path.resolve()
        same = below.parent == path.resolve().parent
        create_qcow2(
            path,
            old.size_bytes,
            backing=f"./{below.name}" if same else below,
            backing_format=self.format,
            durable=mode is not Cache.UNSAFE,
        )
        was_read_only = old.read_only
        try:
            old.freeze()
            file = open_file(path, cache=mode)
            try:
                top = Qcow2Disk(file, read_header(file), backing=old)
            except BaseException:
                file.close()
                raise
        except BaseException:
            path.unlink()
            if old.read_only and not was_read_only:
                old.thaw()
            raise
        self._top, self._cache, self._flushes = top, mode, mode.flushes_each_write
        return old.path

    def close(self) -> None:
        """Flush and give up files and locks; may be called twice. Raises `HostError`."""
        self._top.close()

    def __enter__(self) -> "OpenDisk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_disk(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    read_only: bool = False,
    cache: str = "writeback",
    snapshot: str | None = None,
) -> OpenDisk:
    """The disk image at `path` with its backing chain, locked.

    `snapshot` shows an internal snapshot (by id or name), read-only. Raises `ConfigError` when
    an image is in use, damaged, of unknown features or in a chain that has no end.
    """
    mode = Cache.named(cache)
    if format is not None and format not in _FORMATS:
        raise ConfigError(f"disk {path}: format {format!r}: expected one of {', '.join(_FORMATS)}")
    read_only = read_only or snapshot is not None
    return OpenDisk(_open(Path(path), format, read_only, mode, snapshot, []), mode)


def read_header(file: File) -> Header:
    """The qcow2 header of `file`. Raises `ConfigError`."""
    data = file.read(0, 1 << 21)
    return parse(data, f"disk {file.path}", file.size())


def backing_path(image: Path, name: str) -> Path:
    """Where an image's backing file is: names are relative to the image's directory."""
    name = name.removeprefix("file:")
    scheme, colon, _ = name.partition(":")
    if colon and "/" not in scheme:
        raise ConfigError(f"disk {image}: its backing file {name!r} is not a file on this host")
    return image.parent / name


def _open(
    path: Path,
    format: str | None,
    read_only: bool,
    cache: Cache,
    snapshot: str | None,
    above: list[tuple[int, int]],
) -> RawDisk | Qcow2Disk:
    """One file of a chain and all below it; `above` identifies those over it."""
    file = open_file(path, read_only=read_only, cache=cache)
    try:
        status = os.stat(path)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise ConfigError(f"disk {path}: is its own backing file; the chain has no end")
        if len(above) >= MAX_CHAIN:
            raise ConfigError(f"disk {path}: more than {MAX_CHAIN} files in one chain")
        guessed = format is None
        if format is None:
            format = "qcow2" if file.read(0, 4) == MAGIC else "raw"
        if format == "raw":
            if snapshot is not None:
                raise ConfigError(f"disk {path}: a raw image has no snapshots")
            return RawDisk(path, read_only, file=file, padded=bool(above), guarded=guessed)
        header = read_header(file)
        if header.incompatible & Incompatible.DIRTY and not read_only:
            header = mend_refcounts(file, header)
        chosen = find_snapshot(file, header, snapshot) if snapshot is not None else None
        backing = None
        if header.backing_file is not None:
            if header.backing_format not in (None, *_FORMATS):
                raise ConfigError(
                    f"disk {path}: its backing file has format {header.backing_format!r}, "
                    f"expected one of {', '.join(_FORMATS)}"
                )
            below = backing_path(path, header.backing_file)
            try:
                backing = _open(below, header.backing_format, True, cache, None, [*above, identity])
            except ConfigError as error:
                raise ConfigError(f"{error} (backing file of {path})") from error
        try:
            return Qcow2Disk(file, header, backing=backing, read_only=read_only, snapshot=chosen)
        except BaseException:
            if backing is not None:
                backing.close()
            raise
    except BaseException:
        file.close()
        raise
