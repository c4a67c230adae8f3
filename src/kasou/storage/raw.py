"""A disk kept in an image file, byte for byte."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from kasou.errors import ConfigError, HostError

SECTOR = 512


class RawDisk:
    """The file (or block device) at `path` as a `Disk`, locked while it is open.

    A writer's lock excludes everybody, readers share theirs. Raises `ConfigError` when the file
    cannot be opened, is in use, or is not a whole number of sectors.
    """

    def __init__(self, path: str | os.PathLike[str], read_only: bool = False) -> None:
        self.path = Path(path)
        self._read_only = read_only
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
        try:
            self._fd = os.open(self.path, flags)
        except OSError as error:
            way_out = (
                "; attach it read-only"
                if isinstance(error, PermissionError) and os.access(self.path, os.R_OK)
                else ""
            )
            raise ConfigError(f"disk {self.path}: {error.strerror}{way_out}") from error
        try:
            self._size = self._check()
        except BaseException:
            os.close(self._fd)
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
        parts = []
        try:
            while n:
                part = os.pread(self._fd, n, offset)
                if not part:
                    raise HostError(f"disk {self.path}: ends at {offset}, it was truncated in use")
                parts.append(part)
                offset += len(part)
                n -= len(part)
        except OSError as error:
            raise HostError(f"disk {self.path}: read at {offset}: {error.strerror}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at byte `offset`. Raises `HostError`."""
        if self._read_only:
            raise HostError(f"disk {self.path}: is attached read-only")
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, offset)
                offset += done
                view = view[done:]
        except OSError as error:
            raise HostError(f"disk {self.path}: write at {offset}: {error.strerror}") from error

    def flush(self) -> None:
        """Wait until all writes are on stable storage. Raises `HostError`."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise HostError(f"disk {self.path}: flush: {error.strerror}") from error

    def close(self) -> None:
        """Give up file and lock; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "RawDisk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self) -> int:
        """Lock the file and return its size."""
        kind = fcntl.LOCK_SH if self._read_only else fcntl.LOCK_EX
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"disk {self.path}: is in use by another machine; stop it, or attach the disk "
                "read-only in both"
            ) from error
        except OSError as error:
            raise ConfigError(f"disk {self.path}: cannot be locked: {error.strerror}") from error
        try:
            size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise ConfigError(f"disk {self.path}: {error.strerror}; not an image file") from error
        if size % SECTOR or not size:
            raise ConfigError(
                f"disk {self.path}: {size} bytes, expected a positive multiple of {SECTOR}; "
                f"`truncate -s %{SECTOR} {self.path}` pads it"
            )
        return size
