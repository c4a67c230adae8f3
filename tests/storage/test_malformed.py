"""Damaged and hostile images: a `ConfigError` or a `HostError`, soon, in little memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import pytest
from storage.images import Shape, empty, patterned
from storage.power_cut import CutFile

from kasou.errors import ConfigError, HostError, KasouError
from kasou.storage.create import create_qcow2
from kasou.storage.disk import open_disk
from kasou.storage.inspect import check, info
from kasou.storage.qcow2.check import Check
from kasou.storage.qcow2.header import parse
from kasou.storage.qcow2.image import Qcow2Disk

SIZE = 256 << 10


def filled(shape: Shape) -> bytes:
    """An image with data in it."""
    content = empty(SIZE, shape)
    file = CutFile(content, random.Random(0), 1 << 60)
    disk = Qcow2Disk(file, parse(content, "image", len(content)))
    disk.write(0, patterned(SIZE // 2, 1))
    disk.close()
    return file.read(0, file.size())


def with_field(at: int, form: str, value: int) -> bytes:
    content = bytearray(filled(Shape(4096)))
    struct.pack_into(form, content, at, value)
    return bytes(content)


@pytest.mark.parametrize(
    ("at", "form", "value", "words"),
    [
        (4, ">I", 1, "version 1"),
        (4, ">I", 4, "version 4"),
        (8, ">Q", 1 << 40, "name is outside"),
        (20, ">I", 8, "2\\^8"),
        (20, ">I", 31, "2\\^31"),
        (24, ">Q", 1 << 62, "too large"),
        (24, ">Q", 1 << 30, "does not cover"),
        (32, ">I", 1, "encrypted"),
        (36, ">I", 1 << 31, "too large"),
        (36, ">I", 1 << 20, "not inside the file"),
        (40, ">Q", 4097, "not inside the file"),
        (40, ">Q", 1 << 60, "not inside the file"),
        (48, ">Q", 0, "not inside the file"),
        (48, ">Q", 1 << 63, "not inside the file"),
        (56, ">I", 0, "out of range"),
        (56, ">I", 1 << 30, "out of range"),
        (60, ">I", 1 << 30, "snapshots"),
        (60, ">I", 5, "snapshot table"),
        (72, ">Q", 1 << 2, "needs what kasou does not have: external data file"),
        (72, ">Q", 1 << 4 | 1 << 40, "extended L2 entries, unknown feature bit 40"),
        (72, ">Q", 1 << 1, "marked corrupt"),
        (72, ">Q", 1 << 3, "compression type"),
        (96, ">I", 7, "refcounts of 2\\^7"),
        (100, ">I", 96, "header length"),
        (100, ">I", 4095, "header length"),
        (104, ">B", 9, "compression type"),
        (112, ">I", 0x12345678, None),
    ],
)
def test_fields(at: int, form: str, value: int, words: str | None, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(with_field(at, form, value))
    if words is None:
        open_disk(path).close()
        return
    with pytest.raises(ConfigError, match=words) as caught:
        open_disk(path, format="qcow2")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_feature_names_are_told(tmp_path: Path) -> None:
    content = bytearray(filled(Shape(4096)))
    struct.pack_into(">Q", content, 72, 1 << 9)
    name = struct.pack("BB46s", 0, 9, b"time travel")
    content[112 : 112 + 8 + 48] = struct.pack(">II", 0x6803F857, 48) + name
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(ConfigError, match="time travel"):
        open_disk(tmp_path / "image")


def test_chains_without_end(tmp_path: Path) -> None:
    create_qcow2(tmp_path / "a", SIZE, backing="b", backing_format="qcow2")
    create_qcow2(tmp_path / "b", SIZE, backing="a", backing_format="qcow2")
    with pytest.raises(ConfigError, match=r"no end|in use"):
        open_disk(tmp_path / "a")
    with pytest.raises(ConfigError, match="no end"):
        open_disk(tmp_path / "a", read_only=True)
    create_qcow2(tmp_path / "0", SIZE)
    for i in range(210):
        create_qcow2(
            tmp_path / f"{i + 1}", SIZE, backing=f"{i}", backing_format="qcow2", durable=False
        )
    with pytest.raises(ConfigError, match="more than 200 files"):
        open_disk(tmp_path / "210")
    with open_disk(tmp_path / "150") as disk:
        assert disk.read(0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nbd://host/x", "not a file"),
        ("json:{}", "not a file"),
        ("gone", "No such file.*backing file of"),
    ],
)
def test_backing_files_elsewhere(name: str, words: str, tmp_path: Path) -> None:
    create_qcow2(tmp_path / "image", SIZE, backing=name, backing_format="raw")
    with pytest.raises(ConfigError, match=words):
        open_disk(tmp_path / "image")


def test_backing_formats_unknown(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(512))
    create_qcow2(tmp_path / "image", SIZE, backing="base", backing_format="vmdk")
    with pytest.raises(ConfigError, match="'vmdk'"):
        open_disk(tmp_path / "image")


@pytest.mark.parametrize(
    "host", ["header", "refcounts", "L1", "L2", "behind the end", "misaligned"]
)
def test_guest_data_never_reaches_metadata(host: str) -> None:
    content = bytearray(filled(Shape(4096)))
    header = parse(bytes(content), "image", len(content))
    (l1,) = struct.unpack_from(">Q", content, header.l1_table_offset)
    l2 = l1 & ~(1 << 63)
    at = {
        "header": 0, "refcounts": header.refcount_table_offset, "L1": header.l1_table_offset,
        "L2": l2, "behind the end": 1 << 40, "misaligned": l2 + 512,
    }[host]  # fmt: skip
    for flags in (0, 1 << 63):
        struct.pack_into(">Q", content, l2, at | flags)
        file = CutFile(bytes(content), random.Random(0), 1 << 60)
        disk = Qcow2Disk(file, header)
        if at:
            with pytest.raises(HostError, match="damaged"):
                disk.write(0, b"x" * 512)
            with pytest.raises(HostError, match="damaged"):
                disk.write(0, b"x" * 8192)
                disk.flush()
            with pytest.raises(HostError, match="damaged"):
                disk.discard(0, 4096)
                disk.flush()
        for table in (0, header.refcount_table_offset, header.l1_table_offset):
            assert file.read(table, 4096) == bytes(content[table : table + 4096])
        assert Check(file, header).run().corruptions or not at


@pytest.mark.parametrize("shape", [Shape(512), Shape(4096, 1), Shape(4096, version=2)], ids=str)
def test_random_damage(shape: Shape, tmp_path: Path) -> None:
    """Bytes of the metadata change at random; whatever happens has a name."""
    whole = filled(shape)
    header = parse(whole, "image", len(whole))
    rng = random.Random(str(shape))
    tables = [0, header.refcount_table_offset, header.l1_table_offset]
    tables += [struct.unpack_from(">Q", whole, at)[0] & (1 << 56) - 1 for at in tables[1:]]
    path = tmp_path / "image"
    for _ in range(250):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.choice(tables) + rng.choice((rng.randrange(128), rng.randrange(512)))
            content[at] = rng.choice(
                (0, 1, 255, rng.randrange(256), content[at] ^ 1 << rng.randrange(8))
            )
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        for use in (use_it, check, info, lambda path: check(path, repair=True), use_it):
            try:
                use(path)
            except KasouError as error:
                assert str(path.name) in str(error)
        assert path.stat().st_size < 64 << 20


def use_it(path: Path) -> None:
    with open_disk(path, format="qcow2") as disk:
        if disk.size_bytes < SIZE:
            return
        disk.read(0, SIZE)
        disk.write(512, b"x" * 70000)
        disk.write(SIZE - 8192, b"y" * 512)
        disk.write_zeroes(4096, 20000, True)
        disk.discard(0, SIZE)
        disk.flush()


def test_a_huge_sparse_image_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(with_field(56, ">I", 2048))  # an 8 MiB refcount table
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with open_disk(path, format="qcow2") as disk:
            disk.read(0, SIZE)
        with pytest.raises(KasouError):
            check(path)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()
