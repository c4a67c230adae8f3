"""Guest kernels that come with kasou, as assembly, and the files made from them.

`tiny` is a teaching kernel: read `tiny.s` from top to bottom.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from pathlib import Path

from kasou.errors import HostError
from kasou.paths import cache_directory

LOAD_ADDRESS = 0x80200000
"""Where S-mode kernels are loaded: the board's RAM and 2 MiB."""


def source(name: str) -> Path:
    """The assembly file of a kernel."""
    return Path(__file__).with_name(f"{name}.s")


def assembled(name: str) -> Path:
    """A kernel as an ELF file, assembled by kasou's own assembler, from the cache if it can.

    The cached file's name is a hash of everything that decides its content: the assembly, the
    assembler, and the instruction tables. Raises `HostError` when the cache cannot be written.
    """
    text = source(name).read_bytes()
    isa = Path(__file__).parents[2] / "isa"
    key = hashlib.sha256(text)
    for file in (
        Path(__file__),
        isa / "asm.py",
        isa / "encoding.py",
        *sorted((isa / "rv64").glob("*.py")),
    ):
        key.update(hashlib.sha256(file.read_bytes()).digest())
    path = cache_directory() / "kernels" / f"{name}-{key.hexdigest()[:24]}.elf"
    if not path.exists():
        write_atomically(path, elf(assemble(text.decode())))
    return path


def assemble(text: str) -> bytes:
    """The flat binary of a kernel's assembly, to be loaded at `LOAD_ADDRESS`."""
    from kasou.isa import asm

    return bytes(asm.assemble(text, LOAD_ADDRESS))


def elf(code: bytes) -> bytes:
    """An executable that is one segment, all rights, at `LOAD_ADDRESS`, entered at its start."""
    header, program = 64, 56
    start = header + program
    return b"".join(
        (
            # e_ident: 64-bit, little-endian; then ET_EXEC, EM_RISCV, version 1
            struct.pack("<16sHHI", b"\x7fELF\2\1\1", 2, 243, 1),
            struct.pack("<QQQI", LOAD_ADDRESS, header, 0, 0),
            struct.pack("<HHHHHH", header, program, 1, 0, 0, 0),
            # PT_LOAD, readable, writable, executable
            struct.pack("<IIQQQ", 1, 7, start, LOAD_ADDRESS, LOAD_ADDRESS),
            struct.pack("<QQQ", len(code), len(code), 1),
            code,
        )
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold `data`: a reader sees all of it or no file. Raises `HostError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as problem:
        raise HostError(
            f"{path.parent}: cannot write there ({problem.strerror}); "
            "set KASOU_HOME or XDG_CACHE_HOME to a writable directory"
        ) from problem
