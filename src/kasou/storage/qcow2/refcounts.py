"""Refcounts: which host clusters are in use, and how often. The allocator lives on them.

Two levels: the refcount table, contiguous and named by the header, points to refcount blocks of
one cluster each. Changes stay in memory until the image commits them. A block that is not there
counts zero for all its clusters; a new one stands in the first cluster that it counts.
(QEMU, docs/interop/qcow2, "Host cluster management")
"""

import errno
import struct
import sys
from array import array

from kasou.errors import HostError
from kasou.storage.file import File
from kasou.storage.qcow2.geometry import OFFSET, Geometry, damaged, read_table, table_bytes
from kasou.storage.qcow2.header import REFCOUNT_TABLE_AT

_TYPES = {3: "B", 4: "H", 5: "I", 6: "Q"}
_MAX_TABLE = 8 << 20
_MAX_OFFSET = 1 << 56
_CACHED_BYTES = 8 << 20


class Block:
    """One refcount block at file offset `at`: `counts` numbers, packed below eight bits."""

    __slots__ = ("at", "changed", "counts", "is_new", "order")

    def __init__(self, at: int, data: bytes, order: int, is_new: bool) -> None:
        self.at = at
        self.order = order
        self.is_new = is_new
        self.changed: tuple[int, int] | None = None
        self.counts = array(_TYPES.get(order, "B"), data)
        self._swap(self.counts)

    def get(self, index: int) -> int:
        """The refcount of the block's cluster `index`."""
        if self.order >= 3:
            return self.counts[index]
        bits = 1 << self.order
        at = index * bits
        return self.counts[at >> 3] >> (at & 7) & ((1 << bits) - 1)

    def set(self, index: int, count: int) -> None:
        """Change the refcount of the block's cluster `index`."""
        low, high = self.changed or (index, index)
        self.changed = min(low, index), max(high, index)
        if self.order >= 3:
            self.counts[index] = count
            return
        bits = 1 << self.order
        at = index * bits
        mask = ((1 << bits) - 1) << (at & 7)
        self.counts[at >> 3] = self.counts[at >> 3] & ~mask | count << (at & 7)

    def find_free(self, start: int) -> int:
        """The first cluster from `start` with refcount 0, -1 if there is none."""
        if self.order >= 3:
            try:
                return self.counts.index(0, start)
            except ValueError:
                return -1
        for index in range(start, len(self.counts) * 8 >> self.order):
            if not self.get(index):
                return index
        return -1

    def emit(self) -> bytes:
        """How the block is stored."""
        return self._stored(self.counts[:])

    def emit_changed(self) -> tuple[int, bytes]:
        """(file offset, bytes) of what changed since `changed` was None."""
        if self.is_new or self.changed is None:
            return self.at, self.emit()
        low, high = self.changed
        if self.order < 3:
            low, high = low << self.order >> 3, high << self.order >> 3
        return self.at + low * self.counts.itemsize, self._stored(self.counts[low : high + 1])

    def _stored(self, counts: "array[int]") -> bytes:
        self._swap(counts)
        return counts.tobytes()

    @staticmethod
    def _swap(counts: "array[int]") -> None:
        if counts.itemsize > 1 and sys.byteorder == "little":
            counts.byteswap()


class Refcounts:
    """The refcounts of one image, its table at `offset` filling `clusters` clusters.

    `reserved` are the numbers of clusters that hold metadata, whatever a damaged refcount says.
    """

    def __init__(self, file: File, geometry: Geometry, offset: int, clusters: int) -> None:
        self._file = file
        self._geometry = geometry
        self._per_block = geometry.refcounts_per_block
        self.offset = offset
        self.clusters = clusters
        self.table = read_table(file, offset, clusters << geometry.cluster_bits >> 3)
        self._end = file.size()
        self._blocks: dict[int, Block] = {}
        self._dirty: set[int] = set()
        self._limit = max(4, _CACHED_BYTES >> geometry.cluster_bits)
        self._hint = 0
        bits = geometry.cluster_bits
        self._reserved = {0, *range(offset >> bits, (offset >> bits) + clusters)}
        self._reserved.update((entry & OFFSET) >> bits for entry in self.table if entry)

    @property
    def is_dirty(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._dirty)

    def is_reserved(self, cluster: int) -> bool:
        """Whether a cluster holds metadata."""
        return cluster in self._reserved

    def reserve(self, *clusters: int) -> None:
        """These clusters hold metadata: never give them out, never let guest data in."""
        self._reserved.update(clusters)

    def get(self, cluster: int) -> int:
        """The refcount of host cluster number `cluster`. Raises `HostError` if damaged."""
        block = self._block(cluster // self._per_block)
        return block.get(cluster % self._per_block) if block else 0

    def several(self, start: int, n: int) -> list[int]:
        """The refcounts of `n` clusters from `start`, all of one block. Raises `HostError`."""
        number, index = divmod(start, self._per_block)
        block = self._block(number)
        if block is None:
            return [0] * n
        if block.order >= 3:
            return list(block.counts[index : index + n])
        return [block.get(index + i) for i in range(n)]

    def in_use(self, start: int, stop: int) -> list[int]:
        """Those of the clusters, all of one block, whose refcount is not zero."""
        block = self._block(start // self._per_block)
        if block is None or start >= stop:
            return []
        first, last = start % self._per_block, (stop - 1) % self._per_block
        if block.order >= 3:
            entries = [first + i for i, count in enumerate(block.counts[first : last + 1]) if count]
        else:
            a_byte = 8 >> block.order
            low = first // a_byte
            held = [
                low + i for i, bits in enumerate(block.counts[low : last // a_byte + 1]) if bits
            ]
            entries = [
                index
                for at in held
                for index in range(at * a_byte, (at + 1) * a_byte)
                if first <= index <= last and block.get(index)
            ]
        return [start - first + index for index in entries]

    def set(self, cluster: int, count: int) -> None:
        """Change a refcount, in memory. Raises `HostError`."""
        number = cluster // self._per_block
        block = self._block(number) or self._add_block(number)
        block.set(cluster % self._per_block, count)
        self._dirty.add(number)

    def release(self, cluster: int) -> bool:
        """Take one reference away; whether none is left. Raises `HostError` if damaged."""
        count = self.get(cluster)
        if not count:
            raise damaged(self._file.path, f"cluster {cluster} is in use with refcount 0")
        if count == 1 and self.is_reserved(cluster):
            self._reserved.discard(cluster)
        self.set(cluster, count - 1)
        if count == 1:
            self._hint = min(self._hint, cluster)
        return count == 1

    def allocate(self, n: int) -> tuple[int, int]:
        """Take 1 to `n` free clusters in a row: number of the first, how many. Raises `HostError`.

        On the medium they stay free until the change is committed.
        """
        per_block = self._per_block
        cluster = self._hint
        while True:
            number, index = divmod(cluster, per_block)
            block = self._block(number) or self._add_block(number)
            index = block.find_free(index)
            if index >= 0:
                break
            cluster = (number + 1) * per_block
        block.set(index, 1)
        count = 1
        while count < n and index + count < per_block and not block.get(index + count):
            block.set(index + count, 1)
            count += 1
        self._dirty.add(number)
        first = number * per_block + index
        self._hint = first + count
        if not self._reserved.isdisjoint(range(first, first + count)):
            raise damaged(self._file.path, f"cluster {first} holds metadata with refcount 0")
        return first, count

    def write_back(self) -> None:
        """Write all changes; blocks are stable before the table names them. Raises `HostError`."""
        new = []
        for number in sorted(self._dirty):
            block = self._blocks[number]
            self._file.write(*block.emit_changed())
            if block.is_new:
                new.append(number)
        if new:
            self._file.sync()
            for number in new:
                entry = struct.pack(">Q", self.table[number])
                self._file.write(self.offset + number * 8, entry)
                self._blocks[number].is_new = False
        for number in self._dirty:
            self._blocks[number].changed = None
        self._dirty.clear()

    def _block(self, number: int) -> Block | None:
        block = self._blocks.get(number)
        if block is None and number < len(self.table) and (entry := self.table[number]):
            at = entry & OFFSET
            cluster_size = self._geometry.cluster_size
            if not at or at & (cluster_size - 1) or at >= self._end:
                raise damaged(self._file.path, f"refcount table entry {number} is {entry:#x}")
            data = self._file.read(at, cluster_size).ljust(cluster_size, b"\0")
            block = Block(at, data, self._geometry.refcount_order, is_new=False)
            self._keep(number, block)
        return block

    def _keep(self, number: int, block: Block) -> None:
        if len(self._blocks) >= self._limit:
            for other in self._blocks:
                if other not in self._dirty:
                    del self._blocks[other]
                    break
        self._blocks[number] = block

    def _add_block(self, number: int) -> Block:
        """A new block that counts itself first."""
        if number >= len(self.table):
            self._grow(number)
            if block := self._block(number):
                return block
        return self._new_block(number, number * self._per_block)

    def _new_block(self, number: int, cluster: int) -> Block:
        at = cluster << self._geometry.cluster_bits
        if at >= _MAX_OFFSET:
            raise HostError(f"disk {self._file.path}: the image is full", errno.EFBIG)
        if cluster in self._reserved:
            raise damaged(self._file.path, f"cluster {cluster} holds metadata with refcount 0")
        empty = bytes(self._geometry.cluster_size)
        block = Block(at, empty, self._geometry.refcount_order, is_new=True)
        if cluster // self._per_block == number:
            block.set(cluster % self._per_block, 1)
        self.table[number] = at
        self._keep(number, block)
        self._dirty.add(number)
        self._end = max(self._end, at + 1)
        self._reserved.add(cluster)
        return block

    def _grow(self, number: int) -> None:
        """Move the table to a larger place, so that it has an entry `number`.

        The new table and the blocks that count it follow one another from the first cluster that
        the old one could not count; the header names the new table when all that is stable.
        """
        per_block, bits = self._per_block, self._geometry.cluster_bits
        entries_a_cluster = 1 << bits >> 3
        clusters, blocks = self.clusters * 2, 1
        while True:
            fits = -(-(blocks + clusters) // per_block)
            wanted = -(-(number + blocks) // entries_a_cluster)
            if fits <= blocks and wanted <= clusters:
                break
            blocks, clusters = max(blocks, fits), max(clusters, wanted)
        if clusters << bits > _MAX_TABLE:
            raise HostError(f"disk {self._file.path}: the image is full", errno.EFBIG)
        self.write_back()
        first = number * per_block
        old_at, old_clusters = self.offset, self.clusters
        grown = self.table + array("Q", bytes((clusters << bits) - len(self.table) * 8))
        counts = [Block(first + i << bits, bytes(1 << bits), self._geometry.refcount_order, False)
                  for i in range(blocks)]  # fmt: skip
        for used in range(blocks + clusters):
            counts[used // per_block].set(used % per_block, 1)
        for i, block in enumerate(counts):
            grown[number + i] = block.at
            self._file.write(block.at, block.emit())
            block.changed = None
        table_at = first + blocks << bits
        self._file.write(table_at, table_bytes(grown))
        self._file.sync()
        self._file.write(REFCOUNT_TABLE_AT, struct.pack(">QI", table_at, clusters))
        self._file.sync()
        self.table, self.offset, self.clusters = grown, table_at, clusters
        self._end = max(self._end, table_at + (clusters << bits))
        self._reserved.update(range(first, first + blocks + clusters))
        for i, block in enumerate(counts):
            self._keep(number + i, block)
        for cluster in range(old_at >> bits, (old_at >> bits) + old_clusters):
            self.release(cluster)
