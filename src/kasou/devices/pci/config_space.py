"""The configuration space of a function: a header of type 0 and a list of capabilities.

    00  vendor id        device id          10..27  BAR 0 .. BAR 5
    04  command          status             2C      subsystem vendor id, subsystem id
    08  revision, class code                34      first capability
    0E  header type                         3C      interrupt line, interrupt pin

    capability   | id | next | body ... |   next = 0 ends the list

Every byte has a mask of the bits that the driver may write; the rest keep their values. So a BAR
answers the sizing of its driver ("write all ones, read what stuck") by itself: its low bits, up to
the size of the region, are not writable. (PCI Local Bus 3.0, 6.1, 6.2, 6.7)
"""

from dataclasses import dataclass
from enum import IntFlag

from kasou.devices.register import Device

SIZE = 256
BARS = 6

COMMAND, STATUS, HEADER_TYPE, BAR0 = 0x04, 0x06, 0x0E, 0x10
SUBSYSTEM, FIRST_CAPABILITY, INTERRUPT_LINE, INTERRUPT_PIN = 0x2C, 0x34, 0x3C, 0x3D
VENDOR_SPECIFIC = 0x09
"""Capability id of a vendor's own structure."""


class Command(IntFlag):
    """What the function may do."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    INTX_DISABLE = 1 << 10


class PciStatus(IntFlag):
    """What is the case."""

    INTERRUPT = 1 << 3
    CAPABILITIES = 1 << 4


_WRITABLE_COMMAND = Command.IO | Command.MEMORY | Command.BUS_MASTER | Command.INTX_DISABLE
_IO_SPACE, _WIDE, _PREFETCHABLE = 1, 4, 8  # the lowest bits of a BAR


@dataclass(frozen=True, slots=True)
class Bar:
    """A region of `size` bytes (a power of two) that `device` answers, wherever it is put.

    `io` puts it into I/O space; `wide` allows addresses above 4 GiB and takes two BARs.
    """

    size: int
    device: Device
    io: bool = False
    wide: bool = False
    prefetchable: bool = False


class ConfigSpace:
    """256 bytes, most of them fixed. Accesses may have any size and alignment inside."""

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        interrupt_pin: int = 0,
        bars: dict[int, Bar] | None = None,
    ) -> None:
        """`class_code` has 24 bits: base class, subclass, interface; pin 1 is INTA#, 0 none."""
        self._bytes = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self.bars = bars or {}
        self._end = 0x40
        self._last_link = FIRST_CAPABILITY
        self._put(0x00, 2, vendor)
        self._put(0x02, 2, device)
        self._put(0x08, 4, class_code << 8 | revision)
        self._put(SUBSYSTEM, 2, subsystem[0])
        self._put(SUBSYSTEM + 2, 2, subsystem[1])
        self._put(INTERRUPT_PIN, 1, interrupt_pin)
        self._allow(COMMAND, 2, _WRITABLE_COMMAND)
        self._allow(0x0C, 1, 0xFF)  # cache line size: remembered, means nothing
        self._allow(INTERRUPT_LINE, 1, 0xFF)
        for index, bar in self.bars.items():
            assert bar.size & bar.size - 1 == 0 and bar.size >= (4 if bar.io else 16)
            kind = _IO_SPACE if bar.io else bar.wide * _WIDE | bar.prefetchable * _PREFETCHABLE
            width = 8 if bar.wide else 4
            assert not bar.wide or index + 1 not in self.bars, f"BAR {index + 1} is taken"
            self._put(BAR0 + 4 * index, width, kind)
            self._allow(BAR0 + 4 * index, width, (1 << 8 * width) - bar.size)
        self._reset = bytes(self._bytes)

    def add_capability(self, kind: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; `writable` masks the bytes of `body`. Where it starts."""
        at = self._end
        assert at + 2 + len(body) <= SIZE, "configuration space is full"
        self._put(self._last_link, 1, at)
        self._put(STATUS, 2, self.load(STATUS, 2) | PciStatus.CAPABILITIES)
        self._put(at, 1, kind)
        self._bytes[at + 2 : at + 2 + len(body)] = body
        self._writable[at + 2 : at + 2 + len(writable)] = writable
        self._last_link = at + 1
        self._end = at + 2 + len(body) + 3 & ~3
        self._reset = bytes(self._bytes)
        return at

    def load(self, offset: int, n: int) -> int:
        """The value of `n` bytes; behind the end there is nothing, which reads as zero."""
        return int.from_bytes(self._bytes[offset : offset + n], "little")

    def store(self, offset: int, n: int, value: int) -> None:
        """The driver writes: only what is writable changes."""
        for i in range(offset, min(offset + n, SIZE)):
            mask = self._writable[i]
            self._bytes[i] = self._bytes[i] & ~mask | value >> 8 * (i - offset) & mask

    def set_interrupt_status(self, on: bool) -> None:
        """Whether the function asks for an interrupt, let through or not."""
        status = self.load(STATUS, 2) & ~int(PciStatus.INTERRUPT)
        self._put(STATUS, 2, status | (PciStatus.INTERRUPT if on else 0))

    @property
    def command(self) -> int:
        """The command register."""
        return self.load(COMMAND, 2)

    def region(self, index: int) -> range:
        """The bus addresses that BAR `index` claims, decoded or not."""
        bar = self.bars[index]
        address = self.load(BAR0 + 4 * index, 8 if bar.wide else 4) & -bar.size
        return range(address, address + bar.size)

    def reset(self) -> None:
        """As after power-on."""
        self._bytes[:] = self._reset

    def save(self) -> bytes:
        """All 256 bytes."""
        return bytes(self._bytes)

    def restore(self, saved: bytes) -> None:
        """Take over what the driver had written; the rest is as it is built."""
        assert len(saved) == SIZE, "a saved configuration space has 256 bytes"
        self.reset()
        self.store(0, SIZE, int.from_bytes(saved, "little"))

    def _put(self, offset: int, n: int, value: int) -> None:
        self._bytes[offset : offset + n] = value.to_bytes(n, "little")

    def _allow(self, offset: int, n: int, mask: int) -> None:
        self._writable[offset : offset + n] = mask.to_bytes(n, "little")
