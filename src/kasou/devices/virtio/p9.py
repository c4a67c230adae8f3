"""A shared directory for the guest: the virtio transport of 9P. (Virtio 1.2, 5.11 names device 9;
its layout is Linux's `virtio_9p.h`.)

The guest mounts it by its tag: `mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt`. A request
is one chain: the message to read, then room for the answer.
"""

import struct
from enum import IntFlag
from pathlib import Path

from kasou.devices.virtio.device import VirtioDevice
from kasou.devices.virtio.ninep.codec import HEADER, encode
from kasou.devices.virtio.ninep.directory import SharedDirectory
from kasou.devices.virtio.ninep.messages import Rlerror
from kasou.devices.virtio.ninep.session import Session
from kasou.errors import ConfigError, GuestError
from kasou.ports import GuestMemory

LONGEST_TAG = 31
_ERROR_BYTES = len(encode(0, Rlerror(0)))
_EMSGSIZE = 90


class P9Feature(IntFlag):
    """Features of a 9P transport."""

    MOUNT_TAG = 1 << 0


class VirtioP9(VirtioDevice):
    """virtio-9p: carries the messages of one `Session`, under a mount tag."""

    device_id = 9
    queue_sizes = (128,)

    def __init__(self, memory: GuestMemory, session: Session, tag: str) -> None:
        name = tag.encode()
        if not 0 < len(name) <= LONGEST_TAG:
            raise ConfigError(f"mount tag {tag!r}: expected 1 to {LONGEST_TAG} bytes")
        config = struct.pack("<H", len(name)) + name
        super().__init__(memory, int(P9Feature.MOUNT_TAG), config)
        self.session = session

    def serve(self, index: int) -> None:
        """Answer every request."""
        queue = self.queues[index]
        for chain in queue.chains():
            if chain.readable_bytes < HEADER.size or chain.writable_bytes < _ERROR_BYTES:
                raise GuestError(
                    f"VirtioP9: a request of {chain.readable_bytes} bytes with room for"
                    f" {chain.writable_bytes}"
                )
            size, _, tag = HEADER.unpack(chain.read(0, HEADER.size))
            if size > self.session.msize or size > chain.readable_bytes:
                answer = encode(tag, Rlerror(_EMSGSIZE))
            else:
                answer = self.session.handle(chain.read(0, size), chain.writable_bytes)
            chain.write(0, answer)
            queue.complete(chain, len(answer))

    def reset(self) -> None:
        """The driver starts anew: nothing is open."""
        super().reset()
        self.session.reset()

    def save_pending(self) -> bytes:
        """What the client has open."""
        return self.session.save()

    def restore_pending(self, pending: bytes) -> None:
        """Open it again."""
        self.session.restore(pending)


def share_directory(
    memory: GuestMemory, path: Path | str, tag: str, read_only: bool = False
) -> VirtioP9:
    """The device that shows the host's `path` to the guest. Raises `ConfigError`."""
    return VirtioP9(memory, Session(SharedDirectory(Path(path), read_only)), tag)
