"""A small FAT12 file system, written in one go: a handful of files in the root directory.

    sector 0     the boot sector with the BIOS parameter block
    then         two copies of the FAT: for each cluster its successor, 12 bits each
    then         the root directory: 32 bytes an entry; a long name takes entries of its own before it
    then         the clusters, numbered from 2

The same files always make the same bytes. (Microsoft, "FAT: General Overview of On-Disk Format",
version 1.03, here by section name)
"""

import struct
import zlib
from collections.abc import Mapping

from kasou.errors import ConfigError

SECTOR = 512
FATS = 2
ROOT_ENTRIES = 64
ENTRY_BYTES = 32
MOST_CLUSTERS = 4084
"""A volume with more is FAT16. ("FAT Type Determination")"""
MOST_SECTORS = 0xFFFF
LAST = 0xFFF
FIXED_DISK = 0xF8
VOLUME_ID, ARCHIVE, LONG_NAME = 0x08, 0x20, 0x0F
DATE = 0x21
"""1 January 1980, where FAT's calendar begins."""
CHARACTERS_A_ENTRY = 13


def make_fat(files: Mapping[str, bytes], label: str) -> bytes:
    """A volume called `label` (at most 11 characters, in capitals) that holds `files` by name.

    Raises `ConfigError` when they do not fit.
    """
    sectors_a_cluster, clusters = _clusters(files)
    fat_sectors = -(-((clusters + 2) * 3 + 1) // 2 // SECTOR)
    table = [FIXED_DISK | 0xF00, LAST]
    root = bytearray(_entry(label.encode().ljust(11), VOLUME_ID, 0, 0))
    data = bytearray()
    for number, (name, content) in enumerate(files.items(), start=1):
        bytes_a_cluster = sectors_a_cluster * SECTOR
        needed = -(-len(content) // bytes_a_cluster)
        first = len(table) if needed else 0
        table += [len(table) + i + 1 for i in range(needed)]
        if needed:
            table[-1] = LAST
        data += content + bytes(needed * bytes_a_cluster - len(content))
        short = _short_name(name, number)
        root += _long_name(name, short) + _entry(short, ARCHIVE, first, len(content))
    if len(root) > ROOT_ENTRIES * ENTRY_BYTES:
        raise ConfigError(f"{len(files)} files: too many for one small file system")
    table += [0] * (clusters + 2 - len(table))
    fat = _packed(table).ljust(fat_sectors * SECTOR, b"\0")
    sectors = 1 + FATS * fat_sectors + ROOT_ENTRIES * ENTRY_BYTES // SECTOR
    sectors += clusters * sectors_a_cluster
    if sectors > MOST_SECTORS:
        raise ConfigError(f"{len(data)} bytes: too much for one small file system")
    boot = _boot_sector(sectors_a_cluster, fat_sectors, sectors, label, zlib.crc32(data))
    image = boot + fat * FATS + root.ljust(ROOT_ENTRIES * ENTRY_BYTES, b"\0") + data
    return bytes(image).ljust(sectors * SECTOR, b"\0")


def _clusters(files: Mapping[str, bytes]) -> tuple[int, int]:
    """Sectors a cluster, and a number of clusters with some room left."""
    for power in range(7):
        size = SECTOR << power
        needed = sum(-(-len(content) // size) for content in files.values())
        if needed + 64 <= MOST_CLUSTERS:
            return 1 << power, max(needed + 64, 512)
    total = sum(map(len, files.values()))
    raise ConfigError(f"{total} bytes: too much for one small file system")


def _boot_sector(
    sectors_a_cluster: int, fat_sectors: int, sectors: int, label: str, serial: int
) -> bytes:
    """The jump, the BIOS parameter block and its FAT12 extension. ("Boot Sector and BPB")"""
    head = b"\xeb\x3c\x90" + b"MSWIN4.1"  # the name that the document recommends
    block = struct.pack(
        "<HBHBHHBHHHIIBBBI11s8s",
        SECTOR, sectors_a_cluster, 1, FATS, ROOT_ENTRIES, sectors, FIXED_DISK, fat_sectors,
        32, 64, 0, 0, 0x80, 0, 0x29, serial, label.encode().ljust(11), b"FAT12   ",
    )  # fmt: skip
    return (head + block).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _packed(table: list[int]) -> bytes:
    """Pairs of 12-bit entries in 3 bytes each."""
    even = [*table, 0] if len(table) % 2 else table
    return b"".join(
        (low | high << 12).to_bytes(3, "little")
        for low, high in zip(even[::2], even[1::2], strict=True)
    )


def _entry(short: bytes, attributes: int, first: int, size: int) -> bytes:
    """A directory entry of 32 bytes. ("FAT Directory Structure")"""
    return struct.pack(
        "<11sBBBHHHHHHHI", short, attributes, 0, 0, 0, DATE, DATE, 0, 0, DATE, first, size
    )


def _short_name(name: str, number: int) -> bytes:
    """The 8.3 name by which those who know no long names find it."""
    stem, _, extension = name.upper().partition(".")
    kept = "".join(character for character in stem if character.isalnum() or character in "-_")
    return f"{kept[:6]}~{number}".encode().ljust(8) + extension[:3].encode().ljust(3)


def _long_name(name: str, short: bytes) -> bytes:
    """The entries of a long name, its last part first. ("FAT Long Directory Entries")"""
    checksum = 0
    for byte in short:
        checksum = ((checksum >> 1) + ((checksum & 1) << 7) + byte) & 0xFF
    text = name.encode("utf-16-le")
    count = -(-len(name) // CHARACTERS_A_ENTRY)
    if len(name) % CHARACTERS_A_ENTRY:
        text += b"\0\0"
    text = text.ljust(count * CHARACTERS_A_ENTRY * 2, b"\xff")
    entries = b""
    for order in range(count, 0, -1):
        part = text[(order - 1) * 26 : order * 26]
        flag = 0x40 if order == count else 0
        entries += struct.pack(
            "<B10sBBB12sH4s",
            order | flag, part[:10], LONG_NAME, 0, checksum, part[10:22], 0, part[22:],
        )  # fmt: skip
    return entries
