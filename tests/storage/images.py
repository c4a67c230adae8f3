"""Images to begin with: empty, over a backing disk, and as qemu-img makes them."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from storage.power_cut import CutFile

from kasou.storage.qcow2.create import layout, write_empty

needs_qemu_img = pytest.mark.skipif(
    not (shutil.which("qemu-img") and shutil.which("qemu-io")),
    reason="qemu-img and qemu-io are not installed: nothing to compare with",
)
ENDLESS = 1 << 60


@dataclass(frozen=True)
class Shape:
    """How an image is cut up."""

    cluster_size: int = 65536
    refcount_bits: int = 16
    version: int = 3
    lazy: bool = False

    def __str__(self) -> str:
        return f"{self.cluster_size}-rc{self.refcount_bits}-v{self.version}{'-lazy' * self.lazy}"

    @property
    def options(self) -> str:
        """For `qemu-img create -o`."""
        options = f"cluster_size={self.cluster_size},refcount_bits={self.refcount_bits}"
        options += f",compat={'1.1' if self.version == 3 else '0.10'}"
        return options + ",lazy_refcounts=on" * self.lazy


SHAPES = [
    Shape(512), Shape(512, 64), Shape(512, 1), Shape(1024, 2), Shape(4096), Shape(4096, 8),
    Shape(4096, version=2), Shape(65536), Shape(65536, 32), Shape(65536, lazy=True), Shape(2 << 20, 4),
]  # fmt: skip


def empty(size: int, shape: Shape, backing: bool = False) -> bytes:
    """The bytes of a new image."""
    file = CutFile(b"", random.Random(0), ENDLESS)
    header = layout(
        size,
        backing="base.raw" if backing else None,
        backing_format="raw" if backing else None,
        cluster_size=shape.cluster_size,
        refcount_bits=shape.refcount_bits,
        version=shape.version,
        lazy_refcounts=shape.lazy,
    )
    write_empty(file, header)
    return file.read(0, file.size())


def patterned(size: int, seed: int) -> bytes:
    """Content with data, zeroes and repetition in pieces of uneven length."""
    rng = random.Random(seed)
    parts, n = [], 0
    while n < size:
        length = rng.choice((512, 4096, 70000, 300000)) // 512 * 512
        kind = rng.random()
        if kind < 0.4:
            parts.append(rng.randbytes(length))
        elif kind < 0.7:
            parts.append(rng.randbytes(64) * (length // 64))
        else:
            parts.append(bytes(length))
        n += length
    return b"".join(parts)[:size]


def qemu_img(*arguments: object) -> str:
    """Run qemu-img; its output. Fails the test when it fails."""
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert not done.returncode, f"qemu-img {arguments}: {done.stdout[-800:]}{done.stderr[-800:]}"
    return done.stdout


def qemu_check(path: Path, leaks_are_fine: bool = False) -> None:
    """`qemu-img check` finds nothing (0), or only leaks (3) where they are fine."""
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    good = (0, 3) if leaks_are_fine else (0,)
    assert done.returncode in good, done.stdout[-800:] + done.stderr[-800:]
