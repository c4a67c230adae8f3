"""`kasou images`, `kasou pull`, and what `kasou run IMAGE` boots."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from kasou.cli.options import UsageError

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
    from kasou.images import ensure

    guest = ensure("debian", mirror)
    return BootFiles(guest.kernel, guest.initrd, guest.append)


def pull(image: str, mirror: str | None) -> int:
    """Fetch `image` and print where its files are."""
    if image in DEBIAN:
        from kasou.images import pull as fetch

        guest = fetch(image, mirror)
        files = BootFiles(guest.kernel, guest.initrd, guest.append)
    else:
        files = boot_files(image, mirror)
    print(f"kernel {files.kernel}")
    if files.initrd is not None:
        print(f"initrd {files.initrd}")
    return 0


def images(json: bool) -> int:
    """List what `kasou run` knows, and which of it is here."""
    from kasou.images import installed

    here = {image.name: image for image in installed()}
    known = {
        "debian:trixie": "Debian 13's own kernel, with a root shell in memory",
        TINY: "a teaching kernel in assembly; no download",
    }
    rows = [
        {"name": name, "what": what, "installed": name in here or name == TINY}
        | ({"details": asdict(here[name])} if name in here else {})
        for name, what in known.items()
    ]
    if json:
        print(json_text.dumps(rows, indent=2))
        return 0
    for row in rows:
        print(f"{row['name']:<16}{'here ' if row['installed'] else 'pull '}  {row['what']}")
    return 0
