"""The PCI transport: a virtio device as a PCI function. (Virtio 1.2, 4.1)

One BAR holds four structures; capabilities in configuration space say where:

    0x0000  common configuration   features, status, queues
    0x1000  ISR                    why the device interrupts; reading it takes the interrupt back
    0x2000  device configuration   the device's own
    0x3000  notifications          4 bytes a queue

A fifth capability is a window onto the BAR inside configuration space, for firmware that maps no
BARs. Interrupts are INTx; without an MSI-X capability "the vector" of everything is NO_VECTOR.
"""

import struct
from contextlib import suppress
from dataclasses import dataclass

from kasou.devices.pci.config_space import VENDOR_SPECIFIC, Bar, Command, ConfigSpace
from kasou.devices.pci.function import PciFunction, PciFunctionState
from kasou.devices.register import DeviceState, Register, RegisterDevice
from kasou.devices.virtio.device import Interrupt, VirtioDevice, VirtioState
from kasou.devices.virtio.queue import Virtqueue
from kasou.errors import BusError, ConfigError

VENDOR, FIRST_DEVICE, SUBSYSTEM = 0x1AF4, 0x1040, 0x1100
CLASSES = {1: 0x02_00_00, 2: 0x01_00_00, 3: 0x07_80_00, 19: 0x07_80_00, 9: 0x00_02_00}
"""Class codes by virtio device id: Ethernet, mass storage, communication; else "unclassified"."""
UNCLASSIFIED = 0x00_FF_00
MEMORY_BAR = 4
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
PAGE = 0x1000
NOTIFY_MULTIPLIER = 4
NO_VECTOR = 0xFFFF
_COMMON_CFG, _NOTIFY_CFG, _ISR_CFG, _DEVICE_CFG, _PCI_CFG = 1, 2, 3, 4, 5
_CAPABILITY = struct.Struct("<BBBxxxII")
"""Behind id and link: length, kind, BAR, (id, padding), offset, length of the structure."""
_WINDOW_BAR, _WINDOW_OFFSET, _WINDOW_LENGTH, _WINDOW_DATA = 4, 8, 12, 16
_U32 = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtioPciState(PciFunctionState):
    """The transport, and the device that it carries; `isr` are the reasons not yet read."""

    isr: int
    common: DeviceState
    device: VirtioState


class CommonConfig(RegisterDevice[DeviceState]):
    """`virtio_pci_common_cfg`, 4.1.4.3."""

    # fmt: off
    registers = (
        Register("DEVICE_FEATURE_SELECT", 0x00),
        Register("DEVICE_FEATURE",        0x04, access="r"),
        Register("DRIVER_FEATURE_SELECT", 0x08),
        Register("DRIVER_FEATURE",        0x0C),
        Register("CONFIG_MSIX_VECTOR",    0x10, 2),
        Register("NUM_QUEUES",            0x12, 2, access="r"),
        Register("DEVICE_STATUS",         0x14, 1),
        Register("CONFIG_GENERATION",     0x15, 1, access="r"),
        Register("QUEUE_SELECT",          0x16, 2),
        Register("QUEUE_SIZE",            0x18, 2),
        Register("QUEUE_MSIX_VECTOR",     0x1A, 2),
        Register("QUEUE_ENABLE",          0x1C, 2),
        Register("QUEUE_NOTIFY_OFF",      0x1E, 2, access="r"),
        Register("QUEUE_DESC",            0x20, 8, sizes=(4, 8)),
        Register("QUEUE_DRIVER",          0x28, 8, sizes=(4, 8)),
        Register("QUEUE_DEVICE",          0x30, 8, sizes=(4, 8)),
        Register("QUEUE_NOTIFY_DATA",     0x38, 2, access="r"),
        Register("QUEUE_RESET",           0x3A, 2),
    )
    # fmt: on
    lax = True

    def __init__(self, device: VirtioDevice) -> None:
        super().__init__()
        self.device = device

    # ------------------------------------------------------------------ features, status
    def read_device_feature(self) -> int:
        """The 32 offered bits that DEVICE_FEATURE_SELECT chose."""
        select = self.value["DEVICE_FEATURE_SELECT"]
        return self.device.offered >> 32 * select & _U32 if select < 2 else 0

    def read_driver_feature(self) -> int:
        """The 32 accepted bits that DRIVER_FEATURE_SELECT chose."""
        select = self.value["DRIVER_FEATURE_SELECT"]
        return self.device.driver_features >> 32 * select & _U32 if select < 2 else 0

    def write_driver_feature(self, value: int) -> None:
        """The 32 accepted bits that DRIVER_FEATURE_SELECT chose."""
        select = self.value["DRIVER_FEATURE_SELECT"]
        if select < 2:
            rest = self.device.driver_features & ~(_U32 << 32 * select)
            self.device.accept(rest | value << 32 * select)

    def read_device_status(self) -> int:
        """The device status."""
        return self.device.status

    def write_device_status(self, value: int) -> None:
        """0 resets the device, and what is selected here."""
        if value == 0:
            self.reset()
        self.device.set_status(value)

    def read_config_generation(self) -> int:
        """Changes whenever the device's configuration does."""
        return self.device.config_generation & 0xFF

    def read_config_msix_vector(self) -> int:
        """No vector: there is no MSI-X."""
        return NO_VECTOR

    def write_config_msix_vector(self, value: int) -> None:
        """No vector can be mapped, which the driver sees by reading it back."""

    # ------------------------------------------------------------------ queues
    def read_num_queues(self) -> int:
        """How many there are."""
        return len(self.device.queues)

    def read_queue_size(self) -> int:
        """The greatest size until the driver chose one; 0 if the queue does not exist."""
        queue = self._queue()
        return queue.size if queue else 0

    def write_queue_size(self, value: int) -> None:
        """The driver's choice."""
        if queue := self._configurable():
            queue.size = value

    def read_queue_msix_vector(self) -> int:
        """No vector: there is no MSI-X."""
        return NO_VECTOR

    def write_queue_msix_vector(self, value: int) -> None:
        """No vector can be mapped, which the driver sees by reading it back."""

    def read_queue_enable(self) -> int:
        """Whether the queue is running."""
        queue = self._queue()
        return int(queue is not None and queue.ready)

    def write_queue_enable(self, value: int) -> None:
        """1 starts the queue with what was configured; only a reset stops it."""
        queue = self._queue()
        if queue and value == 1 and not queue.ready:
            self.device.enable_queue(self.value["QUEUE_SELECT"])

    def read_queue_notify_off(self) -> int:
        """Which of the notification words is this queue's."""
        return self.value["QUEUE_SELECT"] if self._queue() else 0

    def read_queue_reset(self) -> int:
        """0: a reset is over as soon as it is written."""
        return 0

    def write_queue_reset(self, value: int) -> None:
        """1 resets the selected queue alone."""
        if value == 1 and self._queue():
            self.device.reset_queue(self.value["QUEUE_SELECT"])

    def read_queue_desc(self) -> int:
        """Descriptor area, gpa."""
        queue = self._queue()
        return queue.desc if queue else 0

    def write_queue_desc(self, value: int) -> None:
        """Descriptor area, gpa."""
        if queue := self._configurable():
            queue.desc = value

    def read_queue_driver(self) -> int:
        """Driver area, gpa."""
        queue = self._queue()
        return queue.driver if queue else 0

    def write_queue_driver(self, value: int) -> None:
        """Driver area, gpa."""
        if queue := self._configurable():
            queue.driver = value

    def read_queue_device(self) -> int:
        """Device area, gpa."""
        queue = self._queue()
        return queue.device if queue else 0

    def write_queue_device(self, value: int) -> None:
        """Device area, gpa."""
        if queue := self._configurable():
            queue.device = value

    # ------------------------------------------------------------------ rest
    def save(self) -> DeviceState:
        """The selectors."""
        return DeviceState(version=self.state_version, registers=dict(self.value))

    def restore(self, state: DeviceState) -> None:
        """The selectors."""
        self._restore_values(state)

    def _queue(self) -> Virtqueue | None:
        index = self.value["QUEUE_SELECT"]
        return self.device.queues[index] if index < len(self.device.queues) else None

    def _configurable(self) -> Virtqueue | None:
        """The selected queue, unless it runs: its configuration is then fixed."""
        queue = self._queue()
        return None if queue is None or queue.ready else queue


class VirtioPci(PciFunction):
    """A PCI function that carries `device`."""

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        self.common = CommonConfig(device)
        self._isr = 0
        config = ConfigSpace(
            VENDOR,
            FIRST_DEVICE + device.device_id,
            CLASSES.get(device.device_id, UNCLASSIFIED),
            revision=1,
            subsystem=(VENDOR, SUBSYSTEM),
            interrupt_pin=1,
            bars={MEMORY_BAR: Bar(4 * PAGE, self, wide=True, prefetchable=True)},
        )
        super().__init__(config)
        for kind, offset, length in (
            (_COMMON_CFG, COMMON, PAGE),
            (_ISR_CFG, ISR, PAGE),
            (_DEVICE_CFG, DEVICE, PAGE),
        ):
            config.add_capability(VENDOR_SPECIFIC, _capability(kind, offset, length))
        multiplier = struct.pack("<I", NOTIFY_MULTIPLIER)
        config.add_capability(VENDOR_SPECIFIC, _capability(_NOTIFY_CFG, NOTIFY, PAGE, multiplier))
        self._window = config.add_capability(
            VENDOR_SPECIFIC,
            _capability(_PCI_CFG, 0, 0, bytes(4), bar=0),
            # all but id, link, length and kind can be written; the data is looked after below
            bytes((0, 0, 0xFF, 0, 0, 0)) + b"\xff" * 8 + bytes(4),
        )
        device.connect(self._interrupted)
        device.set_bus_master(False)

    # ------------------------------------------------------------------ the BAR
    def read(self, offset: int, size: int) -> int:
        """One of the four structures. Raises `BusError` for a wrong size."""
        at = offset & PAGE - 1
        match offset & -PAGE:
            case 0x0000:
                return self.common.read(at, size)
            case 0x1000:
                return self._read_isr() if at == 0 else 0
            case 0x2000:
                return int.from_bytes(self.device.config[at : at + size], "little")
            case _:
                return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """One of the four structures. Raises `BusError` for a wrong size."""
        at = offset & PAGE - 1
        match offset & -PAGE:
            case 0x3000:
                self.device.notify(at // NOTIFY_MULTIPLIER)
            case 0x0000:
                self.common.write(at, size, value)
                if not self.device.status and at == 0x14:
                    self._isr = 0
                    self.set_interrupt(False)
            case 0x2000:
                self.device.write_config(at, value.to_bytes(size, "little"))

    def _read_isr(self) -> int:
        """The reasons; reading acknowledges them."""
        isr, self._isr = self._isr, 0
        self.set_interrupt(False)
        return isr

    def _interrupted(self, why: Interrupt, queue: int) -> None:
        self._isr |= int(why)
        self.set_interrupt(True)

    # ------------------------------------------------------------------ configuration space
    def command_changed(self) -> None:
        """Without bus mastering the device reaches no memory."""
        self.device.set_bus_master(bool(self.config.command & Command.BUS_MASTER))

    def config_read(self, offset: int, size: int) -> int:
        """A load of the window's data is a load from the BAR."""
        if offset == self._window + _WINDOW_DATA and (at := self._windowed(size)) is not None:
            try:
                return self.read(at, size)
            except BusError:
                return (1 << 8 * size) - 1
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A store to the window's data is a store to the BAR."""
        if offset == self._window + _WINDOW_DATA:
            if (at := self._windowed(size)) is not None:
                with suppress(BusError):
                    self.write(at, size, value)
            return
        super().config_write(offset, size, value)

    def _windowed(self, size: int) -> int | None:
        """Where in the BAR the window is, if it is set up rightly for an access of this size.

        "The driver MUST NOT write a cap.offset which is not a multiple of cap.length", 1, 2 or 4.
        """
        load = self.config.load
        offset, length = (
            load(self._window + _WINDOW_OFFSET, 4),
            load(self._window + _WINDOW_LENGTH, 4),
        )
        if (
            load(self._window + _WINDOW_BAR, 1) != MEMORY_BAR
            or length not in (1, 2, 4)
            or size != length
            or offset % length
            or offset + length > 4 * PAGE
        ):
            return None
        return offset

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """Device, transport and configuration space."""
        self._isr = 0
        self.common.reset()
        self.device.set_status(0)
        super().reset()

    def save(self) -> VirtioPciState:
        """Function, transport and device."""
        return VirtioPciState(
            version=self.state_version,
            config=self.config.save(),
            interrupt=self._interrupt,
            isr=self._isr,
            common=self.common.save(),
            device=self.device.save(),
        )

    def restore(self, state: PciFunctionState) -> None:
        """Take over `state` and drive the pin. Raises `ConfigError` for another function's."""
        if not isinstance(state, VirtioPciState):
            raise ConfigError("VirtioPci: the snapshot has no virtio device in this PCI slot")
        self.device.restore(state.device)
        self.common.restore(state.common)
        self._isr = state.isr
        self.device.bus_master = True  # what waits is served by `resume`, not now
        super().restore(state)


def _capability(
    kind: int, offset: int, length: int, more: bytes = b"", bar: int = MEMORY_BAR
) -> bytes:
    """`struct virtio_pci_cap` behind its first two bytes."""
    return _CAPABILITY.pack(2 + _CAPABILITY.size + len(more), kind, bar, offset, length) + more
