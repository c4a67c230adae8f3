"""The PCI host bridge in the device tree. (IEEE 1275 PCI Bus Binding 2.1; "pci-host-ecam-generic")

A bus address has three cells: `phys.hi` says which space and, in `interrupt-map`, which device; then
64 bits. Interrupt pins A to D are numbered 1 to 4; every device's pins are turned by its number.
"""

from kasou.devices.pci.host import WIRES
from kasou.machine.device_tree import Cell, Node, region, u64

IO_SPACE, MEMORY_SPACE, MEMORY64_SPACE = 0x0100_0000, 0x0200_0000, 0x0300_0000
"""`phys.hi` of what `ranges` maps."""
DEVICE_SHIFT = 11
BUSES = 256


def pci_node(
    plic: Node,
    first_irq: int,
    ecam: tuple[int, int],
    io: tuple[int, int],
    memory32: tuple[int, int],
    memory64: tuple[int, int],
) -> Node:
    """The bridge's node: (gpa, size) of its windows, and the first of its four sources at `plic`.

    I/O ports start at bus address 0, memory windows at their own gpa.
    """
    ranges: list[int] = []
    for space, bus, (gpa, size) in (
        (IO_SPACE, 0, io),
        (MEMORY_SPACE, memory32[0], memory32),
        (MEMORY64_SPACE, memory64[0], memory64),
    ):
        ranges += [space, *u64(bus), *u64(gpa), *u64(size)]
    wires: list[Cell] = []
    for device in range(WIRES):  # the pattern repeats, and the mask says so
        for pin in range(1, WIRES + 1):
            irq = first_irq + (device + pin - 1) % WIRES
            wires += [device << DEVICE_SHIFT, 0, 0, pin, plic, irq]
    return Node(
        f"pci@{ecam[0]:x}",
        {
            "compatible": "pci-host-ecam-generic",
            "device_type": "pci",
            "#address-cells": 3,
            "#size-cells": 2,
            "#interrupt-cells": 1,
            "reg": region(*ecam),
            "bus-range": (0, BUSES - 1),
            "ranges": ranges,
            "dma-coherent": True,
            "linux,pci-domain": 0,
            "interrupt-map": wires,
            "interrupt-map-mask": (WIRES - 1 << DEVICE_SHIFT, 0, 0, 7),
        },
    )
