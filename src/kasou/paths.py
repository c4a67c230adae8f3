"""Where files go: images in the XDG cache, VMs in data, logs in state; `KASOU_HOME` moves all."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$KASOU_HOME/cache`, or `kasou` in the XDG cache directory; it need not exist."""
    if home := os.environ.get("KASOU_HOME"):
        return Path(home) / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kasou"
