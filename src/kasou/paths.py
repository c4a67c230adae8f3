"""Where files go: images in the XDG cache, VMs in data, logs in state; `KASOU_HOME` moves all."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """What kasou can make again: `$KASOU_HOME/cache`, or in the XDG cache; it need not exist.

    A relative XDG_CACHE_HOME is ignored, as the XDG Base Directory Specification asks.
    """
    if home := os.environ.get("KASOU_HOME"):
        return Path(home) / "cache"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "kasou"
