"""Does every table of an image agree with every other?

Every reference is counted, from the header down, and compared with the stored refcounts: one that
is too high is a leak (space lost, no harm), one that is too low a corruption (the cluster would be
given out twice). A COPIED flag must be set where, and only where, the refcount is one.
"""

import struct
from collections import Counter
from dataclasses import dataclass, field

from kasou.errors import ConfigError
from kasou.storage.file import File
from kasou.storage.qcow2.geometry import (
    COMPRESSED,
    COPIED,
    OFFSET,
    Geometry,
    Kind,
    read_table,
)
from kasou.storage.qcow2.header import Header
from kasou.storage.qcow2.refcounts import Refcounts
from kasou.storage.qcow2.snapshots import read_snapshots, snapshot_clusters

_MAX_CLUSTERS = 1 << 28
_MAX_MESSAGES = 100
_L1_RESERVED = 0x7F00_0000_0000_01FF
_L2_RESERVED = 0x3F00_0000_0000_01FE


@dataclass
class Report:
    """What a check found: how many clusters leak, how many things are corrupt, and the first words.

    `allocated` and `compressed` count guest clusters, of `clusters`.
    """

    leaks: int = 0
    corruptions: int = 0
    messages: list[str] = field(default_factory=list)
    clusters: int = 0
    allocated: int = 0
    compressed: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.leaks and not self.corruptions

    def say(self, message: str) -> None:
        """Keep a message, unless there are many."""
        if len(self.messages) < _MAX_MESSAGES:
            self.messages.append(message)

    def corrupt(self, message: str) -> None:
        """Note a corruption."""
        self.corruptions += 1
        self.say(message)


class References:
    """How often each host cluster is referred to: a byte each, the few larger counts aside."""

    def __init__(self, clusters: int) -> None:
        self.clusters = clusters
        self._counts = bytearray(clusters)
        self._more: dict[int, int] = {}

    def __getitem__(self, cluster: int) -> int:
        count = self._counts[cluster]
        return count if count < 255 else self._more[cluster]

    def add(self, cluster: int, times: int = 1) -> bool:
        """Count references; False when the file has no such cluster."""
        if cluster >= self.clusters:
            return False
        count = self[cluster] + times
        self._counts[cluster] = min(count, 255)
        if count >= 255:
            self._more[cluster] = count
        return True

    def slice(self, start: int, stop: int) -> list[int]:
        """The counts of these clusters, none behind the end."""
        found = list(self._counts[start:stop])
        for cluster in self._more:
            if start <= cluster < stop:
                found[cluster - start] = self._more[cluster]
        return found


class Check:
    """One check of the image in `file`; `run` gives the report."""

    def __init__(self, file: File, header: Header) -> None:
        self.file = file
        self.header = header
        self.geometry = Geometry.of(header)
        self.bits = header.cluster_bits
        self.report = Report(clusters=-(-header.size >> self.bits))
        length = file.size()
        clusters = -(-length >> self.bits)
        if clusters > _MAX_CLUSTERS:
            raise ConfigError(f"disk {file.path}: {length} bytes are too many to check")
        self.references = References(clusters)

    def run(self) -> Report:
        """Count, compare, report. Raises `ConfigError`, `HostError`."""
        self.count_guest()
        self._count_refcounts()
        self._compare()
        return self.report

    def count_guest(self) -> None:
        """Count all references but those of the refcount table and its blocks."""
        header = self.header
        self.references.add(0)
        l1_tables = [("active", header.l1_table_offset, header.l1_size)]
        if header.nb_snapshots:
            for cluster in self._list_of_snapshots():
                self._refer(cluster, "the list of snapshots")
            l1_tables += [
                (f"snapshot {snapshot.id}", snapshot.l1_table_offset, snapshot.l1_size)
                for snapshot in read_snapshots(self.file, header)
            ]
        times: Counter[int] = Counter()
        for name, offset, entries in l1_tables:
            self._span(offset, entries * 8, f"the {name} L1 table")
            for i, entry in enumerate(read_table(self.file, offset, entries)):
                if entry:
                    if entry & _L1_RESERVED or entry & OFFSET & (1 << self.bits) - 1:
                        self.report.corrupt(f"{name} L1 entry {i} is {entry:#x}")
                    elif self._refer((entry & OFFSET) >> self.bits, f"{name} L1 entry {i}"):
                        times[entry & OFFSET] += 1
        for at, n in times.items():
            self._count_l2(at, n)
        self._count_guest_clusters()
        self._count_bitmaps()

    def _list_of_snapshots(self) -> set[int]:
        """The clusters of the list alone."""
        tables = [
            range(
                s.l1_table_offset >> self.bits,
                (s.l1_table_offset + s.l1_size * 8 - 1 >> self.bits) + 1,
            )
            for s in read_snapshots(self.file, self.header)
        ]
        return {
            cluster
            for cluster in snapshot_clusters(self.file, self.header)
            if not any(cluster in table for table in tables)
        }

    def _count_l2(self, at: int, times: int) -> None:
        """Count what the L2 table at `at`, itself named `times` times, refers to."""
        misaligned = OFFSET & (1 << self.bits) - 1
        for i, entry in enumerate(read_table(self.file, at, 1 << self.geometry.l2_bits)):
            if not entry:
                continue
            what = f"entry {i} of the L2 table at {at:#x}"
            if entry & COMPRESSED:
                if entry & COPIED:
                    self.report.corrupt(f"{what} is compressed and COPIED")
            elif entry & (_L2_RESERVED | misaligned):
                self.report.corrupt(f"{what} is {entry:#x}")
                continue
            for cluster in self.geometry.clusters_of(entry):
                self._refer(cluster, what, times)

    def _count_guest_clusters(self) -> None:
        for entry in read_table(self.file, self.header.l1_table_offset, self.header.l1_size):
            at = entry & OFFSET
            if at and not at & (1 << self.bits) - 1:
                for data in read_table(self.file, at, 1 << self.geometry.l2_bits):
                    kind = self.geometry.kind(data)
                    self.report.allocated += kind in (Kind.DATA, Kind.COMPRESSED)
                    self.report.compressed += kind is Kind.COMPRESSED

    def _count_bitmaps(self) -> None:
        """Count the bitmap directory, the bitmap tables and the bitmaps' data."""
        at, n = self.header.bitmap_directory
        if not n:
            return
        self._span(at, n, "the bitmap directory")
        directory = self.file.read(at, min(n, 64 << 20))
        position = 0
        while position + 24 <= len(directory):
            table_at, entries, _, _, _, name, extra = struct.unpack_from(
                ">QIIBBHI", directory, position
            )
            position += -(-(24 + name + extra) // 8) * 8
            if entries * 8 > 64 << 20:
                self.report.corrupt(f"a bitmap table of {entries} entries")
                continue
            self._span(table_at, entries * 8, "a bitmap table")
            for entry in read_table(self.file, table_at, entries):
                if entry & OFFSET:
                    self._refer((entry & OFFSET) >> self.bits, "a bitmap table's entry")

    def _count_refcounts(self) -> None:
        header = self.header
        at, n = header.refcount_table_offset, header.refcount_table_clusters << self.bits
        self._span(at, n, "the refcount table")
        for i, entry in enumerate(read_table(self.file, at, n >> 3)):
            if entry:
                if entry & (1 << self.bits) - 1:
                    self.report.corrupt(f"refcount table entry {i} is {entry:#x}")
                else:
                    self._refer(entry >> self.bits, f"refcount table entry {i}")

    def _compare(self) -> None:
        """Stored refcounts and COPIED flags against what was counted."""
        header, report = self.header, self.report
        counts = Refcounts(
            self.file, self.geometry, header.refcount_table_offset, header.refcount_table_clusters
        )
        per_block = self.geometry.refcounts_per_block
        blocks = max(len(counts.table), -(-self.references.clusters // per_block))
        for number in range(blocks):
            start = number * per_block
            if start >= self.references.clusters and (
                number >= len(counts.table) or not counts.table[number]
            ):
                continue
            entry = counts.table[number] if number < len(counts.table) else 0
            if entry & (1 << self.bits) - 1 or entry >> self.bits >= self.references.clusters:
                continue  # was reported
            inside = max(0, min(per_block, self.references.clusters - start))
            stored = counts.several(start, inside)
            wanted = self.references.slice(start, start + inside)
            if stored != wanted:
                for i in range(inside):
                    self._judge(start + i, stored[i], wanted[i])
            for cluster in counts.in_use(start + inside, start + per_block):
                self._judge(cluster, counts.get(cluster), 0)
        for what, _ in self.wrong_flags():
            report.corrupt(what)

    def _judge(self, cluster: int, stored: int, wanted: int) -> None:
        if stored > wanted:
            self.report.leaks += 1
            self.report.say(f"cluster {cluster} leaks: refcount {stored}, references {wanted}")
        elif stored < wanted:
            self.report.corrupt(f"cluster {cluster}: refcount {stored}, references {wanted}")

    def wrong_flags(self) -> list[tuple[str, tuple[int, int]]]:
        """COPIED flags of the active tables that are wrong: words, (file offset, right entry)."""
        found = []

        def judge(what: str, at: int, entry: int, cluster: int) -> None:
            if cluster < self.references.clusters:
                count = self.references[cluster]
                if bool(entry & COPIED) != (count == 1):
                    found.append(
                        (f"{what}: COPIED is wrong, {count} references", (at, entry ^ COPIED))
                    )

        l1_at = self.header.l1_table_offset
        for i, entry in enumerate(read_table(self.file, l1_at, self.header.l1_size)):
            at = entry & OFFSET
            if not at or at & (1 << self.bits) - 1:
                continue
            judge(f"L1 entry {i}", l1_at + i * 8, entry, at >> self.bits)
            for j, data in enumerate(read_table(self.file, at, 1 << self.geometry.l2_bits)):
                if data & OFFSET and not data & COMPRESSED:
                    judge(
                        f"entry {j} of the L2 table at {at:#x}",
                        at + j * 8,
                        data,
                        (data & OFFSET) >> self.bits,
                    )
        return found

    def _refer(self, cluster: int, what: str, times: int = 1) -> bool:
        if self.references.add(cluster, times):
            return True
        self.report.corrupt(f"{what} points behind the file's end, to cluster {cluster}")
        return False

    def _span(self, at: int, n: int, what: str) -> None:
        """Refer to all clusters of `n` bytes."""
        if n:
            for cluster in range(at >> self.bits, (at + n - 1 >> self.bits) + 1):
                if not self._refer(cluster, what):
                    break
