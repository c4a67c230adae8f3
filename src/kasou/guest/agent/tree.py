"""Files and trees as tar streams, on the host's side of `put` and `get`.

`pack` makes the stream that the guest's `tar` unpacks; `Unpacker` takes the one it makes, in
pieces of any size. Modes, times, symbolic and hard links are kept; owners are not: files are
root's in the guest (or those of the user `put` runs as), and the caller's on the host.

The guest is not trusted with the host's files. Nothing is written outside the destination: every
directory is opened from its parent without following links, so neither `..`, nor an absolute name,
nor a link that the archive itself (or an earlier one) planted leads out.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kasou.errors import ConfigError, HostError, RemoteError

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 16
_LONGEST_NAME = 1 << 16


def pack(source: Path, name: str) -> Iterator[bytes]:
    """A tar stream of `source`, its root called `name`; `.` with a directory for its contents.

    Sockets and device nodes are left out. A file that changes while it is read keeps the size it
    had. Raises `ConfigError` when there is no `source`, `HostError` when it cannot be read.
    """
    if not os.path.lexists(source):
        raise ConfigError(f"{source}: no such file or directory")
    linked: dict[tuple[int, int], str] = {}
    try:
        # The root itself is followed, as by cp.
        yield from _pack(source.resolve() if source.is_symlink() else source, name, linked)
    except OSError as error:
        raise HostError(f"{error.filename or source}: {error.strerror}") from error
    yield bytes(2 * _BLOCK)


def _pack(path: Path, name: str, linked: dict[tuple[int, int], str]) -> Iterator[bytes]:
    status = path.lstat()
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    inode = (status.st_dev, status.st_ino)
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        if name != ".":  # the contents' directory keeps the mode it has there
            yield _header(info)
        for child in sorted(os.listdir(path)):
            yield from _pack(path / child, f"{name}/{child}", linked)
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        yield _header(info)
    elif stat.S_ISREG(status.st_mode) and status.st_nlink > 1 and inode in linked:
        info.type, info.linkname = tarfile.LNKTYPE, linked[inode]
        yield _header(info)
    elif stat.S_ISREG(status.st_mode):
        linked[inode] = name
        yield from _pack_file(path, info)
    elif stat.S_ISFIFO(status.st_mode):
        info.type = tarfile.FIFOTYPE
        yield _header(info)


def _pack_file(path: Path, info: tarfile.TarInfo) -> Iterator[bytes]:
    with path.open("rb") as file:
        info.size = left = os.fstat(file.fileno()).st_size
        yield _header(info)
        while left:
            data = file.read(min(left, _PIECE))
            if not data:  # it was cut short meanwhile
                data = bytes(min(left, _PIECE))
            left -= len(data)
            yield data
    if rest := -info.size % _BLOCK:
        yield bytes(rest)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


class Unpacker:
    """Takes a tar stream and makes its files under a directory that is there.

    The archive's root `root` becomes `name` in `directory`; with `root` equal to `.` its contents
    land in `directory` itself. `feed` raises `RemoteError` for what is no tar stream or would leave
    the directory, `HostError` for what the host refuses. After the last byte call `close`.
    """

    def __init__(self, directory: Path, root: str, name: str) -> None:
        self._root, self._name = root, name
        self._buffer = bytearray()
        self._left = self._padding = 0
        self._file = -1
        self._long: dict[bytes, bytearray] = {}
        self._collecting: bytearray | None = None
        self._current: tarfile.TarInfo | None = None
        self._modes: list[tuple[list[str], int, float]] = []
        self._ended = False
        try:
            self._top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{directory}: {error.strerror}") from error

    def feed(self, data: bytes) -> None:
        """More of the stream."""
        self._buffer += data
        try:
            while self._step():
                pass
        except OSError as error:
            name = self._current.name if self._current else ""
            raise HostError(f"{error.filename or name}: {error.strerror}") from error

    def close(self) -> None:
        """Nothing more comes. Raises `RemoteError` when the stream was cut short."""
        cut_short = not self._ended
        try:
            self._close_file()
            for parts, mode, mtime in reversed(self._modes):
                self._finish_directory(parts, mode, mtime)
        except OSError as error:
            raise HostError(f"{error.filename}: {error.strerror}") from error
        finally:
            os.close(self._top)
        if cut_short:
            raise RemoteError("the guest's archive ended in the middle")

    # ------------------------------------------------------------------ the stream
    def _step(self) -> bool:
        """One thing, if there are bytes enough for it."""
        buffer = self._buffer
        if self._ended:
            buffer.clear()
            return False
        if self._left:
            if not buffer:
                return False
            n = min(self._left, len(buffer))
            piece = bytes(buffer[:n])
            del buffer[:n]
            self._left -= n
            if self._collecting is not None:
                self._collecting += piece
            elif self._file >= 0:
                _write_all(self._file, piece)
            return True
        if self._padding:
            n = min(self._padding, len(buffer))
            del buffer[:n]
            self._padding -= n
            return n > 0
        self._close_file()
        if len(buffer) < _BLOCK:
            return False
        block = bytes(buffer[:_BLOCK])
        del buffer[:_BLOCK]
        self._member(block)
        return True

    def _member(self, block: bytes) -> None:
        if not any(block):
            self._ended = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise RemoteError(f"the guest's archive is damaged: {error}") from None
        if info.size < 0:
            raise RemoteError(f"the guest's archive has a member of {info.size} bytes")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if info.size > _LONGEST_NAME:
                raise RemoteError(f"the guest's archive has a name of {info.size} bytes")
            self._collecting = self._long[info.type] = bytearray()
            self._left, self._padding = info.size, -info.size % _BLOCK
            return
        for kind, attribute in (
            (tarfile.GNUTYPE_LONGNAME, "name"),
            (tarfile.GNUTYPE_LONGLINK, "linkname"),
        ):
            if kind in self._long:
                text = bytes(self._long.pop(kind)).rstrip(b"\0").decode("utf-8", "surrogateescape")
                setattr(info, attribute, text)
        self._current = info
        self._make(info)
        if info.isreg():
            self._left, self._padding = info.size, -info.size % _BLOCK

    # ------------------------------------------------------------------ the files
    def _make(self, info: tarfile.TarInfo) -> None:
        parts = self._parts(info.name)
        mode = info.mode & 0o777
        if info.isdir():
            if parts:
                os.close(self._directory(parts, make=True))
                self._modes.append((parts, mode, info.mtime))
            return
        if not parts:
            raise RemoteError(f"the guest's archive has a file called {info.name!r}")
        parent = self._directory(parts[:-1], make=True)
        try:
            with suppress(FileNotFoundError):
                os.unlink(parts[-1], dir_fd=parent)
            if info.isreg():
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._file = os.open(parts[-1], flags, 0o600, dir_fd=parent)
            elif info.issym():
                os.symlink(info.linkname, parts[-1], dir_fd=parent)
            elif info.islnk():
                self._link(self._parts(info.linkname), parts[-1], parent)
            elif info.isfifo():
                os.mkfifo(parts[-1], mode, dir_fd=parent)
        finally:
            os.close(parent)

    def _link(self, target: list[str], name: str, parent: int) -> None:
        if not target:
            raise RemoteError("the guest's archive has a hard link to a directory")
        from_directory = self._directory(target[:-1])
        try:
            os.link(
                target[-1],
                name,
                src_dir_fd=from_directory,
                dst_dir_fd=parent,
                follow_symlinks=False,
            )
        finally:
            os.close(from_directory)

    def _parts(self, name: str) -> list[str]:
        """The path below the destination. Raises `RemoteError` for one that leads out."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise RemoteError(f"the guest's archive has a file called {name!r}")
        if self._root == ".":
            return parts
        if parts[:1] != [self._root]:
            raise RemoteError(f"the guest's archive has {name!r}, which was not asked for")
        return [self._name, *parts[1:]]

    def _directory(self, parts: list[str], make: bool = False) -> int:
        """A descriptor of a directory below the destination, links not followed."""
        fd = os.dup(self._top)
        try:
            for part in parts:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=fd)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(part, flags, dir_fd=fd)
                os.close(fd)
                fd = below
        except OSError:
            os.close(fd)
            raise
        return fd

    def _close_file(self) -> None:
        if self._file >= 0:
            info, file = self._current, self._file
            self._file = -1
            try:
                if info is not None:
                    os.fchmod(file, info.mode & 0o777)
                    os.utime(file, (info.mtime, info.mtime))
            finally:
                os.close(file)
        self._collecting = None

    def _finish_directory(self, parts: list[str], mode: int, mtime: float) -> None:
        """Mode and time last: until then its files are made."""
        fd = self._directory(parts)
        try:
            os.fchmod(fd, mode)
            os.utime(fd, (mtime, mtime))
        finally:
            os.close(fd)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
