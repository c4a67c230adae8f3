"""`kasou images`, `kasou pull` and `kasou build`."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict

TINY = "tiny"


def pull(image: str, mirror: str | None) -> int:
    """Fetch `image`, or make it of what is fetched, and print where its files are."""
    from kasou.aio.definition import image_files

    if image != TINY:
        from kasou.images import pull as fetch

        fetch(image, mirror)
    files = image_files(image, mirror)
    for what, path in (("kernel", files.kernel), ("initrd", files.initrd), ("disk", files.disk)):
        if path is not None:
            print(f"{what} {path}")
    return 0


def images(json: bool) -> int:
    """List what `kasou run` knows, and which of it is here."""
    from kasou.images import installed
    from kasou.images.catalogue import RECIPES

    here = {image.name: image for image in installed()}
    known = {recipe.name: recipe.description for recipe in RECIPES}
    known[TINY] = "a teaching kernel in assembly; no download"
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
