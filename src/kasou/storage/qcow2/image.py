"""A qcow2 image as a `Disk`: copy on write over an optional backing disk.

Reading, committing and writing are a file each, one on the other; here are flushing, freezing and
closing. A flush is a commit, or one `fdatasync` when no table changed. All methods may be called
on any thread; one at a time works inside.
"""

from types import TracebackType

from kasou.storage.qcow2.writing import ImageWriter


class Qcow2Disk(ImageWriter):
    """The image in `file`, which it owns as it owns `backing`.

    `snapshot` shows the disk as an internal snapshot kept it; that and `read_only` refuse writes.
    Raises `ConfigError` when the image must not be opened that way.
    """

    def flush(self) -> None:
        """Return once everything written is on stable storage. Raises `HostError`."""
        with self._lock:
            if self._read_only:
                return
            if self._since_commit:
                self._commit()
                return
        self._file.sync()  # no table waits: others may go on meanwhile

    def freeze(self) -> None:
        """Flush, accept no further write, and let others read. Raises `HostError`, `ConfigError`."""
        with self._lock:
            if not self._read_only:
                self._finish()
                self._read_only = True
                self._file.downgrade()

    def thaw(self) -> None:
        """Take back a `freeze`. Raises `ConfigError` when somebody reads the file by now."""
        with self._lock:
            self._file.upgrade()
            self._read_only = False

    def close(self) -> None:
        """Flush, give up file and backing; may be called twice. Raises `HostError`."""
        with self._lock:
            try:
                if not self._read_only:
                    self._finish()
            finally:
                self._read_only = True
                self._file.close()
                close = getattr(self._backing, "close", None)
                if close:
                    close()

    def __enter__(self) -> "Qcow2Disk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _finish(self) -> None:
        """Leave nothing in memory, not even a leak."""
        self.flush()
        if self._counts is not None and self._counts.is_dirty:
            self._counts.write_back()
            self._file.sync()
