"""Images: guests that kasou fetches and makes by itself.

`ensure` is for those who want to run one, `pull` for those who want the newest. Reading order:

- `catalogue`     the names, and the recipes behind them
- `archive`       Debian's archive, from the signature to a package's files
- `mirror`        where that archive is reached from here
- `fetch`         downloads: resumable, verified, in place only when whole
- `store`         the cache of finished images
- `progress`      what a person sees meanwhile

The guest that lives in memory:

- `debian`        the recipe: which packages, and what is made of them
- `userland`      the root file system: init, shell, greeting
- `modules`       which drivers need which

The whole Debian on a disk:

- `installation`  the recipe
- `packages`      which packages a system needs
- `system`        the files that make it kasou's
- `unpacked`      all packages as one archive, as dpkg would have unpacked them
- `programs`      programs with their libraries, to be run before there is a system
- `maker`         the machine that finishes it
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kasou.errors import HostError
from kasou.images.catalogue import Recipe, recipe
from kasou.images.progress import Report, TerminalReport
from kasou.images.store import Image, downloads_directory, installed, load, only_one

__all__ = ["DefaultGuest", "Image", "ensure", "installed", "pull"]


@dataclass(frozen=True, slots=True)
class DefaultGuest:
    """The files of a guest and its kernel's command line, as a machine wants them.

    `disk` is a qcow2 base for overlays, `agent` says whether kasou's agent runs in the guest.
    """

    kernel: Path
    initrd: Path
    append: str
    disk: Path | None = None
    agent: bool = False


def ensure(name: str = "debian", mirror: str | None = None) -> DefaultGuest:
    """The image `name`, made now if it is not here; needs no network when it is.

    Raises `ConfigError` for an unknown name, `HostError` when it cannot be had.
    """
    wanted = recipe(name)
    if (image := load(wanted.name)) is not None:
        return _guest(image)
    return pull(name, mirror)


def pull(
    name: str = "debian",
    mirror: str | None = None,
    progress: Report | None = None,
    now: datetime | None = None,
) -> DefaultGuest:
    """Bring the image `name` up to what the archive has now; errors as with `ensure`.

    Without `progress` a person is told on standard error.
    """
    wanted = recipe(name)
    when = now or datetime.now(UTC)
    if progress is not None:
        return _guest(_pull(wanted, mirror, progress, when))
    with TerminalReport() as report:
        return _guest(_pull(wanted, mirror, report, when))


def _pull(wanted: Recipe, mirror: str | None, report: Report, now: datetime) -> Image:
    # Imported here: a start from the cache should not pay for Debian's file formats.
    from kasou.images import debian, installation
    from kasou.images.archive import IndexMismatch, open_archive
    from kasou.images.mirror import candidates

    how: Any = debian if wanted.installer else installation
    bases = candidates(mirror)
    with only_one(wanted.name):
        here = load(wanted.name)
        problem: HostError | None = None
        reduced = None
        for archive in open_archive(bases, wanted.suite, downloads_directory(), report):
            report.step(f"reading {archive.suite}'s index on {archive.mirror}")
            try:
                parts = how.find_parts(archive, wanted)
            except IndexMismatch as error:
                problem = error
                continue
            if parts.missing and reduced is None:
                reduced = archive, parts
                continue
            if not parts.missing:
                break
        else:
            if reduced is None:
                assert problem is not None, "an archive that was found has no fault"
                raise problem
            archive, parts = reduced
        if here is not None and here.inputs == parts.digest():
            report.step(f"{wanted.name} is up to date")
            return here
        if here is not None and parts.missing and not here.missing:
            report.warn(f"the {wanted.name} that is here is kept: it is more complete")
            return here
        made: Image = how.build(archive, wanted, parts, now)
        return made


def _guest(image: Image) -> DefaultGuest:
    return DefaultGuest(image.kernel, image.initrd, image.append, image.disk, image.agent)
