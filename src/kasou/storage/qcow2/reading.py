"""Reading a qcow2 image: where each guest byte is, and fetching it from there.

A `Run` is a stretch of guest bytes that are kept alike and lie one after the other. Where the
image has nothing (HOLE) the backing disk shows through, as far as it reaches; behind its end, and
without one, there are zeroes. (QEMU, docs/interop/qcow2, "Cluster mapping")
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kasou.errors import ConfigError
from kasou.ports import Disk
from kasou.storage.file import File
from kasou.storage.qcow2.compressed import decompressor, expand
from kasou.storage.qcow2.geometry import COMPRESSED, OFFSET, ZERO, Geometry, Kind, damaged
from kasou.storage.qcow2.header import Header
from kasou.storage.qcow2.snapshots import Snapshot
from kasou.storage.qcow2.tables import Tables


class Run(NamedTuple):
    """`n` guest bytes that are kept alike: DATA from byte `at` of the file, COMPRESSED by entry `at`."""

    kind: Kind
    at: int
    n: int


class ImageReader:
    """The image in `file` for reading, as the disk now is or as an internal snapshot kept it."""

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
