"""From a VM's configuration to its machine, with everything plugged in.

The one place where storage, network and machine meet. What is opened here is closed by `close`.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import VmDirectory
from kasou.errors import ConfigError

if TYPE_CHECKING:
    from kasou.machine.config import MachineConfig, Nic, Peripherals
    from kasou.machine.machine import Machine
    from kasou.ports import Disk

GUEST_CID = 3
"""The guest's address on its own socket device; each VM has a device of its own."""


@dataclass(slots=True)
class Plugged:
    """What stands behind a machine's devices, on the host's side."""

    disks: list[Disk] = field(default_factory=list)
    network: Any = None
    peripherals: Peripherals | None = None
    closers: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        """Close all, the last opened first; the machine has ended."""
        while self.closers:
            with contextlib.suppress(OSError):
                self.closers.pop()()


def machine_config(config: VmConfig) -> MachineConfig:
    """The machine's part of the configuration."""
    from kasou.machine.machine import MachineConfig

    return MachineConfig(
        memory=config.memory,
        harts=config.cpus,
        engine=config.engine,
        clock=config.clock,
        seed=config.seed,
        bios=config.bios,
        kernel=Path(config.kernel) if config.kernel else None,
        initrd=Path(config.initrd) if config.initrd else None,
        append=config.append,
        reboot=config.reboot,
        max_instructions=config.max_instructions,
    )


def plug(config: VmConfig, directory: VmDirectory | None) -> Plugged:
    """Open disks and network. Raises `ConfigError`, `HostError`."""
    from kasou.machine.config import Peripherals, Share

    plugged = Plugged()
    try:
        _open_disks(plugged, config)
        shares = tuple(
            Share(Path(mount.source), mount.tag, mount.read_only) for mount in config.mounts
        )
        plugged.peripherals = Peripherals(
            disks=tuple(plugged.disks), nics=_nics(plugged, config, directory), shares=shares,
            vsock_cid=GUEST_CID if config.agent else None,
        )  # fmt: skip
    except BaseException:
        plugged.close()
        raise
    return plugged


def _open_disks(plugged: Plugged, config: VmConfig) -> None:
    for drive in config.drives:
        plugged.disks.append(_open_disk(plugged, drive.path, drive.read_only))


def _open_disk(plugged: Plugged, path: str, read_only: bool) -> Disk:
    from kasou.storage.raw import RawDisk

    disk = cast("Disk", RawDisk(Path(path), read_only))
    if close := getattr(disk, "close", None):
        plugged.closers.append(close)
    return disk


def _nics(plugged: Plugged, config: VmConfig, directory: VmDirectory | None) -> tuple[Nic, ...]:
    return ()


def build(config: VmConfig, plugged: Plugged, console_output: Callable[[bytes], None]) -> Machine:
    """The machine, ready to `run`. Raises `ConfigError`."""
    from kasou.machine.machine import Machine

    return Machine(machine_config(config), console_output, plugged.peripherals)


def mac_address(config: VmConfig) -> bytes:
    """The network card's address: the VM's name and, without a seed, its creation decide."""
    text = f"{config.name}/{config.seed if config.seed is not None else config.created}"
    return b"\x52\x54\x00" + hashlib.sha256(text.encode()).digest()[:3]


def machine_id(config: VmConfig) -> str:
    """An identity for the guest, of 32 hexadecimal digits."""
    if config.seed is not None:
        return uuid.UUID(int=random.Random(config.seed).getrandbits(128), version=4).hex
    return uuid.uuid4().hex


def not_there(what: str) -> ConfigError:
    """Something that was asked for and that this kasou lacks."""
    return ConfigError(f"{what}: this version of kasou cannot do it")
