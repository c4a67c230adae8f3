"""Bringing an image's tables to the medium, in the order that keeps it whole.

What a crash may leave. Guest data goes to the file at once, into clusters that nothing names yet
or in place; tables and refcounts change in memory only. A commit writes them in this order, each
line stable before the next begins:

    1. refcounts that grew, new L2 tables, and all guest data before them
    2. L2 entries in place, L1 entries
    3. (in memory, for the next commit) refcounts of what is no longer named; holes in the file

So at any point a cluster that a table names has its refcount and its data, and a cluster is given
out again only when no table on the medium names it: what a crash can leave is clusters counted
but unused (leaks), never a damaged image. Refcounts are written in time also where the image
would allow them late (lazy refcounts).
"""

import errno
import struct

from kasou.errors import ConfigError, HostError
from kasou.ports import Disk
from kasou.storage.file import File
from kasou.storage.qcow2.geometry import damaged
from kasou.storage.qcow2.header import AUTOCLEAR_AT, Header, Incompatible
from kasou.storage.qcow2.reading import ImageReader
from kasou.storage.qcow2.refcounts import Refcounts
from kasou.storage.qcow2.snapshots import Snapshot, snapshot_clusters
from kasou.storage.qcow2.tables import L2Table

_MAX_PENDING = 1 << 16


class Committer(ImageReader):
    """An image whose tables may change: what waits, and writing it.

    `_pending` are host clusters that will lose one reference when the next commit is stable;
    `_fresh` is the file offset from which on nothing was ever written.
    """

    def __init__(
        self,
        file: File,
        header: Header,
        *,
        backing: Disk | None = None,
        read_only: bool = False,
        snapshot: Snapshot | None = None,
    ) -> None:
        super().__init__(file, header, backing=backing, read_only=read_only, snapshot=snapshot)
        self._pending: list[range] = []
        self._counts: Refcounts | None = None
        self._fresh = -(-file.size() // self._cluster) * self._cluster
        self._since_commit = False
        if not self._read_only:
            self._begin_writing()

    def _commit(self) -> None:
        counts = self._counts
        assert counts is not None
        counts.write_back()
        self._tables.write_new()
        self._file.sync()
        self._tables.write_changed()
        self._file.sync()
        self._tables.committed()
        self._since_commit = False
        pending, self._pending = self._pending, []
        self._release(counts, pending)

    def _release(self, counts: Refcounts, pending: list[range]) -> None:
        start = end = 0
        for clusters in pending:
            for cluster in clusters:
                if counts.release(cluster):
                    if cluster != end:
                        self._punch(start, end)
                        start = cluster
                    end = cluster + 1
        self._punch(start, end)

    def _punch(self, start: int, end: int) -> None:
        if end > start:
            self._file.punch(start << self._bits, end - start << self._bits)

    def _relieve(self) -> None:
        """Commit before changes that wait take too much memory."""
        if self._tables.is_crowded or len(self._pending) > _MAX_PENDING:
            self._commit()

    def _change(self, counts: Refcounts, l1_index: int) -> L2Table:
        table, replaced = self._tables.writable(l1_index, counts)
        if replaced is not None:
            self._pending.append(range(replaced >> self._bits, (replaced >> self._bits) + 1))
        self._since_commit = True
        return table

    def _replace(self, table: L2Table, index: int, entry: int) -> None:
        """Change an L2 entry; what it named is released once the change is stable."""
        i = index & self._l2_mask
        if old := self._geometry.clusters_of(table.entries[i]):
            counts = self._writable()
            if old[-1] << self._bits >= self._tables.end or any(map(counts.is_reserved, old)):
                raise damaged(self.path, f"guest cluster {index} is said to be at {old[0]:#x}")
            self._pending.append(old)
        table.set(i, entry)

    def _writable(self) -> Refcounts:
        if self._read_only or self._counts is None:
            raise HostError(f"disk {self.path}: is attached read-only", errno.EROFS)
        return self._counts

    def _begin_writing(self) -> None:
        header, bits = self.header, self._bits
        if header.incompatible & Incompatible.CORRUPT:
            raise ConfigError(
                f"disk {self.path}: is marked corrupt; attach it read-only, or mend it with "
                "`qemu-img check -r all`"
            )
        counts = Refcounts(
            self._file, self._geometry, header.refcount_table_offset, header.refcount_table_clusters
        )
        l1_clusters = -(-header.l1_size * 8 >> bits)
        first = header.l1_table_offset >> bits
        counts.reserve(*range(first, first + l1_clusters), *self._tables.l2_clusters())
        counts.reserve(*snapshot_clusters(self._file, header))
        self._counts = counts
        if header.autoclear:  # bitmaps and what else would have to follow our writes
            self._file.write(AUTOCLEAR_AT, struct.pack(">Q", 0))
            self._file.sync()
