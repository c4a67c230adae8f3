"""The first cluster of a qcow2 image: header, extensions, name of the backing file.

    0 magic | version | backing_file_offset u64 | backing_file_size | cluster_bits | size u64
    32 crypt_method | l1_size | l1_table_offset u64 | refcount_table_offset u64
    56 refcount_table_clusters | nb_snapshots | snapshots_offset u64               72 version 2 ends
    72 incompatible u64 | compatible u64 | autoclear u64 | refcount_order | header_length
    104 compression_type u8, padding to a multiple of 8

All numbers are big-endian. (QEMU, docs/interop/qcow2, "Header", "Header extensions")
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

from kasou.errors import ConfigError

MAGIC = b"QFI\xfb"
_BASE = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_END, _BACKING_FORMAT, _FEATURE_NAMES = 0, 0xE2792ACA, 0x6803F857
BITMAPS, _ENCRYPTION, DATA_FILE = 0x23852875, 0x0537BE77, 0x44415441

REFCOUNT_TABLE_AT, INCOMPATIBLE_AT, AUTOCLEAR_AT = 48, 72, 88
L1_TABLE_AT, SIZE_AT = 36, 24

_MAX_L1 = 32 << 20  # QEMU's limits: nothing larger is met, and memory stays bounded
_MAX_REFCOUNT_TABLE = 8 << 20
_MAX_SNAPSHOTS = 65536
_MAX_NAME = 1023


class Incompatible(IntFlag):
    """Features without which the image must not be opened."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION = 1 << 3
    EXTENDED_L2 = 1 << 4


class Compatible(IntFlag):
    """Features that may be ignored."""

    LAZY_REFCOUNTS = 1 << 0


AUTOCLEAR_BITMAPS = 1 << 0
ZLIB, ZSTD = 0, 1
_Wrong = Callable[[str], ConfigError]
_NAMES = {
    int(Incompatible.DATA_FILE): "external data file",
    int(Incompatible.EXTENDED_L2): "extended L2 entries",
}


@dataclass(frozen=True, slots=True)
class Header:
    """What the first cluster says; offsets in bytes of the file, `size` is the guest's disk."""

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    backing_file: str | None = None
    backing_format: str | None = None
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression_type: int = ZLIB
    bitmap_directory: tuple[int, int] = (0, 0)

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster, 512 to 2 MiB."""
        return 1 << self.cluster_bits

    @property
    def is_lazy(self) -> bool:
        """Whether refcounts may be written late."""
        return bool(self.compatible & Compatible.LAZY_REFCOUNTS)

    def emit(self) -> bytes:
        """The first cluster of a new image, to its last byte in use."""
        name = (self.backing_file or "").encode()
        extensions = b""
        if self.backing_format is not None:
            extensions += _extension(_BACKING_FORMAT, self.backing_format.encode())
        extensions += _extension(_END, b"")
        length = 72 if self.version == 2 else 112
        base = _BASE.pack(
            MAGIC,
            self.version,
            length + len(extensions) if name else 0,
            len(name),
            self.cluster_bits,
            self.size,
            0,
            self.l1_size,
            self.l1_table_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        )
        if self.version == 3:
            base += _V3.pack(
                self.incompatible, self.compatible, self.autoclear, self.refcount_order, length
            )
            base += bytes((self.compression_type,)).ljust(8, b"\0")
        return base + extensions + name


def parse(data: bytes, where: str, length: int) -> Header:
    """The header in `data` (the first cluster, or what there is of it).

    `length` is the whole file's. Raises `ConfigError`, beginning with `where`, when the image is
    damaged or needs what kasou does not have.
    """

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"{where}: {what}")

    if data[:4] != MAGIC:
        raise wrong("is not a qcow2 image (no magic number)")
    if len(data) < 72:
        raise wrong("the header is cut short")
    (_, version, name_at, name_size, cluster_bits, size, crypt, l1_size, l1_at, refcount_at,
     refcount_clusters, nb_snapshots, snapshots_at) = _BASE.unpack_from(data)  # fmt: skip
    if version not in (2, 3):
        raise wrong(f"qcow2 version {version}, expected 2 or 3")
    if not 9 <= cluster_bits <= 21:
        raise wrong(f"clusters of 2^{cluster_bits} bytes, expected 2^9 to 2^21")
    cluster = 1 << cluster_bits
    incompatible = compatible = autoclear = compression = 0
    order, header_length = 4, 72
    if version == 3:
        if len(data) < 104:
            raise wrong("the header is cut short")
        incompatible, compatible, autoclear, order, header_length = _V3.unpack_from(data, 72)
        if header_length < 104 or header_length % 8 or header_length > min(cluster, len(data)):
            raise wrong(f"header length {header_length} does not fit")
        if header_length > 104:
            compression = data[104]
    if name_at and not (header_length <= name_at and name_at + name_size <= cluster):
        raise wrong("the backing file's name is outside the first cluster")
    if name_at and not 0 < name_size <= _MAX_NAME:
        raise wrong(f"the backing file's name has {name_size} bytes, expected 1 to {_MAX_NAME}")
    extensions = _extensions(data, header_length, name_at or cluster, wrong)

    _check_features(incompatible, extensions.get(_FEATURE_NAMES, b""), wrong)
    if crypt or _ENCRYPTION in extensions:
        raise wrong("is encrypted, which kasou cannot open; `qemu-img convert` decrypts it")
    if bool(incompatible & Incompatible.COMPRESSION) != bool(compression):
        raise wrong("compression type and its feature bit disagree")
    if compression not in (ZLIB, ZSTD):
        raise wrong(f"compression type {compression} is unknown, expected zlib or zstd")
    if order > 6:
        raise wrong(f"refcounts of 2^{order} bits, expected at most 64")
    _check_tables(cluster, size, l1_size, l1_at, refcount_at, refcount_clusters, length, wrong)
    if nb_snapshots > _MAX_SNAPSHOTS:
        raise wrong(f"{nb_snapshots} snapshots, expected at most {_MAX_SNAPSHOTS}")
    if nb_snapshots and (snapshots_at % cluster or not 0 < snapshots_at < length):
        raise wrong(f"the snapshot table at {snapshots_at:#x} is not inside the file")

    bitmaps = extensions.get(BITMAPS, b"")
    directory = (0, 0)
    if autoclear & AUTOCLEAR_BITMAPS and len(bitmaps) == 24:
        _, _, directory_size, directory_at = struct.unpack(">IIQQ", bitmaps)
        directory = directory_at, directory_size
    return Header(
        version=version,
        cluster_bits=cluster_bits,
        size=size,
        l1_size=l1_size,
        l1_table_offset=l1_at,
        refcount_table_offset=refcount_at,
        refcount_table_clusters=refcount_clusters,
        backing_file=_text(data[name_at : name_at + name_size], wrong) if name_at else None,
        backing_format=_text(extensions[_BACKING_FORMAT], wrong)
        if _BACKING_FORMAT in extensions
        else None,
        nb_snapshots=nb_snapshots,
        snapshots_offset=snapshots_at,
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        refcount_order=order,
        compression_type=compression,
        bitmap_directory=directory,
    )


def _check_tables(
    cluster: int,
    size: int,
    l1_size: int,
    l1_at: int,
    refcount_at: int,
    refcount_clusters: int,
    length: int,
    wrong: _Wrong,
) -> None:
    end = -(-length // cluster) * cluster
    covered = cluster * (cluster // 8)
    if l1_size * 8 > _MAX_L1 or size > (_MAX_L1 // 8) * covered:
        raise wrong(f"an L1 table of {l1_size} entries for {size} bytes is too large")
    if l1_size < -(-size // covered):
        raise wrong(f"an L1 table of {l1_size} entries does not cover {size} bytes")
    if l1_size and (l1_at % cluster or not 0 < l1_at <= end - l1_size * 8):
        raise wrong(f"the L1 table at {l1_at:#x} is not inside the file")
    if refcount_clusters * cluster > _MAX_REFCOUNT_TABLE or not refcount_clusters:
        raise wrong(f"a refcount table of {refcount_clusters} clusters is out of range")
    if refcount_at % cluster or not 0 < refcount_at <= end - refcount_clusters * cluster:
        raise wrong(f"the refcount table at {refcount_at:#x} is not inside the file")


def _check_features(bits: int, names: bytes, wrong: _Wrong) -> None:
    known = int(Incompatible.DIRTY | Incompatible.CORRUPT | Incompatible.COMPRESSION)
    if missing := bits & ~known:
        told = {
            1 << bit: name.rstrip(b"\0").decode(errors="replace")
            for kind, bit, name in struct.iter_unpack("BB46s", names[: len(names) // 48 * 48])
            if kind == 0 and bit < 64
        }
        each = [
            _NAMES.get(1 << bit) or told.get(1 << bit) or f"unknown feature bit {bit}"
            for bit in range(64)
            if missing >> bit & 1
        ]
        raise wrong(
            f"needs what kasou does not have: {', '.join(each)}; "
            "`qemu-img convert` may make an image without"
        )


def _extensions(data: bytes, at: int, end: int, wrong: _Wrong) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    end = min(end, len(data))
    while at + 8 <= end:
        kind, n = _EXTENSION.unpack_from(data, at)
        at += 8
        if kind == _END:
            break
        if n > end - at:
            raise wrong(f"header extension {kind:#x} of {n} bytes does not fit")
        found[kind] = data[at : at + n]
        at += -(-n // 8) * 8
    return found


def _extension(kind: int, data: bytes) -> bytes:
    return _EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)


def _text(data: bytes, wrong: _Wrong) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise wrong("a name in the header is not UTF-8") from None
    if "\0" in text:
        raise wrong("a name in the header contains a zero byte")
    return text
