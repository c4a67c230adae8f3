"""Linux kernels as distributions ship them: `Image`, compressed or wrapped.

Image        64 bytes of header, then the kernel as it is to lie in memory. With an EFI stub it
             is also a PE file ("MZ" at 0); the header is the same
             (Linux, Documentation/arch/riscv/boot-image-header.rst)
Image.gz     the same compressed (also xz, lzma, bzip2)
vmlinuz.efi  EFI zboot: a PE file that carries a compressed Image
             (drivers/firmware/efi/libstub/zboot-header.S)
vmlinux      an ELF file
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kasou.errors import ConfigError
from kasou.guest.elf import MAGIC as ELF_MAGIC
from kasou.guest.elf import ElfImage, load_elf

HEADER = struct.Struct("<II QQQ II Q 8s 4s I")
"""code0 code1, text_offset image_size flags, version res1, res2, magic, magic2, res3."""
MAGIC, MAGIC2 = b"RISCV\0\0\0", b"RSC\x05"
BIG_ENDIAN = 1
MAX_BYTES = 1 << 30
"""A kernel that unpacks to more than this is a mistake, or a trap."""

COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "lzma",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x89LZO": "lzo",
}
PE_MACHINES = {
    0x014C: "x86 (32-bit)", 0x8664: "x86-64", 0xAA64: "AArch64", 0x01C2: "Arm (32-bit)",
    0x6264: "LoongArch", 0x5032: "32-bit RISC-V",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class KernelImage:
    """An `Image`: `data` is loaded `text_offset` bytes from the start of RAM.

    `image_size` is how much memory it takes from there, its `.bss` included.
    """

    name: str
    data: bytes
    text_offset: int
    image_size: int


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def read_kernel(path: Path) -> KernelImage | ElfImage:
    """The kernel in the file at `path`. Raises `ConfigError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return load_kernel(data, str(path))


def load_kernel(data: bytes, name: str = "kernel") -> KernelImage | ElfImage:
    """The kernel in `data`, unwrapped. Raises `ConfigError` that says what it is instead."""
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        data = _unwrap_zboot(data, name)
    elif compression := _compression(data):
        data = _decompress(data, compression, name)
    if data[:4] == ELF_MAGIC:
        return load_elf(data, name)
    if len(data) < HEADER.size or data[56:60] != MAGIC2:
        raise ConfigError(f"{name}: {_what_it_is(data)}; expected a RISC-V Linux Image or ELF file")
    _, _, text_offset, image_size, flags, version, *_ = HEADER.unpack_from(data)
    if flags & BIG_ENDIAN:
        raise ConfigError(f"{name}: a big-endian kernel; kasou is little-endian")
    if version >> 16 != 0:
        raise ConfigError(f"{name}: Image header version {version >> 16}.{version & 0xFFFF}, not 0")
    if text_offset % (1 << 21) or text_offset >= 1 << 32:
        raise ConfigError(f"{name}: damaged: text_offset {text_offset:#x}, not a multiple of 2 MiB")
    if image_size and image_size > MAX_BYTES:
        raise ConfigError(f"{name}: damaged: image_size is {image_size:#x}")
    if image_size and len(data) < image_size // 4:
        raise ConfigError(f"{name}: truncated: {len(data)} bytes of {image_size} by its header")
    return KernelImage(name, data, text_offset, max(image_size, len(data)))


def _compression(data: bytes) -> str | None:
    return next((kind for magic, kind in COMPRESSIONS.items() if data.startswith(magic)), None)


def _unwrap_zboot(data: bytes, name: str) -> bytes:
    """The Image inside an EFI zboot file: offset and size at 8, the compression's name at 24."""
    if (machine := _pe_machine(data)) in PE_MACHINES:
        raise ConfigError(f"{name}: an EFI kernel for {PE_MACHINES[machine]}; kasou runs RISC-V")
    if len(data) < 32:
        raise ConfigError(f"{name}: truncated EFI zboot kernel, only {len(data)} bytes")
    offset, size = struct.unpack_from("<II", data, 8)
    if offset + size > len(data):
        raise ConfigError(
            f"{name}: truncated EFI zboot kernel: payload ends at {offset + size},"
            f" the file at {len(data)}"
        )
    payload = data[offset : offset + size]
    named = data[24:32].split(b"\0")[0].decode(errors="replace")
    return _decompress(payload, _compression(payload) or named, name)


def _decompress(data: bytes, compression: str, name: str) -> bytes:
    """One compressed stream; what follows it is ignored, as the kernel's own loaders do."""
    decompressor: _Decompressor
    damaged: tuple[type[Exception], ...] = (zlib.error, OSError, ValueError)
    if compression == "gzip":
        decompressor = zlib.decompressobj(31)
    elif compression in ("xz", "xzkern", "lzma"):
        import lzma

        decompressor = lzma.LZMADecompressor()
        damaged = (*damaged, lzma.LZMAError)
    elif compression == "bzip2":
        import bz2

        decompressor = bz2.BZ2Decompressor()
    else:
        raise ConfigError(
            f"{name}: compressed with {compression}, which Python's library cannot read;"
            " unpack it first, or use a gzip-compressed kernel"
        )
    try:
        kernel = decompressor.decompress(data, MAX_BYTES)
    except damaged as error:
        raise ConfigError(f"{name}: damaged {compression} data ({error})") from None
    if not decompressor.eof:
        why = "unpacks to over 1 GiB" if len(kernel) >= MAX_BYTES else "is truncated"
        raise ConfigError(f"{name}: its {compression} data {why}")
    return kernel


def _pe_machine(data: bytes) -> int | None:
    if data[:2] != b"MZ" or len(data) < 64:
        return None
    at = int.from_bytes(data[60:64], "little")
    if data[at : at + 4] != b"PE\0\0" or len(data) < at + 6:
        return None
    return int.from_bytes(data[at + 4 : at + 6], "little")


def _what_it_is(data: bytes) -> str:
    if not data:
        return "an empty file"
    if data[56:60] == b"ARM\x64":
        return "a kernel for AArch64"
    if data[0x202:0x206] == b"HdrS":
        return "a kernel for x86 (bzImage)"
    if data[:4] == b"\x27\x05\x19\x56":
        return "a U-Boot uImage"
    if data[:4] == b"\xd0\x0d\xfe\xed":
        return "a device tree or FIT image"
    if (machine := _pe_machine(data)) is not None:
        return f"an EFI program for {PE_MACHINES.get(machine, f'machine {machine:#x}')}"
    if len(data) < HEADER.size:
        return f"a file of {len(data)} bytes"
    return "not a kernel"
