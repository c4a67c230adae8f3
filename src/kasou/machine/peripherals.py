"""The virtio devices of a board, made from what is plugged in.

Their order is fixed, for a snapshot finds them again by their place: network cards, the socket
device, the balloon, shared directories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kasou.devices.virtio.device import VirtioDevice
from kasou.devices.virtio.vsock import VirtioVsock
from kasou.engine.memory import PhysicalMemory
from kasou.machine.config import Peripherals

if TYPE_CHECKING:
    from kasou.devices.virtio.balloon import VirtioBalloon
    from kasou.devices.virtio.net import VirtioNet


@dataclass(slots=True)
class Plugged:
    """The devices that stand for a machine's peripherals; hosts use them with the board's lock."""

    nics: list[VirtioNet] = field(default_factory=list)
    vsock: VirtioVsock | None = None
    balloon: VirtioBalloon | None = None
    shares: list[VirtioDevice] = field(default_factory=list)

    @property
    def devices(self) -> list[VirtioDevice]:
        """All of them, in the order of their slots."""
        singles = [one for one in (self.vsock, self.balloon) if one is not None]
        return [*self.nics, *singles, *self.shares]


def plug(memory: PhysicalMemory, peripherals: Peripherals) -> Plugged:
    """Make the devices."""
    plugged = Plugged()
    for nic in peripherals.nics:
        from kasou.devices.virtio.net import VirtioNet

        plugged.nics.append(VirtioNet(memory, nic.port, nic.mac, queue_pairs=nic.queue_pairs))
    if peripherals.vsock_cid is not None:
        plugged.vsock = VirtioVsock(memory, peripherals.vsock_cid)
    if peripherals.balloon:
        from kasou.devices.virtio.balloon import VirtioBalloon

        plugged.balloon = VirtioBalloon(memory, memory.give_up)
    for share in peripherals.shares:
        from kasou.devices.virtio.p9 import share_directory

        plugged.shares.append(share_directory(memory, share.path, share.tag, share.read_only))
    return plugged
