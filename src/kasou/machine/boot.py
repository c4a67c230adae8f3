"""Boot: what lies where in RAM, and what the first hart finds in its registers.

    0x8000_0000  firmware (OpenSBI), or a bare-metal program
    0x8020_0000  kernel: RAM + `text_offset` of its header
        ...
    initrd       as high as it goes, below the device tree and 512 MiB from the kernel
    device tree  in the last 2 MiB of RAM (of its first GiB), with OpenSBI's `fw_dynamic_info`

There are three ways in:

- the built-in SBI: no firmware in RAM, the kernel starts in S-mode
- a firmware file: OpenSBI starts in M-mode; `fw_dynamic` learns from `a2` where to go next,
  `fw_jump` was built for 0x8020_0000
- none: a program, ELF or flat, starts in M-mode

In all of them `a0` is the hart's number and `a1` the device tree's address.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal, NoReturn

from kasou.errors import ConfigError
from kasou.guest.elf import MAGIC as ELF_MAGIC
from kasou.guest.elf import ElfImage, Segment, Symbol, load_elf
from kasou.guest.kernel_image import KernelImage, load_kernel

RAM_BASE = 0x8000_0000
KERNEL_OFFSET = 0x20_0000
MIB = 1 << 20
PAGE = 0x1000
LOW_RAM_BYTES = 1 << 30
"""Firmware and kernels reach the device tree through early, small maps: it stays in this."""
INITRD_REACH_BYTES = 512 * MIB

FW_DYNAMIC_INFO = struct.Struct("<6Q")
"""magic version next_addr next_mode options boot_hart (OpenSBI, `sbi/fw_dynamic.h`)."""
FW_DYNAMIC_MAGIC = 0x4942534F
FW_DYNAMIC_VERSION = 2
NEXT_MODE_S = 1

DeviceTree = Callable[[tuple[int, int] | None], bytes]
"""Makes the device tree once the initrd's place (first gpa, gpa behind its end) is known."""


class Bios(Enum):
    """What stands below the kernel, when it is not a file."""

    BUILTIN = "builtin"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class BootPlan:
    """All that a machine needs to start.

    `loads` are (gpa, bytes), apart from each other and inside RAM; `zeroes` are (gpa, size) that
    a program expects cleared, which matters when RAM was used before. `functions` are the
    program's, for those who symbolise.
    """

    loads: tuple[tuple[int, bytes], ...]
    zeroes: tuple[tuple[int, int], ...]
    entry: int
    mode: Literal["M", "S"]
    dtb_gpa: int
    info_gpa: int
    initrd_range: tuple[int, int] | None
    tohost: int | None = None
    fromhost: int | None = None
    functions: tuple[Symbol, ...] = ()

    def registers(self, hart: int) -> dict[int, int]:
        """Number and value of the integer registers that `hart` starts with."""
        return {10: hart, 11: self.dtb_gpa, 12: self.info_gpa}


def plan(
    *,
    ram_bytes: int,
    device_tree: DeviceTree,
    kernel: Path | None = None,
    initrd: Path | None = None,
    bios: Bios | Path = Bios.BUILTIN,
    ram_base: int = RAM_BASE,
) -> BootPlan:
    """Read the files and place them. Raises `ConfigError` for what cannot work."""
    return place(
        ram_bytes=ram_bytes,
        device_tree=device_tree,
        kernel=None if kernel is None else (str(kernel), _read(kernel)),
        initrd=None if initrd is None else (str(initrd), _read(initrd)),
        bios=bios if isinstance(bios, Bios) else (str(bios), _read(bios)),
        ram_base=ram_base,
    )


Named = tuple[str, bytes]
"""A file's name, for messages, and its content."""


def place(
    *,
    ram_bytes: int,
    device_tree: DeviceTree,
    kernel: Named | None = None,
    initrd: Named | None = None,
    bios: Bios | Named = Bios.BUILTIN,
    ram_base: int = RAM_BASE,
) -> BootPlan:
    """As `plan`, with the files' contents at hand."""
    layout = _Layout(ram_base, ram_bytes, 0 if initrd is None else len(initrd[1]) + PAGE)
    if bios is Bios.NONE:
        if kernel is None:
            raise ConfigError("--bios none needs a program: --kernel FILE (ELF or flat binary)")
        program = _program(*kernel, ram_base)
        start = layout.program(program)
    elif bios is Bios.BUILTIN:
        if kernel is None:
            raise ConfigError("no kernel to boot: give --kernel FILE")
        start = layout.kernel(load_kernel(kernel[1], kernel[0]))
        program = None
    else:
        program = _program(*bios, ram_base)
        start = layout.program(program)
        next_gpa = 0 if kernel is None else layout.kernel(load_kernel(kernel[1], kernel[0]))
    initrd_range = None if initrd is None else layout.initrd(*initrd)
    dtb_gpa = layout.device_tree(device_tree(initrd_range))
    info_gpa = 0
    if not isinstance(bios, Bios):
        info_gpa = layout.firmware_info(next_gpa)
    return BootPlan(
        loads=tuple(layout.loads),
        zeroes=tuple(layout.zeroes),
        entry=start,
        mode="S" if bios is Bios.BUILTIN else "M",
        dtb_gpa=dtb_gpa,
        info_gpa=info_gpa,
        initrd_range=initrd_range,
        tohost=program.tohost if program and bios is Bios.NONE else None,
        fromhost=program.fromhost if program and bios is Bios.NONE else None,
        functions=program.functions if program else (),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _program(name: str, data: bytes, ram_base: int) -> ElfImage:
    """An ELF file, or a flat binary that belongs at the start of RAM."""
    if data[:4] == ELF_MAGIC:
        return load_elf(data, name)
    if not data:
        raise ConfigError(f"{name}: an empty file")
    segment = Segment(ram_base, ram_base, data, len(data))
    return ElfImage(name, ram_base, (segment,), {}, ())


@dataclass(slots=True)
class _Layout:
    """RAM being handed out. What has been taken is kept, so that nothing overlaps.

    `to_come` is what the initrd will need, so that advice on memory counts it.
    """

    ram_base: int
    ram_bytes: int
    to_come: int
    loads: list[tuple[int, bytes]] = field(default_factory=list)
    zeroes: list[tuple[int, int]] = field(default_factory=list)
    taken: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def tail_bytes(self) -> int:
        """What is kept at the top for the device tree and the firmware's information."""
        return 2 * MIB if self.ram_bytes >= 16 * MIB else 64 * 1024

    @property
    def tail(self) -> int:
        """Where that starts, aligned to its size."""
        end = self.ram_base + min(self.ram_bytes, LOW_RAM_BYTES)
        return (end - self.tail_bytes) // self.tail_bytes * self.tail_bytes

    def program(self, image: ElfImage) -> int:
        """Place an ELF file where it asks to be; returns its entry."""
        for segment in image.segments:
            self._take(segment.paddr, segment.memsz, image.name)
            self._load(segment.paddr, segment.data)
            if rest := segment.memsz - len(segment.data):
                self.zeroes.append((segment.paddr + len(segment.data), rest))
        if not any(s.paddr <= image.entry < s.paddr + s.memsz for s in image.segments):
            raise ConfigError(
                f"{image.name}: its entry {image.entry:#x} is in none of its segments"
            )
        return image.entry

    def kernel(self, kernel: KernelImage | ElfImage) -> int:
        """Place a kernel; returns its entry."""
        if isinstance(kernel, ElfImage):
            return self.program(self._moved_into_ram(kernel))
        gpa = self.ram_base + kernel.text_offset
        self._take(gpa, kernel.image_size, kernel.name)
        self._load(gpa, kernel.data)
        if rest := kernel.image_size - len(kernel.data):
            self.zeroes.append((gpa + len(kernel.data), rest))
        return gpa

    def _moved_into_ram(self, kernel: ElfImage) -> ElfImage:
        """A `vmlinux` is linked at physical address 0 and runs from any 2 MiB boundary."""
        lowest = min(segment.paddr for segment in kernel.segments)
        if lowest >= self.ram_base:
            return kernel
        up = self.ram_base + KERNEL_OFFSET - lowest
        segments = tuple(Segment(s.paddr + up, s.vaddr, s.data, s.memsz) for s in kernel.segments)
        return ElfImage(kernel.name, kernel.entry + up, segments, kernel.symbols, kernel.functions)

    def initrd(self, name: str, data: bytes) -> tuple[int, int]:
        """Place the initial RAM file system; returns its first gpa and the one behind it."""
        if not data:
            raise ConfigError(f"{name}: an empty file")
        below = max((end for _, end, _ in self.taken), default=self.ram_base)
        top = min(self.tail, self.ram_base + KERNEL_OFFSET + INITRD_REACH_BYTES)
        gpa = (top - len(data)) // PAGE * PAGE
        if gpa < below:
            if top < self.tail:
                raise ConfigError(f"{name}: {_mib(len(data))}, more than fits below {top:#x}")
            self._too_small(below, name)
        self._take(gpa, len(data), name)
        self._load(gpa, data)
        return gpa, gpa + len(data)

    def device_tree(self, blob: bytes) -> int:
        """Place the device tree; firmware may let it grow where it lies."""
        assert len(blob) <= self.tail_bytes - 2 * PAGE, "the device tree outgrew its place"
        self._take(self.tail, self.tail_bytes, "the device tree")
        self._load(self.tail, blob)
        return self.tail

    def firmware_info(self, next_gpa: int) -> int:
        """Place `fw_dynamic_info`, in the last page of the device tree's room."""
        gpa = self.tail + self.tail_bytes - PAGE
        info = FW_DYNAMIC_INFO.pack(
            FW_DYNAMIC_MAGIC, FW_DYNAMIC_VERSION, next_gpa, NEXT_MODE_S, 0, 0
        )
        self._load(gpa, info)
        return gpa

    def _load(self, gpa: int, data: bytes) -> None:
        if data:
            self.loads.append((gpa, data))

    def _take(self, gpa: int, size: int, name: str) -> None:
        end = gpa + size
        if gpa < self.ram_base:
            raise ConfigError(
                f"{name}: wants to be at {gpa:#x}, but RAM starts at {self.ram_base:#x};"
                " link it there"
            )
        if end > self.ram_base + self.ram_bytes:
            self._too_small(end, name)
        for start, stop, other in self.taken:
            if gpa < stop and start < end:
                if other != name and "the device tree" in (name, other):
                    self._too_small(max(stop, self.ram_base), other)
                raise ConfigError(
                    f"{name}: at {gpa:#x}..{end:#x} it overlaps {other} at {start:#x}..{stop:#x}"
                )
        self.taken.append((gpa, end, name))

    def _too_small(self, end: int, name: str) -> NoReturn:
        """`end` is the gpa behind all that is placed; initrd and device tree come on top."""
        used = end - self.ram_base + self.to_come
        needed = -(-(used + (MIB if used < 12 * MIB else 4 * MIB)) // MIB)
        if needed > 1 << 20:
            raise ConfigError(f"{name}: reaches up to {end:#x}, which no memory size can hold")
        raise ConfigError(
            f"{name}: does not fit into {_mib(self.ram_bytes)} of memory;"
            f" it needs at least {needed} MiB: --memory {needed}M"
        )


def _mib(size: int) -> str:
    return f"{size >> 20} MiB" if size >= MIB else f"{size >> 10} KiB"
