"""RISC-V ELF64 files: what goes where in memory, where to start, and the names.

Programs are placed by their physical addresses (`p_paddr`), as a boot loader does; the entry point
and symbols are virtual addresses, so they are translated through the segment that holds them.
Whatever is wrong with a file is a `ConfigError` of one line (System V ABI, "Object Files"; RISC-V
ELF psABI).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kasou.errors import ConfigError

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

MAGIC = b"\x7fELF"
EM_RISCV = 243
MACHINES = {
    2: "SPARC", 3: "x86 (32-bit)", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "s390x",
    40: "Arm (32-bit)", 43: "SPARC64", 62: "x86-64", 183: "AArch64", 247: "BPF", 258: "LoongArch",
}  # fmt: skip
TYPES = {1: "a relocatable object file: link it first", 4: "a core dump"}
SYMBOL = struct.Struct("<IBBHQQ")
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2
SHN_UNDEF = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """`data` at guest-physical address `paddr`, followed by zeroes up to `memsz` bytes in all."""

    paddr: int
    vaddr: int
    data: bytes
    memsz: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function: its virtual address and its length in bytes (0 when the file does not say)."""

    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """A program ready to be placed. `entry` is physical; `symbols` holds virtual addresses."""

    name: str
    entry: int
    segments: tuple[Segment, ...]
    symbols: dict[str, int]
    functions: tuple[Symbol, ...]

    @property
    def tohost(self) -> int | None:
        """Physical address of the HTIF register by which a program says that it has ended."""
        return self._physical_symbol("tohost")

    @property
    def fromhost(self) -> int | None:
        """Physical address of the HTIF register by which the host answers."""
        return self._physical_symbol("fromhost")

    def _physical_symbol(self, name: str) -> int | None:
        address = self.symbols.get(name)
        return None if address is None else physical(self.segments, address)


def physical(segments: tuple[Segment, ...], vaddr: int) -> int:
    """The physical address of a virtual one; unchanged when no segment holds it."""
    for segment in segments:
        if segment.vaddr <= vaddr < segment.vaddr + segment.memsz:
            return vaddr - segment.vaddr + segment.paddr
    return vaddr


def read_elf(path: Path) -> ElfImage:
    """The program in the file at `path`. Raises `ConfigError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return load_elf(data, str(path))


def load_elf(data: bytes, name: str = "ELF") -> ElfImage:
    """The program in `data`. Raises `ConfigError`, naming `name`, when it is not one for us."""
    _check_header(data, name)
    try:
        from elftools.elf.elffile import ELFFile  # late: most kernels are no ELF files

        file = ELFFile(io.BytesIO(data))
        segments = _segments(file, data, name)
        symbols, functions = _symbols(file, name)
        entry = int(file.header["e_entry"])
    except ConfigError:
        raise
    except Exception as error:  # pyelftools meets damaged files with a dozen kinds of exception
        what = f"{type(error).__name__}: {error}".splitlines()[0][:80]
        raise ConfigError(f"{name}: damaged or truncated ELF file ({what})") from None
    if not segments:
        raise ConfigError(f"{name}: no loadable segment; was it linked?")
    return ElfImage(name, physical(segments, entry), segments, symbols, functions)


def _check_header(data: bytes, name: str) -> None:
    if data[:4] != MAGIC:
        raise ConfigError(f"{name}: not an ELF file")
    if len(data) < 20:
        raise ConfigError(f"{name}: truncated ELF file, only {len(data)} bytes")
    bits, order = data[4], data[5]
    if order not in (1, 2) or bits not in (1, 2):
        raise ConfigError(f"{name}: damaged ELF header: class {bits}, data encoding {order}")
    kind, machine = struct.unpack_from("<HH" if order == 1 else ">HH", data, 16)
    if machine != EM_RISCV:
        other = MACHINES.get(machine, f"machine number {machine}")
        raise ConfigError(f"{name}: an ELF file for {other}; kasou runs RISC-V, 64-bit")
    if bits == 1:
        raise ConfigError(f"{name}: 32-bit RISC-V; kasou runs 64-bit: build for rv64")
    if order == 2:
        raise ConfigError(f"{name}: big-endian RISC-V; kasou is little-endian")
    if len(data) < 64:
        raise ConfigError(f"{name}: truncated ELF file, its header needs 64 bytes of {len(data)}")
    if kind not in (2, 3):
        raise ConfigError(f"{name}: {TYPES.get(kind, f'ELF type {kind}')}, not a program")


def _segments(file: ELFFile, data: bytes, name: str) -> tuple[Segment, ...]:
    found = []
    for header in (segment.header for segment in file.iter_segments("PT_LOAD")):
        offset, filesz, memsz = header["p_offset"], header["p_filesz"], header["p_memsz"]
        if offset + filesz > len(data):
            raise ConfigError(
                f"{name}: truncated: a segment needs bytes up to {offset + filesz},"
                f" the file has {len(data)}"
            )
        if filesz > memsz or header["p_paddr"] + memsz > 1 << 64:
            raise ConfigError(f"{name}: damaged: a segment at {header['p_paddr']:#x} has no sense")
        if memsz:
            piece = data[offset : offset + filesz]
            found.append(Segment(header["p_paddr"], header["p_vaddr"], piece, memsz))
    return tuple(found)


def _symbols(file: ELFFile, name: str) -> tuple[dict[str, int], tuple[Symbol, ...]]:
    """All defined names, and the functions in order of address; both empty if stripped."""
    section = file.get_section_by_name(".symtab")
    if section is None:
        return {}, ()
    table = section.data()
    strings = file.get_section(section["sh_link"]).data()
    if len(table) % SYMBOL.size:
        raise ConfigError(f"{name}: damaged symbol table")
    symbols: dict[str, int] = {}
    functions = []
    for at, info, _other, index, address, size in SYMBOL.iter_unpack(table):
        kind = info & 0xF
        if index == SHN_UNDEF or kind > STT_FUNC or not at:
            continue
        text = strings[at : strings.index(0, at)].decode(errors="replace")
        if not text or text.startswith(("$", ".L")):
            continue  # mapping symbols and local labels
        if info >> 4 or text not in symbols:  # a global name wins over a local one
            symbols[text] = address
        if kind == STT_FUNC:
            functions.append(Symbol(text, address, size))
    return symbols, tuple(sorted(functions, key=lambda symbol: (symbol.address, symbol.name)))
