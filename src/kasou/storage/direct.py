"""Files past the host's page cache (O_DIRECT).

The kernel wants offset, length and memory in whole units of the medium (512 or 4096 bytes), so
bytes pass through an aligned buffer; a write that does not fill its first or last unit reads that
unit before. The unit is found by trying, as QEMU does: what the file system wants is nowhere told
reliably. One lock around it all: two writes within one unit must not undo each other.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from kasou.errors import ConfigError
from kasou.storage.file import Bytes, HostFile

_BOUNCE = 1 << 20
_UNITS = (512, 4096)


class DirectFile(HostFile):
    """`File` on a descriptor that is switched to O_DIRECT.

    Raises `ConfigError` where the file system cannot do it.
    """

    def __init__(
        self, fd: int, path: Path, *, relock: Callable[[int, bool], None] | None = None
    ) -> None:
        super().__init__(fd, path, relock=relock)
        self._bounce = mmap.mmap(-1, _BOUNCE)  # page-aligned
        self._memory = memoryview(self._bounce)
        self._guard = threading.Lock()
        self._unit = self._probe()

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes; fewer only where the file ends. Raises `HostError`."""
        data = bytearray(n)
        done = self.readv(offset, [memoryview(data)])
        return bytes(data[:done])

    def readv(self, offset: int, views: Sequence[memoryview]) -> int:
        """Fill `views`; fewer bytes only where the file ends. Raises `HostError`."""
        done = 0
        with self._guard:
            for view in views:
                at = 0
                while at < len(view):
                    skip = offset % self._unit
                    wanted = min(len(view) - at, _BOUNCE - self._unit)
                    got = min(self._load(offset - skip, skip + wanted) - skip, wanted)
                    if got <= 0:
                        return done
                    view[at : at + got] = self._memory[skip : skip + got]
                    at += got
                    offset += got
                    done += got
        return done

    def write(self, offset: int, data: Bytes) -> None:
        """Store all of `data`. Raises `HostError`."""
        view = memoryview(data)
        unit = self._unit
        with self._guard:
            while view:
                skip = offset % unit
                n = min(len(view), _BOUNCE - skip)
                padded = -(-(skip + n) // unit) * unit
                end = None
                if skip or padded != skip + n:
                    end = self._fill_edges(offset - skip, skip, n, padded)
                self._memory[skip : skip + n] = view[:n]
                self._store(offset - skip, padded)
                if end is not None and (end := max(end, offset + n)) < offset - skip + padded:
                    super().truncate(end)  # the file does not grow by padding
                offset += n
                view = view[n:]

    def writev(self, offset: int, parts: Sequence[Bytes]) -> None:
        """Store `parts` one after the other. Raises `HostError`."""
        self.write(offset, b"".join(parts))

    def close(self) -> None:
        """Give up file and lock; may be called twice."""
        super().close()
        self._memory.release()
        self._bounce.close()

    def _fill_edges(self, start: int, skip: int, n: int, padded: int) -> int:
        """Load the units that a write fills only in part; the file's length before."""
        end, unit = super().size(), self._unit
        self._memory[:skip] = bytes(skip)
        self._memory[skip + n : padded] = bytes(padded - skip - n)
        last = padded - unit
        for at in {0, last} if skip else {last}:
            got = max(0, min(unit, end - (start + at)))
            if got:
                self._load(start + at, unit, at)
                self._memory[at + got : at + unit] = bytes(unit - got)
        return end

    def _load(self, offset: int, n: int, at: int = 0) -> int:
        """Fill the buffer from `at` with `n` bytes or a little more; how many there were."""
        n = -(-n // self._unit) * self._unit
        return super().readv(offset, [self._memory[at : at + n]])

    def _store(self, offset: int, n: int) -> None:
        super().write(offset, self._memory[:n])

    def _probe(self) -> int:
        """Switch O_DIRECT on; the smallest unit that works."""
        way_out = "its file system cannot by-pass the page cache; use cache=writeback"
        direct = getattr(os, "O_DIRECT", 0)
        if not direct:
            raise ConfigError(f"disk {self.path}: cache=none is not known on this host")
        try:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | direct)
            for unit in _UNITS:
                try:
                    os.preadv(self._fd, [self._memory[:unit]], unit)
                    return unit
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
        except OSError as error:
            raise ConfigError(f"disk {self.path}: {error.strerror}: {way_out}") from error
        raise ConfigError(f"disk {self.path}: {way_out}")
