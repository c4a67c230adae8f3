"""Making image files: whole or not at all.

A file is written under a temporary name, brought to stable storage and then linked to its own
name, which must be free.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kasou.errors import ConfigError, HostError
from kasou.storage.file import File, HostFile
from kasou.storage.qcow2.create import layout, write_empty


@contextmanager
def new_file(path: Path, *, replace: bool = False, durable: bool = True) -> Iterator[File]:
    """A file to be filled; it appears at `path` when the block ends well.

    With `durable` it is on stable storage before it has its name.
    Raises `ConfigError` when `path` exists (unless `replace`) or cannot be made there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if not replace and os.path.lexists(path):
            raise FileExistsError(17, "exists already; remove it or choose another name")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"disk {path}: {error.strerror}") from error
    try:
        file = HostFile(fd, temporary, syncs=durable)
        try:
            yield file
            file.sync()
        finally:
            file.close()
        try:
            _publish(temporary, path, replace, durable)
        except FileExistsError as error:
            raise ConfigError(f"disk {path}: exists already") from error
        except OSError as error:
            raise HostError(f"disk {path}: {error.strerror}", error.errno) from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path, replace: bool, durable: bool) -> None:
    """Give a finished file its name, for good."""
    if replace:
        os.rename(temporary, path)
    else:
        os.link(temporary, path)
    if not durable:
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def create_qcow2(
    path: str | os.PathLike[str],
    size: int,
    *,
    backing: str | os.PathLike[str] | None = None,
    backing_format: str | None = None,
    cluster_size: int = 65536,
    lazy_refcounts: bool = False,
    refcount_bits: int = 16,
    version: int = 3,
    replace: bool = False,
    durable: bool = True,
) -> None:
    """Make an empty qcow2 image of `size` bytes over `backing`.

    The name of `backing` is stored as given: a relative one is relative to the directory of
    `path`. Raises `ConfigError` when `path` exists or the image cannot be as asked.
    """
    header = layout(
        size,
        backing=None if backing is None else os.fspath(backing),
        backing_format=backing_format,
        cluster_size=cluster_size,
        refcount_bits=refcount_bits,
        version=version,
        lazy_refcounts=lazy_refcounts,
    )
    with new_file(Path(path), replace=replace, durable=durable) as file:
        write_empty(file, header)


def create_raw(path: str | os.PathLike[str], size: int, *, replace: bool = False) -> None:
    """Make a raw image of `size` zero bytes that takes no space yet. Raises `ConfigError`."""
    if size <= 0 or size % 512:
        raise ConfigError(f"disk of {size} bytes: expected a positive multiple of 512")
    with new_file(Path(path), replace=replace) as file:
        file.truncate(size)
