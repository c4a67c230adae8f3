"""Programs that run without the system they are from: each with the shared libraries that it names.

A program's `.dynamic` names libraries (`DT_NEEDED`) by what they call themselves (`DT_SONAME`); stored
under that name in a directory where the dynamic linker looks, they need no links. (System V ABI, 5)
"""

import io
import stat
from collections.abc import Mapping

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from kasou.errors import HostError
from kasou.guest.initramfs import Entry

INTERPRETER = "ld-linux-riscv64-lp64d.so.1"


def with_libraries(programs: Mapping[str, bytes], libraries: Mapping[str, bytes]) -> list[Entry]:
    """The files of `programs` (path to content), and of the libraries that they need in `usr/lib`.

    `libraries` maps paths to contents. Raises `HostError` for a library that is not among them.
    """
    by_name = {_soname(path, data): data for path, data in libraries.items()}
    chosen: dict[str, bytes] = {}
    wanted = [(INTERPRETER, "every program")]
    wanted += [(name, path) for path, data in programs.items() for name in _needed(path, data)]
    while wanted:
        name, by = wanted.pop()
        if name in chosen:
            continue
        if name not in by_name:
            raise HostError(f"{by}: needs {name}, which no package that was chosen has")
        chosen[name] = by_name[name]
        wanted += [(other, name) for other in _needed(name, chosen[name])]
    mode = stat.S_IFREG | 0o755
    files = [Entry(path, mode, data) for path, data in programs.items()]
    return files + [Entry(f"usr/lib/{name}", mode, chosen[name]) for name in sorted(chosen)]


def _needed(path: str, data: bytes) -> list[str]:
    return _tags(path, data, "DT_NEEDED", "needed")


def _soname(path: str, data: bytes) -> str:
    names = _tags(path, data, "DT_SONAME", "soname")
    return names[0] if names else path.rpartition("/")[2]


def _tags(path: str, data: bytes, kind: str, attribute: str) -> list[str]:
    if data[:4] != b"\x7fELF":  # a linker's script
        return []
    try:
        dynamic = ELFFile(io.BytesIO(data)).get_section_by_name(".dynamic")
        if not isinstance(dynamic, DynamicSection):
            return []
        return [str(getattr(tag, attribute)) for tag in dynamic.iter_tags(kind)]
    except ELFError as error:
        raise HostError(f"{path}: not a program ({error})") from None
