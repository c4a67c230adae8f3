"""What a VM is made of: `vm.json`, written once at launch and read by the VM's process.

Everything is resolved: sizes in bytes, paths absolute, the image's files named. Flags of the
command line and arguments of Python both end here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kasou.errors import ConfigError

VERSION = 1
MIB = 1 << 20
MOST_CPUS = 8
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

TECHNIQUES = ("direct",)
PAGINGS = ("direct",)
IOS = ("virtio",)
SCHEDULERS = ("direct",)
CLOCKS = ("host", "icount")
ENGINES = ("interpreter", "reference")
DISK_ERRORS = ("report", "enospc", "stop")


@dataclass(frozen=True, slots=True)
class DriveConfig:
    """A disk given by the user; `snapshot` keeps what is written in a throw-away overlay.

    `format` None is what the file says. `cache` as QEMU means it.
    """

    path: str
    read_only: bool = False
    format: Literal["raw", "qcow2"] | None = None
    cache: Literal["writeback", "none", "unsafe"] = "writeback"
    snapshot: bool = False
    slot: int | None = None
    """Its virtio-mmio slot, None for the next one free."""


@dataclass(frozen=True, slots=True)
class MountConfig:
    """A directory of the host, shared with the guest by 9p under `tag`."""

    source: str
    target: str
    tag: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """A VM at rest. `memory` in bytes; `created` an ISO date and time (UTC).

    `ports` and `egress` are kept as typed and were checked; `ephemeral` VMs vanish when they end,
    `held` ones end when nobody holds them any more (see `operations.Hold`).
    """

    version: int = VERSION
    name: str
    created: str
    image: str | None = None
    cpus: int = 1
    memory: int = 512 * MIB
    bios: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    disk: str | None = None
    """The VM's own disk, an overlay in its directory: the guest's first."""
    drives: tuple[DriveConfig, ...] = ()
    mounts: tuple[MountConfig, ...] = ()
    cloud_init: str | None = None
    ports: tuple[str, ...] = ()
    network: str | None = None
    networked: bool = True
    mac: str | None = None
    """The network card's address, as 52:54:00:12:34:56."""
    egress: str = "allow"
    agent: bool = False
    """Whether the guest is known to run kasou's agent."""
    transport: Literal["mmio", "pci"] = "mmio"
    """What carries the virtio devices."""
    engine: str = "interpreter"
    clock: str = "host"
    seed: int | None = None
    technique: str = "direct"
    paging: str = "direct"
    io: str = "virtio"
    scheduler: str = "direct"
    disk_errors: Literal["report", "enospc", "stop"] = "report"
    """What becomes of disk requests that the host cannot do; see `kasou.machine.config`."""
    reboot: bool = True
    max_instructions: int | None = None
    ephemeral: bool = False
    held: bool = False
    parent: str | None = None
    """The VM this one was forked from."""
    warm: str | None = None
    """The kind of warm start that its first start may use or make (`kasou.control.warm`)."""


def check_name(name: str) -> str:
    """`name` if a VM may be called that. Raises `ConfigError`."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r}: not a name for a VM; letters, digits, '.', '_' and '-', at most 63,"
            " beginning with a letter or digit"
        )
    return name


def check_choices(config: VmConfig) -> None:
    """Refuse what no part of kasou can do. Raises `ConfigError`."""
    for what, value, choices in (
        ("technique", config.technique, TECHNIQUES),
        ("paging", config.paging, PAGINGS),
        ("io", config.io, IOS),
        ("scheduler", config.scheduler, SCHEDULERS),
        ("clock", config.clock, CLOCKS),
        ("engine", config.engine, ENGINES),
        ("disk-errors", config.disk_errors, DISK_ERRORS),
    ):
        if value not in choices:
            there = (
                f"there is only {choices[0]}"
                if len(choices) == 1
                else f"there are {', '.join(choices)}"
            )
            raise ConfigError(f"{what} {value!r}: not known; {there}")
    if not 1 <= config.cpus <= MOST_CPUS:
        raise ConfigError(f"{config.cpus} processors: a board has 1 to {MOST_CPUS}")


def next_free_tag(mounts: tuple[MountConfig, ...]) -> str:
    """The 9p tag of the next shared directory."""
    return f"kasou{len(mounts)}"
