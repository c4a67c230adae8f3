import ctypes
import gc
import subprocess
import sys

import pytest

from kasou.engine.memory import PhysicalMemory
from kasou.errors import ConfigError, GuestError

BASE = 0x8000_0000


@pytest.fixture
def memory() -> PhysicalMemory:
    return PhysicalMemory(BASE, 1 << 20)


def test_bytes_and_numbers(memory: PhysicalMemory) -> None:
    assert memory.read(BASE, 16) == bytes(16)
    memory.write(BASE + 3, b"kasou")
    assert memory.read(BASE + 2, 7) == b"\0kasou\0"
    for size in (1, 2, 4, 8):
        for at in range(BASE + 64, BASE + 80):
            memory.store(at, size, -2)
            assert memory.load(at, size) == (1 << 8 * size) - 2
    memory.store_u64(BASE + 8, 0x0102_0304_0506_0708)
    assert memory.load_u64(BASE + 8) == 0x0102_0304_0506_0708
    assert memory.read(BASE + 8, 8) == bytes(range(8, 0, -1))


def test_the_ends_are_checked(memory: PhysicalMemory) -> None:
    end = BASE + (1 << 20)
    memory.store(end - 8, 8, 1)
    assert memory.holds(end - 8, 8) and not memory.holds(end - 7, 8) and not memory.holds(0, 1)
    for gpa, size in ((BASE - 1, 1), (end, 1), (end - 7, 8), (0, 8), (1 << 63, 8), (BASE, 2 << 20)):
        with pytest.raises(GuestError):
            memory.read(gpa, size)
        with pytest.raises(GuestError):
            memory.view(gpa, size)
        with pytest.raises(GuestError):
            memory.write(gpa, bytes(size))
    for gpa in (end, BASE - 8, BASE + 4):
        with pytest.raises(GuestError):
            memory.load_u64(gpa)
        with pytest.raises(GuestError):
            memory.store_u64(gpa, 0)
    with pytest.raises(ConfigError):
        PhysicalMemory(BASE, 4097)


def test_every_writer_is_reported(memory: PhysicalMemory) -> None:
    seen: list[tuple[int, int]] = []
    memory.write_hook.append(lambda gpa, size: seen.append((gpa, size)))
    memory.write(BASE, b"abc")
    memory.store(BASE + 5, 4, 1)
    memory.store_u64(BASE + 16, 1)
    assert memory.compare_and_swap(BASE + 16, 8, 1, 2)
    assert not memory.compare_and_swap(BASE + 16, 8, 1, 3)
    memory.view(BASE + 32, 4)[:] = b"view"
    memory.wrote(BASE + 32, 4)
    assert seen == [(BASE, 3), (BASE + 5, 4), (BASE + 16, 8), (BASE + 16, 8), (BASE + 32, 4)]
    assert memory.load_u64(BASE + 16) == 2


def test_compiled_code_sees_the_same_bytes(memory: PhysicalMemory) -> None:
    ctypes.c_uint32.from_address(memory.address + 12).value = 0x1234_5678
    assert memory.load(BASE + 12, 4) == 0x1234_5678
    assert memory.address % 4096 == 0


def test_a_view_keeps_the_mapping(memory: PhysicalMemory) -> None:
    other = PhysicalMemory(BASE, 1 << 20)
    view = other.view(BASE, 8)
    view[:] = b"whatever"
    del other
    gc.collect()
    assert bytes(view) == b"whatever"


@pytest.mark.parametrize("offset", [-1, 1 << 20])
def test_guard_pages_surround_it(offset: int) -> None:
    code = (
        "import ctypes; from kasou.engine.memory import PhysicalMemory as M; "
        f"m = M(size=1 << 20); ctypes.c_byte.from_address(m.address + {offset}).value"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -11
