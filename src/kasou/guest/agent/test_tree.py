import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.errors import ConfigError, HostError, KasouError, RemoteError
from kasou.guest.agent.tree import Unpacker, pack


def make_tree(top: Path) -> None:
    (top / "sub/deeper").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "a").write_bytes(bytes(range(256)) * 300)
    (top / "sub/run").write_text("#!/bin/sh\n")
    (top / "sub/run").chmod(0o755)
    (top / "sub/secret").write_text("x")
    (top / "sub/secret").chmod(0o600)
    (top / "sub/link").symlink_to("/etc/passwd")
    (top / "sub/dangling").symlink_to("../nowhere")
    os.link(top / "a", top / "sub/same")
    (top / ("n" * 200)).write_text("long")
    (top / "sub/to-long").symlink_to("m" * 300)
    (top / os.fsdecode(b"caf\xe9")).write_text("not UTF-8")
    (top / "sub/deeper").chmod(0o555)
    os.utime(top / "a", (1_000_000_000, 1_000_000_000))


def seen(top: Path) -> dict[str, tuple[int, bytes | str, int]]:
    found: dict[str, tuple[int, bytes | str, int]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = (0, os.readlink(path), 0)
        elif path.is_dir():
            found[name] = (status.st_mode, b"", int(status.st_mtime))
        else:
            found[name] = (status.st_mode, path.read_bytes(), int(status.st_mtime))
    return found


def test_what_is_packed_unpacks_by_tar(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_tree(source)
    target.mkdir()
    stream = b"".join(pack(source, "root"))
    subprocess.run(["tar", "-x", "-p", "-f", "-", "-C", str(target)], input=stream, check=True)
    assert seen(target / "root") == seen(source)
    assert (target / "root/a").stat().st_ino == (target / "root/sub/same").stat().st_ino


@pytest.mark.parametrize("step", [1, 511, 10_000_000])
def test_what_tar_packs_unpacks(tmp_path: Path, step: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_tree(source)
    target.mkdir()
    tar = ["tar", "-c", "--format=gnu", "-f", "-", "-C", str(tmp_path), "./source"]
    stream = subprocess.run(tar, check=True, capture_output=True).stdout
    unpacker = Unpacker(target, "source", "copy")
    for at in range(0, len(stream), step):
        unpacker.feed(stream[at : at + step])
    unpacker.close()
    assert seen(target / "copy") == seen(source)
    assert (target / "copy/a").stat().st_ino == (target / "copy/sub/same").stat().st_ino


def test_contents_and_single_files(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_tree(source)
    target.mkdir()
    unpacker = Unpacker(target, ".", "ignored")
    unpacker.feed(b"".join(pack(source, ".")))
    unpacker.close()
    assert seen(target) == seen(source)
    unpacker = Unpacker(target, "a", "b")
    unpacker.feed(b"".join(pack(source / "a", "a")))
    unpacker.close()
    assert (target / "b").read_bytes() == (source / "a").read_bytes()
    (tmp_path / "pointer").symlink_to(source / "sub/run")
    assert b"#!/bin/sh" in b"".join(pack(tmp_path / "pointer", "x"))


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        list(pack(tmp_path / "none", "x"))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


REG, SYM, LNK, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("r/../../evil", REG, "")],
        [("/evil", REG, "")],
        [("evil", REG, "")],
        [("r", SYM, "OUT"), ("r/evil", REG, "")],
        [("r/l", SYM, "OUT"), ("r/l/evil", REG, "")],
        [("r/l", SYM, "OUT"), ("r/l/evil", DIR, "")],
        [("r/l", SYM, ".."), ("r/l/evil", REG, "")],
        [("r/h", LNK, "r/../../out/secret"), ("r/h", REG, "")],
        [("r/h", LNK, "OUT/secret")],
        [("r/l", SYM, "OUT"), ("r/h", LNK, "r/l/secret")],
        [("r/planted/evil", REG, "")],
        [("r", REG, ""), ("r/evil", REG, "")],
        [("r", LNK, "r")],
        [("r/a", LNK, ".")],
    ],
)
def test_nothing_leads_out(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    inside, out = tmp_path / "inside", tmp_path / "out"
    (inside / "r").mkdir(parents=True)
    out.mkdir()
    (out / "secret").write_text("secret")
    (inside / "r/planted").symlink_to(out)
    unpacker = Unpacker(inside, "r", "r")
    with pytest.raises((RemoteError, HostError)):
        for name, kind, link in members:
            data = b"x" if kind == REG else b""
            unpacker.feed(member(name, kind, link.replace("OUT", str(out)), data))
        unpacker.feed(bytes(1024))
    assert not list(tmp_path.rglob("evil"))
    assert (out / "secret").read_text() == "secret" and (out / "secret").stat().st_nlink == 1


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    inside, out = tmp_path / "inside", tmp_path / "out"
    inside.mkdir()
    out.write_text("mine")
    (inside / "f").symlink_to(out)
    unpacker = Unpacker(inside, "f", "f")
    unpacker.feed(member("f", data=b"theirs") + bytes(1024))
    unpacker.close()
    assert out.read_text() == "mine" and (inside / "f").read_bytes() == b"theirs"


def test_cut_short(tmp_path: Path) -> None:
    unpacker = Unpacker(tmp_path, "f", "f")
    unpacker.feed(member("f", data=b"x" * 600)[:700])
    with pytest.raises(RemoteError, match="middle"):
        unpacker.close()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 2000))
def test_damage_is_a_remote_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("r/" + "n" * 120)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    stream = bytearray(buffer.getvalue())
    stream[at : at + len(noise)] = noise
    unpacker = Unpacker(tmp_path_factory.mktemp("d"), "r", "r")
    try:
        unpacker.feed(bytes(stream))
        unpacker.close()
    except KasouError:
        pass
