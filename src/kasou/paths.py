"""Where files go: images in the XDG cache, VMs in data, logs in state; `KASOU_HOME` moves all.

| what | with KASOU_HOME | without |
|---|---|---|
| cache: images, compiled code | `$KASOU_HOME/cache` | `$XDG_CACHE_HOME/kasou` |
| data: one directory a VM | `$KASOU_HOME` | `$XDG_DATA_HOME/kasou` |
| state: console logs | `$KASOU_HOME/state` | `$XDG_STATE_HOME/kasou` |
| runtime: control sockets | `$KASOU_HOME/run` | `$XDG_RUNTIME_DIR/kasou`, else `/tmp/kasou-UID` |

A relative XDG directory is ignored, as the XDG Base Directory Specification asks.
"""

from __future__ import annotations

import os
from pathlib import Path

from kasou.errors import HostError


def cache_directory() -> Path:
    """What kasou can make again; it need not exist."""
    return _directory("cache", "XDG_CACHE_HOME", ".cache")


def data_directory() -> Path:
    """What is the user's and cannot be made again: VMs; it need not exist."""
    return _directory("", "XDG_DATA_HOME", ".local/share")


def state_directory() -> Path:
    """What may be lost without harm: logs; it need not exist."""
    return _directory("state", "XDG_STATE_HOME", ".local/state")


def runtime_directory() -> Path:
    """Where control sockets are, made now if need be: this user's alone (0700).

    Raises `HostError` when it cannot be made, or belongs to someone else.
    """
    if home := os.environ.get("KASOU_HOME"):
        path = Path(home) / "run"
    elif os.path.isabs(base := os.environ.get("XDG_RUNTIME_DIR", "")) and os.path.isdir(base):
        path = Path(base) / "kasou"
    else:
        path = Path(f"/tmp/kasou-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as problem:
        raise HostError(f"{path}: cannot be made ({problem.strerror}); set KASOU_HOME") from None
    if status.st_uid != os.getuid() or not path.is_dir() or path.is_symlink():
        raise HostError(f"{path}: belongs to another user; set KASOU_HOME or XDG_RUNTIME_DIR")
    if status.st_mode & 0o077:
        os.chmod(path, 0o700)
    return path


def _directory(within_home: str, variable: str, otherwise: str) -> Path:
    if home := os.environ.get("KASOU_HOME"):
        return Path(home) / within_home
    base = os.environ.get(variable, "")
    return (Path(base) if os.path.isabs(base) else Path.home() / otherwise) / "kasou"
