"""How a qcow2 image is cut up, and the bits of its table entries.

    guest offset = | L1 index | L2 index | offset in cluster |
                              cluster_bits - 3   cluster_bits

    L1 entry     63 COPIED | 55..9 offset of the L2 table
    L2 entry     63 COPIED | 62 COMPRESSED | 55..9 host offset | 0 ZERO (version 3)
    compressed   62 | x..61 further sectors | 0..x-1 host offset, x = 62 - (cluster_bits - 8)

COPIED says that the refcount is exactly one: a write may happen in place.
(QEMU, docs/interop/qcow2, "Cluster mapping")
"""

import errno
import sys
from array import array
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from kasou.errors import HostError
from kasou.storage.file import File
from kasou.storage.qcow2.header import Header

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1 << 0
OFFSET = 0x00FF_FFFF_FFFF_FE00
SECTOR = 512


class Kind(IntEnum):
    """Where a guest cluster's bytes are."""

    DATA = 0
    ZERO = 1
    HOLE = 2
    COMPRESSED = 3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and shifts of one image."""

    cluster_bits: int
    refcount_order: int
    has_zero_flag: bool

    @classmethod
    def of(cls, header: Header) -> "Geometry":
        """The geometry that `header` describes."""
        return cls(header.cluster_bits, header.refcount_order, header.version >= 3)

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_bits(self) -> int:
        """log2 of the entries of an L2 table."""
        return self.cluster_bits - 3

    @property
    def refcounts_per_block(self) -> int:
        """Entries of a refcount block."""
        return 8 << self.cluster_bits >> self.refcount_order

    @property
    def max_refcount(self) -> int:
        """The largest refcount that an entry holds."""
        return (1 << (1 << self.refcount_order)) - 1

    def kind(self, entry: int) -> Kind:
        """What an L2 entry means."""
        if entry & COMPRESSED:
            return Kind.COMPRESSED
        if entry & ZERO and self.has_zero_flag:
            return Kind.ZERO
        return Kind.DATA if entry & OFFSET else Kind.HOLE

    def compressed_span(self, entry: int) -> tuple[int, int]:
        """(host offset, bytes) of the sectors that hold a compressed cluster."""
        x = 62 - (self.cluster_bits - 8)
        at = entry & ((1 << x) - 1)
        sectors = (entry & (COMPRESSED - 1)) >> x
        return at, (sectors + 1) * SECTOR - at % SECTOR

    def clusters_of(self, entry: int) -> range:
        """The host clusters, by number, that an L2 entry holds a reference to."""
        if entry & COMPRESSED:
            at, n = self.compressed_span(entry)
            return range(at >> self.cluster_bits, (at + n - 1 >> self.cluster_bits) + 1)
        first = (entry & OFFSET) >> self.cluster_bits
        return range(first, first + 1) if first else range(0)


def damaged(path: Path, what: str) -> HostError:
    """The error for an image whose tables contradict themselves."""
    return HostError(
        f"disk {path}: the image is damaged: {what}; `kasou images check` says more", errno.EIO
    )


def read_table(file: File, offset: int, entries: int) -> "array[int]":
    """`entries` numbers of 64 bits from `offset`; zeroes where the file ends before."""
    data = file.read(offset, entries * 8)
    table = array("Q", data.ljust(entries * 8, b"\0"))
    if sys.byteorder == "little":
        table.byteswap()
    return table


def table_bytes(table: "array[int]") -> bytes:
    """How `table` is stored."""
    if sys.byteorder == "little":
        table = table[:]
        table.byteswap()
    return table.tobytes()
