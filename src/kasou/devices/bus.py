"""The bus: which device answers a guest-physical address.

Windows do not overlap, so the last one that starts at or before an address is the only one that can
hold it; a bisection finds it. An access must lie wholly inside one window.
"""

from bisect import bisect_right
from dataclasses import dataclass

from kasou.devices.register import Device
from kasou.errors import BusError, ConfigError

_MASK = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}


@dataclass(frozen=True, slots=True)
class Window:
    """`size` bytes from guest-physical address `base`, answered by `device`."""

    base: int
    size: int
    device: Device
    name: str

    @property
    def end(self) -> int:
        """The first address behind the window."""
        return self.base + self.size

    def __str__(self) -> str:
        return f"{self.name} [{self.base:#x}, {self.end:#x})"


class Bus:
    """The board's address space of devices; RAM is not on it."""

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._windows: list[Window] = []

    @property
    def windows(self) -> tuple[Window, ...]:
        """All windows by rising address."""
        return tuple(self._windows)

    def attach(self, base: int, size: int, device: Device, name: str) -> None:
        """Let `device` answer [base, base + size). Raises `ConfigError` on an overlap."""
        new = Window(base, size, device, name)
        if size <= 0 or base < 0:
            raise ConfigError(f"bus: {new} is not a window")
        for other in self._windows:
            if new.base < other.end and other.base < new.end:
                raise ConfigError(f"bus: {new} overlaps {other}")
        at = bisect_right(self._bases, base)
        self._bases.insert(at, base)
        self._windows.insert(at, new)

    def read(self, gpa: int, size: int) -> int:
        """Load `size` bytes (1, 2, 4 or 8) at `gpa`, unsigned. Raises `BusError`."""
        i = bisect_right(self._bases, gpa) - 1
        if i >= 0:
            window = self._windows[i]
            offset = gpa - window.base
            if offset + size <= window.size:
                return window.device.read(offset, size)
        raise BusError(f"bus: no device answers a {size}-byte load at {gpa:#x}")

    def write(self, gpa: int, size: int, value: int) -> None:
        """Store the low `size` bytes of `value` at `gpa`. Raises `BusError`."""
        i = bisect_right(self._bases, gpa) - 1
        if i >= 0:
            window = self._windows[i]
            offset = gpa - window.base
            if offset + size <= window.size:
                window.device.write(offset, size, value & _MASK[size])
                return
        raise BusError(f"bus: no device answers a {size}-byte store at {gpa:#x}")
