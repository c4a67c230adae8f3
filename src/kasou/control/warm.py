"""Warm starts: an image's machine as it was when it had just booted, kept for the next VM of its kind.

    warm/KEY/state.kasou     the moment, as a snapshot
    warm/KEY/disks/          the disk of that moment: its top image and, linked, what it stands on

The first VM of a kind boots; before anybody has used it, its moment is kept. Later ones go on from
there on disks of their own, as forks do, and are given their own clock, entropy and names. KEY names
everything that the moment depends on: image, command line, board, and the code that gives state its form.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kasou.control import disks
from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import VmDirectory
from kasou.errors import ConfigError, HostError
from kasou.paths import cache_directory

if TYPE_CHECKING:
    from kasou.control.assembly import Origin

STATE = "state.kasou"
MOST_KEPT = 4
"""Of the least lately used ones beyond these, the files go: a few hundred MB each."""
FORMS = ("devices", "machine", "isa/state.py", "guest/sbi.py", "json_values.py")
"""Whose sources say what a machine's state means."""


def warm_directory() -> Path:
    """Where they are; it need not exist."""
    return cache_directory() / "warm"


def key_of(config: VmConfig) -> str | None:
    """The kind of machine that `config` describes; None where nothing may be kept.

    That is so for images without an agent to correct the copy, with counted time (a run is to be a
    function of its input), and with parts of the user's own.
    """
    own = config.drives or config.cloud_init or config.bios
    if not config.agent or config.disk is None or config.clock != "host" or own:
        return None
    about = (
        os.path.realpath(config.disk), config.append, config.memory, config.cpus, config.engine,
        config.networked, len(config.mounts), config.reboot, _forms(),
    )  # fmt: skip
    return hashlib.sha256(repr(about).encode()).hexdigest()[:24]


@cache
def _forms() -> str:
    import kasou

    root = Path(kasou.__file__).parent
    digest = hashlib.sha256()
    for form in FORMS:
        path = root / form
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not source.name.startswith("test_"):
                digest.update(source.read_bytes())
    return digest.hexdigest()


def lend(key: str, directory: VmDirectory) -> Origin | None:
    """What a VM that never ran begins from: its disk's images are linked into `directory`.

    None where there is nothing of this kind, or what there is is damaged; that is then removed.
    """
    from kasou.control.assembly import Origin
    from kasou.vmm.snapshot import SnapshotFile

    kept = warm_directory() / key
    if not (kept / STATE).exists():
        return None
    try:
        file = SnapshotFile(kept / STATE)
        tops = json.loads((kept / "disks.json").read_text())
        disks.link_chains(kept / "disks", disks.disks_directory(directory), tops)
        os.utime(kept)
        return Origin(file.memory(), file.state, tops, is_fork=True, is_warm=True)
    except (ConfigError, HostError, OSError, ValueError):
        shutil.rmtree(kept, ignore_errors=True)
        return None


def keep(key: str, directory: VmDirectory, config: VmConfig, moment: Origin) -> None:
    """Keep `moment` of the VM of `directory`. Raises `HostError` when it cannot be written."""
    from kasou import __version__
    from kasou.vmm.snapshot import Description, write

    root = warm_directory()
    about = Description(
        memory_bytes=config.memory,
        harts=config.cpus,
        clock=config.clock,
        created=config.created,
        kasou=__version__,
        name=str(config.image),
    )
    try:
        root.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    except OSError as problem:
        raise HostError(f"{root}: cannot be written ({problem.strerror})") from None
    try:
        disks.link_chains(disks.disks_directory(directory), fresh / "disks", moment.tops)
        (fresh / "disks.json").write_text(json.dumps(dict(moment.tops)))
        write(fresh / STATE, moment.memory, moment.state, about)
        with contextlib.suppress(OSError):  # another one was quicker: as good as ours
            os.rename(fresh, root / key)
    except OSError as problem:
        raise HostError(f"{root}: cannot be written ({problem.strerror})") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _remove_oldest(root)


def _remove_oldest(root: Path) -> None:
    with contextlib.suppress(OSError):
        kept = sorted(
            (one for one in root.iterdir() if not one.name.startswith(".")),
            key=lambda one: one.stat().st_mtime,
        )
        for one in kept[:-MOST_KEPT]:
            shutil.rmtree(one, ignore_errors=True)


def public_keys(home: Path | None = None) -> str:
    """The user's public ssh keys, a line each: what may log in to the user's own VMs."""
    directory = (home or Path.home()) / ".ssh"
    keys: dict[str, None] = {}
    with contextlib.suppress(OSError):
        for path in sorted(directory.glob("*.pub")):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                for line in path.read_text().splitlines():
                    words = line.split()
                    if len(words) >= 2 and words[0].startswith(("ssh-", "ecdsa-", "sk-")):
                        keys[line.strip()] = None
    return "".join(f"{key}\n" for key in keys)
