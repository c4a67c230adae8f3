"""The board's RAM: one shared mapping between guard pages, and the gate for writers in Python.

Everything that Python writes into RAM goes through `PhysicalMemory.write`, `store` or
`compare_and_swap` (or calls `wrote` after using a `view`), so that code invalidation and dirty
tracking miss nothing: each function in `write_hook` is called with (gpa, bytes) afterwards.
Compiled code reaches the same bytes at `address`. Host and guest are both little-endian.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable

from kasou.errors import ConfigError, GuestError, HostError

GUARD = 1 << 20
"""Bytes without access before and after RAM."""
PAGE = 4096
_SHARED_FIXED = mmap.MAP_SHARED | 0x10
LARGE = 1 << 20
"""A write of this size goes through the file: twice as fast, for no page is faulted in first."""


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


class PhysicalMemory:
    """`size` bytes of RAM at gpa `base`, backed by a memfd (`fd`); zero at first.

    The mapping lives as long as this object or any view of it. `address` is the hva of `base`.
    """

    def __init__(self, base: int = 0x8000_0000, size: int = 128 << 20) -> None:
        if size <= 0 or size % PAGE or base % PAGE or sys.byteorder != "little":
            raise ConfigError(f"memory: {size:#x} bytes at {base:#x} are not whole 4 KiB pages")
        self.base, self.size = base, size
        self.write_hook: list[Callable[[int, int], None]] = []
        self.lock = threading.Lock()
        """Held by read-modify-writes of Python; compiled code knows nothing of it."""
        self.fd = os.memfd_create("kasou-ram", os.MFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, size)
        # A private mapping reserves the addresses and owns them; RAM is put into its middle.
        total = size + 2 * GUARD
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._map = mmap.mmap(-1, total, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = start + GUARD
        libc = _libc()
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        placed = libc.mmap(self.address, size, rights, _SHARED_FIXED, self.fd, 0)
        if placed != self.address:
            raise HostError(f"memory: mmap of {size >> 20} MiB: {os.strerror(ctypes.get_errno())}")
        for guard in (start, self.address + size):
            if libc.mprotect(guard, GUARD, 0):
                raise HostError(f"memory: mprotect: {os.strerror(ctypes.get_errno())}")
        self._bytes = memoryview(self._map)[GUARD : GUARD + size]
        raw = self._bytes
        self._words: memoryview[int] = raw.cast("Q")
        self._views: dict[int, memoryview[int]] = {
            1: raw, 2: raw.cast("H"), 4: raw.cast("I"), 8: self._words,
        }  # fmt: skip

    def holds(self, gpa: int, size: int) -> bool:
        """Whether all of gpa .. gpa+size-1 is RAM."""
        return 0 <= gpa - self.base <= self.size - size

    def _offset(self, gpa: int, size: int) -> int:
        offset = gpa - self.base
        if not 0 <= offset <= self.size - size or size < 0:
            end = self.base + self.size
            raise GuestError(
                f"memory: {size} bytes at {gpa:#x} are not in RAM [{self.base:#x}, {end:#x})"
            )
        return offset

    def view(self, gpa: int, size: int) -> memoryview:
        """The bytes themselves; who writes them calls `wrote` afterwards. Raises `GuestError`."""
        offset = self._offset(gpa, size)
        return self._bytes[offset : offset + size]

    def wrote(self, gpa: int, size: int) -> None:
        """Tell the hooks that these bytes changed."""
        for hook in self.write_hook:
            hook(gpa, size)

    def read(self, gpa: int, size: int) -> bytes:
        """Copy `size` bytes out. Raises `GuestError` if they are not all RAM."""
        offset = self._offset(gpa, size)
        return bytes(self._bytes[offset : offset + size])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` in. Raises `GuestError`, and writes nothing, if it is not all RAM."""
        raw = memoryview(data).cast("B")
        offset = self._offset(gpa, len(raw))
        if len(raw) >= LARGE:
            done = 0
            while done < len(raw):
                done += os.pwrite(self.fd, raw[done:], offset + done)
        else:
            self._bytes[offset : offset + len(raw)] = raw
        for hook in self.write_hook:
            hook(gpa, len(raw))

    def load(self, gpa: int, size: int) -> int:
        """An unsigned number of 1, 2, 4 or 8 bytes, any alignment. Raises `GuestError`."""
        offset = self._offset(gpa, size)
        if offset % size:
            return int.from_bytes(self._bytes[offset : offset + size], "little")
        return self._views[size][offset // size]

    def store(self, gpa: int, size: int, value: int) -> None:
        """Write the low 1, 2, 4 or 8 bytes of `value`, any alignment. Raises `GuestError`."""
        offset = self._offset(gpa, size)
        value &= (1 << 8 * size) - 1
        if offset % size:
            self._bytes[offset : offset + size] = value.to_bytes(size, "little")
        else:
            self._views[size][offset // size] = value
        for hook in self.write_hook:
            hook(gpa, size)

    def load_u64(self, gpa: int) -> int:
        """Eight aligned bytes; raises `GuestError` if they are not RAM or not aligned."""
        offset = gpa - self.base
        if offset & 7 or not 0 <= offset < self.size:
            raise GuestError(f"memory: {gpa:#x} is not an aligned word of RAM")
        return self._words[offset >> 3]

    def store_u64(self, gpa: int, value: int) -> None:
        """Write eight aligned bytes; raises `GuestError` as `load_u64` does."""
        offset = gpa - self.base
        if offset & 7 or not 0 <= offset < self.size:
            raise GuestError(f"memory: {gpa:#x} is not an aligned word of RAM")
        self._words[offset >> 3] = value & ((1 << 64) - 1)
        for hook in self.write_hook:
            hook(gpa, 8)

    def compare_and_swap(self, gpa: int, size: int, old: int, new: int) -> bool:
        """Store `new` if the low `size` bytes are those of `old`; whether it did.

        Atomic among threads in Python, not against harts in compiled code. Raises `GuestError`.
        """
        with self.lock:
            if self.load(gpa, size) != old & ((1 << 8 * size) - 1):
                return False
            self.store(gpa, size, new)
            return True
