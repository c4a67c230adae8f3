"""Counting an image's references anew and storing the result.

A whole new refcount table with its blocks is written behind the end of the file, then the header
is switched to it in one write, so a crash finds the old state or the new.
"""

import struct
from array import array
from dataclasses import replace

from kasou.errors import ConfigError
from kasou.storage.file import File
from kasou.storage.qcow2.check import Check
from kasou.storage.qcow2.geometry import table_bytes
from kasou.storage.qcow2.header import REFCOUNT_TABLE_AT, Header, Incompatible
from kasou.storage.qcow2.refcounts import Block

_MAX_REFCOUNT_TABLE = 8 << 20


def mend_refcounts(file: File, header: Header) -> Header:
    """Count anew and store the result; the image is not dirty any more. The new header.

    Raises `ConfigError` when the tables themselves are damaged, `HostError` when writing fails.
    """
    check = Check(file, header)
    check.count_guest()
    if check.report.corruptions:
        raise ConfigError(
            f"disk {file.path}: cannot be mended: {check.report.messages[0]}; "
            "`qemu-img check -r all` may save a part"
        )
    geometry, bits = check.geometry, check.bits
    per_block = geometry.refcounts_per_block
    first = check.references.clusters
    tables = blocks = 1
    while True:
        more_blocks = -(-(first + tables + blocks) // per_block)
        more_tables = -(-more_blocks * 8 >> bits)
        if (more_tables, more_blocks) == (tables, blocks):
            break
        tables, blocks = max(tables, more_tables), max(blocks, more_blocks)
    if tables << bits > _MAX_REFCOUNT_TABLE:
        raise ConfigError(f"disk {file.path}: is too large to be mended")
    table_at, blocks_at = first << bits, first + tables << bits
    for number in range(blocks):
        start = number * per_block
        block = Block(blocks_at + (number << bits), bytes(1 << bits), header.refcount_order, True)
        for i, count in enumerate(check.references.slice(start, start + per_block)):
            if count:
                block.set(i, min(count, geometry.max_refcount))
        for cluster in range(max(first, start), min(first + tables + blocks, start + per_block)):
            block.set(cluster - start, 1)
        file.write(block.at, block.emit())
    table = array("Q", (blocks_at + (number << bits) for number in range(blocks)))
    file.write(table_at, table_bytes(table).ljust(tables << bits, b"\0"))
    file.sync()
    for _, (at, entry) in check.wrong_flags():
        file.write(at, struct.pack(">Q", entry))
    file.sync()
    incompatible = header.incompatible & ~int(Incompatible.DIRTY | Incompatible.CORRUPT)
    if header.version >= 3:
        middle = file.read(REFCOUNT_TABLE_AT + 12, 12)
        fields = struct.pack(">QI12sQ", table_at, tables, middle, incompatible)
    else:
        fields = struct.pack(">QI", table_at, tables)
    file.write(REFCOUNT_TABLE_AT, fields)
    file.sync()
    return replace(
        header,
        refcount_table_offset=table_at,
        refcount_table_clusters=tables,
        incompatible=incompatible,
    )
