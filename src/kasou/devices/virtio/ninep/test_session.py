import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.ninep import messages as m
from kasou.devices.virtio.ninep.codec import QID, decode, encode
from kasou.devices.virtio.ninep.directory import NOBODY, SharedDirectory
from kasou.devices.virtio.ninep.session import MAX_FIDS, MAX_MSIZE, VERSION, Session
from kasou.errors import ConfigError

R = TypeVar("R", bound=m.Message)
ROOM = MAX_MSIZE
O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_APPEND = 1, 2, 0o100, 0o200, 0o1000, 0o2000


class Refused(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, number))
        self.number = number


class Client:
    """As Linux's v9fs uses a server."""

    def __init__(self, directory: Path, read_only: bool = False) -> None:
        self.session = Session(SharedDirectory(directory, read_only))
        self.next = 1
        self.ask(m.Tversion(MAX_MSIZE, VERSION), m.Rversion)
        self.ask(m.Tattach(0, m.NO_FID, b"root", b"", 0), m.Rattach)

    def ask(self, request: m.Message, expected: type[R], room: int = ROOM) -> R:
        tag, answer = decode(self.session.handle(encode(7, request), room))
        assert tag == 7
        if isinstance(answer, m.Rlerror):
            raise Refused(answer.ecode)
        assert isinstance(answer, expected)
        return answer

    def walk(self, *names: str | bytes, start: int = 0) -> int:
        self.next += 1
        encoded = tuple(os.fsencode(name) for name in names)
        answer = self.ask(m.Twalk(start, self.next, encoded), m.Rwalk)
        if len(answer.qids) < len(names):
            raise Refused(errno.ENOENT)
        return self.next

    def open(self, *names: str, flags: int = 0) -> int:
        fid = self.walk(*names)
        self.ask(m.Tlopen(fid, flags), m.Rlopen)
        return fid

    def create(self, name: str, flags: int = O_RDWR, mode: int = 0o644, start: int = 0) -> int:
        fid = self.walk(start=start)
        self.ask(m.Tlcreate(fid, name.encode(), flags | O_CREAT, mode, 0), m.Rlcreate)
        return fid

    def read(self, fid: int, offset: int = 0, n: int = 1 << 20) -> bytes:
        return self.ask(m.Tread(fid, offset, n), m.Rread).data

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        return self.ask(m.Twrite(fid, offset, data), m.Rwrite).count

    def attributes(self, fid: int) -> m.Rgetattr:
        return self.ask(m.Tgetattr(fid, 0x7FF), m.Rgetattr)

    def list(self, fid: int, count: int = 4000) -> list[tuple[str, int]]:
        found, offset = [], 0
        while data := self.ask(m.Treaddir(fid, offset, count), m.Rreaddir).data:
            at = 0
            while at < len(data):
                kind, _, _ = QID.unpack_from(data, at)
                offset, _, n = struct.unpack_from("<QBH", data, at + QID.size)
                at += QID.size + 11
                found.append((os.fsdecode(data[at : at + n]), kind))
                at += n
        return found


@pytest.fixture
def share(tmp_path: Path) -> Path:
    shared = tmp_path / "shared"
    (shared / "sub/deep").mkdir(parents=True)
    (shared / "file").write_bytes(b"0123456789")
    (shared / "sub/inner").write_text("inner")
    (shared / "link").symlink_to("sub/inner")
    (shared / "out").symlink_to(tmp_path)
    (shared / "abs").symlink_to("/etc")
    (tmp_path / "secret").write_text("secret")
    return shared


@pytest.fixture
def client(share: Path) -> Iterator[Client]:
    client = Client(share)
    yield client
    client.session.close()


def refused(number: int) -> "pytest.RaisesExc[Refused]":
    return pytest.raises(Refused, match=f"^{errno.errorcode[number]}$")


def test_version(share: Path) -> None:
    session = Session(SharedDirectory(share))
    early = decode(session.handle(encode(1, m.Tclunk(0)), ROOM))
    assert early == (1, m.Rlerror(errno.EPROTO))
    for asked, granted in ((8192, 8192), (1 << 30, MAX_MSIZE)):
        answer = decode(session.handle(encode(0xFFFF, m.Tversion(asked, VERSION)), ROOM))
        assert answer == (0xFFFF, m.Rversion(granted, VERSION))
    answer = decode(session.handle(encode(0xFFFF, m.Tversion(8192, b"9P2000.u")), ROOM))
    assert answer == (0xFFFF, m.Rversion(8192, b"unknown"))
    answer = decode(session.handle(encode(0xFFFF, m.Tversion(100, VERSION)), ROOM))
    assert answer == (0xFFFF, m.Rlerror(errno.EINVAL))


def test_reading(client: Client, share: Path) -> None:
    fid = client.open("file")
    assert client.read(fid) == b"0123456789"
    assert client.read(fid, 4, 3) == b"456"
    assert client.read(fid, 100) == b""
    assert len(client.read(client.open("sub", "inner"), 0, 0)) == 0
    with refused(errno.EBADF):
        client.write(fid, b"x")
    with refused(errno.EBADF):
        client.read(client.walk("file"))
    with refused(errno.EISDIR):
        client.read(client.open("sub"))


def test_answers_fit_into_their_room(client: Client, share: Path) -> None:
    (share / "big").write_bytes(bytes(100_000))
    fid = client.open("big")
    assert len(client.ask(m.Tread(fid, 0, 50_000), m.Rread, room=4000).data) == 4000 - 11
    with refused(errno.ENOBUFS):
        client.ask(m.Tgetattr(fid, 0), m.Rgetattr, room=11)
    with refused(errno.EINVAL):
        client.ask(m.Treaddir(client.open(), 0, 4000), m.Rreaddir, room=20)


def test_writing(client: Client, share: Path) -> None:
    fid = client.create("new", mode=0o640)
    assert client.write(fid, b"hello", 0) == 5
    assert client.write(fid, b"!", 10) == 1
    assert client.read(fid) == b"hello\0\0\0\0\0!"
    client.ask(m.Tfsync(fid, 0), m.Rfsync)
    client.ask(m.Tfsync(fid, 1), m.Rfsync)
    assert (share / "new").read_bytes() == b"hello\0\0\0\0\0!"
    assert stat.S_IMODE((share / "new").stat().st_mode) == 0o640
    with refused(errno.EEXIST):
        client.create("new", O_RDWR | O_EXCL)
    client.create("new", O_RDWR | O_TRUNC)
    assert (share / "new").read_bytes() == b""
    appended = client.open("file", flags=O_WRONLY | O_APPEND)
    client.write(appended, b"ab", 0)
    assert (share / "file").read_bytes() == b"0123456789ab"
    with refused(errno.EFBIG):
        client.write(fid, b"x", 1 << 63)


def test_directories(client: Client, share: Path) -> None:
    (share / os.fsdecode(b"caf\xe9")).write_text("")
    for i in range(300):
        (share / f"sub/deep/{i:03}").write_text("")
    names = dict(client.list(client.open()))
    assert names["sub"] == 0x80 and names["link"] == 0x02 and names["file"] == 0
    assert os.fsdecode(b"caf\xe9") in names
    found = [name for name, _ in client.list(client.open("sub", "deep"), 200)]
    assert found == [".", "..", *(f"{i:03}" for i in range(300))]
    fid = client.open("sub", "deep")
    assert len(client.list(fid)) == len(client.list(fid)) == 302
    with refused(errno.ENOTDIR):
        client.list(client.open("file"))
    with refused(errno.EINVAL):
        client.ask(m.Treaddir(fid, 0, 10), m.Rreaddir)
    assert client.ask(m.Treaddir(fid, 1 << 63, 4000), m.Rreaddir).data == b""
    made = client.ask(m.Tmkdir(0, b"made", 0o750, 0), m.Rmkdir)
    assert made.qid.type == 0x80 and stat.S_IMODE((share / "made").stat().st_mode) == 0o750
    with refused(errno.EEXIST):
        client.ask(m.Tmkdir(0, b"made", 0o750, 0), m.Rmkdir)


def test_walks(client: Client) -> None:
    fid = client.walk("sub", "deep")
    assert client.attributes(client.walk("..", "inner", start=fid)).size == 5
    root = client.attributes(0).qid
    assert client.attributes(client.walk("..", "..", "..", start=fid)).qid == root
    answer = client.ask(m.Twalk(0, 900, (b"sub", b"none", b"x")), m.Rwalk)
    assert len(answer.qids) == 1
    with refused(errno.EBADF):
        client.attributes(900)
    with refused(errno.ENOENT):
        client.walk("none")
    with refused(errno.EBADF):
        client.ask(m.Twalk(0, fid, ()), m.Rwalk)
    with refused(errno.EBADF):
        client.ask(m.Twalk(12345, 901, ()), m.Rwalk)
    with refused(errno.EINVAL):
        client.ask(m.Twalk(0, 902, (b"..",) * 17), m.Rwalk)
    client.ask(m.Twalk(fid, fid, (b"..",)), m.Rwalk)
    assert client.attributes(client.walk("inner", start=fid)).size == 5


def test_attributes(client: Client, share: Path) -> None:
    fid = client.walk("file")
    got, status = client.attributes(fid), (share / "file").stat()
    assert (got.size, got.mode, got.nlink) == (10, status.st_mode, 1)
    assert got.mtime_sec * 10**9 + got.mtime_nsec == status.st_mtime_ns
    assert (got.uid, got.gid) == (0, 0) and got.qid.path == status.st_ino

    def change(valid: int, **fields: int) -> None:
        names = ("mode", "uid", "gid", "size", "atime_sec", "atime_nsec", "mtime_sec", "mtime_nsec")
        values = {name: fields.get(name, 0) for name in names}
        client.ask(m.Tsetattr(fid=fid, valid=valid, **values), m.Rsetattr)

    change(1, mode=0o100600)
    change(8, size=4)
    change(16 | 32 | 128 | 256, atime_sec=5, mtime_sec=6, mtime_nsec=7)
    status = (share / "file").stat()
    assert (status.st_size, status.st_atime_ns, status.st_mtime_ns) == (4, 5 * 10**9, 6 * 10**9 + 7)
    assert stat.S_IMODE(status.st_mode) == 0o600
    change(16)
    assert (share / "file").stat().st_atime > 10**9
    assert (share / "file").stat().st_mtime_ns == 6 * 10**9 + 7
    change(1, mode=0o6755)
    assert stat.S_IMODE((share / "file").stat().st_mode) == 0o755  # nobody borrows the host's user
    change(64)
    with refused(errno.EFBIG):
        change(8, size=1 << 63)
    fid = client.walk("sub")
    with refused(errno.EISDIR):
        change(8)
    fid = client.walk("link")
    with refused(errno.EOPNOTSUPP):
        change(1, mode=0o777)
    change(32 | 256, mtime_sec=9)
    assert (share / "link").lstat().st_mtime == 9


def test_owners(share: Path) -> None:
    directory = SharedDirectory(share)
    status = (share / "file").stat()
    directory._uid, directory._gid = status.st_uid + 1, status.st_gid + 1
    assert directory.owner(status) == (NOBODY, NOBODY)
    directory._uid, directory._gid = 1000, 1000
    mine = os.stat_result((*status[:4], 1000, 1000, *status[6:]))
    assert directory.owner(mine) == (0, 0)
    directory.chown(b"file", 5, 5)  # taken and forgotten
    assert (share / "file").stat().st_uid == status.st_uid


@pytest.mark.skipif(os.getuid() != 0, reason="owners are kept as they are for root only")
def test_owners_when_kasou_is_root(client: Client, share: Path) -> None:
    client.ask(m.Tattach(500, m.NO_FID, b"", b"", 1234), m.Rattach)
    fid = client.walk(start=500)
    client.ask(m.Tlcreate(fid, b"theirs", O_RDWR | O_CREAT, 0o644, 55), m.Rlcreate)
    got = client.attributes(fid)
    assert (got.uid, got.gid) == (1234, 55)
    client.ask(m.Tsetattr(fid, 2, 0, 77, 0, 0, 0, 0, 0, 0), m.Rsetattr)
    status = (share / "theirs").stat()
    assert (status.st_uid, status.st_gid) == (77, 55)


def test_links(client: Client, share: Path) -> None:
    fid = client.walk("link")
    assert client.ask(m.Treadlink(fid), m.Rreadlink).target == b"sub/inner"
    assert client.attributes(fid).qid.type == 2
    client.ask(m.Tsymlink(0, b"any", b"/no/../where", 0), m.Rsymlink)
    assert os.readlink(share / "any") == "/no/../where"
    client.ask(m.Tlink(client.walk("sub"), client.walk("file"), b"same"), m.Rlink)
    assert (share / "sub/same").stat().st_ino == (share / "file").stat().st_ino
    with refused(errno.EINVAL):
        client.ask(m.Treadlink(client.walk("file")), m.Rreadlink)


def test_removal(client: Client, share: Path) -> None:
    fid = client.open("file", flags=O_RDWR)
    client.ask(m.Tunlinkat(0, b"file", 0), m.Runlinkat)
    assert client.read(fid) == b"0123456789" and client.attributes(fid).nlink == 0
    with refused(errno.EISDIR):
        client.ask(m.Tunlinkat(0, b"sub", 0), m.Runlinkat)
    with refused(errno.ENOTEMPTY):
        client.ask(m.Tunlinkat(0, b"sub", 0x200), m.Runlinkat)
    with refused(errno.ENOTDIR):
        client.ask(m.Tunlinkat(0, b"link", 0x200), m.Runlinkat)
    client.ask(m.Tunlinkat(client.walk("sub"), b"deep", 0x200), m.Runlinkat)
    fid = client.walk("out")
    client.ask(m.Tremove(fid), m.Rremove)
    assert not (share / "out").is_symlink() and share.parent.exists()
    with refused(errno.EBADF):
        client.attributes(fid)
    fid = client.walk("sub")
    with refused(errno.ENOTEMPTY):
        client.ask(m.Tremove(fid), m.Rremove)
    with refused(errno.EBADF):
        client.ask(m.Tclunk(fid), m.Rclunk)
    with refused(errno.EBUSY):
        client.ask(m.Tremove(client.walk()), m.Rremove)


def test_renames_take_fids_along(client: Client, share: Path) -> None:
    inner, subdirectory, other = (
        client.walk("sub", "inner"),
        client.walk("sub"),
        client.walk("file"),
    )
    client.ask(m.Trenameat(0, b"sub", 0, b"moved"), m.Rrenameat)
    assert client.attributes(inner).size == 5
    client.ask(m.Trename(inner, 0, b"file"), m.Rrename)
    assert (share / "file").read_text() == "inner" and client.attributes(inner).size == 5
    assert client.attributes(other).size == 5
    assert client.attributes(client.walk("deep", start=subdirectory)).qid.type == 0x80
    with refused(errno.EINVAL):
        client.ask(m.Trename(subdirectory, client.walk("moved", "deep"), b"x"), m.Rrename)
    with refused(errno.EBUSY):
        client.ask(m.Trename(client.walk(), 0, b"x"), m.Rrename)


def test_special_files(client: Client, share: Path) -> None:
    client.ask(m.Tmknod(0, b"fifo", stat.S_IFIFO | 0o644, 0, 0, 0), m.Rmknod)
    assert stat.S_ISFIFO((share / "fifo").stat().st_mode)
    with refused(errno.EOPNOTSUPP):
        client.open("fifo")  # would wait for a writer
    for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR, 0o170000):
        with refused(errno.EPERM):
            client.ask(m.Tmknod(0, b"device", kind | 0o644, 1, 3, 0), m.Rmknod)
    client.ask(m.Tmknod(0, b"plain", stat.S_IFREG | 0o600, 0, 0, 0), m.Rmknod)
    assert (share / "plain").is_file()


def test_statfs_locks_flush_and_what_is_not_there(client: Client) -> None:
    found = client.ask(m.Tstatfs(0), m.Rstatfs)
    assert found.type == 0x01021997 and found.blocks >= found.bavail and found.namelen == 255
    fid = client.open("file")
    assert client.ask(m.Tlock(fid, 1, 0, 0, 0, 9, b"me"), m.Rlock).status == 0
    answer = client.ask(m.Tgetlock(fid, 1, 5, 6, 9, b"me"), m.Rgetlock)
    assert (answer.type, answer.start, answer.length) == (2, 5, 6)
    client.ask(m.Tflush(3), m.Rflush)
    for request in (
        m.Txattrwalk(fid, 900, b"user.x"),
        m.Txattrcreate(fid, b"user.x", 5, 0),
        m.Tauth(1, b"", b"", 0),
        m.Rclunk(),
    ):
        with refused(errno.EOPNOTSUPP):
            client.ask(request, m.Message)
    with refused(errno.EACCES):
        client.ask(m.Tattach(901, 5, b"", b"", 0), m.Rattach)


def test_nothing_leads_out(client: Client, share: Path) -> None:
    """Neither `..`, nor names that are paths, nor links, nor links that come in between."""
    request: m.Message
    for name in (b"../secret", b"/etc/passwd", b"sub/inner", b"", b".", b"a\0b"):
        for request in (
            m.Twalk(0, 700, (name,)),
            m.Tmkdir(0, name, 0o755, 0),
            m.Tsymlink(0, name, b"x", 0),
            m.Tunlinkat(0, name, 0),
            m.Trenameat(0, b"file", 0, name),
            m.Trenameat(0, name, 0, b"file"),
            m.Tlink(0, client.walk("file"), name),
            m.Tlcreate(client.walk(), name, O_RDWR | O_CREAT, 0o644, 0),
        ):
            with refused(errno.EINVAL):
                client.ask(request, m.Message)
    with refused(errno.EINVAL):
        client.ask(m.Tunlinkat(0, b"..", 0x200), m.Runlinkat)
    for through in ("out", "abs"):
        with pytest.raises(Refused):
            client.walk(through, "secret" if through == "out" else "passwd")
        fid = client.walk(through)
        for request in (
            m.Tlopen(fid, 0),
            m.Tlcreate(client.walk(through), b"evil", O_RDWR | O_CREAT, 0o644, 0),
            m.Tmkdir(fid, b"evil", 0o755, 0),
            m.Tlink(fid, client.walk("file"), b"evil"),
            m.Trenameat(0, b"file", fid, b"evil"),
            m.Tunlinkat(fid, b"secret", 0),
            m.Tsetattr(fid, 1, 0o777, 0, 0, 0, 0, 0, 0, 0),
            m.Tsetattr(fid, 8, 0, 0, 0, 0, 0, 0, 0, 0),
        ):
            with pytest.raises(Refused):
                client.ask(request, m.Message)
    with refused(errno.ELOOP):
        client.open("out", flags=O_WRONLY)
    # A directory that becomes a link after it was walked to, as a rename on the host might do.
    fid, opened = client.walk("sub"), client.walk("sub", "inner")
    (share / "sub").rename(share / "was")
    (share / "sub").symlink_to(share.parent)
    for request in (
        m.Twalk(fid, 701, (b"secret",)),
        m.Tlopen(fid, 0),
        m.Tlopen(opened, 0),
        m.Tmkdir(fid, b"evil", 0o755, 0),
    ):
        with pytest.raises(Refused):
            client.ask(request, m.Message)
    # The last component becomes a link to a file outside.
    fid = client.walk("file")
    (share / "file").unlink()
    (share / "file").symlink_to(share.parent / "secret")
    with refused(errno.ELOOP):
        client.ask(m.Tlopen(fid, O_RDWR | O_TRUNC), m.Rlopen)
    with refused(errno.ELOOP):
        client.create("file", O_RDWR | O_TRUNC)
    with pytest.raises(Refused):
        client.ask(m.Tsetattr(fid, 8, 0, 0, 0, 0, 0, 0, 0, 0), m.Rsetattr)
    client.ask(m.Tunlinkat(0, b"file", 0), m.Runlinkat)
    assert (share.parent / "secret").read_text() == "secret"
    assert not list(share.parent.rglob("evil"))


def test_read_only(share: Path) -> None:
    client = Client(share, read_only=True)
    before = sorted(share.rglob("*"))
    assert client.read(client.open("file")) == b"0123456789"
    fid = client.walk("file")
    for request in (
        m.Tlopen(fid, O_WRONLY),
        m.Tlopen(fid, O_RDWR),
        m.Tlopen(fid, O_TRUNC),
        m.Tlcreate(client.walk(), b"x", O_RDWR | O_CREAT, 0o644, 0),
        m.Tlcreate(client.walk(), b"file", O_RDWR | O_CREAT, 0o644, 0),
        m.Tmkdir(0, b"x", 0o755, 0),
        m.Tsymlink(0, b"x", b"y", 0),
        m.Tmknod(0, b"x", stat.S_IFIFO, 0, 0, 0),
        m.Tlink(0, fid, b"x"),
        m.Tunlinkat(0, b"file", 0),
        m.Trename(fid, 0, b"x"),
        m.Trenameat(0, b"file", 0, b"x"),
        m.Tremove(client.walk("file")),
        *(m.Tsetattr(fid, valid, 0, 0, 0, 0, 0, 0, 0, 0) for valid in (0, 1, 2, 4, 8, 16, 32, 64)),
    ):
        with refused(errno.EROFS):
            client.ask(request, m.Message)
    with refused(errno.EBADF):
        client.write(client.open("file"), b"x")
    assert sorted(share.rglob("*")) == before
    assert (share / "file").read_bytes() == b"0123456789"


def test_fids_and_open_files_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    session = "kasou.devices.virtio.ninep.session"
    monkeypatch.setattr(f"{session}.MAX_OPEN", 10)
    opened = [client.open("file") for _ in range(10)]
    with refused(errno.ENFILE):
        client.open("file")
    client.ask(m.Tclunk(opened[0]), m.Rclunk)
    client.open("file")
    monkeypatch.setattr(f"{session}.MAX_FIDS", 20)
    with refused(errno.ENFILE):
        for _ in range(30):
            client.walk("file")
    client.ask(m.Tversion(MAX_MSIZE, VERSION), m.Rversion)
    client.ask(m.Tattach(0, m.NO_FID, b"", b"", 0), m.Rattach)
    assert len(client.session._fids) == 1 and client.session._opened == 0
    assert MAX_FIDS >= 1 << 14


def test_long_paths_are_refused(client: Client) -> None:
    fid, made = 0, 0
    with refused(errno.ENAMETOOLONG):
        while made < 100:
            client.ask(m.Tmkdir(fid, b"d" * 200, 0o755, 0), m.Rmkdir)
            fid = client.walk("d" * 200, start=fid)
            made += 1
    assert made == 20
    with refused(errno.ENAMETOOLONG):
        client.create("n" * 256)


def test_at_rest(client: Client, share: Path) -> None:
    written, listed = client.open("file", flags=O_RDWR | O_TRUNC), client.open("sub")
    walked, lost = client.walk("link"), client.open("sub", "inner")
    client.write(written, b"before")
    saved = client.session.save()
    (share / "sub/inner").unlink()
    client.session.close()
    client.session = Session(SharedDirectory(share))
    client.session.restore(saved)
    assert client.read(written) == b"before"  # not truncated again
    client.write(written, b"after", 6)
    assert [name for name, _ in client.list(listed)] == [".", "..", "deep"]
    assert client.ask(m.Treadlink(walked), m.Rreadlink).target == b"sub/inner"
    for request in (m.Tread(lost, 0, 10), m.Tgetattr(lost, 0)):
        with refused(errno.ESTALE):
            client.ask(request, m.Message)
    client.ask(m.Tclunk(lost), m.Rclunk)
    for damaged in (b"", b"{}", b'{"msize": 1, "ready": true, "fids": [[1]]}', b"[]"):
        with pytest.raises(ConfigError):
            client.session.restore(damaged)


def test_no_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none", Path("/etc/passwd")):
        with pytest.raises(ConfigError, match="a directory is needed"):
            SharedDirectory(path)


def test_descriptors_are_not_lost(client: Client) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        for request in (
            m.Tlopen(client.walk("link"), 0),
            m.Tlopen(client.walk("abs"), 0),
            m.Tmkdir(0, b"sub", 0, 0),
            m.Tunlinkat(0, b"none", 0),
        ):
            with pytest.raises(Refused):
                client.ask(request, m.Message)
        client.ask(m.Tclunk(client.open("file")), m.Rclunk)
    assert len(os.listdir("/proc/self/fd")) == before


_FIDS = st.integers(0, 4)
_NAMES = st.sampled_from([b"a", b"b", b"file", b"sub", b"link", b"out", b"..", b"", b"x/y", b"\0"])
_NUMBERS = st.integers(0, 2**32 - 1) | st.integers(0, 600)
_BIG = st.integers(0, 2**64 - 1) | st.integers(0, 100)
_OFFSETS = st.integers(0, 5000) | st.integers(2**63 - 2, 2**64 - 1)
_SIZES = st.integers(0, 10**6) | st.just(2**64 - 1)
_REQUESTS = st.one_of(
    st.builds(m.Twalk, _FIDS, _FIDS, st.lists(_NAMES, max_size=3).map(tuple)),
    st.builds(m.Tlopen, _FIDS, _NUMBERS),
    st.builds(m.Tlcreate, _FIDS, _NAMES, _NUMBERS, _NUMBERS, _NUMBERS),
    st.builds(m.Tread, _FIDS, _BIG, _NUMBERS),
    st.builds(m.Twrite, _FIDS, _OFFSETS, st.binary(max_size=20)),
    st.builds(m.Treaddir, _FIDS, _BIG, _NUMBERS),
    st.builds(m.Tgetattr, _FIDS, _BIG),
    st.builds(m.Tsetattr, _FIDS, _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _SIZES, _BIG, _BIG, _BIG, _BIG),
    st.builds(m.Tsymlink, _FIDS, _NAMES, _NAMES, _NUMBERS),
    st.builds(m.Tmkdir, _FIDS, _NAMES, _NUMBERS, _NUMBERS),
    st.builds(m.Tmknod, _FIDS, _NAMES, _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS),
    st.builds(m.Tlink, _FIDS, _FIDS, _NAMES),
    st.builds(m.Trename, _FIDS, _FIDS, _NAMES),
    st.builds(m.Trenameat, _FIDS, _NAMES, _FIDS, _NAMES),
    st.builds(m.Tunlinkat, _FIDS, _NAMES, st.sampled_from([0, 0x200])),
    st.builds(m.Treadlink, _FIDS),
    st.builds(m.Tremove, _FIDS),
    st.builds(m.Tclunk, _FIDS),
    st.builds(m.Tfsync, _FIDS, _NUMBERS),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(_REQUESTS, max_size=25))
def test_any_requests_are_answered_and_stay_inside(
    tmp_path_factory: pytest.TempPathFactory, requests: list[m.Message]
) -> None:
    top = tmp_path_factory.mktemp("any")
    share = top / "share"
    (share / "sub").mkdir(parents=True)
    (share / "file").write_text("file")
    (share / "out").symlink_to("..")
    (top / "a").write_text("outside")
    client = Client(share)
    for request in requests:
        tag, answer = decode(client.session.handle(encode(1, request), 5000))
        assert tag == 1
        expected = "R" + type(request).__name__[1:]
        assert type(answer).__name__ in (expected, "Rlerror")
    client.session.close()
    assert sorted(os.listdir(top)) == ["a", "share"] and (top / "a").read_text() == "outside"
