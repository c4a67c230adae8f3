"""A disk kept in an image file, byte for byte."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from kasou.errors import ConfigError, HostError
from kasou.storage.file import SECTOR, Cache, File
from kasou.storage.opening import open_file

QCOW2_MAGIC = b"QFI\xfb"


class RawDisk:
    """The file (or block device) at `path` as a `Disk`, locked while it is open.

    A writer's lock excludes everybody, readers share theirs. With `padded` (a backing file) a
    last partial sector is filled with zeroes. With `guarded` (nobody said that the file is raw) a
    write that would make its start look like another format is refused, lest the guest choose
    what the host opens next time. Raises `ConfigError` when the file cannot be opened, is in use,
    or is not a whole number of sectors.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        read_only: bool = False,
        *,
        cache: Cache = Cache.WRITEBACK,
        padded: bool = False,
        guarded: bool = False,
        file: File | None = None,
    ) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._guarded = guarded
        self._file = file or open_file(path, read_only=read_only, cache=cache)
        try:
            self._size = self._measure(padded)
        except BaseException:
            self._file.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Capacity, a multiple of 512."""
        return self._size

    @property
    def read_only(self) -> bool:
        """Whether `write` is refused."""
        return self._read_only

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes from byte `offset`. Raises `HostError`."""
        data = self._file.read(offset, n)
        return data if len(data) == n else data + self._missing(offset + len(data), n - len(data))

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views` in order, from byte `offset`. Raises `HostError`."""
        done = self._file.readv(offset, views)
        n = sum(map(len, views))
        if done != n:
            missing = self._missing(offset + done, n - done)
            for view in views:
                view[done : len(view)] = missing[: max(0, len(view) - done)]
                done = max(0, done - len(view))

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at byte `offset`. Raises `HostError`."""
        self._admit(offset, data)
        self._file.write(offset, data)

    def writev(self, offset: int, views: Sequence[bytes | memoryview]) -> None:
        """Store `views` one after the other at byte `offset`. Raises `HostError`."""
        self._admit(offset, b"".join(bytes(view[:4]) for view in views[:4]))
        self._file.writev(offset, views)

    def flush(self) -> None:
        """Wait until all writes are on stable storage. Raises `HostError`."""
        self._file.sync()

    def discard(self, offset: int, n: int) -> None:
        """Give the space of `n` bytes back where the file system can. Raises `HostError`."""
        self._admit(offset)
        if n:
            self._file.punch(offset, n)

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None:
        """Make `n` bytes read as zero. Raises `HostError`."""
        self._admit(offset)
        if n:
            self._file.zero(offset, n, unmap)

    def freeze(self) -> None:
        """Flush, accept no further write, and let others read. Raises `HostError`, `ConfigError`."""
        if not self._read_only:
            self._file.sync()
            self._read_only = True
            self._file.downgrade()

    def thaw(self) -> None:
        """Take back a `freeze`. Raises `ConfigError` when somebody reads the file by now."""
        self._file.upgrade()
        self._read_only = False

    def close(self) -> None:
        """Give up file and lock; may be called twice."""
        self._file.close()

    def __enter__(self) -> "RawDisk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _admit(self, offset: int, data: bytes = b"") -> None:
        """Raise unless this write may happen."""
        if self._read_only:
            raise HostError(f"disk {self.path}: is attached read-only", errno.EROFS)
        if self._guarded and not offset and data[:4] == QCOW2_MAGIC:
            raise HostError(
                f"disk {self.path}: the guest writes another format's header to a disk whose "
                "format was guessed; give format=raw to allow it",
                errno.EPERM,
            )

    def _missing(self, offset: int, n: int) -> bytes:
        """Zeroes for the padding of the last sector; elsewhere the file must not end."""
        if offset + n <= self._size and n < SECTOR and offset + n > self._size - SECTOR:
            return bytes(n)
        raise HostError(f"disk {self.path}: ends at {offset}, it was truncated in use", errno.EIO)

    def _measure(self, padded: bool) -> int:
        try:
            size = self._file.size()
        except HostError as error:
            raise ConfigError(f"{error}; not an image file") from error
        if padded:
            return -(-size // SECTOR) * SECTOR
        if size % SECTOR or not size:
            raise ConfigError(
                f"disk {self.path}: {size} bytes, expected a positive multiple of {SECTOR}; "
                f"`truncate -s %{SECTOR} {self.path}` pads it"
            )
        return size
