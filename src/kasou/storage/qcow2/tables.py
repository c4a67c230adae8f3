"""L1 and L2 tables: which host cluster holds a guest cluster. Tables in use are cached.

Changes stay in memory until the image commits them, in the order that keeps the file whole: a new
L2 table is written before the L1 entry that names it, and both after the refcounts and the data
that they point to (see `image`). So only clean tables may leave the cache on their own.
"""

from array import array

from kasou.storage.file import File
from kasou.storage.qcow2.geometry import (
    COPIED,
    OFFSET,
    Geometry,
    damaged,
    read_table,
    table_bytes,
)
from kasou.storage.qcow2.refcounts import Refcounts

_CACHE_BYTES = 16 << 20
_MIN_CACHED = 16


class L2Table:
    """One L2 table at file offset `at`; `dirty` is the changed range of entries (low, high)."""

    __slots__ = ("at", "dirty", "entries", "is_new", "is_shared")

    def __init__(self, at: int, entries: "array[int]", is_shared: bool, is_new: bool) -> None:
        self.at = at
        self.entries = entries
        self.is_shared = is_shared
        self.is_new = is_new
        self.dirty: tuple[int, int] | None = None

    def set(self, index: int, entry: int) -> None:
        """Change one entry, in memory."""
        self.entries[index] = entry
        low, high = self.dirty or (index, index)
        self.dirty = min(low, index), max(high, index)


class Tables:
    """The L1 table at `offset` with `entries` entries, and the L2 tables below it."""

    def __init__(self, file: File, geometry: Geometry, offset: int, entries: int) -> None:
        self._file = file
        self._geometry = geometry
        self.offset = offset
        self.l1 = read_table(file, offset, entries)
        self._dirty_l1: set[int] = set()
        self.cache: dict[int, L2Table] = {}
        self._dirty: set[int] = set()
        self._limit = max(_MIN_CACHED, _CACHE_BYTES >> geometry.cluster_bits)
        self.end = file.size()

    @property
    def is_dirty(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._dirty or self._dirty_l1)

    @property
    def is_crowded(self) -> bool:
        """Whether so much waits that it should be committed soon."""
        return len(self._dirty) * 2 > self._limit

    def get(self, l1_index: int) -> L2Table | None:
        """The L2 table of `l1_index`, None if there is none. Raises `HostError` if damaged."""
        table = self.cache.get(l1_index)
        if table is None and (entry := self.l1[l1_index]):
            table = self._load(l1_index, entry)
        return table

    def writable(self, l1_index: int, refcounts: Refcounts) -> tuple[L2Table, int | None]:
        """The L2 table of `l1_index` for changing, made or copied if need be.

        Second, the offset of a shared table that this one replaces: once the change is on stable
        storage its reference is to be released. Raises `HostError`.
        """
        table = self.get(l1_index)
        replaced = None
        if table is None or table.is_shared:
            bits = self._geometry.cluster_bits
            cluster, _ = refcounts.allocate(1)
            at = cluster << bits
            self.end = max(self.end, at + 1)
            if table is None:
                entries = array("Q", bytes(1 << bits))
            else:
                replaced, entries = table.at, table.entries
            table = L2Table(at, entries, is_shared=False, is_new=True)
            self._make_room()
            self.cache[l1_index] = table
            self.l1[l1_index] = at | COPIED
            self._dirty_l1.add(l1_index)
            refcounts.reserve(cluster)
        self._dirty.add(l1_index)
        return table, replaced

    def write_new(self) -> None:
        """Write the L2 tables that nothing on the medium names yet. Raises `HostError`."""
        for l1_index in sorted(self._dirty):
            table = self.cache[l1_index]
            if table.is_new:
                self._file.write(table.at, table_bytes(table.entries))

    def write_changed(self) -> None:
        """Write changes to tables in use, then L1 entries. Raises `HostError`."""
        for l1_index in sorted(self._dirty):
            table = self.cache[l1_index]
            if not table.is_new and table.dirty:
                low, high = table.dirty
                self._file.write(table.at + low * 8, table_bytes(table.entries[low : high + 1]))
        for low, high in _ranges(sorted(self._dirty_l1)):
            self._file.write(self.offset + low * 8, table_bytes(self.l1[low : high + 1]))

    def committed(self) -> None:
        """Everything is on stable storage."""
        for l1_index in self._dirty:
            table = self.cache[l1_index]
            table.is_new = False
            table.dirty = None
        self._dirty.clear()
        self._dirty_l1.clear()

    def l2_clusters(self) -> set[int]:
        """The numbers of the host clusters that hold L2 tables."""
        bits = self._geometry.cluster_bits
        return {(entry & OFFSET) >> bits for entry in self.l1 if entry & OFFSET}

    def _load(self, l1_index: int, entry: int) -> L2Table | None:
        at = entry & OFFSET
        if not at:
            return None
        if at & (self._geometry.cluster_size - 1) or at >= self.end:
            raise damaged(self._file.path, f"L1 entry {l1_index} points to {at:#x}")
        entries = read_table(self._file, at, 1 << self._geometry.l2_bits)
        table = L2Table(at, entries, is_shared=not entry & COPIED, is_new=False)
        self._make_room()
        self.cache[l1_index] = table
        return table

    def _make_room(self) -> None:
        if len(self.cache) >= self._limit:
            for l1_index in self.cache:
                if l1_index not in self._dirty:
                    del self.cache[l1_index]
                    return


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as (first, last) of consecutive ones."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found
