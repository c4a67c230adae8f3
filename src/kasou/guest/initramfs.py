"""Initial RAM file systems: the cpio archive that Linux unpacks into its first root.

The format is `newc` (Linux, Documentation/driver-api/early-userspace/buffer-format.rst): for each
entry a header of 110 bytes in ASCII hexadecimal, the name, the content, each padded to 4 bytes; the
entry `TRAILER!!!` ends the archive. Nothing here touches the host's file system, so device nodes
need no root, and the same entries always make the same bytes: inode numbers count up from 1, times
are 0, owners are root.
"""

import gzip
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from kasou.errors import ConfigError

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
HEADER_BYTES = 110


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive; `mode` holds type and permissions as `st_mode` does.

    `data` is a regular file's content or a symbolic link's target; `device` is a device node's
    (major, minor). `path` has no leading slash.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Initramfs:
    """A root file system being put together; parent directories come into being as needed."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; naming one again changes its permissions."""
        self.add(Entry(_relative(path), stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file, replacing what had this path."""
        self.add(Entry(_relative(path), stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`, which is kept as written."""
        self.add(Entry(_relative(path), stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self.add(Entry(_relative(path), stat.S_IFCHR | mode, device=(major, minor)))

    def block_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a block device node."""
        self.add(Entry(_relative(path), stat.S_IFBLK | mode, device=(major, minor)))

    def add(self, entry: Entry) -> None:
        """Add an entry and the directories above it."""
        parts = entry.path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            known = self.entries.setdefault(parent, Entry(parent, stat.S_IFDIR | 0o755))
            assert stat.S_ISDIR(known.mode), f"{entry.path}: {parent} is not a directory"
        self.entries[entry.path] = entry

    def to_cpio(self) -> bytes:
        """The archive, in the order in which entries were added, padded to 512 bytes."""
        archive = bytearray()
        for inode, entry in enumerate(self.entries.values(), start=1):
            _append(archive, inode, entry)
        _append(archive, 0, Entry(TRAILER, 0))
        archive += bytes(-len(archive) % 512)
        return bytes(archive)

    def to_gzip(self, level: int = 9) -> bytes:
        """The archive compressed. Unpacking costs the guest some 30 instructions a byte."""
        return gzip.compress(self.to_cpio(), level, mtime=0)


def _relative(path: str) -> str:
    relative = path.strip("/")
    assert relative and ".." not in relative.split("/"), f"{path!r} is no path in the archive"
    return relative


def _append(archive: bytearray, inode: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (
        inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0,
    )  # fmt: skip
    archive += MAGIC + b"".join(b"%08X" % value for value in fields) + name
    archive += bytes(-len(archive) % 4) + entry.data
    archive += bytes(-len(archive) % 4)


def read_cpio(archive: bytes, name: str = "initramfs") -> Iterator[Entry]:
    """The entries of a `newc` archive, gzip-compressed or not, up to its trailer.

    Raises `ConfigError` naming `name` when the archive is damaged.
    """
    if archive[:2] == b"\x1f\x8b":
        try:
            archive = gzip.decompress(archive)
        except (OSError, EOFError, ValueError) as error:
            raise ConfigError(f"{name}: damaged gzip data ({error})") from None
        except Exception as error:  # zlib.error derives from Exception alone
            raise ConfigError(f"{name}: damaged gzip data ({error})") from None
    at = 0
    while True:
        header = archive[at : at + HEADER_BYTES]
        if len(header) < HEADER_BYTES or header[:6] != MAGIC:
            raise ConfigError(f"{name}: no newc cpio header at byte {at}; truncated?")
        try:
            values = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        except ValueError:
            raise ConfigError(f"{name}: the cpio header at byte {at} is not hexadecimal") from None
        mode, size, device, name_bytes = values[1], values[6], (values[9], values[10]), values[11]
        content = at + HEADER_BYTES + name_bytes
        path = archive[at + HEADER_BYTES : content].rstrip(b"\0").decode(errors="replace")
        if path == TRAILER:
            return
        content += -content % 4
        if content + size > len(archive):
            raise ConfigError(f"{name}: {path} is cut off at the archive's end")
        if path not in ("", "."):
            yield Entry(path.lstrip("/"), mode, archive[content : content + size], device)
        at = content + size
        at += -at % 4
