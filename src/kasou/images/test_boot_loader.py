"""The boot loader: from the host, from the cache, from a mirror of our own."""

from pathlib import Path

import pytest

from kasou.errors import HostError
from kasou.images import archive, boot_loader
from kasou.images.progress import Silent
from kasou.images.test_images import make_deb, make_mirror


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KASOU_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(archive, "verify", lambda *_: True)
    monkeypatch.setattr("kasou.images.fetch.time.sleep", lambda _: None)
    monkeypatch.setattr(boot_loader, "PACKAGE", "busybox-static")
    return f"file://{make_mirror(tmp_path / 'mirror')}"


def test_the_hosts_own(tmp_path: Path) -> None:
    path = tmp_path / boot_loader.INSIDE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"elf")
    assert boot_loader.boot_loader(None, Silent(), tmp_path) == path


def test_from_the_mirror_once(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_loader, "INSIDE", "usr/bin/busybox")
    path = boot_loader.boot_loader(mirror, Silent(), tmp_path)
    assert path.read_bytes().startswith(b"\0[\0[[\0")
    assert boot_loader.boot_loader("http://127.0.0.1:9/none", Silent(), tmp_path) == path


def test_a_package_without_it(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"busybox-static 1\.0: has no usr/lib/u-boot"):
        boot_loader.boot_loader(mirror, Silent(), tmp_path)
    deb = Path(mirror.removeprefix("file://")) / "pool" / "busybox-static.deb"
    deb.write_bytes(make_deb({"x": b""}))
    with pytest.raises(HostError):
        boot_loader.boot_loader(mirror, Silent(), tmp_path)


def test_no_mirror(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="--mirror"):
        boot_loader.boot_loader(f"{mirror}/nothing", Silent(), tmp_path)
