"""A VM at rest in one file: its memory, its harts and devices, and the disks that go with it.

    0            header: magic, where the manifest is, its hash           4 KiB
    4096         RAM, page for page; pages of zeros are holes of the file
    ...          attachments (disk overlays), each on a page boundary
    end          manifest: JSON

RAM stands in the file as a machine maps it, so restoring reads nothing: pages come in when they are
touched, and are copied when they are written. Nothing refers to where the file is, so it can be moved
to another directory or host. Everything is covered by a hash; what does not fit is refused with the
reason, before a machine is made of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from kasou.engine.frozen_memory import PIECE, Backing, Extent, FrozenMemory, file_data
from kasou.errors import ConfigError, HostError
from kasou.json_values import from_json, to_json
from kasou.machine.state import MachineState

MAGIC = b"kasou snapshot\n\x00"
FORMAT = 1
PAGE = 4096
_HEADER = struct.Struct("<16sIIQQ32s")
"""magic, format, page size, manifest's offset, its length, its SHA-256"""
MOST_MANIFEST = 64 << 20

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a person or a program wants to know of a snapshot before it is loaded.

    `created` is ISO 8601 in UTC; `settings` are the owner's (a VM's configuration), kept as given.
    """

    memory_bytes: int
    harts: int
    clock: str
    created: str
    kasou: str
    name: str = ""
    comment: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A stretch of the file. `runs` are (start, end) in it of what may differ from zero, in order;
    `sha256` is the hash of their bytes.
    """

    name: str
    offset: int
    size: int
    runs: tuple[tuple[int, int], ...]
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The table of contents."""

    description: Description
    memory: Section
    attachments: tuple[Section, ...]
    state: MachineState


def write(
    path: Path,
    memory: FrozenMemory,
    state: MachineState,
    description: Description,
    attachments: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a snapshot to `path`, in place only when whole and on stable storage.

    The machine may run meanwhile: `memory` does not change. Raises `HostError` when the file cannot be
    written; `path` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            try:
                _fill(file, memory, state, description, attachments or {}, progress)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        _sync_directory(path.parent)
    except OSError as error:
        raise HostError(f"snapshot {path}: cannot be written: {error.strerror}") from error


def _fill(
    file: IO[bytes],
    memory: FrozenMemory,
    state: MachineState,
    description: Description,
    attachments: Mapping[str, Path],
    progress: Progress | None,
) -> None:
    sources: list[tuple[str, int, list[tuple[int, int]], Read]] = [
        ("memory", memory.size, list(memory.data()), memory.read)
    ]
    with ExitStack() as opened:
        for name, source in attachments.items():
            fd = opened.enter_context(source.open("rb")).fileno()
            size = os.fstat(fd).st_size
            sources.append((name, size, list(file_data(fd, 0, size)), partial(_read_file, fd)))
        total = sum(end - start for _, _, runs, _ in sources for start, end in runs)
        meter = Meter(progress, total)
        sections = []
        at = PAGE
        for name, size, runs, read in sources:
            sections.append(_copy_in(file.fileno(), at, name, size, runs, read, meter))
            at += -(-size // PAGE) * PAGE
    manifest = Manifest(
        description=description, memory=sections[0], attachments=tuple(sections[1:]), state=state
    )
    text = json.dumps(to_json(manifest), separators=(",", ":")).encode()
    _write_all(file.fileno(), text, at)
    header = _HEADER.pack(MAGIC, FORMAT, PAGE, at, len(text), hashlib.sha256(text).digest())
    _write_all(file.fileno(), header, 0)


Read = Callable[[int, int], bytes]
"""Gives that many bytes from an offset."""


class Meter:
    """Adds up what was done, for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def advance(self, n: int) -> None:
        """`n` more bytes are done."""
        self._done += n
        if self._progress is not None:
            self._progress(self._done, self._total)


def _copy_in(
    fd: int, at: int, name: str, size: int, runs: list[tuple[int, int]], read: Read, meter: Meter
) -> Section:
    """Write what `read` gives of `runs` to byte `at` of a file; pieces of zeros stay holes."""
    digest = hashlib.sha256()
    kept: list[tuple[int, int]] = []
    for start, end in runs:
        for piece in range(start, end, PIECE):
            data = read(piece, min(PIECE, end - piece))
            meter.advance(len(data))
            if data == bytes(len(data)):
                continue
            _write_all(fd, data, at + piece)
            digest.update(data)
            if kept and kept[-1][1] == piece:
                kept[-1] = (kept[-1][0], piece + len(data))
            else:
                kept.append((piece, piece + len(data)))
    return Section(name=name, offset=at, size=size, runs=tuple(kept), sha256=digest.hexdigest())


def _read_file(fd: int, at: int, n: int) -> bytes:
    return os.pread(fd, n, at)


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SnapshotFile:
    """A snapshot opened for reading.

    Raises `ConfigError` when it is not one, is damaged, or is of another kasou's format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._backing = Backing(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._size = os.fstat(self._backing.fd).st_size
            header = os.pread(self._backing.fd, _HEADER.size, 0)
        except OSError as error:
            raise ConfigError(f"snapshot {path}: {error.strerror}") from error
        if len(header) < _HEADER.size or header[: len(MAGIC)] != MAGIC:
            raise ConfigError(f"snapshot {path}: not a snapshot of kasou's")
        _, version, page, at, length, sha256 = _HEADER.unpack(header)
        if (version, page) != (FORMAT, PAGE):
            raise ConfigError(
                f"snapshot {path}: format {version} with pages of {page} bytes; this kasou reads "
                f"format {FORMAT} with pages of {PAGE}: load it with the kasou that saved it"
            )
        if length > MOST_MANIFEST or at + length > self._size:
            raise self._damaged(f"it ends at {self._size}, its contents at {at + length}")
        text = os.pread(self._backing.fd, length, at)
        if hashlib.sha256(text).digest() != sha256:
            raise self._damaged("the manifest's hash does not fit")
        try:
            data = json.loads(text)
        except ValueError:
            raise self._damaged("the manifest is not JSON") from None
        self.manifest = from_json(Manifest, data, f"snapshot {path}", ConfigError)
        self._check()

    @property
    def description(self) -> Description:
        """What it is of."""
        return self.manifest.description

    @property
    def state(self) -> MachineState:
        """Harts and devices."""
        return self.manifest.state

    def memory(self) -> FrozenMemory:
        """RAM, to map; the file stays open as long as this is used."""
        size = self.description.memory_bytes
        return FrozenMemory(size, [Extent(0, size, self._backing, self.manifest.memory.offset)])

    def verify(self, progress: Progress | None = None) -> None:
        """Read everything and compare the hashes. Raises `ConfigError` for a damaged file."""
        sections = (self.manifest.memory, *self.manifest.attachments)
        meter = Meter(progress, sum(end - start for one in sections for start, end in one.runs))
        for section in sections:
            self._copy_out(section, None, meter)

    def extract(self, name: str, target: Path) -> None:
        """Write the attachment `name` to the new file `target`, verified.

        Raises `ConfigError` when it is damaged or not there, `HostError` when `target` cannot be written.
        """
        attachment = next((a for a in self.manifest.attachments if a.name == name), None)
        if attachment is None:
            raise ConfigError(f"snapshot {self.path}: has no {name}")
        try:
            with target.open("xb") as file:
                os.ftruncate(file.fileno(), attachment.size)
                self._copy_out(attachment, file.fileno(), Meter(None, 0))
        except OSError as error:
            raise HostError(f"{target}: cannot be written: {error.strerror}") from error

    def _copy_out(self, section: Section, target: int | None, meter: Meter) -> None:
        """Check a section's hash, writing it to file descriptor `target` on the way."""
        digest = hashlib.sha256()
        for start, end in section.runs:
            for piece in range(start, end, PIECE):
                data = self._read(section.offset + piece, min(PIECE, end - piece))
                digest.update(data)
                meter.advance(len(data))
                if target is not None:
                    _write_all(target, data, piece)
        if digest.hexdigest() != section.sha256:
            raise self._damaged(f"the hash of {section.name} does not fit")

    def _check(self) -> None:
        manifest = self.manifest
        inside = manifest.memory.size == self.description.memory_bytes > 0
        inside = inside and manifest.memory.size % PAGE == 0
        for section in (manifest.memory, *manifest.attachments):
            end = section.offset + section.size
            inside = inside and section.offset % PAGE == 0
            inside = inside and 0 <= section.offset <= end <= self._size
            inside = inside and all(0 <= a < b <= section.size for a, b in section.runs)
        if not inside:
            raise self._damaged("its parts do not lie inside it")

    def _read(self, at: int, n: int) -> bytes:
        try:
            data = os.pread(self._backing.fd, n, at)
        except OSError as error:
            raise HostError(f"snapshot {self.path}: {error.strerror}") from error
        if len(data) != n:
            raise self._damaged("it was cut short")
        return data

    def _damaged(self, how: str) -> ConfigError:
        return ConfigError(f"snapshot {self.path}: damaged: {how}")
