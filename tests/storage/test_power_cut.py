"""The power goes at every write boundary: flushed data is there, tables agree, at worst leaks."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from storage.history import History
from storage.images import (
    ENDLESS,
    SHAPES,
    Shape,
    empty,
    needs_qemu_img,
    patterned,
    qemu_img,
)
from storage.power_cut import CutFile, PowerCut
from storage.workload import operations, perform

from kasou.storage.qcow2.check import Check
from kasou.storage.qcow2.header import INCOMPATIBLE_AT, Incompatible, parse
from kasou.storage.qcow2.image import Qcow2Disk
from kasou.storage.qcow2.mend import mend_refcounts

SIZE = 384 << 10
SEEDS = int(os.environ.get("KASOU_SOAK_CUTS", "2"))


@dataclass
class Backing:
    """A disk in memory that nobody writes."""

    content: bytes
    read_only = True

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read(self, offset: int, n: int) -> bytes:
        return self.content[offset : offset + n]


def open_image(file: CutFile, backing: Backing | None) -> Qcow2Disk:
    content = file.read(0, file.size())
    header = parse(content, "cut", len(content))
    if header.incompatible & Incompatible.DIRTY:
        header = mend_refcounts(file, header)
    return Qcow2Disk(file, header, backing=backing)


def live_and_die(content: bytes, backing: Backing | None, seed: int, lives: int = 10) -> None:
    """Work, lose power, judge; and go on with what is left, several times."""
    rng = random.Random(seed)
    disk = open_image(CutFile(content, rng, ENDLESS), backing)
    history = History(disk.read(0, SIZE))
    for life in range(lives):
        if rng.random() < 0.6:
            file = CutFile(content, rng, rng.randint(1, 12), at_sync=True)
        else:
            file = CutFile(content, rng, rng.choice((rng.randint(1, 12), rng.randint(1, 100))))
        try:
            disk = open_image(file, backing)
            for op in operations(seed * 100 + life, SIZE):
                history.apply(op)
                perform(disk, op)
                if op == ("flush",):
                    history.flushed()
                    if rng.random() < 0.1:
                        history.check_alive(disk.read(0, SIZE))
        except PowerCut:
            content = file.after_the_cut()
        header = parse(content, "cut", len(content))
        report = Check(CutFile(content, rng, ENDLESS), header).run()
        assert not report.corruptions, report.messages
        disk = open_image(CutFile(content, rng, ENDLESS), backing)
        history.check_dead(disk.read(0, SIZE))


@pytest.mark.parametrize("shape", [*SHAPES[:-1], Shape(256 << 10, 4)], ids=str)
@pytest.mark.parametrize("backed", [False, True], ids=["alone", "backed"])
def test_a_new_image(shape: Shape, backed: bool) -> None:
    backing = Backing(patterned(SIZE * 3 // 4, 1)) if backed else None
    for seed in range(SEEDS):
        live_and_die(empty(SIZE, shape, backed), backing, seed)


@needs_qemu_img
@pytest.mark.parametrize("shape", [Shape(512), Shape(4096), Shape(65536, 8)], ids=str)
@pytest.mark.parametrize("kind", ["compressed", "snapshots", "preallocated"])
def test_an_image_of_qemu(shape: Shape, kind: str, tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(patterned(SIZE, 2))
    if kind == "preallocated":
        options = f"{shape.options},preallocation=metadata"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, SIZE)
    else:
        compress = ["-c"] if kind == "compressed" else []
        qemu_img("convert", *compress, "-O", "qcow2", "-o", shape.options, raw, image)
    if kind == "snapshots":
        qemu_img("snapshot", "-c", "one", image)
    content = image.read_bytes()
    for seed in range(SEEDS):
        live_and_die(content, None, seed)


@pytest.mark.parametrize("shape", [Shape(512, lazy=True), Shape(4096, 1), Shape(65536)], ids=str)
def test_while_mending(shape: Shape) -> None:
    """A dirty image with wrong refcounts; the power goes while they are made anew."""
    rng = random.Random(5)
    disk = open_image(file := CutFile(empty(SIZE, shape), rng, ENDLESS), None)
    wanted = patterned(SIZE, 3)
    disk.write(0, wanted)
    disk.close()
    content = bytearray(file.after_the_cut())
    header = parse(bytes(content), "cut", len(content))
    table = header.refcount_table_offset
    content[table : table + 8] = bytes(8)  # as if no refcount had ever been written
    content[INCOMPATIBLE_AT + 7] |= Incompatible.DIRTY
    for budget in range(40):
        file = CutFile(bytes(content), rng, budget, at_sync=budget < 5)
        try:
            open_image(file, None)
        except PowerCut:
            left = file.after_the_cut()
        else:
            left = file.after_the_cut()
            assert not parse(left, "cut", len(left)).incompatible
        file = CutFile(left, rng, ENDLESS)
        disk = open_image(file, None)
        assert disk.read(0, SIZE) == wanted
        disk.close()
        assert Check(file, disk.header).run().is_clean
