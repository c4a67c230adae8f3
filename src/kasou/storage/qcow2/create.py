"""A new, empty qcow2 image.

header | refcount table | refcount blocks | L1 table
"""

from array import array

from kasou.errors import ConfigError
from kasou.storage.file import File
from kasou.storage.qcow2.geometry import Geometry, table_bytes
from kasou.storage.qcow2.header import Compatible, Header
from kasou.storage.qcow2.refcounts import Block

_MAX_L1 = 32 << 20


def layout(
    size: int,
    *,
    backing: str | None = None,
    backing_format: str | None = None,
    cluster_size: int = 65536,
    refcount_bits: int = 16,
    version: int = 3,
    lazy_refcounts: bool = False,
) -> Header:
    """The header of a new image of `size` bytes. Raises `ConfigError` when it cannot be."""
    if cluster_size not in [1 << bits for bits in range(9, 22)]:
        raise ConfigError(f"cluster size {cluster_size}: expected a power of two, 512 to 2 MiB")
    if refcount_bits not in [1 << order for order in range(7)]:
        raise ConfigError(f"refcount bits {refcount_bits}: expected a power of two, 1 to 64")
    if version not in (2, 3):
        raise ConfigError(f"qcow2 version {version}: expected 2 or 3")
    if version == 2 and (refcount_bits != 16 or lazy_refcounts):
        raise ConfigError("qcow2 version 2 has refcounts of 16 bits, never lazy")
    if size < 0 or size % 512:
        raise ConfigError(f"disk of {size} bytes: expected a multiple of 512")
    if backing is not None and not 0 < len(backing.encode()) <= min(1023, cluster_size - 160):
        raise ConfigError(f"backing file name {backing!r} is too long or empty")
    cluster_bits = cluster_size.bit_length() - 1
    l1_size = -(-size // (cluster_size * (cluster_size // 8)))
    if l1_size * 8 > _MAX_L1:
        raise ConfigError(f"disk of {size} bytes: too large for clusters of {cluster_size} bytes")
    tables, blocks = _refcount_clusters(l1_size, cluster_size, refcount_bits)
    return Header(
        version=version,
        cluster_bits=cluster_bits,
        size=size,
        l1_size=l1_size,
        l1_table_offset=(1 + tables + blocks) * cluster_size,
        refcount_table_offset=cluster_size,
        refcount_table_clusters=tables,
        backing_file=backing,
        backing_format=backing_format,
        compatible=int(Compatible.LAZY_REFCOUNTS) if lazy_refcounts else 0,
        refcount_order=refcount_bits.bit_length() - 1,
    )


def write_empty(file: File, header: Header) -> None:
    """Write the image that `header` (of `layout`) describes into the empty `file`."""
    geometry = Geometry.of(header)
    cluster, per_block = geometry.cluster_size, geometry.refcounts_per_block
    blocks_at = header.refcount_table_offset + header.refcount_table_clusters * cluster
    blocks = (header.l1_table_offset - blocks_at) // cluster
    used = header.l1_table_offset // cluster + -(-max(header.l1_size, 1) * 8 // cluster)
    file.truncate(used * cluster)
    file.write(0, header.emit())
    table = array("Q", (blocks_at + i * cluster for i in range(blocks)))
    file.write(header.refcount_table_offset, table_bytes(table))
    for i in range(blocks):
        block = Block(blocks_at + i * cluster, bytes(cluster), header.refcount_order, True)
        for index in range(min(per_block, used - i * per_block)):
            block.set(index, 1)
        file.write(block.at, block.emit().rstrip(b"\0"))


def _refcount_clusters(l1_size: int, cluster_size: int, refcount_bits: int) -> tuple[int, int]:
    """How many clusters the refcount table and its blocks take at first."""
    l1_clusters = -(-max(l1_size, 1) * 8 // cluster_size)
    tables = blocks = 1
    while True:
        used = 1 + tables + blocks + l1_clusters
        more_blocks = -(-used * refcount_bits // (cluster_size * 8))
        more_tables = -(-more_blocks * 8 // cluster_size)
        if (more_tables, more_blocks) == (tables, blocks):
            return tables, blocks
        tables, blocks = max(tables, more_tables), max(blocks, more_blocks)
