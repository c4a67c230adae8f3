"""A device on the PCI bus: what the host bridge needs of it, and what all of them share.

A function has a configuration space, regions behind its BARs, and an interrupt pin that is a level:
asserted while the device asks for attention and INTx is not disabled. The bridge decodes its BARs
and is told when they move. (PCI Local Bus 3.0, 2.2.6, 6.2)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from kasou.devices.pci.config_space import BAR0, BARS, COMMAND, SIZE, Bar, Command, ConfigSpace
from kasou.devices.register import check_version
from kasou.errors import ConfigError
from kasou.ports import IrqLine


@dataclass(frozen=True, slots=True, kw_only=True)
class PciFunctionState:
    """A function at rest."""

    version: int = 1
    config: bytes
    interrupt: bool


class PciFunction:
    """Base of the functions; `config` says what it is. A subclass adds what its BARs answer."""

    state_version: ClassVar[int] = 1

    def __init__(self, config: ConfigSpace) -> None:
        self.config = config
        self._interrupt = False
        self._set_pin: IrqLine = _unconnected
        self._moved: Callable[[], None] = _unmapped

    # ------------------------------------------------------------------ for the bridge
    def connect(self, set_pin: IrqLine, moved: Callable[[], None]) -> None:
        """`set_pin` drives the interrupt pin; `moved` is called when regions come, go or move."""
        self._set_pin, self._moved = set_pin, moved

    def config_read(self, offset: int, size: int) -> int:
        """Load from configuration space; subclasses extend this for their capabilities."""
        return self.config.load(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Store to configuration space; subclasses extend this for their capabilities."""
        self.config.store(offset, size, value)
        if offset < COMMAND + 2 and offset + size > COMMAND:
            self.command_changed()
            self._drive()
            self._moved()
        elif offset < BAR0 + 4 * BARS and offset + size > BAR0:
            self._moved()

    def regions(self) -> list[tuple[range, Bar]]:
        """What the function decodes now: bus addresses and what answers them."""
        command, found = self.config.command, []
        for index, bar in self.config.bars.items():
            if command & (Command.IO if bar.io else Command.MEMORY):
                found.append((self.config.region(index), bar))
        return found

    # ------------------------------------------------------------------ for subclasses
    def set_interrupt(self, on: bool) -> None:
        """The device asks for attention, or has got it."""
        self._interrupt = on
        self._drive()

    def command_changed(self) -> None:
        """The driver wrote the command register: bus mastering may have changed."""

    def _drive(self) -> None:
        self.config.set_interrupt_status(self._interrupt)
        self._set_pin(self._interrupt and not self.config.command & Command.INTX_DISABLE)

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """As after power-on; subclasses extend this."""
        self.config.reset()
        self._interrupt = False
        self.command_changed()
        self._drive()
        self._moved()

    def save(self) -> PciFunctionState:
        """The function at rest; subclasses add what they remember."""
        return PciFunctionState(
            version=self.state_version, config=self.config.save(), interrupt=self._interrupt
        )

    def restore(self, state: PciFunctionState) -> None:
        """Become what `save` saw and drive the pin. Raises `ConfigError` for another function's."""
        check_version(type(self).__name__, state.version, self.state_version)
        own = self.config.load(0, 4)
        if len(state.config) != SIZE or int.from_bytes(state.config[:4], "little") != own:
            raise ConfigError(
                f"{type(self).__name__}: the snapshot has another PCI function in this slot; "
                "give the same drives and devices"
            )
        self.config.restore(state.config)
        self._interrupt = state.interrupt
        self.command_changed()
        self._drive()
        self._moved()


def _unconnected(_: bool) -> None:
    """A function on no bus interrupts nobody."""


def _unmapped() -> None:
    """A function on no bus is nowhere."""
