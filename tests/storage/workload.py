"""Seeded work for a disk: the same seed, the same operations, in the child and in the judge."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from kasou.ports import Disk

SECTOR = 512
Operation = tuple[object, ...]


def operations(seed: int, size: int) -> Iterator[Operation]:
    """Endless operations on a disk of `size` bytes; every sector written is unlike any other."""
    rng = random.Random(seed)
    sectors = size // SECTOR
    number = 0
    while True:
        number += 1
        n = min(sectors, rng.choice((1, 1, 8, 8, 8, 64, 128, rng.randint(1, 300))))
        first = rng.randrange(sectors - n + 1)
        if rng.random() < 0.5:
            first = first // 8 * 8
        offset, length = first * SECTOR, n * SECTOR
        kind = rng.random()
        if kind < 0.62:
            data = b"".join(
                struct.pack("<QII", seed, number, first + i) * (SECTOR // 16) for i in range(n)
            )
            yield "write", offset, data
        elif kind < 0.72:
            yield "zero", offset, length, rng.random() < 0.5
        elif kind < 0.84:
            yield "discard", offset, length
        else:
            yield ("flush",)


def perform(disk: Disk, op: Operation) -> None:
    """Do one operation."""
    match op:
        case ("write", int(offset), bytes(data)):
            disk.write(offset, data)
        case ("zero", int(offset), int(n), bool(unmap)):
            disk.write_zeroes(offset, n, unmap)
        case ("discard", int(offset), int(n)):
            disk.discard(offset, n)
        case ("flush",):
            disk.flush()
        case _:
            raise AssertionError(op)
