"""A 9P2000.L session: what the client has open, and the answer to each of its messages.

A fid names a path below the shared directory; `Tlopen` and `Tlcreate` give it an open file as
well. Requests are answered one by one, so there is never one to flush. Locks are granted always:
the guest's kernel keeps its own processes apart, and there is one guest to a session. Extended
attributes are not supported.

Whatever the client sends is answered, by `Rlerror` with Linux's number if it cannot be done.
A session can be saved and restored: files are found again by their paths, and those that are gone
meanwhile answer ESTALE.
"""

import errno
import json
import os
import resource
import stat
import time
from collections.abc import Callable
from typing import Any

from kasou.devices.virtio.ninep.codec import QID, READ_OVERHEAD, decode, encode
from kasou.devices.virtio.ninep.directory import MAX_PATH, Entry, SharedDirectory
from kasou.devices.virtio.ninep.messages import (
    MAX_WALK,
    NO_FID,
    BadMessage,
    Message,
    Qid,
    Rattach,
    Rclunk,
    Rflush,
    Rfsync,
    Rgetattr,
    Rgetlock,
    Rlcreate,
    Rlerror,
    Rlink,
    Rlock,
    Rlopen,
    Rmkdir,
    Rmknod,
    Rread,
    Rreaddir,
    Rreadlink,
    Rremove,
    Rrename,
    Rrenameat,
    Rsetattr,
    Rstatfs,
    Rsymlink,
    Runlinkat,
    Rversion,
    Rwalk,
    Rwrite,
    Tattach,
    Tclunk,
    Tflush,
    Tfsync,
    Tgetattr,
    Tgetlock,
    Tlcreate,
    Tlink,
    Tlock,
    Tlopen,
    Tmkdir,
    Tmknod,
    Tread,
    Treaddir,
    Treadlink,
    Tremove,
    Trename,
    Trenameat,
    Tsetattr,
    Tstatfs,
    Tsymlink,
    Tunlinkat,
    Tversion,
    Twalk,
    Twrite,
)
from kasou.errors import ConfigError

VERSION = b"9P2000.L"
MAX_MSIZE = 512 * 1024
MIN_MSIZE = 4096
MAX_FIDS = 1 << 16
MAX_OPEN = 1 << 14

_MAGIC = 0x0102_1997  # V9FS_MAGIC
_GETATTR_BASIC = 0x7FF
_AT_REMOVEDIR = 0x200
_UNLOCKED = 2  # P9_LOCK_TYPE_UNLCK
_DIR, _SYMLINK, _FILE = 0x80, 0x02, 0x00  # types of a Qid
_DT = {_DIR: stat.S_IFDIR >> 12, _SYMLINK: stat.S_IFLNK >> 12, _FILE: stat.S_IFREG >> 12}
_ENTRY_OVERHEAD = QID.size + 8 + 1 + 2

# Open flags, which are generic Linux's whatever the host's architecture. (P9_DOTL_*)
_ACCESS = {0: os.O_RDONLY, 1: os.O_WRONLY, 2: os.O_RDWR}
_FLAGS = {
    0o200: os.O_EXCL,
    0o1000: os.O_TRUNC,
    0o2000: os.O_APPEND,
    0o10000: os.O_DSYNC,
    0o200000: os.O_DIRECTORY,
    0o4000000: os.O_SYNC,
}

# What Tsetattr changes. (P9_ATTR_*)
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE = 1, 2, 4, 8
_SET_ATIME, _SET_MTIME, _SET_CTIME, _ATIME_GIVEN, _MTIME_GIVEN = 16, 32, 64, 128, 256


class Fid:
    """A file the client holds: its path, the user who attached, and the file if it is open."""

    __slots__ = ("entries", "fd", "flags", "path", "stale", "uid")

    def __init__(self, path: bytes, uid: int) -> None:
        self.path = path
        self.uid = uid
        self.fd = -1
        self.flags = 0
        self.entries: list[Entry] | None = None
        self.stale = False


class Session:
    """The server of one client over `directory`."""

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self._fids: dict[int, Fid] = {}
        self._opened = 0
        self._devices: dict[int, int] = {}
        self.msize = MAX_MSIZE
        self._ready = False

    def handle(self, request: bytes, room: int) -> bytes:
        """The answer to one request, at most `room` bytes, which must be enough for an error."""
        try:
            tag, message = decode(request)
        except BadMessage as error:
            return encode(error.tag, Rlerror(errno.EINVAL))
        answer = self._try(message, min(room, self.msize))
        raw = encode(tag, answer)
        return raw if len(raw) <= room else encode(tag, Rlerror(errno.ENOBUFS))

    def reset(self) -> None:
        """Forget the client."""
        for fid in self._fids.values():
            self._shut(fid)
        self._fids.clear()
        self._ready = False

    def close(self) -> None:
        """Forget the client and let the directory go."""
        self.reset()
        self._directory.close()

    # ------------------------------------------------------------------ at rest
    def save(self) -> bytes:
        """Every fid by its path, in JSON."""
        fids = [
            [number, os.fsdecode(fid.path), fid.uid, fid.flags if fid.fd >= 0 else -1]
            for number, fid in self._fids.items()
        ]
        return json.dumps({"msize": self.msize, "ready": self._ready, "fids": fids}).encode()

    def restore(self, saved: bytes) -> None:
        """Open what was open, where it still is. Raises `ConfigError` for what `save` never gave."""
        self.reset()
        try:
            state: dict[str, Any] = json.loads(saved)
            self.msize, self._ready = int(state["msize"]), bool(state["ready"])
            for number, path, uid, flags in state["fids"]:
                self._fids[int(number)] = fid = Fid(os.fsencode(path), int(uid))
                if flags >= 0:
                    self._reopen(fid, int(flags))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"the snapshot's shared directory is damaged: {error}") from None

    def _reopen(self, fid: Fid, flags: int) -> None:
        try:
            again = flags & ~(os.O_TRUNC | os.O_CREAT | os.O_EXCL)
            self._open(fid, lambda: self._directory.open(fid.path, again), flags)
        except OSError:
            fid.stale = True

    # ------------------------------------------------------------------ dispatch
    def _try(self, message: Message, room: int) -> Message:
        if isinstance(message, Tversion):
            return self._version(message)
        if isinstance(message, Tread):
            return self._guard(lambda: self._read(message, room))
        if isinstance(message, Treaddir):
            return self._guard(lambda: self._readdir(message, room))
        answer = _ANSWERS.get(type(message))
        if answer is None:
            return Rlerror(errno.EOPNOTSUPP)
        return self._guard(lambda: answer(self, message))

    def _guard(self, answer: Callable[[], Message]) -> Message:
        if not self._ready:
            return Rlerror(errno.EPROTO)
        try:
            return answer()
        except OSError as error:
            return Rlerror(error.errno or errno.EIO)
        except (ValueError, OverflowError):  # a NUL in a name, a number too large for the host
            return Rlerror(errno.EINVAL)

    def _version(self, message: Tversion) -> Message:
        """Begin anew: "all outstanding I/O is aborted and all fids are freed"."""
        self.reset()
        if message.msize < MIN_MSIZE:
            return Rlerror(errno.EINVAL)
        self.msize = min(message.msize, MAX_MSIZE)
        self._ready = message.version == VERSION
        return Rversion(self.msize, VERSION if self._ready else b"unknown")

    # ------------------------------------------------------------------ fids
    def _attach(self, message: Tattach) -> Message:
        if message.afid != NO_FID:
            raise _error(errno.EACCES)
        fid = self._add(message.fid, Fid(b"", message.n_uname))
        return Rattach(self._qid(self._directory.stat(fid.path)))

    def _walk(self, message: Twalk) -> Message:
        start = self._fid(message.fid)
        if len(message.names) > MAX_WALK:
            raise _error(errno.EINVAL)
        if message.newfid != message.fid and message.newfid in self._fids:
            raise _error(errno.EBADF)
        path, qids = start.path, []
        for name in message.names:
            try:
                path = path.rpartition(b"/")[0] if name == b".." else _below(path, name)
                qids.append(self._qid(self._directory.stat(path)))
            except OSError:
                if not qids:
                    raise
                return Rwalk(tuple(qids))
        if message.newfid == message.fid:
            self._shut(start)
            start.path = path
        else:
            self._add(message.newfid, Fid(path, start.uid))
        return Rwalk(tuple(qids))

    def _clunk(self, message: Tclunk) -> Message:
        self._shut(self._fid(message.fid))
        del self._fids[message.fid]
        return Rclunk()

    def _remove(self, message: Tremove) -> Message:
        """The fid is given back even if the file cannot be removed."""
        fid = self._fid(message.fid)
        self._shut(fid)
        del self._fids[message.fid]
        self._directory.remove(fid.path, None)
        return Rremove()

    # ------------------------------------------------------------------ open files
    def _lopen(self, message: Tlopen) -> Message:
        fid = self._fid(message.fid)
        if fid.fd >= 0:
            raise _error(errno.EBUSY)
        flags = _host_flags(message.flags)
        self._open(fid, lambda: self._directory.open(fid.path, flags), flags)
        return Rlopen(self._qid(os.stat(fid.fd)), 0)

    def _lcreate(self, message: Tlcreate) -> Message:
        fid = self._fid(message.fid)
        if fid.fd >= 0:
            raise _error(errno.EBUSY)
        path = _below(fid.path, message.name)
        flags = _host_flags(message.flags)
        owner = (fid.uid, message.gid)
        self._open(fid, lambda: self._directory.create(path, flags, message.mode, owner), flags)
        fid.path = path
        return Rlcreate(self._qid(os.stat(fid.fd)), 0)

    def _read(self, message: Tread, room: int) -> Message:
        fid = self._opened_fid(message.fid)
        count = min(message.count, room - READ_OVERHEAD)
        if count < 0 or message.offset >= 1 << 63:
            raise _error(errno.EINVAL)
        return Rread(os.pread(fid.fd, count, message.offset))

    def _write(self, message: Twrite) -> Message:
        fid = self._opened_fid(message.fid)
        if message.offset >= 1 << 63:
            raise _error(errno.EFBIG)
        return Rwrite(os.pwrite(fid.fd, message.data, message.offset))

    def _fsync(self, message: Tfsync) -> Message:
        fid = self._opened_fid(message.fid)
        if message.datasync:
            os.fdatasync(fid.fd)
        else:
            os.fsync(fid.fd)
        return Rfsync()

    def _readdir(self, message: Treaddir, room: int) -> Message:
        """Entries as they were when reading began; the cookie of one is the number of the next."""
        fid = self._opened_fid(message.fid)
        if message.offset == 0 or fid.entries is None:
            fid.entries = self._list(fid)
        count = min(message.count, room - READ_OVERHEAD)
        data = bytearray()
        for number in range(message.offset, len(fid.entries)):
            entry = fid.entries[number]
            if len(data) + _ENTRY_OVERHEAD + len(entry.name) > count:
                if not data:
                    raise _error(errno.EINVAL)
                break
            kind = _DIR if entry.is_dir else _SYMLINK if entry.is_symlink else _FILE
            dt = _DT[kind] if kind != _FILE or entry.is_file else 0
            data += QID.pack(kind, 0, entry.inode)
            data += (number + 1).to_bytes(8, "little") + bytes((dt,))
            data += len(entry.name).to_bytes(2, "little") + entry.name
        return Rreaddir(bytes(data))

    def _list(self, fid: Fid) -> list[Entry]:
        own = os.stat(fid.fd).st_ino
        parent = self._directory.stat(fid.path.rpartition(b"/")[0]).st_ino
        dots = [Entry(b".", own, True, False, False), Entry(b"..", parent, True, False, False)]
        return dots + self._directory.entries(fid.fd)

    # ------------------------------------------------------------------ attributes
    def _getattr(self, message: Tgetattr) -> Message:
        fid = self._fid(message.fid)
        status = self._stat(fid)
        uid, gid = self._directory.owner(status)
        atime, mtime, ctime = (
            divmod(ns, 1_000_000_000)
            for ns in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        )
        return Rgetattr(
            valid=_GETATTR_BASIC,
            qid=self._qid(status),
            mode=status.st_mode,
            uid=uid,
            gid=gid,
            nlink=status.st_nlink,
            rdev=status.st_rdev,
            size=status.st_size,
            blksize=status.st_blksize,
            blocks=status.st_blocks,
            atime_sec=atime[0] & _U64,
            atime_nsec=atime[1],
            mtime_sec=mtime[0] & _U64,
            mtime_nsec=mtime[1],
            ctime_sec=ctime[0] & _U64,
            ctime_nsec=ctime[1],
            btime_sec=0,
            btime_nsec=0,
            gen=0,
            data_version=0,
        )

    def _setattr(self, message: Tsetattr) -> Message:
        fid, valid = self._fid(message.fid), message.valid
        if fid.stale:
            raise _error(errno.ESTALE)
        if valid & (_SET_UID | _SET_GID):
            uid = message.uid if valid & _SET_UID else -1
            gid = message.gid if valid & _SET_GID else -1
            self._directory.chown(fid.path, uid, gid)
        if valid & _SET_MODE:
            self._directory.chmod(fid.path, message.mode)
        if valid & _SET_SIZE:
            if fid.fd >= 0 and fid.flags & os.O_ACCMODE != os.O_RDONLY and message.size < 1 << 63:
                os.ftruncate(fid.fd, message.size)
            else:
                self._directory.truncate(fid.path, message.size)
        if valid & (_SET_ATIME | _SET_MTIME):
            self._set_times(fid, message)
        if not valid & ~_SET_CTIME:
            self._directory.chown(fid.path, -1, -1)  # refuses where nothing may change
        return Rsetattr()

    def _set_times(self, fid: Fid, message: Tsetattr) -> None:
        before, now = self._stat(fid), time.time_ns()
        atime, mtime = before.st_atime_ns, before.st_mtime_ns
        if message.valid & _SET_ATIME:
            given = _ns(message.atime_sec, message.atime_nsec)
            atime = given if message.valid & _ATIME_GIVEN else now
        if message.valid & _SET_MTIME:
            given = _ns(message.mtime_sec, message.mtime_nsec)
            mtime = given if message.valid & _MTIME_GIVEN else now
        self._directory.utime(fid.path, atime, mtime)

    def _readlink(self, message: Treadlink) -> Message:
        return Rreadlink(self._directory.readlink(self._fid(message.fid).path))

    def _statfs(self, message: Tstatfs) -> Message:
        found = self._directory.statvfs(self._fid(message.fid).path)
        return Rstatfs(
            type=_MAGIC,
            bsize=found.f_frsize,
            blocks=found.f_blocks,
            bfree=found.f_bfree,
            bavail=found.f_bavail,
            files=found.f_files,
            ffree=found.f_ffree,
            fsid=found.f_fsid & _U64,
            namelen=found.f_namemax,
        )

    # ------------------------------------------------------------------ names
    def _mkdir(self, message: Tmkdir) -> Message:
        fid = self._fid(message.dfid)
        path = _below(fid.path, message.name)
        self._directory.mkdir(path, message.mode, (fid.uid, message.gid))
        return Rmkdir(self._qid(self._directory.stat(path)))

    def _symlink(self, message: Tsymlink) -> Message:
        fid = self._fid(message.dfid)
        path = _below(fid.path, message.name)
        self._directory.symlink(path, message.target, (fid.uid, message.gid))
        return Rsymlink(self._qid(self._directory.stat(path)))

    def _mknod(self, message: Tmknod) -> Message:
        fid = self._fid(message.dfid)
        path = _below(fid.path, message.name)
        self._directory.mknod(path, message.mode, (fid.uid, message.gid))
        return Rmknod(self._qid(self._directory.stat(path)))

    def _link(self, message: Tlink) -> Message:
        path = _below(self._fid(message.dfid).path, message.name)
        self._directory.link(path, self._fid(message.fid).path)
        return Rlink()

    def _unlinkat(self, message: Tunlinkat) -> Message:
        path = _below(self._fid(message.dirfid).path, message.name)
        self._directory.remove(path, bool(message.flags & _AT_REMOVEDIR))
        return Runlinkat()

    def _rename(self, message: Trename) -> Message:
        new = _below(self._fid(message.dfid).path, message.name)
        self._move(self._fid(message.fid).path, new)
        return Rrename()

    def _renameat(self, message: Trenameat) -> Message:
        old = _below(self._fid(message.olddirfid).path, message.oldname)
        self._move(old, _below(self._fid(message.newdirfid).path, message.newname))
        return Rrenameat()

    def _move(self, old: bytes, new: bytes) -> None:
        """Rename, and take along the fids of the file and of what is below it."""
        self._directory.rename(old, new)
        for fid in self._fids.values():
            if fid.path == old or fid.path.startswith(old + b"/"):
                fid.path = new + fid.path[len(old) :]

    # ------------------------------------------------------------------ the rest
    def _lock(self, message: Tlock) -> Message:
        self._fid(message.fid)
        return Rlock(0)

    def _getlock(self, message: Tgetlock) -> Message:
        self._fid(message.fid)
        return Rgetlock(
            _UNLOCKED, message.start, message.length, message.proc_id, message.client_id
        )

    def _flush(self, message: Tflush) -> Message:
        return Rflush()

    # ------------------------------------------------------------------
    def _fid(self, number: int) -> Fid:
        fid = self._fids.get(number)
        if fid is None:
            raise _error(errno.EBADF)
        return fid

    def _opened_fid(self, number: int) -> Fid:
        fid = self._fid(number)
        if fid.fd < 0:
            raise _error(errno.ESTALE if fid.stale else errno.EBADF)
        return fid

    def _add(self, number: int, fid: Fid) -> Fid:
        if number == NO_FID or number in self._fids:
            raise _error(errno.EBADF)
        if len(self._fids) >= MAX_FIDS:
            raise _error(errno.ENFILE)
        self._fids[number] = fid
        return fid

    def _open(self, fid: Fid, open_: Callable[[], int], flags: int) -> None:
        """Half of what this process may open stays for others."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self._opened >= min(MAX_OPEN, soft // 2):
            raise _error(errno.ENFILE)
        fid.fd, fid.flags = open_(), flags
        self._opened += 1

    def _shut(self, fid: Fid) -> None:
        if fid.fd >= 0:
            os.close(fid.fd)
            fid.fd, fid.entries = -1, None
            self._opened -= 1
        fid.stale = False

    def _stat(self, fid: Fid) -> os.stat_result:
        if fid.stale:
            raise _error(errno.ESTALE)
        return os.stat(fid.fd) if fid.fd >= 0 else self._directory.stat(fid.path)

    def _qid(self, status: os.stat_result) -> Qid:
        """Inode numbers are unique on one file system; others below it get a mark of their own."""
        kind = (
            _DIR
            if stat.S_ISDIR(status.st_mode)
            else _SYMLINK
            if stat.S_ISLNK(status.st_mode)
            else _FILE
        )
        device = self._devices.setdefault(status.st_dev, len(self._devices))
        version = (status.st_mtime_ns ^ status.st_size << 8) & 0xFFFF_FFFF
        return Qid(kind, version, (status.st_ino ^ device << 48) & _U64)


_U64 = (1 << 64) - 1

_ANSWERS: dict[type[Message], Callable[[Session, Any], Message]] = {
    Tattach: Session._attach,
    Tclunk: Session._clunk,
    Tflush: Session._flush,
    Tfsync: Session._fsync,
    Tgetattr: Session._getattr,
    Tgetlock: Session._getlock,
    Tlcreate: Session._lcreate,
    Tlink: Session._link,
    Tlock: Session._lock,
    Tlopen: Session._lopen,
    Tmkdir: Session._mkdir,
    Tmknod: Session._mknod,
    Treadlink: Session._readlink,
    Tremove: Session._remove,
    Trename: Session._rename,
    Trenameat: Session._renameat,
    Tsetattr: Session._setattr,
    Tstatfs: Session._statfs,
    Tsymlink: Session._symlink,
    Tunlinkat: Session._unlinkat,
    Twalk: Session._walk,
    Twrite: Session._write,
}


def _below(path: bytes, name: bytes) -> bytes:
    """The path of `name` in the directory at `path`."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise _error(errno.EINVAL)
    joined = path + b"/" + name if path else name
    if len(joined) >= MAX_PATH:
        raise _error(errno.ENAMETOOLONG)
    return joined


def _host_flags(flags: int) -> int:
    """The host's open flags for the protocol's."""
    access = _ACCESS.get(flags & 3)
    if access is None:
        raise _error(errno.EINVAL)
    return access | sum(host for ours, host in _FLAGS.items() if flags & ours)


def _ns(seconds: int, nanoseconds: int) -> int:
    """A time since 1970, whose seconds are signed though they travel as unsigned."""
    return (seconds - ((seconds & 1 << 63) << 1)) * 1_000_000_000 + nanoseconds


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
