"""Who may open an image at the same time: one writer alone, or any number of readers.

Two locks are taken. `flock` on the whole file is what kasou's own processes see. Besides, the
bytes that QEMU locks (open-file-description locks, QEMU's `file.locking`) are locked the way QEMU
does it, so that `qemu-img` and QEMU refuse an image that a kasou machine writes, and the reverse.
Byte 100 + p says "I use permission p", byte 200 + p "nobody else may use p". Where the file system
has no such locks, `flock` stands alone.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path

from kasou.errors import ConfigError

_USED, _UNSHARED = 100, 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, len, pid
_WAY_OUT = "stop it, or attach the disk read-only in both"


def lock(fd: int, path: Path, exclusive: bool) -> None:
    """Take (or change to) the lock of a writer or a reader. Raises `ConfigError` when refused."""
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"disk {path}: is in use by another machine; {_WAY_OUT}") from error
    except OSError as error:
        raise ConfigError(f"disk {path}: cannot be locked: {error.strerror}") from error
    if hasattr(fcntl, "F_OFD_SETLK"):
        _lock_like_qemu(fd, path, exclusive)


def _lock_like_qemu(fd: int, path: Path, exclusive: bool) -> None:
    used = [_CONSISTENT_READ, _WRITE, _RESIZE] if exclusive else [_CONSISTENT_READ]
    unshared = [_WRITE, _RESIZE]
    try:
        for permission in (_CONSISTENT_READ, _WRITE, _RESIZE):
            wanted = permission in used
            _set(fd, fcntl.F_RDLCK if wanted else fcntl.F_UNLCK, _USED + permission)
        for permission in unshared:
            _set(fd, fcntl.F_RDLCK, _UNSHARED + permission)
        clash = any(_others_hold(fd, _UNSHARED + p) for p in used)
        clash |= any(_others_hold(fd, _USED + p) for p in unshared)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            clash = True
        else:
            return  # no such locks here (old kernel, some network file systems)
    if clash:
        raise ConfigError(f"disk {path}: is in use by another program (QEMU?); {_WAY_OUT}")


def _set(fd: int, kind: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def _others_hold(fd: int, byte: int) -> bool:
    """Whether another open file description has locked `byte`."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)
