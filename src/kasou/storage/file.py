"""An open image file: the one place where storage meets the host's file system.

Offsets and lengths are bytes. Every refusal of the host becomes a `HostError` that carries its
errno. A cache mode says what stands between a write and the medium, with QEMU's meaning:

| mode         | host page cache | a flush                | a write                          |
|--------------|-----------------|------------------------|----------------------------------|
| writeback    | used            | waits (`fdatasync`)    | returns when the host has it     |
| none         | by-passed       | waits                  | returns when the host has it     |
| writethrough | used            | waits                  | is followed by a flush           |
| directsync   | by-passed       | waits                  | is followed by a flush           |
| unsafe       | used            | returns at once        | returns when the host has it     |

`unsafe` loses data when the host dies, never when only the process does. An `fdatasync` that
failed has thrown dirty pages away (Linux drops them and reports the failure once), so after one
every later flush fails too: nothing is acknowledged that may be gone.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import NoReturn, Protocol

from kasou.errors import ConfigError, HostError

SECTOR = 512
_IOV_MAX = 1024
_ZEROES = b"\0" * (1 << 20)  # touched memory: a killed write then never ends inside a sector
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_REFUSED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)

Bytes = bytes | bytearray | memoryview


class Cache(Enum):
    """How writes reach the medium; the module's table says what each mode means."""

    WRITEBACK = "writeback"
    NONE = "none"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"

    @classmethod
    def named(cls, name: str) -> "Cache":
        """The mode called `name`. Raises `ConfigError`."""
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(mode.value for mode in cls)
            raise ConfigError(f"cache mode {name!r}: expected one of {known}") from None

    @property
    def is_direct(self) -> bool:
        """Whether the host's page cache is by-passed (O_DIRECT)."""
        return self in (Cache.NONE, Cache.DIRECTSYNC)

    @property
    def flushes_each_write(self) -> bool:
        """Whether a write is on stable storage when it returns."""
        return self in (Cache.WRITETHROUGH, Cache.DIRECTSYNC)


class File(Protocol):
    """What a disk needs of a file; tests put a layer that cuts the power in its place."""

    path: Path

    def size(self) -> int:
        """The file's length now."""
        ...

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes; fewer only where the file ends."""
        ...

    def readv(self, offset: int, views: Sequence[memoryview]) -> int:
        """Fill `views` in order; how many bytes there were, fewer only where the file ends."""
        ...

    def write(self, offset: int, data: Bytes) -> None:
        """Store all of `data`; the file grows as needed."""
        ...

    def writev(self, offset: int, parts: Sequence[Bytes]) -> None:
        """Store `parts` one after the other."""
        ...

    def sync(self) -> None:
        """Return once everything written is on stable storage; nothing later comes before it."""
        ...

    def truncate(self, size: int) -> None:
        """Make the file `size` long."""
        ...

    def zero(self, offset: int, n: int, unmap: bool) -> None:
        """Make `n` bytes inside the file read as zero; `unmap` gives their space back."""
        ...

    def punch(self, offset: int, n: int) -> None:
        """Give the space of `n` bytes back where the file system can; what they read is open."""
        ...

    def downgrade(self) -> None:
        """Share with other readers what was locked for writing. Raises `ConfigError`."""
        ...

    def upgrade(self) -> None:
        """Lock for writing what was shared. Raises `ConfigError`."""
        ...

    def close(self) -> None:
        """Give up file and lock; may be called twice."""
        ...


class HostFile:
    """`File` on an open descriptor, which it owns, through the page cache."""

    def __init__(
        self,
        fd: int,
        path: Path,
        *,
        syncs: bool = True,
        relock: Callable[[int, bool], None] | None = None,
    ) -> None:
        self.path = path
        self._fd = fd
        self._syncs = syncs
        self._relock = relock
        self._lost: int | None = None
        self._can_punch = self._can_zero = hasattr(_libc, "fallocate64")

    def size(self) -> int:
        """The file's (or block device's) length now."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            self._fail("size", 0, error)

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes; fewer only where the file ends. Raises `HostError`."""
        try:
            data = os.pread(self._fd, n, offset)
            if len(data) == n or not data:
                return data
            parts = [data]
            done = len(data)
            while done < n and (data := os.pread(self._fd, n - done, offset + done)):
                parts.append(data)
                done += len(data)
        except OSError as error:
            self._fail("read", offset, error)
        return b"".join(parts)

    def readv(self, offset: int, views: Sequence[memoryview]) -> int:
        """Fill `views`; fewer bytes only where the file ends. Raises `HostError`."""
        done = 0
        rest = [view for view in views if len(view)]
        try:
            while rest:
                got = os.preadv(self._fd, rest[:_IOV_MAX], offset + done)
                if not got:
                    break
                done += got
                _drop(rest, got)
        except OSError as error:
            self._fail("read", offset + done, error)
        return done

    def write(self, offset: int, data: Bytes) -> None:
        """Store all of `data`. Raises `HostError`."""
        try:
            done = os.pwrite(self._fd, data, offset)
            if done != len(data):
                view = memoryview(data)
                while done < len(data):
                    done += os.pwrite(self._fd, view[done:], offset + done)
        except OSError as error:
            self._fail("write", offset, error)

    def writev(self, offset: int, parts: Sequence[Bytes]) -> None:
        """Store `parts` one after the other. Raises `HostError`."""
        rest = [memoryview(part) for part in parts if len(part)]
        try:
            while rest:
                done = os.pwritev(self._fd, rest[:_IOV_MAX], offset)
                offset += done
                _drop(rest, done)
        except OSError as error:
            self._fail("write", offset, error)

    def sync(self) -> None:
        """Wait until all writes are on stable storage (`unsafe`: do not). Raises `HostError`."""
        if not self._syncs:
            return
        if self._lost is not None:
            raise HostError(
                f"disk {self.path}: an earlier flush failed and writes were lost: "
                f"{os.strerror(self._lost)}",
                self._lost,
            )
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._lost = error.errno
            self._fail("flush", 0, error)

    def truncate(self, size: int) -> None:
        """Make the file `size` long. Raises `HostError`."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._fail("resize", size, error)

    def zero(self, offset: int, n: int, unmap: bool) -> None:
        """Make `n` bytes inside the file read as zero. Raises `HostError`."""
        if unmap and self._can_punch:
            self._can_punch = self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, n)
            if self._can_punch:
                return
        if self._can_zero:
            self._can_zero = self._fallocate(_ZERO_RANGE | _KEEP_SIZE, offset, n)
            if self._can_zero:
                return
        zeroes = memoryview(_ZEROES)
        for done in range(0, n, len(_ZEROES)):
            self.write(offset + done, zeroes[: n - done])

    def punch(self, offset: int, n: int) -> None:
        """Give space back where the file system can. Raises `HostError`."""
        if self._can_punch:
            self._can_punch = self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, n)

    def downgrade(self) -> None:
        """Let other readers in. Raises `ConfigError` when another writer came first."""
        if self._relock:
            self._relock(self._fd, False)

    def upgrade(self) -> None:
        """Be the only writer. Raises `ConfigError` when somebody reads the file."""
        if self._relock:
            self._relock(self._fd, True)

    def close(self) -> None:
        """Give up file and lock; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _fallocate(self, mode: int, offset: int, n: int) -> bool:
        """Whether the file system knows how; other refusals are a `HostError`."""
        while _libc.fallocate64(self._fd, mode, offset, n):
            number = ctypes.get_errno()
            if number in _REFUSED:
                return False
            if number != errno.EINTR:
                self._fail("zero", offset, OSError(number, os.strerror(number)))
        return True

    def _fail(self, verb: str, offset: int, error: OSError) -> NoReturn:
        raise HostError(
            f"disk {self.path}: {verb} at {offset}: {error.strerror or error}", error.errno
        ) from error


def _drop(rest: list[memoryview], done: int) -> None:
    """Remove the first `done` bytes of a list of buffers."""
    while done:
        first = rest[0]
        if done < len(first):
            rest[0] = first[done:]
            return
        done -= len(first)
        del rest[0]


_libc = ctypes.CDLL(None, use_errno=True)
if hasattr(_libc, "fallocate64"):
    _libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
