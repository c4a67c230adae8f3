"""Random accesses to registers: transports, configuration space, BARs wherever they are put.

A hart may load and store anything; a device answers, ignores, or raises `BusError`, which the hart
takes as an access fault.
"""

import random
from contextlib import suppress

from kasou.devices.register import Device
from kasou.errors import BusError

VALUES = (0, 1, 2, 3, 4, 7, 8, 11, 15, 16, 64, 0x100, 0x1000, 0x8000, 0xFFFF, 0xFFFF_FFFF, 1 << 63)
INTERESTING = (
    # virtio-mmio
    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0xA0, 0xC0, 0x100,
    # ECAM, function 1: command, BAR 4, the window in its capabilities
    0x8004, 0x8020, 0x8024, 0x8090, 0x8094, 0x8098, 0x809C, 0x80A0,
    # the BAR of virtio-pci, where the fuzzer puts it first: common configuration, ISR, notifications
    0x00, 0x08, 0x0C, 0x16, 0x18, 0x1C, 0x28, 0x3A, 0x1000, 0x2000, 0x3000, 0x3004,
)  # fmt: skip


def random_access(device: Device, size: int, rng: random.Random) -> None:
    """One load or store below `size`, mostly aligned and often where something happens."""
    width = rng.choice((1, 2, 4, 4, 4, 8))
    offset = rng.choice(INTERESTING) if rng.random() < 0.7 else rng.randrange(size)
    offset &= -width if rng.random() < 0.9 else -1
    if offset + width > size:
        return
    value = (rng.choice(VALUES) if rng.random() < 0.8 else rng.getrandbits(64)) & (
        1 << 8 * width
    ) - 1
    with suppress(BusError):
        if rng.random() < 0.6:
            device.write(offset, width, value)
        else:
            loaded = device.read(offset, width)
            assert 0 <= loaded < 1 << 8 * width, f"{loaded:#x} is more than {width} bytes"
