import random

import pytest

from kasou.engine.frozen_memory import PAGE, FrozenMemory, cut, written_runs
from kasou.engine.memory import PhysicalMemory
from kasou.errors import ConfigError, GuestError

BASE = 0x8000_0000
SIZE = 4 << 20


def test_what_is_frozen_stays() -> None:
    memory = PhysicalMemory(BASE, SIZE)
    memory.write(BASE + 5 * PAGE, b"before")
    frozen = memory.freeze()
    memory.write(BASE + 5 * PAGE, b"after!")
    memory.write(BASE + 99 * PAGE, b"new")
    assert frozen.read(5 * PAGE, 6) == b"before"
    assert frozen.read(99 * PAGE, 3) == bytes(3)
    assert memory.read(BASE + 5 * PAGE, 6) == b"after!"


def test_forks_share_and_part() -> None:
    memory = PhysicalMemory(BASE, SIZE)
    memory.write(BASE, b"common")
    frozen = memory.freeze()
    forks = [PhysicalMemory(BASE, SIZE, frozen) for _ in range(3)]
    for number, fork in enumerate(forks):
        assert fork.read(BASE, 6) == b"common"
        fork.store_u64(BASE, number)
    assert [fork.load_u64(BASE) for fork in forks] == [0, 1, 2]
    assert memory.read(BASE, 6) == b"common"


def test_layers_at_random() -> None:
    """Memory written, frozen, forked and given up at random is what a plain copy says."""
    rng = random.Random(7)
    memory, model = PhysicalMemory(BASE, SIZE), bytearray(SIZE)
    kept: list[tuple[FrozenMemory, bytes]] = []
    for _ in range(400):
        match rng.randrange(8):
            case 0:
                kept.append((memory.freeze(), bytes(model)))
            case 1:
                page, pages = rng.randrange(SIZE // PAGE), rng.randrange(1, 6)
                pages = min(pages, SIZE // PAGE - page)
                memory.give_up(BASE + page * PAGE, pages * PAGE)
                model[page * PAGE : (page + pages) * PAGE] = bytes(pages * PAGE)
            case 2 if kept:
                content, expected = rng.choice(kept)
                memory, model = PhysicalMemory(BASE, SIZE, content), bytearray(expected)
            case _:
                at, data = rng.randrange(SIZE - 9000), rng.randbytes(rng.randrange(1, 9000))
                memory.write(BASE + at, data)
                model[at : at + len(data)] = data
    assert memory.read(BASE, SIZE) == model
    for content, expected in kept:
        assert content.read(0, SIZE) == expected
        held = bytearray(SIZE)
        for start, end in content.data():
            held[start:end] = content.read(start, end - start)
        assert held == expected
        assert PhysicalMemory(BASE, SIZE, content).read(BASE, SIZE) == expected


def test_only_what_was_written_is_copied() -> None:
    memory = PhysicalMemory(BASE, SIZE)
    memory.write(BASE, bytes(range(256)) * (SIZE // 256))
    memory.freeze()
    assert written_runs(memory.address, SIZE) == []
    memory.read(BASE, SIZE)
    assert written_runs(memory.address, SIZE) == []
    memory.write(BASE + 40 * PAGE, b"x")
    memory.write(BASE + 200 * PAGE + 4095, b"xy")
    runs = written_runs(memory.address, SIZE)
    assert runs == [(40 * PAGE, 41 * PAGE), (200 * PAGE, 202 * PAGE)]
    assert len(memory.freeze().extents) == 5


def test_cut() -> None:
    memory = PhysicalMemory(BASE, SIZE)
    whole = memory.freeze().extents
    parts = cut(whole, [(0, PAGE), (3 * PAGE, 5 * PAGE), (SIZE - PAGE, SIZE)])
    assert [(e.start, e.end, e.at) for e in parts] == [
        (PAGE, 3 * PAGE, PAGE),
        (5 * PAGE, SIZE - PAGE, 5 * PAGE),
    ]


def test_bounds() -> None:
    memory = PhysicalMemory(BASE, SIZE)
    with pytest.raises(GuestError):
        memory.give_up(BASE + SIZE, PAGE)
    with pytest.raises(GuestError):
        memory.give_up(BASE + 1, PAGE)
    with pytest.raises(ConfigError):
        PhysicalMemory(BASE, 2 * SIZE, memory.freeze())
