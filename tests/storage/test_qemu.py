"""The same image in QEMU's hands and ours: contents compare, both find it whole."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from storage.history import SECTOR, History
from storage.images import SHAPES, Shape, needs_qemu_img, patterned, qemu_check, qemu_img
from storage.workload import operations, perform

from kasou.errors import ConfigError, HostError
from kasou.storage.convert import convert, flatten
from kasou.storage.create import create_qcow2
from kasou.storage.disk import open_disk
from kasou.storage.inspect import check, info

pytestmark = needs_qemu_img
SIZE = 3 << 20


def content(path: Path, **how: object) -> bytes:
    with open_disk(path, read_only=True, **how) as disk:  # type: ignore[arg-type]
        return disk.read(0, disk.size_bytes)


def qemu_io(path: Path, commands: list[str], cache: str = "unsafe") -> None:
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-t", cache, "-d", "unmap", str(path)],
        input="\n".join(commands) + "\n", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert not done.returncode and "rror" not in done.stdout, done.stdout[-500:] + done.stderr


def random_commands(seed: int, n: int, history: History) -> list[str]:
    """Work for qemu-io; `history` follows."""
    rng = random.Random(seed)
    commands = []
    for _ in range(n):
        sectors = rng.choice((1, 8, 128, rng.randint(1, 400)))
        offset = rng.randrange(SIZE // SECTOR - sectors) * SECTOR
        length = sectors * SECTOR
        kind = rng.random()
        if kind < 0.6:
            byte = rng.randrange(1, 256)
            commands.append(f"write -P {byte} {offset} {length}")
            history.write(offset, bytes((byte,)) * length)
        elif kind < 0.8:
            commands.append(f"write -z {'-u ' if kind < 0.7 else ''}{offset} {length}")
            history.zero(offset, length)
        else:
            commands.append(f"discard {offset} {length}")
            history.discard(offset, length)
    return commands


def begin(directory: Path, shape: Shape, seed: int, backed: bool) -> tuple[Path, History]:
    """An image that qemu-img made, over a qcow2 over a raw disk, or alone."""
    image = directory / "image.qcow2"
    if not backed:
        qemu_img("create", "-q", "-f", "qcow2", "-o", shape.options, image, SIZE)
        return image, History(bytes(SIZE))
    (directory / "base.raw").write_bytes(base := patterned(SIZE * 2 // 3, seed))
    middle = directory / "middle.qcow2"
    options = f"{shape.options},backing_file=base.raw,backing_fmt=raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, middle, SIZE - 65536)
    options = f"{shape.options},backing_file=middle.qcow2,backing_fmt=qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, SIZE)
    return image, History(base.ljust(SIZE, b"\0"))


@pytest.mark.parametrize("backed", [False, True], ids=["alone", "backed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_turns(shape: Shape, backed: bool, tmp_path: Path) -> None:
    seed = hash((str(shape), backed)) & 0xFFFF
    image, history = begin(tmp_path, shape, seed, backed)
    for turn in range(3):
        qemu_io(image, random_commands(seed + turn, 40, history))
        history.flushed()
        history.check_dead(content(image))
        with open_disk(image) as disk:
            for _, op in zip(range(60), operations(seed + turn, SIZE), strict=False):
                history.apply(op)
                perform(disk, op)
                if op == ("flush",):
                    history.flushed()
        assert check(image).is_clean, check(image).messages
        qemu_check(image)
        history.check_alive(found := content(image))
        raw = tmp_path / "wanted.raw"
        raw.write_bytes(found)
        qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw, image)
        history.check_dead(found)


@pytest.mark.parametrize(
    "shape", [Shape(512), Shape(4096, version=2), Shape(), Shape(2 << 20)], ids=str
)
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_compressed(shape: Shape, kind: str, tmp_path: Path) -> None:
    if kind == "zstd" and shape.version == 2:
        pytest.skip("version 2 knows zlib only")
    raw, image = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(wanted := patterned(SIZE, 7))
    options = shape.options + (",compression_type=zstd" if kind == "zstd" else "")
    qemu_img("convert", "-c", "-O", "qcow2", "-o", options, raw, image)
    assert info(image).compression == kind
    assert content(image) == wanted
    history = History(wanted)
    with open_disk(image) as disk:
        view = bytearray(SIZE)
        disk.readv(0, [memoryview(view)[:1000], memoryview(view)[1000:]])
        assert view == wanted
        for _, op in zip(range(80), operations(3, SIZE), strict=False):
            history.apply(op)
            perform(disk, op)
    history.check_alive(content(image))
    assert check(image).is_clean
    qemu_check(image)


@pytest.mark.parametrize("shape", [Shape(512), Shape(4096), Shape()], ids=str)
def test_internal_snapshots(shape: Shape, tmp_path: Path) -> None:
    image, history = begin(tmp_path, shape, 5, backed=True)
    kept: dict[str, bytes] = {}
    for turn, name in enumerate(("one", "two", "three")):
        with open_disk(image) as disk:
            for _, op in zip(range(30), operations(turn, SIZE), strict=False):
                history.apply(op)
                perform(disk, op)
        history.check_alive(found := content(image))
        history.check_dead(found)
        kept[name] = found
        qemu_img("snapshot", "-c", name, image)
    with open_disk(image) as disk:
        disk.write(0, wanted := patterned(SIZE, 8))
    assert content(image) == wanted
    assert [snapshot.name for snapshot in info(image).snapshots] == list(kept)
    for name, found in kept.items():
        assert content(image, snapshot=name) == found
    assert check(image).is_clean, check(image).messages
    qemu_check(image)
    qemu_img("snapshot", "-d", "two", image)
    qemu_img("snapshot", "-a", "one", image)
    qemu_check(image)
    assert content(image) == kept["one"]
    with pytest.raises(ConfigError, match="has no snapshot 'two'; it has: one, three"):
        content(image, snapshot="two")
    with open_disk(image, snapshot="three") as disk, pytest.raises(HostError, match="read-only"):
        disk.write(0, bytes(512))
    with open_disk(image, snapshot="three") as disk:
        flat = tmp_path / "flat"
        convert(image, flat, snapshot="three", cluster_size=4096)
    assert content(flat) == kept["three"]


def test_dirty_after_a_crash_of_qemu(tmp_path: Path) -> None:
    image, history = begin(tmp_path, Shape(4096, lazy=True), 6, backed=True)
    commands = [*random_commands(1, 60, history), "flush", "abort"]
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-t", "writeback", "-d", "unmap", str(image)],
        input="\n".join(commands) + "\n", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGABRT
    history.flushed()
    assert info(image).is_dirty
    history.check_alive(content(image))
    with open_disk(image) as disk:
        disk.write(0, b"x" * 512)
    assert not info(image).is_dirty
    assert check(image).is_clean
    qemu_check(image)


def test_qemu_keeps_off(tmp_path: Path) -> None:
    image = tmp_path / "image"
    create_qcow2(image, SIZE)
    read = ["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", str(image)]
    with open_disk(image):
        done = subprocess.run(read, capture_output=True, text=True, check=False)
        assert done.returncode and "lock" in done.stderr
    with open_disk(image, read_only=True):
        assert not subprocess.run(read, capture_output=True, check=False).returncode
        write = ["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(image)]
        done = subprocess.run(write, capture_output=True, text=True, check=False)
        assert done.returncode and "lock" in done.stderr


def test_we_keep_off(tmp_path: Path) -> None:
    image = tmp_path / "image"
    create_qcow2(image, SIZE)
    qemu = subprocess.Popen(["qemu-io", "-f", "qcow2", "-c", "sleep 60000", str(image)])
    try:
        end = time.monotonic() + 10
        with pytest.raises(ConfigError, match="in use by another program"):
            while time.monotonic() < end:
                open_disk(image).close()
                time.sleep(0.01)
    finally:
        qemu.kill()
        qemu.wait()


def test_bitmaps_are_given_up(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, SIZE)
    qemu_img("bitmap", "--add", image, "changes")
    qemu_io(image, ["write 0 1M"])
    assert check(image).is_clean
    assert b"changes" in qemu_img("info", image).encode()
    with open_disk(image, read_only=True) as disk:
        disk.read(0, 512)
    assert b"changes" in qemu_img("info", image).encode()
    with open_disk(image) as disk:
        disk.write(0, b"x" * 512)
    assert not check(image).corruptions
    assert check(image, repair=True).is_clean
    qemu_check(image)


def test_growing_the_refcount_table(tmp_path: Path) -> None:
    image = tmp_path / "image"
    create_qcow2(image, 64 << 20, cluster_size=512, refcount_bits=64)
    wanted = random.Random(1).randbytes(9 << 20)
    before = time.monotonic()
    with open_disk(image, cache="unsafe") as disk:
        for offset in range(0, len(wanted), 1 << 20):
            disk.write(offset, wanted[offset : offset + (1 << 20)])
    assert time.monotonic() - before < 30
    assert content(image)[: len(wanted)] == wanted
    assert check(image).is_clean, check(image).messages
    qemu_check(image)


def test_live_overlays(tmp_path: Path) -> None:
    """Pushes while working; every frozen file keeps what it had; QEMU reads the chain."""
    create_qcow2(tmp_path / "0", SIZE, cluster_size=4096)
    history = History(bytes(SIZE))
    frozen: dict[Path, bytes] = {}
    work = operations(9, SIZE)
    with open_disk(tmp_path / "0") as disk:
        for level in range(1, 6):
            for _, op in zip(range(25), work, strict=False):
                history.apply(op)
                perform(disk, op)
            history.check_alive(found := disk.read(0, SIZE))
            frozen[disk.push(tmp_path / str(level))] = found
            history.flushed()
        assert disk.chain == [tmp_path / str(level) for level in range(5, -1, -1)]
        with pytest.raises(ConfigError, match="in use"):
            open_disk(tmp_path / "3")
        create_qcow2(tmp_path / "child", SIZE, backing="2", backing_format="qcow2")
        with open_disk(tmp_path / "child", cache="unsafe") as child:
            assert child.read(0, SIZE) == frozen[tmp_path / "2"]
            child.write(0, bytes(SIZE))
        history.check_alive(found := disk.read(0, SIZE))
    for path, kept in frozen.items():
        assert content(path) == kept
        qemu_check(path)
    flatten(tmp_path / "5", tmp_path / "flat")
    qemu_img("compare", "-q", tmp_path / "5", tmp_path / "flat")
    convert(tmp_path / "5", tmp_path / "raw", format="raw")
    assert (tmp_path / "raw").read_bytes() == found
