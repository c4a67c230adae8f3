"""Linux's own 9p driver on a directory of the host, and its vsock driver."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path

import pytest
from guests.conftest import Session

from kasou.devices.virtio.vsock_stream import VsockStream
from kasou.machine.config import Peripherals, Share

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MOUNT = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000"


def need(session: Session, *modules: str) -> None:
    """Load drivers, or skip."""
    for module in modules:
        answer = session.type(f"[ -d /sys/module/{module} ] || modprobe {module} && echo load''ed")
        if b"loaded" not in answer:
            session.finish("poweroff")
            pytest.skip(f"not run: this mirror's image has no driver {module}")


@pytest.fixture
def share(tmp_path: Path) -> Path:
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    (shared / "hello").write_text("hello from the host\n")
    (shared / "big").write_bytes(random.Random(1).randbytes(3_000_001))
    (shared / "out").symlink_to(tmp_path)
    (tmp_path / "secret").write_text("secret")
    for i in range(300):
        (shared / f"sub/{i}").write_text(f"{i}\n")
    return shared


def mounted(boot, share: Path, read_only: bool = False) -> Session:
    peripherals = Peripherals(shares=[Share(share, "src", read_only)])
    session: Session = boot(peripherals=peripherals)
    need(session, "9p", "9pnet_virtio")
    session.type(f"mkdir -p /tmp/m; {MOUNT} src /tmp/m")
    return session


def test_a_directory_of_the_host(boot, share: Path) -> None:
    session = mounted(boot, share)
    assert b"hello from the host" in session.type("cat /tmp/m/hello")
    (digest, *_) = session.type("md5sum /tmp/m/big").split()
    assert digest.decode() == hashlib.md5((share / "big").read_bytes()).hexdigest()
    assert session.type("ls /tmp/m/sub | wc -l").split() == [b"300"]
    assert session.type("cat /tmp/m/sub/* | wc -l").split() == [b"300"]
    session.type("cp /tmp/m/big /tmp/m/sub/copy; chmod 751 /tmp/m/sub/copy; sync")
    assert (share / "sub/copy").read_bytes() == (share / "big").read_bytes()
    assert (share / "sub/copy").stat().st_mode & 0o777 == 0o751
    session.type("cd /tmp/m; mkdir -p a/b; echo one > a/b/f; echo two >> a/b/f; mv a/b/f a/g; cd")
    assert (share / "a/g").read_text() == "one\ntwo\n"
    session.type("cd /tmp/m; ln -s ../hello a/l; ln a/g a/h; truncate -s 5 a/g; cd")
    assert os.readlink(share / "a/l") == "../hello"
    assert (share / "a/h").read_bytes() == b"one\nt"
    assert b"hello from the host" in session.type("cat /tmp/m/a/l")
    session.type("exec 3>/tmp/m/gone 4</tmp/m/gone; rm /tmp/m/gone; echo still >&3")
    assert not (share / "gone").exists()
    assert b"still" in session.type("cat <&4; exec 3>&- 4<&-")
    session.type("rm -r /tmp/m/a /tmp/m/sub; umount /tmp/m")
    assert sorted(os.listdir(share)) == ["big", "hello", "out"]
    (nine_p,) = session.machine.plugged.shares
    assert not nine_p.session._opened  # type: ignore[attr-defined]
    assert session.finish("poweroff").kind == "poweroff"


def test_links_are_the_guests_to_follow(boot, share: Path) -> None:
    session = mounted(boot, share)
    session.type("mkdir -p /tmp/hosts; ln -s /etc/hostname /tmp/m/name; ln -s / /tmp/m/root")
    assert b"kasou" in session.type("cat /tmp/m/name")
    assert b"secret" not in session.type("ls /tmp/m/.. /tmp/m/../.. /tmp/m/root")
    assert b"No such file" in session.type("cat /tmp/m/out/secret")
    session.finish("poweroff")
    assert (share.parent / "secret").read_text() == "secret"


def test_read_only(boot, share: Path) -> None:
    session = mounted(boot, share, read_only=True)
    for command in ("touch /tmp/m/x", "rm /tmp/m/hello", "echo x > /tmp/m/hello", "mkdir /tmp/m/d"):
        assert b"Read-only file system" in session.type(command)
    assert b"hello from the host" in session.type("cat /tmp/m/hello")
    session.finish("poweroff")
    assert (share / "hello").read_text() == "hello from the host\n"


def test_a_port_where_nobody_listens(boot) -> None:
    session: Session = boot(peripherals=Peripherals(vsock_cid=7))
    need(session, "vmw_vsock_virtio_transport")
    vsock = session.machine.plugged.vsock
    closed = threading.Event()
    reasons: list[str] = []

    def close(reason: str) -> None:
        reasons.append(reason)
        closed.set()

    with session.machine.lock:
        stream: VsockStream = vsock.connect_to(9)
        stream.on_closed = close
    assert closed.wait(10) and reasons == ["refused by the guest"]
    session.finish("poweroff")
