"""Compressed clusters: raw deflate (RFC 1951) or Zstandard (RFC 8878), a cluster at a time."""

import importlib
import zlib
from pathlib import Path
from typing import Any, Protocol

from kasou.errors import ConfigError
from kasou.storage.qcow2.geometry import damaged
from kasou.storage.qcow2.header import ZLIB


class Decompress(Protocol):
    """One cluster's decompressor."""

    def __call__(self, data: bytes, n: int) -> bytes:
        """The first `n` bytes that `data` stands for; fewer if it is damaged."""
        ...


def inflate(data: bytes, n: int) -> bytes:
    """Decompress raw deflate."""
    return zlib.decompressobj(-15).decompress(data, n)


def unzstd(data: bytes, n: int) -> bytes:
    """Decompress Zstandard."""
    cluster: bytes = _zstd().ZstdDecompressor().decompress(data, n)
    return cluster


def decompressor(kind: int, path: Path) -> Decompress:
    """What undoes compression type `kind`. Raises `ConfigError` when it is not installed."""
    if kind == ZLIB:
        return inflate
    try:
        _zstd()
    except ImportError:
        raise ConfigError(
            f"disk {path}: has clusters compressed with zstd; `pip install backports.zstd`"
        ) from None
    return unzstd


def expand(decompress: Decompress, data: bytes, n: int, path: Path) -> bytes:
    """One cluster of `n` bytes. Raises `HostError` when `data` is damaged."""
    try:
        cluster = decompress(data, n)
    except Exception as error:
        raise damaged(path, f"a compressed cluster: {error}") from error
    if len(cluster) != n:
        raise damaged(path, f"a compressed cluster holds {len(cluster)} bytes, expected {n}")
    return cluster


def _zstd() -> Any:
    """The standard library's module where Python has it (3.14), else its backport."""
    try:
        return importlib.import_module("compression.zstd")
    except ImportError:
        return importlib.import_module("backports.zstd")
