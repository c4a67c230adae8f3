"""A qcow2 image as a `Disk`: copy on write over an optional backing disk.

What a crash may leave. Guest data goes to the file at once, into clusters that nothing names yet
or in place; tables and refcounts change in memory only. `commit` writes them in this order, each
line stable before the next begins:

    1. refcounts that grew, new L2 tables, and all guest data before them
    2. L2 entries in place, L1 entries
    3. (in memory, for the next commit) refcounts of what is no longer named; holes in the file

So at any point a cluster that a table names has its refcount and its data, and a cluster is given
out again only when no table on the medium names it: what a crash can leave is clusters counted
but unused (leaks), never a damaged image. A flush is a commit, or one `fdatasync` when no table
changed. Refcounts are written in time also where the image would allow them late (lazy refcounts).

All methods may be called on any thread, one at a time inside.
"""

import errno
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from kasou.errors import ConfigError, HostError
from kasou.ports import Disk
from kasou.storage.file import Bytes, File
from kasou.storage.qcow2.compressed import decompressor, expand
from kasou.storage.qcow2.geometry import (
    COMPRESSED,
    COPIED,
    OFFSET,
    ZERO,
    Geometry,
    Kind,
    damaged,
)
from kasou.storage.qcow2.header import AUTOCLEAR_AT, Header, Incompatible
from kasou.storage.qcow2.refcounts import Refcounts
from kasou.storage.qcow2.snapshots import Snapshot, snapshot_clusters
from kasou.storage.qcow2.tables import L2Table, Tables

_ZEROES = b"\0" * (2 << 20)  # touched memory: a killed write then never ends inside a sector
_MAX_PENDING = 1 << 16


class Run(NamedTuple):
    """`n` guest bytes that are kept alike: DATA from byte `at` of the file, COMPRESSED by entry `at`."""

    kind: Kind
    at: int
    n: int


class Qcow2Disk:
    """The image in `file`, which it owns as it owns `backing`.

    `snapshot` shows the disk as an internal snapshot kept it; that and `read_only` refuse writes.
    Raises `ConfigError` when the image must not be opened that way.
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
        self.path: Path = file.path
        self.header = header
        self._file = file
        self._backing = backing
        self._read_only = read_only or snapshot is not None
        self._lock = threading.RLock()
        self._geometry = geometry = Geometry.of(header)
        self._bits = geometry.cluster_bits
        self._cluster = geometry.cluster_size
        self._mask = self._cluster - 1
        self._l2_bits = geometry.l2_bits
        self._l2_mask = (1 << self._l2_bits) - 1
        self._zero_flag = ZERO if geometry.has_zero_flag else 0
        self._special = COMPRESSED | self._zero_flag | (OFFSET & self._mask)
        size = header.size if snapshot is None else snapshot.disk_size or header.size
        self._size = size // 512 * 512
        self._backing_size = min(backing.size_bytes, self._size) if backing else 0
        l1_offset, l1_size = header.l1_table_offset, header.l1_size
        if snapshot is not None:
            l1_offset, l1_size = snapshot.l1_table_offset, snapshot.l1_size
            if l1_size << (self._l2_bits + self._bits) < self._size:
                raise ConfigError(f"disk {self.path}: snapshot {snapshot.name!r} is damaged")
        self._tables = Tables(file, geometry, l1_offset, l1_size)
        self._expand = decompressor(header.compression_type, self.path)
        self._inflated: tuple[int, bytes] | None = None
        self._pending: list[range] = []
        self._counts: Refcounts | None = None
        self._fresh = -(-file.size() // self._cluster) * self._cluster
        self._since_commit = False
        if not self._read_only:
            self._begin_writing()

    @property
    def size_bytes(self) -> int:
        """Capacity, a multiple of 512."""
        return self._size

    @property
    def read_only(self) -> bool:
        """Whether `write` is refused."""
        return self._read_only

    @property
    def backing(self) -> Disk | None:
        """What shows through where this image holds nothing."""
        return self._backing

    # ------------------------------------------------------------------ reading
    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from byte `offset`. Raises `HostError`."""
        with self._lock:
            within = offset & self._mask
            if within + n <= self._cluster:  # the common case, without a generator
                table = self._tables.cache.get(offset >> self._bits + self._l2_bits)
                if table is not None:
                    entry = table.entries[offset >> self._bits & self._l2_mask]
                    if not entry & self._special and (host := entry & OFFSET):
                        data = self._file.read(host + within, n)
                        if len(data) == n:
                            return data
            parts = []
            for run in self._runs(offset, n):
                parts.append(self._fetch(run, offset))
                offset += run.n
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill `views` in order, from byte `offset`. Raises `HostError`."""
        with self._lock:
            for view in views:
                done = 0
                for run in self._runs(offset, len(view)):
                    piece = view[done : done + run.n]
                    got = 0
                    if run.kind is Kind.DATA:
                        got = self._file.readv(run.at, [piece])
                    if got != run.n:
                        piece[:] = self._fetch(run, offset)
                    done += run.n
                    offset += run.n

    def runs(self, offset: int, n: int) -> list[Run]:
        """How the bytes from `offset` are kept here, this image's own clusters only."""
        with self._lock:
            return list(self._runs(offset, n))

    def _fetch(self, run: Run, offset: int) -> bytes:
        """The bytes of `run`, which begins at guest byte `offset`."""
        kind, at, n = run
        if kind is Kind.DATA:
            data = self._file.read(at, n)
            return data if len(data) == n else data.ljust(n, b"\0")
        if kind is Kind.COMPRESSED:
            within = offset & self._mask
            return self._inflate(at)[within : within + n]
        if kind is Kind.HOLE and offset < self._backing_size:
            assert self._backing is not None
            inside = min(n, self._backing_size - offset)
            return self._backing.read(offset, inside).ljust(n, b"\0")
        return bytes(n)

    def _inflate(self, entry: int) -> bytes:
        """The cluster that a compressed entry stands for; the last one is remembered."""
        if self._inflated is None or self._inflated[0] != entry:
            at, n = self._geometry.compressed_span(entry)
            data = self._file.read(at, n)
            self._inflated = entry, expand(self._expand, data, self._cluster, self.path)
        return self._inflated[1]

    def _runs(self, offset: int, n: int) -> Iterator[Run]:
        bits, cluster, special = self._bits, self._cluster, self._special
        while n:
            index = offset >> bits
            table = self._tables.get(index >> self._l2_bits)
            if table is None:
                span = 1 << self._l2_bits + bits
                length = min(n, span - (offset & span - 1))
                yield Run(Kind.HOLE, 0, length)
            else:
                entries = table.entries
                i = index & self._l2_mask
                entry = entries[i]
                kind = self._geometry.kind(entry)
                within = offset & self._mask
                length = cluster - within
                i += 1
                at = 0
                if kind is Kind.DATA:
                    host = self._host(entry, index)
                    at = host + within
                    host += cluster
                    while length < n and i < len(entries):
                        entry = entries[i]
                        if entry & special or entry & OFFSET != host or host >= self._tables.end:
                            break
                        host += cluster
                        length += cluster
                        i += 1
                elif kind is Kind.COMPRESSED:
                    at = entry
                else:
                    while length < n and i < len(entries):
                        if self._geometry.kind(entries[i]) is not kind:
                            break
                        length += cluster
                        i += 1
                length = min(length, n)
                yield Run(kind, at, length)
            offset += length
            n -= length

    def _host(self, entry: int, index: int) -> int:
        """The file offset of a data cluster. Raises `HostError` where none can be."""
        host = entry & OFFSET
        if host & self._mask or host >= self._tables.end:
            raise damaged(self.path, f"guest cluster {index} is said to be at {host:#x}")
        return host

    # ------------------------------------------------------------------ writing
    def write(self, offset: int, data: Bytes) -> None:
        """Store `data` at byte `offset`. Raises `HostError`."""
        with self._lock:
            counts = self._writable()
            n = len(data)
            within = offset & self._mask
            if within + n <= self._cluster:
                table = self._tables.cache.get(offset >> self._bits + self._l2_bits)
                if table is not None:
                    entry = table.entries[offset >> self._bits & self._l2_mask]
                    if (
                        entry & COPIED
                        and not entry & self._special
                        and not table.is_shared
                        and (host := entry & OFFSET) < self._tables.end
                        and host
                        and not counts.is_reserved(host >> self._bits)
                    ):
                        self._file.write(host + within, data)
                        return
            view = memoryview(data)
            while view:
                done = self._write_some(counts, offset, view)
                offset += done
                view = view[done:]
            self._relieve()

    def writev(self, offset: int, views: Sequence[bytes | memoryview]) -> None:
        """Store `views` one after the other at byte `offset`. Raises `HostError`."""
        if len(views) == 1:
            self.write(offset, views[0])
            return
        with self._lock:
            counts = self._writable()
            n = sum(map(len, views))
            run = next(self._runs(offset, n), None)
            if run is not None and run.kind is Kind.DATA and run.n == n:
                table = self._tables.get(offset >> self._bits + self._l2_bits)
                first = offset >> self._bits & self._l2_mask
                last = first + ((offset & self._mask) + n - 1 >> self._bits)
                if table is not None and all(
                    self._is_in_place(counts, entry) for entry in table.entries[first : last + 1]
                ):
                    self._file.writev(run.at, views)
                    return
            self.write(offset, b"".join(views))

    def _write_some(self, counts: Refcounts, offset: int, view: memoryview) -> int:
        """Store a beginning of `view` that can go to one place; its length."""
        index = offset >> self._bits
        within = offset & self._mask
        l1_index = index >> self._l2_bits
        i = index & self._l2_mask
        table = self._tables.get(l1_index)
        clusters = min((within + len(view) - 1 >> self._bits) + 1, self._l2_mask + 1 - i)
        if (
            table is not None
            and not table.is_shared
            and self._is_in_place(counts, table.entries[i])
        ):
            host = self._host(table.entries[i], index)
            k = 1
            while (
                k < clusters
                and self._is_in_place(counts, table.entries[i + k])
                and table.entries[i + k] & OFFSET == host + k * self._cluster
            ):
                k += 1
            done = min(len(view), k * self._cluster - within)
            self._file.write(host + within, view[:done])
            return done
        table = self._change(counts, l1_index)
        entry = table.entries[i]
        if (
            entry & COPIED
            and self._geometry.kind(entry) is Kind.ZERO
            and self._is_in_place(counts, entry & ~ZERO)
        ):
            done = min(len(view), self._cluster - within)  # space kept below a zero cluster
            self._fill(table, index, 1, self._host(entry, index), offset, view[:done], fresh=False)
            table.set(i, entry & ~ZERO)
            return done
        k = 1
        while k < clusters and not self._is_in_place(
            counts, table.entries[i + k] & ~self._zero_flag
        ):
            k += 1
        return self._write_new(counts, table, index, k, offset, view)

    def _write_new(
        self, counts: Refcounts, table: L2Table, index: int, k: int, offset: int, view: memoryview
    ) -> int:
        """Store a beginning of `view` in up to `k` new clusters; its length."""
        cluster, got = counts.allocate(k)
        host = cluster << self._bits
        done = min(len(view), got * self._cluster - (offset & self._mask))
        fresh = host >= max(self._fresh, self._tables.end)
        end = host + got * self._cluster
        self._fresh = max(self._fresh, end)
        try:
            self._fill(table, index, got, host, offset, view[:done], fresh)
        except BaseException:
            for used in range(cluster, cluster + got):
                counts.release(used)
            raise
        self._tables.end = max(self._tables.end, end)
        for step in range(got):
            self._replace(table, index + step, host + step * self._cluster | COPIED)
        return done

    def _fill(
        self,
        table: L2Table,
        index: int,
        k: int,
        host: int,
        offset: int,
        view: memoryview,
        fresh: bool,
    ) -> None:
        """Write `view` into `k` clusters from `host`, and around it what the guest reads there."""
        before = offset & self._mask
        after = k * self._cluster - before - len(view)
        head = self._old(table, index, 0, before) if before else None
        tail = self._old(table, index + k - 1, self._cluster - after, after) if after else None
        if fresh:  # nothing was ever written there: it reads as zero
            parts: list[Bytes] = [head or b"", view, tail or b""]
            at = host if head else host + before
        else:
            parts = [head or _ZEROES[:before], view, tail or _ZEROES[:after]]
            at = host
        self._file.writev(at, parts)

    def _old(self, table: L2Table, index: int, within: int, n: int) -> bytes | None:
        """What the guest reads now in a part of a cluster, None for zeroes."""
        entry = table.entries[index & self._l2_mask]
        kind = self._geometry.kind(entry)
        offset = (index << self._bits) + within
        if kind is Kind.ZERO or (kind is Kind.HOLE and offset >= self._backing_size):
            return None
        at = self._host(entry, index) + within if kind is Kind.DATA else entry
        return self._fetch(Run(kind, at, n), offset)

    def _is_in_place(self, counts: Refcounts, entry: int) -> bool:
        """Whether a write may go where `entry` points."""
        host = entry & OFFSET
        return bool(
            entry & COPIED
            and host
            and not entry & self._special
            and host < self._tables.end
            and not counts.is_reserved(host >> self._bits)
        )

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

    # ------------------------------------------------------------------ discard, zeroes
    def discard(self, offset: int, n: int) -> None:
        """Whole clusters of these `n` bytes are given up; they read as zero. Raises `HostError`."""
        with self._lock:
            counts = self._writable()
            for index in self._held(self._whole_clusters(offset, n)):
                table = self._tables.get(index >> self._l2_bits)
                assert table is not None
                entry = table.entries[index & self._l2_mask]
                covered = index << self._bits < self._backing_size
                if self._geometry.kind(entry) is Kind.HOLE or (covered and not self._zero_flag):
                    continue
                new = self._zero_flag if covered else 0
                if entry != new:
                    self._replace(self._change(counts, index >> self._l2_bits), index, new)
            self._relieve()

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None:
        """Make `n` bytes read as zero; with `unmap` their space is given up. Raises `HostError`."""
        with self._lock:
            counts = self._writable()
            whole = self._whole_clusters(offset, n)
            if not whole:
                self._write_zero_bytes(offset, n)
                return
            start, end = whole.start << self._bits, whole.stop << self._bits
            if offset < start:
                self._write_zero_bytes(offset, start - offset)
            if end < offset + n:
                self._write_zero_bytes(end, offset + n - end)
            for index in whole if self._backing_size > offset else self._held(whole):
                self._zero_cluster(counts, index, unmap)
                self._relieve()

    def _zero_cluster(self, counts: Refcounts, index: int, unmap: bool) -> None:
        table = self._tables.get(index >> self._l2_bits)
        entry = table.entries[index & self._l2_mask] if table else 0
        kind = self._geometry.kind(entry)
        covered = index << self._bits < self._backing_size
        if (kind is Kind.HOLE and not covered) or (
            kind is Kind.ZERO and not (unmap and entry & OFFSET)
        ):
            return
        if not self._zero_flag and covered:
            start = index << self._bits
            self._write_zero_bytes(start, min(self._cluster, self._size - start))
            return
        if not unmap and self._zero_flag and self._is_in_place(counts, entry):
            self._change(counts, index >> self._l2_bits).set(index & self._l2_mask, entry | ZERO)
            return
        table = self._change(counts, index >> self._l2_bits)
        self._replace(table, index, self._zero_flag if covered else 0)

    def _write_zero_bytes(self, offset: int, n: int) -> None:
        """Write zeroes to a part of a cluster, unless it reads as zero already."""
        for run in self._runs(offset, n):
            is_zero = run.kind is Kind.ZERO or (
                run.kind is Kind.HOLE and offset >= self._backing_size
            )
            if not is_zero:
                self.write(offset, memoryview(_ZEROES)[: run.n])
            offset += run.n

    def _held(self, clusters: range) -> Iterator[int]:
        """Those of `clusters` for which there is an L2 table."""
        index = clusters.start
        while index < clusters.stop:
            if self._tables.l1[index >> self._l2_bits] & OFFSET:
                yield index
                index += 1
            else:
                index = ((index >> self._l2_bits) + 1) << self._l2_bits

    def _whole_clusters(self, offset: int, n: int) -> range:
        """The clusters that lie in these bytes whole; the last one may end with the disk."""
        end = offset + n
        last = -(-end >> self._bits) if end >= self._size else end >> self._bits
        return range(offset + self._mask >> self._bits, last)

    # ------------------------------------------------------------------ stable storage
    def flush(self) -> None:
        """Return once everything written is on stable storage. Raises `HostError`."""
        with self._lock:
            if self._read_only:
                return
            if self._since_commit:
                self._commit()
            else:
                self._file.sync()

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

    def freeze(self) -> None:
        """Flush, accept no further write, and let others read. Raises `HostError`, `ConfigError`."""
        with self._lock:
            if not self._read_only:
                self._finish()
                self._read_only = True
                self._file.downgrade()

    def thaw(self) -> None:
        """Take back a `freeze`. Raises `ConfigError` when somebody reads the file by now."""
        with self._lock:
            self._file.upgrade()
            self._read_only = False

    def close(self) -> None:
        """Flush, give up file and backing; may be called twice. Raises `HostError`."""
        with self._lock:
            try:
                if not self._read_only:
                    self._finish()
            finally:
                self._read_only = True
                self._file.close()
                close = getattr(self._backing, "close", None)
                if close:
                    close()

    def __enter__(self) -> "Qcow2Disk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _finish(self) -> None:
        """Leave nothing in memory, not even a leak."""
        self.flush()
        if self._counts is not None and self._counts.is_dirty:
            self._counts.write_back()
            self._file.sync()

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
