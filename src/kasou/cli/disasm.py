"""`kasou disasm FILE`: a program as assembly, one instruction a line."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator
from io import BytesIO

from kasou.aio.definition import existing
from kasou.cli.options import UsageError
from kasou.errors import ConfigError
from kasou.isa import rv64  # noqa: F401  (fills INSTRUCTIONS)
from kasou.isa.encoding import Decoded, decode, length_of

EM_RISCV = 243
SHF_EXECINSTR = 4
PF_X = 1

Section = tuple[str, int, bytes]
"""(name, address of its first byte, its bytes)"""


def disasm(file: str, base: str, json: bool) -> int:
    """Print every executable section of an ELF file, or all of a flat binary put at `base`."""
    data = existing("disasm", file).read_bytes()
    try:
        address = int(base, 0)
    except ValueError:
        raise UsageError(f"--base {base}: not an address; write for example 0x80200000") from None
    if data[:4] == b"\x7fELF":
        parts, symbols = read_elf(file, data)
    else:
        parts, symbols = [("", address, data)], {}
    for name, start, code in parts:
        if name and not json:
            print(f"\n{name}:")
        for pc, bits, length in words(start, code):
            decoded = decode(bits)
            text = written(decoded, pc) if decoded else ""
            if json:
                line = {"pc": pc, "bits": bits, "length": length, "text": text or None}
                print(json_text.dumps(line))
                continue
            if pc in symbols:
                print(f"\n{pc:016x} <{symbols[pc]}>:")
            shown = text or f".{'half' if length == 2 else 'word'} {bits:#x}"
            print(
                f"{pc:12x}:  {bits:0{2 * length}x}{'' if length == 4 else '    '}  {shown}".rstrip()
            )
    return 0


def words(start: int, code: bytes) -> Iterator[tuple[int, int, int]]:
    """(address, bits, length in bytes) of every instruction from `start` on."""
    at = 0
    while at + 2 <= len(code):
        bits = int.from_bytes(code[at : at + 2], "little")
        length = length_of(bits)
        if length == 4 and at + 4 > len(code):
            length = 2
        bits = int.from_bytes(code[at : at + length], "little")
        yield start + at, bits, length
        at += length


def written(decoded: Decoded, pc: int) -> str:
    """The instruction in assembly; a pc-relative target is named by its address."""
    from kasou.isa.asm import disassemble

    return str(disassemble(decoded, pc))


def read_elf(file: str, data: bytes) -> tuple[list[Section], dict[int, str]]:
    """Executable sections (segments where there are none) and symbols. Raises `ConfigError`."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        elf = ELFFile(BytesIO(data))
        machine = elf.header["e_machine"]
        if machine not in ("EM_RISCV", EM_RISCV):
            raise ConfigError(f"{file}: an ELF for {str(machine).removeprefix('EM_')}, not RISC-V")
        if elf.elfclass != 64:
            raise ConfigError(f"{file}: a {elf.elfclass}-bit ELF; kasou runs RV64")
        parts: list[Section] = [
            (section.name, section["sh_addr"], section.data())
            for section in elf.iter_sections()
            if section["sh_flags"] & SHF_EXECINSTR and section["sh_type"] == "SHT_PROGBITS"
        ] or [
            (f"segment {i}", segment["p_vaddr"], segment.data())
            for i, segment in enumerate(elf.iter_segments("PT_LOAD"))
            if segment["p_flags"] & PF_X
        ]
        symbols: dict[int, str] = {}
        table = elf.get_section_by_name(".symtab")
        for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
            if symbol.name and not symbol.name.startswith("$"):
                symbols.setdefault(symbol["st_value"], symbol.name)
    except (ELFError, ValueError, KeyError, OverflowError, AttributeError, TypeError) as problem:
        raise ConfigError(f"{file}: a damaged ELF file ({problem or 'truncated'})") from problem
    return parts, symbols
