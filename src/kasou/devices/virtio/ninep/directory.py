"""A directory of the host, and everything that may be done below it.

A path here is bytes: names joined by `/`, empty for the shared directory itself, without `.` and
`..`. Nothing leaves the directory: every component is opened from the one before with
`O_NOFOLLOW`, so neither a symbolic link, whoever made it and when, nor a rename meanwhile leads
elsewhere. What is opened for reading and writing is first held by `O_PATH`, seen to be a file or a
directory, and opened anew through `/proc/self/fd`. Symbolic links are the guest's to follow.

Owners are mapped as with QEMU's `security_model=none`: what belongs to the user kasou runs as
belongs to the guest's root, what belongs to others to nobody; a change of owner is taken and
forgotten. When kasou itself runs as root, owners are the same on both sides. Set-user-id bits are
never set on files: they would lend the host's user to others. Device nodes are refused.

All methods raise `OSError`; nothing else, whatever the guest asks for.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from kasou.errors import ConfigError

NOBODY = 65534
MAX_PATH = 4096
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_CREAT


class Entry(NamedTuple):
    """One name in a directory, and what is known of it without looking further."""

    name: bytes
    inode: int
    is_dir: bool
    is_symlink: bool
    is_file: bool


class SharedDirectory:
    """The directory at `path`; with `read_only` every change is refused with EROFS.

    Raises `ConfigError` when there is no such directory.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.read_only = read_only
        try:
            self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"-v {path}: {error.strerror}; a directory is needed") from None
        self._uid, self._gid = os.geteuid(), os.getegid()

    def close(self) -> None:
        """Let the directory go."""
        os.close(self._root)

    # ------------------------------------------------------------------ looking
    def stat(self, path: bytes) -> os.stat_result:
        """Of the file itself, links not followed."""
        with self._parent(path) as (parent, name):
            if not name:
                return os.stat(parent)
            return os.stat(name, dir_fd=parent, follow_symlinks=False)

    def owner(self, status: os.stat_result) -> tuple[int, int]:
        """User and group as the guest sees them."""
        if self._uid == 0:
            return status.st_uid, status.st_gid
        return (
            0 if status.st_uid == self._uid else NOBODY,
            0 if status.st_gid == self._gid else NOBODY,
        )

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor of a regular file or directory."""
        if flags & _WRITES:
            self._change()
        with self._held(path) as (fd, status):
            if stat.S_ISLNK(status.st_mode):
                raise _error(errno.ELOOP)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise _error(errno.EOPNOTSUPP)
            flags &= ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)

    @staticmethod
    def entries(fd: int) -> list[Entry]:
        """What an open directory holds, by name; without `.` and `..`."""
        with os.scandir(fd) as found:
            return sorted(
                Entry(
                    os.fsencode(one.name),
                    one.inode(),
                    one.is_dir(follow_symlinks=False),
                    one.is_symlink(),
                    one.is_file(follow_symlinks=False),
                )
                for one in found
            )

    def readlink(self, path: bytes) -> bytes:
        """What a symbolic link holds."""
        with self._parent(path) as (parent, name):
            return os.readlink(name or b".", dir_fd=parent)

    def statvfs(self, path: bytes) -> os.statvfs_result:
        """The file system that holds it."""
        with self._held(path) as (fd, _):
            return os.statvfs(fd)

    # ------------------------------------------------------------------ making
    def create(self, path: bytes, flags: int, mode: int, owner: tuple[int, int]) -> int:
        """Make a regular file, or open the one that is there unless `O_EXCL` is among `flags`."""
        self._change()
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with self._new(path) as (parent, name):
            try:
                fd = os.open(name, flags | os.O_EXCL, mode & 0o777, dir_fd=parent)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
            else:
                os.fchmod(fd, mode & 0o1777)  # the guest has applied its umask, not we ours
                self._give(parent, name, owner)
                return fd
        return self.open(path, flags)

    def mkdir(self, path: bytes, mode: int, owner: tuple[int, int]) -> None:
        """Make a directory."""
        self._change()
        with self._new(path) as (parent, name):
            os.mkdir(name, mode & 0o777, dir_fd=parent)
            self._give(parent, name, owner)
        self.chmod(path, mode)

    def symlink(self, path: bytes, target: bytes, owner: tuple[int, int]) -> None:
        """Make a symbolic link, whatever it holds."""
        self._change()
        with self._new(path) as (parent, name):
            os.symlink(target, name, dir_fd=parent)
            self._give(parent, name, owner)

    def mknod(self, path: bytes, mode: int, owner: tuple[int, int]) -> None:
        """Make a file, a FIFO or a socket; not a device."""
        self._change()
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            raise _error(errno.EPERM)
        with self._new(path) as (parent, name):
            os.mknod(name, stat.S_IFMT(mode) | mode & 0o777, dir_fd=parent)
            self._give(parent, name, owner)
        self.chmod(path, mode)

    def link(self, path: bytes, target: bytes) -> None:
        """Make `path` another name of the file at `target`."""
        self._change()
        with self._new(path) as (parent, name), self._new(target) as (other, old):
            os.link(old, name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)

    # ------------------------------------------------------------------ changing
    def rename(self, old: bytes, new: bytes) -> None:
        """Give another name, replacing what has it."""
        self._change()
        with self._new(old) as (old_parent, old_name), self._new(new) as (new_parent, new_name):
            os.rename(old_name, new_name, src_dir_fd=old_parent, dst_dir_fd=new_parent)

    def remove(self, path: bytes, directory: bool | None) -> None:
        """Remove a directory (True), anything else (False), or whichever it is (None)."""
        self._change()
        with self._new(path) as (parent, name):
            if directory is None:
                mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
                directory = stat.S_ISDIR(mode)
            if directory:
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)

    def chmod(self, path: bytes, mode: int) -> None:
        """Permissions of anything but a symbolic link."""
        self._change()
        with self._held(path) as (fd, status):
            if stat.S_ISLNK(status.st_mode):
                raise _error(errno.EOPNOTSUPP)
            allowed = 0o3777 if stat.S_ISDIR(status.st_mode) else 0o1777
            os.chmod(f"/proc/self/fd/{fd}", mode & allowed)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """Owners, -1 for no change; taken and forgotten unless kasou runs as root."""
        self._change()
        with self._parent(path) as (parent, name):
            self._give(parent, name, (uid, gid))

    def truncate(self, path: bytes, size: int) -> None:
        """Length of a regular file, in bytes."""
        self._change()
        with self._held(path) as (fd, status):
            if not stat.S_ISREG(status.st_mode):
                raise _error(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL)
            os.truncate(f"/proc/self/fd/{fd}", _offset(size))

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        """Times, in ns since 1970."""
        self._change()
        with self._parent(path) as (parent, name):
            try:
                if name:
                    times = (atime_ns, mtime_ns)
                    os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
                else:
                    os.utime(f"/proc/self/fd/{parent}", ns=(atime_ns, mtime_ns))
            except OverflowError:
                raise _error(errno.EINVAL) from None

    # ------------------------------------------------------------------
    def _change(self) -> None:
        if self.read_only:
            raise _error(errno.EROFS)

    @contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """Where `path` stands and its name there; the directory itself has an empty one."""
        if len(path) >= MAX_PATH:
            raise _error(errno.ENAMETOOLONG)
        *above, name = path.split(b"/")
        fd = os.dup(self._root)
        try:
            for part in above:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd, name
        finally:
            os.close(fd)

    @contextmanager
    def _new(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """As `_parent`, for what cannot be done to the shared directory itself."""
        if not path:
            raise _error(errno.EBUSY)
        with self._parent(path) as (parent, name):
            yield parent, name

    @contextmanager
    def _held(self, path: bytes) -> Iterator[tuple[int, os.stat_result]]:
        """The file itself by `O_PATH`, and what it is."""
        with self._parent(path) as (parent, name):
            fd = os.open(name or b".", _ANY, dir_fd=parent)
            try:
                yield fd, os.stat(fd)
            finally:
                os.close(fd)

    def _give(self, parent: int, name: bytes, owner: tuple[int, int]) -> None:
        if self._uid == 0:
            uid, gid = (one if one < 0xFFFF_FFFF else -1 for one in owner)
            with suppress(OverflowError):
                os.chown(name or b".", uid, gid, dir_fd=parent, follow_symlinks=False)


def _offset(value: int) -> int:
    """A file offset that the host's calls take."""
    if value >= 1 << 63:
        raise _error(errno.EFBIG)
    return value


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
