"""The board's RAM: one shared mapping between guard pages, and the gate for writers in Python.

Everything that Python writes into RAM goes through `PhysicalMemory.write`, `store` or
`compare_and_swap` (or calls `wrote` after using a `view`), so that code invalidation and dirty
tracking miss nothing: each function in `write_hook` is called with (gpa, bytes) afterwards.
Compiled code reaches the same bytes at `address`. Host and guest are both little-endian.

RAM is mapped shared from its own file until it is frozen, and privately from frozen files ever
after (`kasou.engine.frozen_memory`); the addresses stay the same, so no hart notices.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable

from kasou.engine.frozen_memory import (
    MOST_EXTENTS,
    PIECE,
    Backing,
    Extent,
    FrozenMemory,
    memory_file,
    written_runs,
)
from kasou.errors import ConfigError, GuestError, HostError

GUARD = 1 << 20
"""Bytes without access before and after RAM."""
PAGE = 4096
_FIXED = 0x10
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)
_RIGHTS = mmap.PROT_READ | mmap.PROT_WRITE
LARGE = 1 << 20
"""A write of this size goes through the file: twice as fast, for no page is faulted in first."""


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    return libc


class PhysicalMemory:
    """`size` bytes of RAM at gpa `base`, zero at first, or with the `content` that was frozen.

    The mapping lives as long as this object or any view of it. `address` is the hva of `base`.
    Raises `HostError` when the host has not enough.
    """

    def __init__(
        self,
        base: int = 0x8000_0000,
        size: int = 128 << 20,
        content: FrozenMemory | None = None,
    ) -> None:
        if size <= 0 or size % PAGE or base % PAGE or sys.byteorder != "little":
            raise ConfigError(f"memory: {size:#x} bytes at {base:#x} are not whole 4 KiB pages")
        self.base, self.size = base, size
        self.write_hook: list[Callable[[int, int], None]] = []
        self.lock = threading.Lock()
        """Held by read-modify-writes of Python; compiled code knows nothing of it."""
        # A private mapping reserves the addresses and owns them; RAM is put into its middle.
        total = size + 2 * GUARD
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self._map = mmap.mmap(-1, total, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = start + GUARD
        self._libc = _libc()
        self._own: Backing | None = None
        """The file that is mapped shared; None once frozen."""
        self._frozen = content
        if content is None:
            self._own = Backing(memory_file(size))
            self._place(0, size, mmap.MAP_SHARED, self._own.fd, 0)
        elif content.size != size:
            raise ConfigError(
                f"memory: {content.size:#x} bytes are frozen, the board has {size:#x}"
            )
        else:
            self._place_frozen(content)
        for guard in (start, self.address + size):
            if self._libc.mprotect(guard, GUARD, 0):
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
        if len(raw) >= LARGE and self._own is not None:
            done = 0
            while done < len(raw):
                done += os.pwrite(self._own.fd, raw[done:], offset + done)
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

    # ------------------------------------------------------------------ freezing
    def freeze(self) -> FrozenMemory:
        """All of RAM as it is now, immutable from here on; the machine goes on with copies.

        No hart may run and no device may write meanwhile. Takes as long as it takes to copy what was
        written since the last time. Raises `HostError` when the host has not enough memory.
        """
        if self._own is not None:
            frozen = FrozenMemory(self.size, [Extent(0, self.size, self._own, 0)])
            self._place_frozen(frozen)
            self._own, self._frozen = None, frozen
            return frozen
        assert self._frozen is not None, "RAM is either shared or frozen"
        runs = written_runs(self.address, self.size)
        if not runs:
            return self._frozen
        if len(self._frozen.extents) + 2 * len(runs) > MOST_EXTENTS:
            runs = [(0, self.size)]
        layer = Backing(memory_file(self.size))
        for start, end in runs:
            self._copy_out(layer, start, end)
        self._frozen = self._frozen.with_layer(layer, runs)
        for start, end in runs:
            self._place(start, end - start, mmap.MAP_PRIVATE, layer.fd, start)
        return self._frozen

    def _copy_out(self, layer: Backing, start: int, end: int) -> None:
        """Write these bytes into `layer`, leaving holes for pieces that are zero."""
        for piece in range(start, end, PIECE):
            data = self._bytes[piece : min(piece + PIECE, end)]
            if not any(data[:: PAGE // 8]) and data == bytes(len(data)):
                continue
            try:
                done = 0
                while done < len(data):
                    done += os.pwrite(layer.fd, data[done:], piece + done)
            except OSError as error:
                raise HostError(f"memory: cannot be frozen: {error.strerror}") from error

    def give_up(self, gpa: int, size: int) -> None:
        """The guest does not need these whole pages: zero them and give the host its memory back.

        Raises `GuestError` when they are not all RAM.
        """
        offset = self._offset(gpa, size)
        if gpa % PAGE or size % PAGE or not size:
            raise GuestError(f"memory: {size} bytes at {gpa:#x} are not whole pages")
        if self._own is not None:
            # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            self._libc.fallocate(self._own.fd, 3, offset, size)
        else:
            assert self._frozen is not None, "RAM is either shared or frozen"
            self._frozen = self._frozen.without(offset, offset + size)
            self._place(offset, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self.wrote(gpa, size)

    def _place_frozen(self, content: FrozenMemory) -> None:
        """Map every extent of `content`; what is in none stays anonymous and zero."""
        for start, end, backing, at in content.extents:
            self._place(start, end - start, mmap.MAP_PRIVATE, backing.fd, at)

    def _place(self, offset: int, size: int, kind: int, fd: int, at: int) -> None:
        """Map `size` bytes of a file at byte `offset` of RAM."""
        wanted = self.address + offset
        placed = self._libc.mmap(wanted, size, _RIGHTS, kind | _FIXED | _NO_RESERVE, fd, at)
        if placed != wanted:
            raise HostError(f"memory: mmap of {size >> 20} MiB: {os.strerror(ctypes.get_errno())}")
