"""`kasou images`, `kasou pull`, and what `kasou run IMAGE` boots."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import NamedTuple

from kasou.cli.options import UsageError
from kasou.errors import HostError

DEBIAN = ("debian", "debian:trixie", "debian:13")
TINY = "tiny"


class BootFiles(NamedTuple):
    """The files of a guest, as the machine wants them."""

    kernel: Path
    initrd: Path | None = None
    append: str = ""


def boot_files(image: str, mirror: str | None) -> BootFiles:
    """The files of `image`, fetched first if need be. Raises `UsageError` for an unknown one."""
    if image == TINY:
        from kasou.guest.kernels import assembled

        return BootFiles(assembled(TINY))
    if image not in DEBIAN:
        raise UsageError(f"no image is called {image}; there are debian (debian:trixie) and tiny")
    return debian(mirror)


def debian(mirror: str | None) -> BootFiles:
    """The Debian guest, with progress on standard error. Raises `HostError`."""
    raise HostError("the Debian guest cannot be fetched yet; `kasou run tiny` needs no network")


def pull(image: str, mirror: str | None) -> int:
    """Fetch `image` and print where its files are."""
    files = boot_files(image, mirror)
    print(f"kernel {files.kernel}")
    if files.initrd is not None:
        print(f"initrd {files.initrd}")
    return 0


def images(json: bool) -> int:
    """List what `kasou run` knows."""
    rows = [
        ("debian:trixie", "Debian 13's own kernel, with a root shell in memory"),
        (TINY, "a teaching kernel in assembly; no download"),
    ]
    if json:
        print(json_text.dumps([{"name": name, "what": what} for name, what in rows], indent=2))
        return 0
    for name, what in rows:
        print(f"{name:<16}{what}")
    return 0
