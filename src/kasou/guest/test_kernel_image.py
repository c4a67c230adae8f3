import bz2
import gzip
import lzma
import struct

import pytest

from kasou.errors import ConfigError
from kasou.guest.elf import ElfImage
from kasou.guest.kernel_image import HEADER, KernelImage, load_kernel
from kasou.guest.test_elf import make_elf


def make_image(
    size: int = 4096, image_size: int = 8192, flags: int = 0, text_offset: int = 0x20_0000
) -> bytes:
    header = HEADER.pack(
        0x5A4D, 0, text_offset, image_size, flags, 2, 0, 0, b"RISCV\0\0\0", b"RSC\x05", 64
    )
    return header + bytes(size - len(header))


def make_zboot(payload: bytes, compression: bytes, machine: int = 0x5064) -> bytes:
    pe_at = 64
    header = bytearray(b"MZ\0\0zimg" + struct.pack("<II", 128, len(payload)) + bytes(8))
    header += compression.ljust(36, b"\0") + struct.pack("<I", pe_at)
    header += b"PE\0\0" + struct.pack("<H", machine)
    return bytes(header.ljust(128, b"\0")) + payload


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        gzip.compress,
        lzma.compress,
        bz2.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        lambda data: gzip.compress(data) + b"behind it",
        lambda data: make_zboot(gzip.compress(data), b"gzip"),
        lambda data: make_zboot(lzma.compress(data), b"xzkern"),
    ],
)
def test_an_image_in_every_wrapping(wrap) -> None:  # type: ignore[no-untyped-def]
    kernel = load_kernel(wrap(make_image()))
    assert isinstance(kernel, KernelImage)
    assert (kernel.text_offset, kernel.image_size, len(kernel.data)) == (0x20_0000, 8192, 4096)


def test_an_elf_kernel() -> None:
    assert isinstance(load_kernel(gzip.compress(make_elf())), ElfImage)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"hello", "a file of 5 bytes"),
        (bytes(4096), "not a kernel"),
        (bytes(56) + b"ARM\x64" + bytes(100), "AArch64"),
        (bytes(0x202) + b"HdrS" + bytes(100), r"x86 \(bzImage\)"),
        (b"\x27\x05\x19\x56" + bytes(100), "U-Boot"),
        (make_elf(machine=62), "x86-64"),
        (make_image(flags=1), "big-endian"),
        (make_image(text_offset=0x1234), "text_offset"),
        (make_image(image_size=1 << 20), "truncated"),
        (gzip.compress(make_image())[:-20], "truncated"),
        (gzip.compress(make_image())[:10] + b"\xff" * 40, "damaged gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd"),
        (make_zboot(b"\x28\xb5\x2f\xfd" + bytes(9), b"zstd"), "zstd"),
        (make_zboot(b"????", b"lzo"), "lzo"),
        (make_zboot(gzip.compress(make_image()), b"gzip", machine=0xAA64), "AArch64"),
        (make_zboot(gzip.compress(make_image()), b"gzip")[:-9], "truncated"),
        (make_zboot(b"", b"gzip")[:20], "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_says_what_it_is_instead(data: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_kernel(data, "vmlinuz")
    assert str(caught.value).startswith("vmlinuz: ")
