"""PCI as harts and kernels meet it: through the board's bus, with interrupts at the PLIC."""

from typing import Literal

import pytest

from kasou.devices.virtio.device import Status
from kasou.devices.virtio.driver_model import WRITE, Driver, FunctionView, PciFace, Ram
from kasou.devices.virtio.rng import VirtioRng
from kasou.machine.board import PCI_ECAM, PCI_MEMORY32, PCI_MEMORY64, PLIC, Board
from kasou.machine.device_tree import Node
from kasou.machine.pci_node import pci_node
from kasou.machine.test_board import Harts


def board(ram: Ram, harts: Harts, transport: Literal["mmio", "pci"] = "pci") -> Board:
    """Two sources of entropy: the board's own and one more."""
    return Board(
        1, 256 << 20, ram, harts,
        console_output=lambda data: None, entropy=lambda n: b"e" * n, now_ns=lambda: 0,
        on_finish=lambda kind, code: None, transport=transport, packed_rings=True,
        devices=[VirtioRng(ram, lambda n: b"f" * n)],
    )  # fmt: skip


class At:
    """The board's bus from an address on, as a driver maps it."""

    def __init__(self, board: Board, base: int) -> None:
        self._bus, self._base = board.bus, base

    def read(self, offset: int, size: int) -> int:
        return self._bus.read(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._bus.write(self._base + offset, size, value)


def face(board: Board, device: int, base: int) -> PciFace:
    return PciFace(FunctionView(At(board, PCI_ECAM.base), device), At(board, 0), base)


@pytest.mark.parametrize("window", [PCI_MEMORY32.base + 0x10000, PCI_MEMORY64.base + 0x10000])
def test_two_devices_interrupt_by_their_own_wires(window: int) -> None:
    ram, harts = Ram(), Harts()
    machine = board(ram, harts)
    plic = At(machine, PLIC.base)
    plic.write(0x2084, 4, 0xF)  # enable 32 to 35 for the supervisor
    for source in range(32, 36):
        plic.write(4 * source, 4, 1)
    for device, fill in ((1, b"e"), (2, b"f")):
        transport = face(machine, device, window + 0x4000 * device)
        driver = Driver(ram, transport, at=0x4000 * device)
        assert driver.request(0, [(0x20000, 4, WRITE)]) == 4
        assert ram.read(0x20000, 4) == fill * 4
        assert harts.external[0, "S"]
        assert plic.read(0x201004, 4) == 32 + device
        assert transport.acknowledge() == 1
        plic.write(0x201004, 4, 32 + device)
        assert not harts.external[0, "S"]


def test_a_board_at_rest_keeps_its_bus() -> None:
    ram, harts = Ram(), Harts()
    machine = board(ram, harts)
    base = PCI_MEMORY64.base + 0x4000
    driver = Driver(ram, face(machine, 1, base))
    driver.request(0, [(0x20000, 4, WRITE)])
    other = board(ram, harts)
    other.restore(machine.save())
    assert other.save() == machine.save()
    mapped = At(other, base)
    assert mapped.read(0x14, 1) == Status(15)
    driver.rings[0].offer([(0x20000, 8, WRITE)])
    mapped.write(0x3000, 2, 0)
    assert [n for _, n in driver.rings[0].collect()] == [8]
    other.reset()
    assert mapped.read(0x14, 1) == 0xFF, "the BAR is nowhere after a reset"


def test_nodes_say_where_windows_are() -> None:
    node = pci_node(Node("plic"), 32, (1 << 28, 16), (2 << 28, 16), (3 << 28, 16), (4 << 32, 16))
    ranges = node.properties["ranges"]
    assert isinstance(ranges, list)
    assert ranges[:7] == [0x0100_0000, 0, 0, 0, 2 << 28, 0, 16]
    assert ranges[14:] == [0x0300_0000, 4, 0, 4, 0, 0, 16]
