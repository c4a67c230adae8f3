"""The host bridge: how harts reach PCI functions, and how these reach the interrupt controller.

ECAM shows the configuration spaces, 4 KiB a function:

    offset  | bus 27..20 | device 19..15 | function 14..12 | register 11..0 |

Three windows pass accesses on to whatever BAR claims the address: I/O ports, memory below 4 GiB,
memory above. Nobody there: loads give ones, stores are lost, as a master abort ends on PCI. All is
on bus 0, one function a device; device 0 is the bridge itself.

Four interrupt wires; pin p of device d drives wire (d + p - 1) mod 4, so that devices with one
pin each spread over all ("swizzle"). A wire is up while any function on it asserts.
(PCIe 5.0, 7.2.2 ECAM; PCI Local Bus 3.0, 2.2.6; PCI-to-PCI Bridge 1.2, 9.1)
"""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from kasou.devices.pci.config_space import INTERRUPT_PIN, SIZE, Bar, ConfigSpace
from kasou.devices.pci.function import PciFunction, PciFunctionState
from kasou.devices.register import check_version
from kasou.errors import BusError, ConfigError
from kasou.ports import IrqLine

WIRES = 4
DEVICES = 32
_VENDOR_RED_HAT, _GENERIC_BRIDGE = 0x1B36, 0x0008
_HOST_BRIDGE = 0x06_00_00
"""Class code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PciState:
    """All functions at rest, by device number; None where there is none."""

    version: int = 1
    functions: tuple[PciFunctionState | None, ...]


class PciHost:
    """A generic ECAM host bridge and its bus.

    The board attaches `ecam`, `io`, `memory32` and `memory64` where harts find them; a window's bus
    addresses start at what is given here (for memory the board's own addresses).
    """

    def __init__(
        self, irq_lines: Sequence[IrqLine], memory32_base: int, memory64_base: int
    ) -> None:
        assert len(irq_lines) == WIRES, "a PCI bus has four interrupt wires"
        self._irq_lines = tuple(irq_lines)
        self._asserting = [0] * WIRES
        self._functions: list[PciFunction | None] = [None] * DEVICES
        self._decoded: dict[bool, _Decoder] = {True: _Decoder(), False: _Decoder()}
        self.ecam = Ecam(self)
        self.io = Window(self._decoded[True], 0)
        self.memory32 = Window(self._decoded[False], memory32_base)
        self.memory64 = Window(self._decoded[False], memory64_base)
        self.add(PciFunction(ConfigSpace(_VENDOR_RED_HAT, _GENERIC_BRIDGE, _HOST_BRIDGE)))

    @property
    def functions(self) -> tuple[PciFunction | None, ...]:
        """By device number."""
        return tuple(self._functions)

    def add(self, function: PciFunction, device: int | None = None) -> int:
        """Plug `function` in, at the next free device number unless one is given; that number.

        Raises `ConfigError` when there is no place.
        """
        if device is None:
            free = [n for n, one in enumerate(self._functions) if one is None]
            if not free:
                raise ConfigError(f"PCI: all {DEVICES} places are taken")
            device = free[0]
        if not 0 <= device < DEVICES or self._functions[device] is not None:
            raise ConfigError(f"PCI: there is no free place {device}")
        self._functions[device] = function
        pin = function.config.load(INTERRUPT_PIN, 1)
        drive = partial(self._set_pin, device, (device + pin - 1) % WIRES) if pin else _no_pin
        function.connect(drive, self._decode)
        return device

    def _set_pin(self, device: int, wire: int, on: bool) -> None:
        was = self._asserting[wire]
        now = was | 1 << device if on else was & ~(1 << device)
        if now != was:
            self._asserting[wire] = now
            if bool(now) != bool(was):
                self._irq_lines[wire](bool(now))

    def _decode(self) -> None:
        """Some BAR moved: find out anew what is where."""
        regions = [r for f in self._functions if f is not None for r in f.regions()]
        for io, decoder in self._decoded.items():
            decoder.set([(place, bar) for place, bar in regions if bar.io == io])

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """Every function as after power-on."""
        for function in self._functions:
            if function is not None:
                function.reset()

    def save(self) -> PciState:
        """The bus at rest."""
        return PciState(functions=tuple(None if f is None else f.save() for f in self._functions))

    def restore(self, state: PciState) -> None:
        """Become what `save` saw, and drive all wires. Raises `ConfigError` for another bus's."""
        check_version("PciHost", state.version, 1)
        if len(state.functions) != DEVICES:
            raise ConfigError("PCI: the snapshot is damaged")
        for device, (function, saved) in enumerate(
            zip(self._functions, state.functions, strict=True)
        ):
            if (function is None) != (saved is None):
                raise ConfigError(
                    f"PCI: device {device} is there in the snapshot or on the board, not in both; "
                    "give the same drives and devices"
                )
            if function is not None and saved is not None:
                function.restore(saved)
        for wire, line in enumerate(self._irq_lines):
            line(self._asserting[wire] != 0)


class Ecam:
    """The configuration spaces as memory."""

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def read(self, offset: int, size: int) -> int:
        """Ones where no function is; zeros behind the 256 bytes that ours have."""
        function = self._function(offset)
        if function is None:
            return (1 << 8 * size) - 1
        return function.config_read(offset & 0xFFF, size) if offset & 0xFFF < SIZE else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Lost where no function is."""
        function = self._function(offset)
        if function is not None and offset & 0xFFF < SIZE:
            function.config_write(offset & 0xFFF, size, value)

    def _function(self, offset: int) -> PciFunction | None:
        bus_device_function = offset >> 12
        device, function = bus_device_function >> 3, bus_device_function & 7
        return None if function or device >= DEVICES else self._host.functions[device]


class _Decoder:
    """Which BAR claims a bus address. Where two do, the lower one's region counts."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._regions: list[tuple[range, Bar]] = []

    def set(self, regions: list[tuple[range, Bar]]) -> None:
        """These are decoded from now on."""
        self._regions = []
        end = 0
        for place, bar in sorted(regions, key=lambda region: region[0].start):
            if place.start >= end:
                self._regions.append((place, bar))
                end = place.stop
        self._starts = [place.start for place, _ in self._regions]

    def find(self, address: int, size: int) -> tuple[Bar, int] | None:
        """The BAR that holds all of an access, and the offset in it."""
        i = bisect_right(self._starts, address) - 1
        if i < 0:
            return None
        place, bar = self._regions[i]
        return (bar, address - place.start) if address + size <= place.stop else None


class Window:
    """A piece of the harts' address space behind which lies the bus, from bus address `base`."""

    def __init__(self, decoder: _Decoder, base: int) -> None:
        self._decoder = decoder
        self._base = base

    def read(self, offset: int, size: int) -> int:
        """What the claiming function answers; ones when nobody does or the access is refused."""
        found = self._decoder.find(self._base + offset, size)
        if found is not None:
            bar, at = found
            try:
                return bar.device.read(at, size)
            except BusError:
                pass  # a completer abort
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """To the claiming function; lost when nobody does or the access is refused."""
        found = self._decoder.find(self._base + offset, size)
        if found is not None:
            bar, at = found
            with suppress(BusError):  # a completer abort
                bar.device.write(at, size, value)


def _no_pin(_: bool) -> None:
    """A function without an interrupt pin."""
