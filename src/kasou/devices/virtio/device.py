"""What a virtio device is, whatever carries it: status, features, queues, configuration.

A transport (`mmio`, `pci`) shows these to the driver and is told of interrupts; a device (`block`,
`rng`, `console`) says what it offers and serves its queues. (Virtio 1.2, 2.1 to 2.6, 3.1)

When the driver breaks the rules (`GuestError`) the device sets DEVICE_NEEDS_RESET, announces a
configuration change and does nothing more until it is reset; the VM goes on.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar

from kasou.devices.register import check_version
from kasou.devices.virtio.queue import QueueState, Virtqueue
from kasou.errors import ConfigError, GuestError
from kasou.ports import GuestMemory

log = logging.getLogger("kasou.devices.virtio")


class Status(IntFlag):
    """Device status, 2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Interrupt(IntFlag):
    """Why a device interrupts."""

    USED_BUFFER = 1
    CONFIG_CHANGE = 2


class Feature(IntFlag):
    """Features that belong to the queues and the transport, 6."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34
    RING_RESET = 1 << 40


_USED_BUFFER = Interrupt.USED_BUFFER
_RUNNING = int(Status.DRIVER_OK)
_RUNNING_MASK = int(Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET)
_COMMON = int(Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.VERSION_1 | Feature.RING_RESET)

OnInterrupt = Callable[[Interrupt, int], None]
"""Told why a device interrupts and, for a used buffer, by which queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtioState:
    """A virtio device at rest; `pending` are bytes that wait for a buffer from the driver."""

    version: int = 1
    device_id: int
    status: int
    driver_features: int
    config: bytes
    config_generation: int
    queues: tuple[QueueState, ...]
    pending: bytes = b""


class VirtioDevice:
    """Base of the devices. A subclass names its queues' greatest sizes and serves them.

    `offered` are its own features; those of queues and transport are added here, packed rings only
    by `offer`. `queue_sizes` overrides the class's where their number depends on how the device is
    built.
    """

    device_id: ClassVar[int] = 0
    queue_sizes: ClassVar[tuple[int, ...]] = ()
    state_version: ClassVar[int] = 1

    def __init__(
        self,
        memory: GuestMemory,
        offered: int = 0,
        config: bytes = b"",
        queue_sizes: Sequence[int] | None = None,
    ) -> None:
        self.offered = offered | (_COMMON if self.device_id else 0)
        self.driver_features = 0
        self.status = 0
        self.bus_master = True
        self.config = config
        self.config_generation = 0
        self.queues = tuple(Virtqueue(memory, size) for size in queue_sizes or self.queue_sizes)
        self._interrupt: OnInterrupt = _unconnected

    # ------------------------------------------------------------------ for subclasses
    def serve(self, index: int) -> None:
        """The driver made chains available in queue `index`. Raises `GuestError`."""
        raise NotImplementedError

    def save_pending(self) -> bytes:
        """Bytes from the host that wait for a buffer."""
        return b""

    def restore_pending(self, pending: bytes) -> None:
        """Take them back."""

    def change_config(self, config: bytes) -> None:
        """Show the driver a new configuration space."""
        self.config = config
        self.config_generation = (self.config_generation + 1) & 0xFFFF_FFFF
        if self.status & Status.DRIVER_OK:
            self._interrupt(Interrupt.CONFIG_CHANGE, 0)

    def signal(self, index: int) -> None:
        """Interrupt if the driver wants to hear of what was completed in queue `index`.

        `notify` does so for its own queue; this is for chains that are completed at other times.
        """
        if self.queues[index].wants_interrupt() and self.running:
            self._interrupt(Interrupt.USED_BUFFER, index)

    def queue_was_reset(self, index: int) -> None:
        """The driver reset this one queue: forget what belongs to its chains."""

    # ------------------------------------------------------------------ for boards
    def offer(self, features: int) -> None:
        """Offer more; before a driver looks. `Feature.RING_PACKED` is offered by request only."""
        self.offered |= features

    def resume(self) -> None:
        """Everything is restored and wired: serve again the requests that were in flight."""
        for index, queue in enumerate(self.queues):
            if queue.has_chains_again:
                self.notify(index)

    # ------------------------------------------------------------------ for transports
    def connect(self, interrupt: OnInterrupt) -> None:
        """Say who is told of interrupts."""
        self._interrupt = interrupt

    @property
    def accepted(self) -> int:
        """The features that the driver chose of those offered; they stand from FEATURES_OK on."""
        return self.driver_features & self.offered

    @property
    def running(self) -> bool:
        """Whether the driver is ready and has broken no rule, and memory may be reached."""
        return self.status & _RUNNING_MASK == _RUNNING and self.bus_master

    def set_bus_master(self, on: bool) -> None:
        """Whether the transport lets the device reach memory; what waited meanwhile is served."""
        began = on and not self.bus_master
        self.bus_master = on
        if began:
            self._notify_all()

    def accept(self, features: int) -> None:
        """The driver's choice, which may be anything."""
        if not self.status & Status.FEATURES_OK:
            self.driver_features = features

    def set_status(self, value: int) -> None:
        """The driver writes the status: 0 resets, bits are only ever added.

        FEATURES_OK stays clear when the driver accepted what was not offered. VERSION_1 is not
        insisted on ("a device MAY fail to operate further if VIRTIO_F_VERSION_1 is not accepted"):
        small kernels for teaching do not negotiate it and use the layout of version 1 all the same.
        """
        if value == 0:
            self.reset()
            return
        if value & Status.FEATURES_OK and self.driver_features & ~self.offered:
            value &= ~Status.FEATURES_OK
        started = value & ~self.status & Status.DRIVER_OK
        self.status |= int(value & ~Status.DEVICE_NEEDS_RESET)
        if started:
            self._notify_all()

    def enable_queue(self, index: int) -> None:
        """The driver finished configuring queue `index`; its layout is what was negotiated."""
        queue, accepted = self.queues[index], self.accepted
        queue.packed = bool(accepted & Feature.RING_PACKED)
        queue.indirect = bool(accepted & Feature.INDIRECT_DESC)
        queue.event_idx = bool(accepted & Feature.EVENT_IDX)
        try:
            queue.enable()
        except GuestError as error:
            self.fail(error)

    def reset_queue(self, index: int) -> None:
        """The driver resets one queue, to configure it anew. (2.6.1)"""
        if self.accepted & Feature.RING_RESET:
            self.queues[index].reset()
            self.queue_was_reset(index)

    def _notify_all(self) -> None:
        for index in range(len(self.queues)):
            self.notify(index)

    def notify(self, index: int) -> None:
        """Serve queue `index` and interrupt if the driver wants to hear of it."""
        if not self.running or index >= len(self.queues) or not self.queues[index].ready:
            return
        queue = self.queues[index]
        try:
            try:
                self.serve(index)
            finally:
                if queue.wants_interrupt():
                    self._interrupt(_USED_BUFFER, index)
        except GuestError as error:
            self.fail(error)

    def fail(self, error: GuestError) -> None:
        """The driver broke a rule: ask for a reset."""
        log.warning("%s: %s; the device needs a reset", type(self).__name__, error)
        self.status |= int(Status.DEVICE_NEEDS_RESET)
        if self.status & Status.DRIVER_OK:
            self._interrupt(Interrupt.CONFIG_CHANGE, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes its configuration space; most devices have nothing to write."""

    def reset(self) -> None:
        """As after power-on; subclasses extend this."""
        self.status = self.driver_features = 0
        for queue in self.queues:
            queue.reset()

    def save(self) -> VirtioState:
        """The device at rest."""
        return VirtioState(
            version=self.state_version,
            device_id=self.device_id,
            status=self.status,
            driver_features=self.driver_features,
            config=self.config,
            config_generation=self.config_generation,
            queues=tuple(queue.save() for queue in self.queues),
            pending=self.save_pending(),
        )

    def restore(self, state: VirtioState) -> None:
        """Continue where `state` was. Raises `ConfigError` when it is another device's."""
        check_version(type(self).__name__, state.version, self.state_version)
        if state.device_id != self.device_id:
            raise ConfigError(
                f"{type(self).__name__}: the snapshot has virtio device {state.device_id} in this "
                f"slot, the board has {self.device_id}; give the same drives and devices"
            )
        self.status, self.driver_features = state.status, state.driver_features
        self.config, self.config_generation = state.config, state.config_generation
        for queue, saved in zip(self.queues, state.queues, strict=True):
            queue.restore(saved)
        self.restore_pending(state.pending)


class NoDevice(VirtioDevice):
    """An empty slot: device id 0, which drivers skip."""


def _unconnected(_: Interrupt, __: int) -> None:
    """A device that no transport carries interrupts nobody."""
