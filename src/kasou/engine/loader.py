"""A loader for the relocatable objects that LLVM makes: no llvmlite on the warm path.

The allocated sections are laid out in one mapping, relocated, and made executable and read-only
(W^X). Only what the code generator is known to emit is accepted; anything else is refused.
(ELF-64 object file format; System V ABI AMD64 supplement, 4.4 'Relocation')
"""

from __future__ import annotations

import ctypes
import mmap
import struct

R_64, R_PC32, R_PLT32 = 1, 2, 4
SHT_RELA, SHT_SYMTAB, SHF_ALLOC = 4, 2, 2
KEPT = (".text", ".rodata")


class BadObject(Exception):
    """The object holds something that the loader does not know."""


class LoadedObject:
    """Code in memory; `symbols` gives hvas by name. The mapping lives as long as this object."""

    def __init__(self, data: bytes) -> None:
        header_at, count, names_at = _header(data)
        sections = [
            struct.unpack_from("<IIQQQQIIQQ", data, header_at + 64 * i) for i in range(count)
        ]
        names = [_text(data, sections[names_at][4] + s[0]) for s in sections]
        places: dict[int, int] = {}
        size = 0
        for i, section in enumerate(sections):
            if section[2] & SHF_ALLOC and section[5] and not names[i].startswith(".eh_frame"):
                if not names[i].startswith(KEPT):
                    raise BadObject(f"section {names[i]}")
                size = -(-size // max(section[8], 64)) * max(section[8], 64)
                places[i] = size
                size += section[5]
        self._map = mmap.mmap(-1, -(-size // 4096) * 4096)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        image = bytearray(size)
        for i, place in places.items():
            image[place : place + sections[i][5]] = data[
                sections[i][4] : sections[i][4] + sections[i][5]
            ]
        table = next(i for i, s in enumerate(sections) if s[1] == SHT_SYMTAB)
        symbols: list[int | None] = []
        self.symbols: dict[str, int] = {}
        strings = sections[sections[table][6]][4]
        for name, _info, _other, home, value, _size in struct.iter_unpack(
            "<IBBHQQ", data[sections[table][4] : sections[table][4] + sections[table][5]]
        ):
            at = places[home] + value if home in places else None
            symbols.append(at)
            if at is not None and name:
                self.symbols[_text(data, strings + name)] = self.address + at
        for section in sections:
            if section[1] != SHT_RELA or section[7] not in places:
                continue
            base = places[section[7]]
            for offset, info, addend in struct.iter_unpack(
                "<QQq", data[section[4] : section[4] + section[5]]
            ):
                target = symbols[info >> 32]
                kind = info & 0xFFFFFFFF
                if target is None:
                    raise BadObject("a symbol from outside")
                at = base + offset
                if kind in (R_PC32, R_PLT32):
                    struct.pack_into("<i", image, at, target + addend - at)
                elif kind == R_64:
                    struct.pack_into("<Q", image, at, self.address + target + addend)
                else:
                    raise BadObject(f"relocation type {kind}")
        self._map[:size] = bytes(image)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if libc.mprotect(self.address, len(self._map), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "mprotect refused executable memory")


def _header(data: bytes) -> tuple[int, int, int]:
    if data[:6] != b"\x7fELF\x02\x01":
        raise BadObject("not a little-endian ELF-64 object")
    (at,) = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)
    return at, count, names


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(0, at)].decode()
