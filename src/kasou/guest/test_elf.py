import contextlib
import random
import struct
from pathlib import Path

import pytest

from kasou.errors import ConfigError
from kasou.guest.elf import ElfImage, load_elf, read_elf

BASE = 0x8000_0000
EHDR = struct.Struct("<4s5B7x HHI QQQ I HHHHHH")
PHDR = struct.Struct("<II 6Q")
SHDR = struct.Struct("<II QQQQ II QQ")


def make_elf(
    code: bytes = b"\x13\0\0\0" * 4,
    *,
    paddr: int = BASE,
    vaddr: int | None = None,
    memsz: int | None = None,
    symbols: dict[str, tuple[int, int]] | None = None,
    sections: dict[str, bytes] | None = None,
    kind: int = 2,
    machine: int = 243,
) -> bytes:
    """An ELF64 file with one segment; `symbols` maps names to (address, type)."""
    vaddr = paddr if vaddr is None else vaddr
    strings, table = b"\0", bytes(24)
    for name, (address, symbol_type) in (symbols or {}).items():
        table += struct.pack("<IBBHQQ", len(strings), 0x10 | symbol_type, 0, 0xFFF1, address, 8)
        strings += name.encode() + b"\0"
    parts = [("", b"", 0, 0), (".strtab", strings, 3, 0), (".symtab", table, 2, 1)]
    parts += [(name, data, 1, 0) for name, data in (sections or {}).items()]
    names = b""
    headers = b""
    body = code
    offset = EHDR.size + PHDR.size
    for name, data, section_type, link in [*parts, (".shstrtab", b"", 3, 0)]:
        at = len(names)
        names += name.encode() + b"\0"
        data = names if name == ".shstrtab" else data
        where = offset + len(body)
        body += data
        headers += SHDR.pack(
            at, section_type, 0, 0, where, len(data), link, 1, 1, 24 if section_type == 2 else 0
        )
    count = len(parts) + 1
    header = EHDR.pack(
        b"\x7fELF", 2, 1, 1, 0, 0, kind, machine, 1, vaddr, EHDR.size, offset + len(body),
        0, EHDR.size, PHDR.size, 1, SHDR.size, count, count - 1,
    )  # fmt: skip
    size = len(code) if memsz is None else memsz
    return header + PHDR.pack(1, 7, offset, vaddr, paddr, len(code), size, 4) + body + headers


def test_loads_segments_entry_and_symbols() -> None:
    image = load_elf(
        make_elf(
            memsz=64,
            vaddr=0xFFFF_FFFF_8000_0000,
            symbols={"tohost": (0xFFFF_FFFF_8000_0020, 0), "main": (BASE, 2), "$x": (BASE, 0)},
        )
    )
    assert isinstance(image, ElfImage)
    assert image.entry == BASE, "the entry is translated to a physical address"
    assert [(s.paddr, len(s.data), s.memsz) for s in image.segments] == [(BASE, 16, 64)]
    assert image.tohost == BASE + 0x20
    assert image.fromhost is None
    assert [f.name for f in image.functions] == ["main"]
    assert "$x" not in image.symbols


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not an ELF file"),
        (b"#!/bin/sh\n", "not an ELF file"),
        (b"\x7fELF", "truncated"),
        (make_elf()[:40], "truncated"),
        (make_elf()[:100], "damaged or truncated"),
        (make_elf(machine=62), "x86-64"),
        (make_elf(machine=183), "AArch64"),
        (make_elf(machine=9999), "machine number 9999"),
        (make_elf(kind=1), "link it first"),
        (make_elf(memsz=4), "no sense"),
        (make_elf(memsz=0, code=b""), "no loadable segment"),
        (make_elf()[:4] + b"\x01" + make_elf()[5:], "32-bit"),
        (make_elf()[:4] + b"\x02\x02" + make_elf()[6:16] + b"\0\2\0\xf3", "big-endian"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_says_what_is_wrong(data: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_elf(data, "prog")
    assert str(caught.value).startswith("prog: ")
    assert "\n" not in str(caught.value)


def test_damage_is_always_a_config_error() -> None:
    rng = random.Random(1)
    whole = make_elf(symbols={"a": (BASE, 2), "tohost": (BASE + 8, 1)})
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        del data[rng.choice((len(data), rng.randrange(len(data)))) :]
        with contextlib.suppress(ConfigError):
            load_elf(bytes(data))


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_elf(tmp_path / "nothing")
