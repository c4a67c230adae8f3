"""Internal snapshots: the list of them, read. (QEMU, docs/interop/qcow2, "Snapshots")"""

import struct
from dataclasses import dataclass

from kasou.errors import ConfigError
from kasou.storage.file import File
from kasou.storage.qcow2.header import Header

_FIXED = struct.Struct(">QIHHIIQII")
_MAX_EXTRA = 1024
_MAX_TABLE = 64 << 20
_MAX_L1, _MAX_L1_SUM = 32 << 20, 256 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One internal snapshot; `date` in seconds since 1970, sizes in bytes, `clock` in guest ns."""

    id: str
    name: str
    date: float
    clock: int
    vm_state_size: int
    disk_size: int
    l1_table_offset: int
    l1_size: int


def read_snapshots(file: File, header: Header) -> list[Snapshot]:
    """All internal snapshots, in the image's order. Raises `ConfigError` if the list is damaged."""
    return _read(file, header)[0]


def find_snapshot(file: File, header: Header, name: str) -> Snapshot:
    """The snapshot with this id or name. Raises `ConfigError`."""
    found = read_snapshots(file, header)
    for snapshot in found:
        if name in (snapshot.id, snapshot.name):
            return snapshot
    known = ", ".join(snapshot.name for snapshot in found) or "none"
    raise ConfigError(f"disk {file.path}: has no snapshot {name!r}; it has: {known}")


def snapshot_clusters(file: File, header: Header) -> set[int]:
    """The numbers of the clusters that hold the list and the snapshots' L1 tables."""
    found, length = _read(file, header)
    spans = [(header.snapshots_offset, length)] if length else []
    spans += [(snapshot.l1_table_offset, snapshot.l1_size * 8) for snapshot in found]
    clusters: set[int] = set()
    for at, n in spans:
        clusters.update(range(at >> header.cluster_bits, at + n - 1 >> header.cluster_bits, 1))
        clusters.add(at + max(n, 1) - 1 >> header.cluster_bits)
    return clusters


def _read(file: File, header: Header) -> tuple[list[Snapshot], int]:
    """The snapshots, and how many bytes their list takes."""
    at = start = header.snapshots_offset
    length = file.size()

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"disk {file.path}: snapshot {len(found) + 1}: {what}")

    tables = 0
    found: list[Snapshot] = []
    for _ in range(header.nb_snapshots):
        fixed = file.read(at, _FIXED.size)
        if len(fixed) < _FIXED.size or at - start > _MAX_TABLE:
            raise wrong("the list of snapshots does not fit into the file")
        l1_at, l1_size, id_size, name_size, seconds, ns, clock, state, extra_size = _FIXED.unpack(
            fixed
        )
        if extra_size > _MAX_EXTRA:
            raise wrong(f"{extra_size} bytes of extra data, expected at most {_MAX_EXTRA}")
        rest = file.read(at + _FIXED.size, extra_size + id_size + name_size)
        if len(rest) < extra_size + id_size + name_size:
            raise wrong("its entry does not fit into the file")
        if l1_size * 8 > _MAX_L1 or l1_at % header.cluster_size or not 0 < l1_at < length:
            raise wrong(f"its L1 table at {l1_at:#x} is not inside the file")
        if l1_at + l1_size * 8 > length + header.cluster_size:
            raise wrong(f"its L1 table at {l1_at:#x} is not inside the file")
        tables += l1_size * 8
        if tables > _MAX_L1_SUM:
            raise wrong("the L1 tables of all snapshots are too large")
        disk_size = header.size
        if extra_size >= 8:
            (state,) = struct.unpack_from(">Q", rest)
        if extra_size >= 16:
            (disk_size,) = struct.unpack_from(">Q", rest, 8)
        identity = rest[extra_size : extra_size + id_size].decode(errors="replace")
        name = rest[extra_size + id_size :].decode(errors="replace")
        found.append(
            Snapshot(identity, name, seconds + ns / 1e9, clock, state, disk_size, l1_at, l1_size)
        )
        at += -(-(_FIXED.size + len(rest)) // 8) * 8
    return found, at - start
