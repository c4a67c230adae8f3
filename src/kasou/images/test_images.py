"""The whole way from a mirror to a guest, on a small archive of our own under a file: address."""

import gzip
import hashlib
import io
import lzma
import stat
import tarfile
from pathlib import Path

import pytest

from kasou import images
from kasou.errors import ConfigError, HostError
from kasou.guest.initramfs import Entry, Initramfs, read_cpio
from kasou.guest.test_elf import make_elf
from kasou.guest.test_kernel_image import make_image
from kasou.images import archive, debian, store
from kasou.images.progress import Silent

RELEASE = "6.12.1+deb13-riscv64"
MODULES = f"usr/lib/modules/{RELEASE}/kernel"


class Listener(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def make_module(name: str, depends: str = "", alias: str = "") -> bytes:
    modinfo = f"name={name}\0depends={depends}\0" + (f"alias={alias}\0" if alias else "")
    return make_elf(kind=1, sections={".modinfo": modinfo.encode()})


def make_deb(files: dict[str, bytes]) -> bytes:
    def tar_xz(content: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
            for name, data in content.items():
                info = tarfile.TarInfo("./" + name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    members = {"debian-binary": b"2.0\n", "control.tar.xz": tar_xz({"control": b"Package: x\n"})}
    members["data.tar.xz"] = tar_xz(files)
    deb = b"!<arch>\n"
    for name, data in members.items():
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
        deb += b"\n" * (len(data) % 2)
    return deb


def make_installer() -> bytes:
    initrd = Initramfs()
    initrd.file(f"{MODULES}/virtio_mmio.ko.xz", lzma.compress(make_module("virtio_mmio")))
    initrd.file(f"{MODULES}/virtio-rng.ko.xz", lzma.compress(make_module("virtio_rng")))
    initrd.file(f"{MODULES}/mbcache.ko", make_module("mbcache"))
    initrd.file("usr/bin/busybox", make_elf(b"[\0[[\0ash\0init\0sh\0\0"), 0o755)
    initrd.file("usr/lib/riscv64-linux-gnu/ld.so", make_elf(), 0o755)
    initrd.symlink(debian.INTERPRETER, "riscv64-linux-gnu/ld.so")
    where = "usr/lib/debian-installer/images/13/riscv64/text/debian-installer/riscv64"
    return make_deb(
        {f"{where}/linux": make_image(), f"{where}/initrd.gz": gzip.compress(initrd.to_cpio())}
    )


def make_mirror(root: Path) -> Path:
    """An archive with all that the recipe names, signed by nobody."""
    stanzas: dict[str, str] = {}

    def add(index: str, name: str, deb: bytes) -> None:
        path = root / "pool" / f"{name}.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(deb)
        stanzas[index] = stanzas.get(index, "") + (
            f"Package: {name}\nVersion: 1.0\nFilename: pool/{name}.deb\nSize: {len(deb)}\n"
            f"Description: a thing\n more\nSHA256: {hashlib.sha256(deb).hexdigest()}\n\n"
        )

    add("main/binary-riscv64", "debian-installer-13-netboot-riscv64", make_installer())
    stanzas["main/binary-amd64"] = stanzas["main/binary-riscv64"]
    static = make_deb({"usr/bin/busybox": b"\0[\0[[\0ash\0poweroff\0sh\0vi\0\0"})
    add("main/binary-riscv64", "busybox-static", static)
    disk = make_deb({f"{MODULES}/virtio_blk.ko": make_module("virtio_blk")})
    add(debian.INSTALLER_RISCV64, f"scsi-modules-{RELEASE}-di", disk)
    ext4 = make_deb({f"{MODULES}/ext4.ko": make_module("ext4", "mbcache", "fs-ext4")})
    add(debian.INSTALLER_RISCV64, f"ext4-modules-{RELEASE}-di", ext4)
    dist = root / "dists" / "trixie"
    lines = ""
    for index, text in stanzas.items():
        packages = lzma.compress(text.encode())
        (dist / index).mkdir(parents=True)
        (dist / index / "Packages.xz").write_bytes(packages)
        digest = hashlib.sha256(packages).hexdigest()
        lines += f" {digest} {len(packages)} {index}/Packages.xz\n"
    (dist / "InRelease").write_text(
        f"{archive.BEGIN}\nHash: SHA256\n\nOrigin: Debian\nCodename: trixie\nVersion: 13.9\n"
        f"SHA256:\n{lines}{archive.SIGNATURE}\n\nnone\n-----END PGP SIGNATURE-----\n"
    )
    return root


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KASOU_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(archive, "verify", lambda *_: True)
    monkeypatch.setattr("kasou.images.fetch.time.sleep", lambda _: None)
    return f"file://{make_mirror(tmp_path / 'mirror')}"


def packages_xz(mirror: str, index: str = "main/binary-riscv64") -> Path:
    return Path(mirror.removeprefix("file://")) / "dists" / "trixie" / index / "Packages.xz"


def root_of(guest: images.DefaultGuest) -> dict[str, Entry]:
    return {entry.path: entry for entry in read_cpio(guest.initrd.read_bytes())}


def test_pull_makes_a_guest(mirror: str) -> None:
    report = Listener()
    guest = images.pull("debian:minimal", mirror, report)
    assert guest.kernel.read_bytes() == make_image()
    assert guest.append == "console=ttyS0"
    root = root_of(guest)
    assert root["usr/bin/vi"].data == b"busybox"
    assert stat.S_ISREG(root["usr/sbin/poweroff"].mode)
    assert "usr/bin/poweroff" not in root
    where = f"usr/lib/modules/{RELEASE}"
    assert root[f"{where}/modules.dep"].data.split(b"\n")[:-1] == [
        b"virtio_mmio.ko:",
        b"virtio_rng.ko:",
        b"virtio_blk.ko:",
        b"mbcache.ko:",
        b"ext4.ko: mbcache.ko",
    ]
    assert root[f"{where}/modules.alias"].data == b"alias fs-ext4 ext4\n"
    assert b"for module in virtio_mmio virtio_rng virtio_blk; do" in root["init"].data
    assert report.warnings == []
    (image,) = images.installed()
    assert (image.kernel_version, image.debian_version, image.missing) == (RELEASE, "13.9", "")
    assert len(image.packages) == 4
    assert image.size == guest.kernel.stat().st_size + guest.initrd.stat().st_size


def test_a_made_guest_needs_no_network(mirror: str) -> None:
    guest = images.pull("minimal", mirror, Silent())
    assert images.ensure("debian:minimal", "http://127.0.0.1:9/debian") == guest
    before = guest.initrd.stat().st_mtime_ns
    assert images.pull("debian:minimal", mirror, Silent()) == guest
    assert guest.initrd.stat().st_mtime_ns == before, "what is up to date is not made again"


def test_a_damaged_guest_is_made_again(mirror: str) -> None:
    guest = images.pull("debian:minimal", mirror, Silent())
    guest.kernel.write_bytes(b"half")
    assert images.installed() == []
    assert images.ensure("debian:minimal", mirror).kernel.read_bytes() == make_image()


def test_a_mirror_being_updated_gives_less_but_nothing_unverified(mirror: str) -> None:
    index = packages_xz(mirror)
    good = index.read_bytes()
    index.write_bytes(good + b"other")
    report = Listener()
    guest = images.pull("debian:minimal", mirror, report)
    assert any("not the index that the signed Release names" in text for text in report.warnings)
    assert any("kasou pull debian:minimal" in text for text in report.warnings)
    root = root_of(guest)
    assert "usr/lib/riscv64-linux-gnu/ld.so" in root
    assert root["usr/sbin/init"].data == b"../bin/busybox"
    assert images.installed()[0].missing == debian.REDUCED
    index.write_bytes(good)
    assert images.pull("debian:minimal", mirror, report) != guest
    assert images.installed()[0].missing == ""
    assert not guest.kernel.exists(), "the old guest is gone"
    index.write_bytes(b"")
    images.pull("debian:minimal", mirror, report)
    assert images.installed()[0].missing == "", "a complete guest is not given up for less"


def test_no_index_that_fits(mirror: str) -> None:
    packages_xz(mirror).write_bytes(b"")
    packages_xz(mirror, "main/binary-amd64").write_bytes(b"")
    with pytest.raises(HostError, match="not the index"):
        images.pull("debian:minimal", mirror, Silent())


def test_disk_drivers_from_the_whole_kernel(mirror: str) -> None:
    root = Path(mirror.removeprefix("file://"))
    name = f"linux-image-{RELEASE}"
    deb = make_deb(
        {
            f"{MODULES}/drivers/block/virtio_blk.ko": make_module("virtio_blk"),
            f"{MODULES}/fs/ext4/ext4.ko": make_module("ext4", "mbcache", "fs-ext4"),
        }
    )
    (root / "pool" / f"{name}.deb").write_bytes(deb)
    stanza = (
        f"\nPackage: {name}\nVersion: 1.0\nFilename: pool/{name}.deb\nSize: {len(deb)}\n"
        f"SHA256: {hashlib.sha256(deb).hexdigest()}\n\n"
    )
    index = packages_xz(mirror)
    old = index.read_bytes()
    new = lzma.compress(lzma.decompress(old) + stanza.encode())
    index.write_bytes(new)
    release = root / "dists" / "trixie" / "InRelease"
    was = f"{hashlib.sha256(old).hexdigest()} {len(old)} main/binary-riscv64"
    now = f"{hashlib.sha256(new).hexdigest()} {len(new)} main/binary-riscv64"
    assert was in release.read_text()
    release.write_text(release.read_text().replace(was, now))
    packages_xz(mirror, debian.INSTALLER_RISCV64).unlink()
    files = root_of(images.pull("minimal", mirror, Silent()))
    assert f"usr/lib/modules/{RELEASE}/virtio_blk.ko" in files
    (image,) = images.installed()
    assert image.missing == ""


def test_without_disk_drivers(mirror: str) -> None:
    packages_xz(mirror, debian.INSTALLER_RISCV64).unlink()
    report = Listener()
    root = root_of(images.pull("debian:minimal", mirror, report))
    assert "usr/bin/vi" in root
    assert b"/dev/vda" not in root["etc/motd"].data
    assert images.installed()[0].missing == debian.NO_DISK
    assert any("without the disk drivers" in text for text in report.warnings)


@pytest.mark.parametrize("damage", [b"", b"!<arch>\nbroken", None])
def test_a_package_that_was_changed_is_refused(mirror: str, damage: bytes | None) -> None:
    deb = Path(mirror.removeprefix("file://")) / "pool" / "busybox-static.deb"
    if damage is None:
        deb.unlink()
    else:
        deb.write_bytes(damage)
    with pytest.raises(HostError, match="busybox-static"):
        images.pull("debian:minimal", mirror, Silent())
    assert images.installed() == []


def test_no_mirror_names_the_ways_out(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match=r"--mirror.*KASOU_MIRROR.*apt.*kasou run tiny"):
        images.pull("debian:minimal", mirror + "/nothing", Silent())
    monkeypatch.setattr("kasou.images.mirror.candidates", lambda _: [])
    with pytest.raises(HostError, match=r"--mirror.*KASOU_MIRROR.*apt.*kasou run tiny"):
        images.pull("debian:minimal", None, Silent())


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="no image is called plan9; there are debian"):
        images.ensure("plan9")


def test_an_unwritable_cache(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("KASOU_HOME", str(tmp_path / "file"))
    with pytest.raises(HostError, match=r"cannot be written .*KASOU_HOME"):
        images.ensure("debian:minimal", mirror)
    assert store.installed() == []


def test_an_archive_of_another_origin(mirror: str) -> None:
    release = packages_xz(mirror).parents[2] / "InRelease"
    release.write_text(release.read_text().replace("Origin: Debian", "Origin: Other"))
    with pytest.raises(HostError, match="of Other, not Debian"):
        images.pull("debian:minimal", mirror, Silent())
