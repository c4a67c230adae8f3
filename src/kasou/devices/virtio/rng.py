"""Entropy for the guest. (Virtio 1.2, 5.4)"""

from collections.abc import Callable

from kasou.devices.virtio.device import VirtioDevice
from kasou.ports import GuestMemory

Entropy = Callable[[int], bytes]
"""Gives that many random bytes; from the host, or from a seed where a run is to be repeatable."""

_MOST = 1 << 16


class VirtioRng(VirtioDevice):
    """virtio-rng: fills every buffer, at most 64 KiB of it."""

    device_id = 4
    queue_sizes = (8,)

    def __init__(self, memory: GuestMemory, entropy: Entropy) -> None:
        super().__init__(memory)
        self._entropy = entropy

    def serve(self, index: int) -> None:
        """Fill what is there."""
        queue = self.queues[index]
        for chain in queue.chains():
            data = self._entropy(min(chain.writable_bytes, _MOST))
            chain.write(0, data)
            queue.complete(chain, len(data))
