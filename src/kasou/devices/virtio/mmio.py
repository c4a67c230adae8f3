"""The MMIO transport, version 2: the registers through which a driver finds a virtio device.

Registers from 0x100 on are the device's configuration space. (Virtio 1.2, 4.2.2)
"""

from dataclasses import dataclass

from kasou.devices.register import DeviceState, Register, RegisterDevice
from kasou.devices.virtio.device import Interrupt, VirtioDevice, VirtioState
from kasou.devices.virtio.queue import Virtqueue
from kasou.ports import IrqLine

MAGIC = int.from_bytes(b"virt", "little")
VENDOR = int.from_bytes(b"QEMU", "little")
"""The board's, as everything on it: xv6 takes a disk of no other vendor."""
CONFIG = 0x100
_U32 = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class MmioState(DeviceState):
    """The transport, and the device that it carries."""

    device: VirtioState


class VirtioMmio(RegisterDevice[MmioState]):
    """`virtio,mmio`: one slot, carrying `device`."""

    # fmt: off
    registers = (
        Register("MAGIC_VALUE",         0x000, access="r", reset=MAGIC),
        Register("VERSION",             0x004, access="r", reset=2),
        Register("DEVICE_ID",           0x008, access="r"),
        Register("VENDOR_ID",           0x00C, access="r", reset=VENDOR),
        Register("DEVICE_FEATURES",     0x010, access="r"),
        Register("DEVICE_FEATURES_SEL", 0x014, access="w"),
        Register("DRIVER_FEATURES",     0x020, access="w"),
        Register("DRIVER_FEATURES_SEL", 0x024, access="w"),
        Register("QUEUE_SEL",           0x030, access="w"),
        Register("QUEUE_NUM_MAX",       0x034, access="r"),
        Register("QUEUE_NUM",           0x038, access="w"),
        Register("QUEUE_READY",         0x044),
        Register("QUEUE_NOTIFY",        0x050, access="w"),
        Register("INTERRUPT_STATUS",    0x060, access="r"),
        Register("INTERRUPT_ACK",       0x064, access="w"),
        Register("STATUS",              0x070),
        Register("QUEUE_DESC_LOW",      0x080, access="w"),
        Register("QUEUE_DESC_HIGH",     0x084, access="w"),
        Register("QUEUE_DRIVER_LOW",    0x090, access="w"),
        Register("QUEUE_DRIVER_HIGH",   0x094, access="w"),
        Register("QUEUE_DEVICE_LOW",    0x0A0, access="w"),
        Register("QUEUE_DEVICE_HIGH",   0x0A4, access="w"),
        Register("SHM_SEL",             0x0AC, access="w"),
        Register("SHM_LEN_LOW",         0x0B0, access="r", reset=_U32),  # "-1": no such region
        Register("SHM_LEN_HIGH",        0x0B4, access="r", reset=_U32),
        Register("SHM_BASE_LOW",        0x0B8, access="r", reset=_U32),
        Register("SHM_BASE_HIGH",       0x0BC, access="r", reset=_U32),
        Register("QUEUE_RESET",         0x0C0),
        Register("CONFIG_GENERATION",   0x0FC, access="r"),
    )
    # fmt: on
    lax = True

    def __init__(self, device: VirtioDevice, irq: IrqLine) -> None:
        super().__init__()
        self.device = device
        self._irq = irq
        device.connect(self._interrupt)

    # ------------------------------------------------------------------ configuration space
    def read(self, offset: int, size: int) -> int:
        """Configuration space takes any size; behind its end are zeros."""
        if offset >= CONFIG:
            at = offset - CONFIG
            return int.from_bytes(self.device.config[at : at + size], "little")
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Configuration space takes any size."""
        if offset >= CONFIG:
            self.device.write_config(offset - CONFIG, value.to_bytes(size, "little"))
            return
        super().write(offset, size, value)

    # ------------------------------------------------------------------ identity, features
    def read_device_id(self) -> int:
        """0 for an empty slot."""
        return self.device.device_id

    def read_device_features(self) -> int:
        """The 32 offered bits that DEVICE_FEATURES_SEL chose."""
        select = self.value["DEVICE_FEATURES_SEL"]
        return self.device.offered >> 32 * select & _U32 if select < 2 else 0

    def write_driver_features(self, value: int) -> None:
        """The 32 accepted bits that DRIVER_FEATURES_SEL chose."""
        select = self.value["DRIVER_FEATURES_SEL"]
        if select < 2:
            rest = self.device.driver_features & ~(_U32 << 32 * select)
            self.device.accept(rest | value << 32 * select)

    # ------------------------------------------------------------------ queues
    def read_queue_num_max(self) -> int:
        """0 if the queue does not exist."""
        queue = self._queue()
        return queue.max_size if queue else 0

    def write_queue_num(self, value: int) -> None:
        """The driver's choice of size."""
        if queue := self._configurable():
            queue.size = value

    def read_queue_ready(self) -> int:
        """Whether the queue is running."""
        queue = self._queue()
        return int(queue is not None and queue.ready)

    def write_queue_ready(self, value: int) -> None:
        """1 starts the queue with what was configured, 0 stops it."""
        queue = self._queue()
        if queue and value & 1 and not queue.ready:
            self.device.enable_queue(self.value["QUEUE_SEL"])
        elif queue and not value & 1:
            queue.disable()

    def read_queue_reset(self) -> int:
        """0: a reset is over as soon as it is written."""
        return 0

    def write_queue_reset(self, value: int) -> None:
        """1 resets the selected queue alone."""
        if value & 1 and self._queue():
            self.device.reset_queue(self.value["QUEUE_SEL"])

    def write_queue_notify(self, value: int) -> None:
        """There are new chains in queue `value`."""
        self.device.notify(value)

    def write_queue_desc_low(self, value: int) -> None:
        """Descriptor area, low half."""
        if queue := self._configurable():
            queue.desc = queue.desc & ~_U32 | value

    def write_queue_desc_high(self, value: int) -> None:
        """Descriptor area, high half."""
        if queue := self._configurable():
            queue.desc = value << 32 | queue.desc & _U32

    def write_queue_driver_low(self, value: int) -> None:
        """Driver area (avail ring), low half."""
        if queue := self._configurable():
            queue.driver = queue.driver & ~_U32 | value

    def write_queue_driver_high(self, value: int) -> None:
        """Driver area, high half."""
        if queue := self._configurable():
            queue.driver = value << 32 | queue.driver & _U32

    def write_queue_device_low(self, value: int) -> None:
        """Device area (used ring), low half."""
        if queue := self._configurable():
            queue.device = queue.device & ~_U32 | value

    def write_queue_device_high(self, value: int) -> None:
        """Device area, high half."""
        if queue := self._configurable():
            queue.device = value << 32 | queue.device & _U32

    # ------------------------------------------------------------------ status, interrupts
    def read_status(self) -> int:
        """The device status."""
        return self.device.status

    def write_status(self, value: int) -> None:
        """0 resets device and transport."""
        if value == 0:
            self.reset()
        else:
            self.device.set_status(value & 0xFF)

    def write_interrupt_ack(self, value: int) -> None:
        """The driver has seen these reasons."""
        self.value["INTERRUPT_STATUS"] &= ~value
        self._irq(self.value["INTERRUPT_STATUS"] != 0)

    def read_config_generation(self) -> int:
        """Changes whenever the configuration space does."""
        return self.device.config_generation

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """Reset device and transport."""
        super().reset()
        self.device.set_status(0)
        self._irq(False)

    def save(self) -> MmioState:
        """Transport and device."""
        return MmioState(
            registers=dict(self.value),
            device=self.device.save(),
        )

    def restore(self, state: MmioState) -> None:
        """Take over `state` and drive the interrupt line."""
        self._restore_values(state)
        self.device.restore(state.device)
        self._irq(self.value["INTERRUPT_STATUS"] != 0)

    def _queue(self) -> Virtqueue | None:
        index = self.value["QUEUE_SEL"]
        return self.device.queues[index] if index < len(self.device.queues) else None

    def _configurable(self) -> Virtqueue | None:
        """The selected queue, unless it runs: its configuration is then fixed."""
        queue = self._queue()
        return None if queue is None or queue.ready else queue

    def _interrupt(self, why: Interrupt, queue: int) -> None:
        self.value["INTERRUPT_STATUS"] |= int(why)
        self._irq(True)
