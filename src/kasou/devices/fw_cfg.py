"""fw_cfg: named files that the host hands to firmware (QEMU's interface, MMIO layout).

    +0x00  data      reads take the next bytes of the selected item, in memory order
    +0x08  selector  16 bits, big-endian: choose an item, start at its first byte
    +0x10  DMA       64 bits, big-endian: address of an access structure; the low half starts it

Everything is big-endian, so a little-endian guest swaps what it writes here. An access structure
is control (32 bits), length (32 bits), address (64 bits); the control field is rewritten to 0, or
to ERROR, when the transfer is done.
(QEMU, "QEMU Firmware Configuration (fw_cfg) Device".)
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from kasou.devices.register import ANY_SIZE, DeviceState, Register, RegisterDevice
from kasou.errors import ConfigError, GuestError
from kasou.ports import GuestMemory


class Key(IntEnum):
    """Items with a number of their own; files are numbered from FILE_FIRST on."""

    SIGNATURE = 0x00
    ID = 0x01
    FILE_DIR = 0x19
    FILE_FIRST = 0x20


class Control(IntFlag):
    """The control field of a DMA access; with SELECT the upper 16 bits are the key."""

    ERROR = 0x01
    READ = 0x02
    SKIP = 0x04
    SELECT = 0x08
    WRITE = 0x10


_NAME_BYTES = 56
_ID = 0x3  # the register interface, and DMA
_DMA_SIGNATURE = int.from_bytes(b"QEMU CFG", "big")
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FwCfgState(DeviceState):
    """Which item is selected, how far it was read, and the upper half of a DMA address."""

    selected: int
    offset: int
    dma_high: int


class FwCfg(RegisterDevice[FwCfgState]):
    """`qemu,fw-cfg-mmio`. Items are read-only; they are configuration and not part of the state."""

    # fmt: off
    registers = (
        Register("SELECTOR", 0x08, size=2, access="w"),
        Register("DMA_HIGH", 0x10, size=4),
        Register("DMA_LOW",  0x14, size=4),
    )
    # fmt: on

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__()
        self._memory = memory
        self._items: dict[int, bytes] = {
            Key.SIGNATURE: b"QEMU",
            Key.ID: struct.pack("<I", _ID),
        }
        self._files: dict[str, int] = {}
        self._list_files()
        self._selected, self._offset, self._dma_high = int(Key.SIGNATURE), 0, 0

    # ------------------------------------------------------------------ host side
    def add_item(self, key: int, data: bytes) -> None:
        """Offer `data` under a number of its own, below FILE_FIRST."""
        assert key < Key.FILE_FIRST and key not in self._items, f"fw_cfg key {key:#x}"
        self._items[key] = data

    def add_file(self, name: str, data: bytes) -> None:
        """Offer `data` as the file `name`. Raises `ConfigError` for a bad or repeated name."""
        encoded = name.encode()
        if not encoded or len(encoded) >= _NAME_BYTES:
            raise ConfigError(f"fw_cfg: the name {name!r} is not 1 to {_NAME_BYTES - 1} bytes long")
        if name in self._files:
            raise ConfigError(f"fw_cfg: there are two files {name!r}")
        key = Key.FILE_FIRST + len(self._files)
        self._files[name] = key
        self._items[key] = data
        self._list_files()

    # ------------------------------------------------------------------ guest side
    def read(self, offset: int, size: int) -> int:
        """The data register is a stream, whatever the size of the access."""
        if offset < 8 and size in ANY_SIZE and offset % size == 0:
            return int.from_bytes(self._take(size), "little")
        if (offset, size) == (0x10, 8):
            return self.read_dma_high() | self.read_dma_low() << 32
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes to the data register are ignored, as QEMU has done since 2.4."""
        if offset < 8 and size in ANY_SIZE and offset % size == 0:
            return
        if (offset, size) == (0x10, 8):
            self.write_dma_high(value & 0xFFFF_FFFF)
            self.write_dma_low(value >> 32)
            return
        super().write(offset, size, value)

    def write_selector(self, value: int) -> None:
        """Choose an item."""
        self._select(_swap(value, 2))

    def read_dma_high(self) -> int:
        """The first half of the signature "QEMU CFG"."""
        return _swap(_DMA_SIGNATURE >> 32, 4)

    def read_dma_low(self) -> int:
        """The second half of the signature "QEMU CFG"."""
        return _swap(_DMA_SIGNATURE & 0xFFFF_FFFF, 4)

    def write_dma_high(self, value: int) -> None:
        """Kept for the low half."""
        self._dma_high = _swap(value, 4)

    def write_dma_low(self, value: int) -> None:
        """Perform the access; errors go to its control field, or nowhere if that is not RAM."""
        gpa = self._dma_high << 32 | _swap(value, 4)
        self._dma_high = 0
        try:
            control, length, address = struct.unpack(">IIQ", self._memory.read(gpa, 16))
        except GuestError:
            return
        try:
            self._transfer(control, length, address)
            result = 0
        except GuestError:
            result = int(Control.ERROR)
        self._memory.write(gpa, struct.pack(">I", result))

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """Select the signature."""
        super().reset()
        self._select(Key.SIGNATURE)
        self._dma_high = 0

    def save(self) -> FwCfgState:
        """Where the guest is in which item."""
        return FwCfgState(
            registers={}, selected=self._selected, offset=self._offset, dma_high=self._dma_high
        )

    def restore(self, state: FwCfgState) -> None:
        """Continue where the guest was; the items are those of this instance."""
        self._restore_values(state)
        self._selected, self._offset = state.selected, state.offset
        self._dma_high = state.dma_high

    def _select(self, key: int) -> None:
        self._selected, self._offset = key, 0

    def _take(self, n: int) -> bytes:
        """The next `n` bytes; zeros behind the end and for items that do not exist."""
        data = self._items.get(self._selected, b"")[self._offset : self._offset + n]
        self._offset += len(data)
        return data.ljust(n, b"\0")

    def _transfer(self, control: int, length: int, address: int) -> None:
        if control & Control.SELECT:
            self._select(control >> 16)
        if control & Control.READ:
            for done in range(0, length, _CHUNK):
                self._memory.write(address + done, self._take(min(_CHUNK, length - done)))
        elif control & Control.WRITE:
            raise GuestError("FwCfg: the items are read-only")
        elif control & Control.SKIP:
            self._take(min(length, len(self._items.get(self._selected, b""))))

    def _list_files(self) -> None:
        entries = [
            struct.pack(f">IHH{_NAME_BYTES}s", len(self._items[key]), key, 0, name.encode())
            for name, key in sorted(self._files.items())
        ]
        self._items[Key.FILE_DIR] = struct.pack(">I", len(entries)) + b"".join(entries)


def _swap(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")
