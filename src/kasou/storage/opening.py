"""Opening image files: flags, locks and cache modes, in that order."""

import os
import stat
from pathlib import Path

from kasou.errors import ConfigError
from kasou.storage.direct import DirectFile
from kasou.storage.file import Cache, File, HostFile
from kasou.storage.locks import lock


def open_file(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    cache: Cache = Cache.WRITEBACK,
    locked: bool = True,
) -> File:
    """The file or block device at `path`, locked for its writer or its readers.

    Raises `ConfigError` when it cannot be opened or is in use.
    """
    path = Path(path)
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        fd = os.open(path, flags)
    except (OSError, ValueError) as error:
        way_out = (
            "; attach it read-only"
            if isinstance(error, PermissionError) and os.access(path, os.R_OK)
            else ""
        )
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"disk {path}: {reason}{way_out}") from error
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ConfigError(f"disk {path}: is neither a file nor a block device")
        if locked:
            lock(fd, path, exclusive=not read_only)
        relock = (lambda fd, exclusive: lock(fd, path, exclusive)) if locked else None
        if cache.is_direct:
            return DirectFile(fd, path, relock=relock)
        return HostFile(fd, path, syncs=cache is not Cache.UNSAFE, relock=relock)
    except BaseException:
        os.close(fd)
        raise
