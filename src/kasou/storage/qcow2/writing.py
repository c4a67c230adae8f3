"""Writing to a qcow2 image: in place where a cluster is ours alone, else copy on write.

A cluster that is shared, compressed, zero or not there is replaced by a new one, filled around the
written bytes with what the guest reads there. A discarded or zeroed cluster is not written at all:
its table entry changes, and its space is given up once that is on stable storage.
"""

from collections.abc import Iterator, Sequence

from kasou.storage.file import Bytes
from kasou.storage.qcow2.committing import Committer
from kasou.storage.qcow2.geometry import COPIED, OFFSET, ZERO, Kind
from kasou.storage.qcow2.reading import Run
from kasou.storage.qcow2.refcounts import Refcounts
from kasou.storage.qcow2.tables import L2Table

_ZEROES = b"\0" * (2 << 20)  # touched memory: a killed write then never ends inside a sector


class ImageWriter(Committer):
    """An image that takes writes."""

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
