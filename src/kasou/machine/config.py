"""What makes a machine: numbers and files given by a person, and the parts plugged in around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kasou.ports import Disk, Port

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Drive:
    """A raw disk image given by the user."""

    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """Everything that makes a machine. `bios`: None for the built-in SBI, "none", or a file."""

    memory: int = 512 * MIB
    harts: int = 1
    engine: str = "interpreter"
    clock: str = "host"
    seed: int | None = None
    bios: str | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    drives: tuple[Drive, ...] = ()
    reboot: bool = True
    max_instructions: int | None = None


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card: the wire it is plugged into, and its hardware address (6 bytes)."""

    port: Port
    mac: bytes
    queue_pairs: int = 1


@dataclass(frozen=True, slots=True)
class Share:
    """A directory of the host that the guest can mount by `tag` (9p)."""

    path: Path
    tag: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Peripherals:
    """What is plugged into the board: live objects of the host, which no snapshot holds.

    Disks come in addition to the configuration's drives, before them. `vsock_cid` is the guest's
    address on the socket device (3 or more), None for no such device. `transport` is what carries
    virtio devices (the MMIO slots, then PCI; or PCI alone), `packed_rings` offers them to drivers.
    """

    disks: Sequence[Disk] = ()
    nics: Sequence[Nic] = ()
    shares: Sequence[Share] = ()
    vsock_cid: int | None = None
    balloon: bool = False
    disk_errors: Literal["report", "enospc", "stop"] = "report"
    """What becomes of requests that the host cannot do: the guest is told, or (always, or when the host
    is full) the machine pauses and they are done again when it goes on."""
    transport: Literal["mmio", "pci"] = "mmio"
    packed_rings: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; `code` is the guest's, 0 for success."""

    kind: Literal["poweroff", "exit", "reset", "timeout", "budget", "stopped"]
    code: int = 0
