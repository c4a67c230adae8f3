"""From a VM's configuration to its machine, with everything plugged in.

The one place where storage, network and machine meet.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasou.control.disks import VmDisks
from kasou.control.vm_config import VmConfig
from kasou.control.vm_directory import VmDirectory

if TYPE_CHECKING:
    from kasou.engine.frozen_memory import FrozenMemory
    from kasou.machine.config import MachineConfig, Nic
    from kasou.machine.machine import Machine
    from kasou.machine.state import MachineState

GUEST_CID = 3
"""The guest's address on its own socket device; each VM has a device of its own."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A machine at rest, to go on from: a snapshot's or a fork's. `tops` are its disks' images."""

    memory: FrozenMemory
    state: MachineState
    tops: Mapping[str, str] = field(default_factory=dict)
    snapshot: str | None = None
    is_fork: bool = False
    is_warm: bool = False
    """It had just booted, in another VM that nobody used."""

    def is_quiet(self, config: VmConfig) -> bool:
        """A fork without neighbours: its guest need not know of it before somebody uses it."""
        return self.is_fork and not self.is_warm and config.network is None


@dataclass(frozen=True, slots=True)
class Assembled:
    """A machine and the disks plugged into it, which its owner closes when it has ended."""

    machine: Machine
    disks: VmDisks


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


def assemble(
    config: VmConfig,
    directory: VmDirectory,
    nics: tuple[Nic, ...],
    console_output: Callable[[bytes], None],
    origin: Origin | None = None,
) -> Assembled:
    """The machine, ready to `run`: from power-on, or from `origin`.

    Raises `ConfigError` and `HostError` for what cannot be opened, built or booted.
    """
    from kasou.machine.config import Peripherals, Share
    from kasou.machine.machine import Machine

    disks = VmDisks(directory, config, origin.tops if origin is not None else None)
    try:
        peripherals = Peripherals(
            disks=tuple(disks.open),
            nics=nics,
            shares=tuple(Share(Path(m.source), m.tag, m.read_only) for m in config.mounts),
            vsock_cid=GUEST_CID if config.agent else None,
            disk_errors=config.disk_errors,
            transport=config.transport,
        )
        memory = origin.memory if origin is not None else None
        machine = Machine(machine_config(config), console_output, peripherals, memory)
        if origin is not None:
            from kasou.machine.state import restore

            restore(machine, origin.state)
            if origin.is_warm and config.seed is not None:
                machine.rng.seed(config.seed)
            if origin.is_fork and not origin.is_quiet(config):
                machine.board.become_a_copy()
            if machine.plugged.vsock is not None and not origin.is_quiet(config):
                with machine.lock:
                    machine.plugged.vsock.transport_reset()
    except BaseException:
        disks.close()
        raise
    return Assembled(machine, disks)


def mac_address(name: str, created: str, seed: int | None, network: str | None) -> str:
    """The network card's address. With a seed, and no neighbours, that alone decides."""
    if seed is not None:
        name, created = name if network else "", str(seed)
    digest = hashlib.sha256(f"{name}/{created}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in b"\x52\x54\x00" + digest[:3])


def machine_id(config: VmConfig) -> str:
    """An identity for the guest, of 32 hexadecimal digits."""
    if config.seed is not None:
        return uuid.UUID(int=random.Random(config.seed).getrandbits(128), version=4).hex
    return uuid.uuid4().hex


PRELOADED = (
    "asyncio", "kasou.control.moments", "kasou.control.server", "kasou.control.vsock_tunnel",
    "kasou.guest.agent.client", "kasou.machine.machine", "kasou.machine.state",
    "kasou.devices.virtio.p9", "kasou.storage.create", "kasou.storage.disk", "kasou.vmm.fork",
    "kasou.vmm.snapshot", "kasou.engine.interpreter",
)  # fmt: skip
PRELOADED_FOR_NETWORK = ("kasou.control.vm_network", "kasou.control.network")


def preload(networked: bool = True) -> None:
    """Import and load what a VM needs, so that processes forked from this one have it."""
    from kasou.engine import object_cache

    for module in PRELOADED + (PRELOADED_FOR_NETWORK if networked else ()):
        importlib.import_module(module)
    object_cache.load()


Handlers = dict[str, Callable[[Any], Any]]
"""For each operation, by name, what carries it out: see `server.Operated`."""
