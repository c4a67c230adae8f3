"""RAM at rest: which file holds each page, and which pages changed since.

A machine's RAM begins as a memory file of its own. `PhysicalMemory.freeze` makes all of it immutable:
the machine goes on with a private, copy-on-write mapping of what is frozen, and so may any number
of forks; a snapshot writes it to disk at leisure. Freezing again puts only the pages written
meanwhile into a new file, so RAM is a list of extents over several files:

    gpa offset   0          64 MiB   65 MiB              512 MiB
    extents      | file 1   | file 2 | file 1            |         the newest file wins
                 not in any extent: zero

A frozen file is never written again; it lives as long as one `FrozenMemory` or mapping needs it.
The kernel tells which pages of a private mapping were written: they became anonymous. (Linux,
Documentation/admin-guide/mm/pagemap.rst)
"""

from __future__ import annotations

import array
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kasou.errors import HostError

PAGE = 4096
GAP_PAGES = 8
"""Runs of written pages this near to each other are kept as one: mappings are scarcer than bytes."""
MOST_EXTENTS = 4096
"""Of 65,530 mappings that Linux allows a process; beyond this RAM is copied into one file."""
PIECE = 1 << 20

_PRESENT, _SWAPPED, _FILE = 1 << 63, 1 << 62, 1 << 61


class Backing:
    """A file that holds frozen pages; closed when nobody refers to it any more."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)


class Extent(NamedTuple):
    """Bytes start .. end-1 of RAM are at `at` .. of a file; all whole pages."""

    start: int
    end: int
    backing: Backing
    at: int


class FrozenMemory:
    """The content of `size` bytes of RAM, immutable. Extents rise and do not overlap."""

    __slots__ = ("extents", "size")

    def __init__(self, size: int, extents: Sequence[Extent]) -> None:
        self.size = size
        self.extents = tuple(extents)

    def with_layer(self, backing: Backing, runs: Sequence[tuple[int, int]]) -> FrozenMemory:
        """This content with `runs` (start, end) replaced by the same offsets of `backing`."""
        kept = cut(self.extents, runs)
        fresh = [Extent(start, end, backing, start) for start, end in runs]
        return FrozenMemory(self.size, joined(sorted([*kept, *fresh], key=lambda e: e.start)))

    def without(self, start: int, end: int) -> FrozenMemory:
        """This content with bytes start .. end-1 zero."""
        return FrozenMemory(self.size, cut(self.extents, [(start, end)]))

    def data(self) -> Iterator[tuple[int, int]]:
        """Runs (start, end) that may hold anything but zeros: holes of the files are left out."""
        for extent in self.extents:
            shift = extent.start - extent.at
            for start, end in file_data(
                extent.backing.fd, extent.at, extent.at + extent.end - extent.start
            ):
                yield start + shift, end + shift

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes from byte `offset`. Raises `HostError` if a file fails."""
        out = bytearray(n)
        view = memoryview(out)
        for extent in self.extents:
            start, end = max(offset, extent.start), min(offset + n, extent.end)
            while start < end:
                here = view[start - offset : end - offset]
                try:
                    done = os.preadv(extent.backing.fd, [here], extent.at + start - extent.start)
                except OSError as error:
                    raise HostError(f"frozen memory: {error.strerror}") from error
                if not done:
                    raise HostError("frozen memory: its file was cut short")
                start += done
        return bytes(out)


def cut(extents: Sequence[Extent], runs: Sequence[tuple[int, int]]) -> list[Extent]:
    """`extents` without the bytes of `runs`; both rising and without overlaps."""
    left: list[Extent] = []
    i = 0
    for extent in extents:
        start = extent.start
        while i < len(runs) and runs[i][1] <= start:
            i += 1
        j = i
        while j < len(runs) and runs[j][0] < extent.end:
            if start < runs[j][0]:
                left.append(_part(extent, start, runs[j][0]))
            start = max(start, runs[j][1])
            j += 1
        if start < extent.end:
            left.append(_part(extent, start, extent.end))
    return left


def _part(extent: Extent, start: int, end: int) -> Extent:
    return Extent(start, end, extent.backing, extent.at + start - extent.start)


def joined(extents: Sequence[Extent]) -> list[Extent]:
    """Neighbours that continue each other in the same file as one extent."""
    out: list[Extent] = []
    for extent in extents:
        last = out[-1] if out else None
        if (
            last is not None
            and last.end == extent.start
            and last.backing is extent.backing
            and last.at + last.end - last.start == extent.at
        ):
            out[-1] = Extent(last.start, extent.end, last.backing, last.at)
        else:
            out.append(extent)
    return out


def file_data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of a file between `start` and `end` that are not holes."""
    while start < end:
        try:
            found = os.lseek(fd, start, os.SEEK_DATA)
            hole = os.lseek(fd, found, os.SEEK_HOLE)
        except OSError:  # ENXIO: nothing but a hole up to the end
            return
        if found >= end:
            return
        yield found, min(hole, end)
        start = hole


def written_runs(address: int, size: int) -> list[tuple[int, int]]:
    """Which bytes of the private mapping at hva `address` were written: runs (start, end).

    Runs less than `GAP_PAGES` apart are joined. Where the host does not tell, everything counts as
    written.
    """
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(address // PAGE * 8)
            entries = array.array("Q", file.read(size // PAGE * 8))
    except OSError:
        return [(0, size)]
    if len(entries) != size // PAGE:
        return [(0, size)]
    runs: list[list[int]] = []
    last = -GAP_PAGES - 1
    held = _PRESENT | _SWAPPED
    for page, entry in enumerate(entries):
        if entry & held and not entry & _FILE:
            if page - last <= GAP_PAGES:
                runs[-1][1] = (page + 1) * PAGE
            else:
                runs.append([page * PAGE, (page + 1) * PAGE])
            last = page
    return [(start, end) for start, end in runs]


def memory_file(size: int) -> int:
    """A new memory file of `size` bytes, all zero. Raises `HostError`."""
    try:
        fd = os.memfd_create("kasou-ram", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
    except OSError as error:
        raise HostError(f"memory: {size >> 20} MiB: {error.strerror}") from error
    return fd
