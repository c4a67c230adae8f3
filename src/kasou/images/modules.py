"""Kernel modules: which files a driver needs, in loading order.

A module names the modules it needs and the devices it serves in its section `.modinfo`, as strings
`depends=a,b`, `softdep=pre: c`, `alias=...` and `name=...` (Linux, include/linux/module.h); reading
them there needs no index, and works on the union of several packages.
"""

import io
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from kasou.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Module:
    """One module: its file as `file` (`ext4.ko.xz`), and what its `.modinfo` says."""

    name: str
    file: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`, the kernel's spelling."""
    return PurePosixPath(path).name.split(".ko")[0].replace("-", "_")


def read_module(path: str, data: bytes) -> Module:
    """The module in a `.ko` or `.ko.xz` file. Raises `ConfigError` when it is neither."""
    try:
        plain = lzma.decompress(data) if path.endswith(".xz") else data
        section = ELFFile(io.BytesIO(plain)).get_section_by_name(".modinfo")
        modinfo = section.data() if section else b""
    except (lzma.LZMAError, ELFError, EOFError) as error:
        raise ConfigError(f"{path}: not a kernel module ({error})") from None
    pairs = [text.partition("=")[::2] for text in modinfo.decode(errors="replace").split("\0")]
    depends = [
        name.replace("-", "_")
        for key, value in pairs
        if key == "depends" or (key == "softdep" and value.startswith("pre:"))
        for name in value.removeprefix("pre:").partition("post:")[0].replace(",", " ").split()
    ]
    aliases = tuple(value for key, value in pairs if key == "alias")
    name = module_name(path)
    file = f"{name}.ko.xz" if path.endswith(".xz") else f"{name}.ko"
    return Module(name, file, data, tuple(dict.fromkeys(depends)), aliases)


def unpacked(module: Module) -> Module:
    """The module with its file uncompressed: larger, and quicker to load."""
    if not module.file.endswith(".xz"):
        return module
    data = lzma.decompress(module.data)
    return replace(module, file=module.file.removesuffix(".xz"), data=data)


def resolve(files: Mapping[str, bytes], wanted: Iterable[str]) -> list[Module]:
    """The modules `wanted` and all that they depend on, dependencies first.

    `files` maps paths of `.ko[.xz]` files to their content. Names without a file are built into
    the kernel, or not there at all: they are left out, and it is for the caller to look.
    """
    paths = {module_name(path): path for path in files}
    order: dict[str, Module] = {}
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in order or name in visiting or name not in paths:
            return
        visiting.add(name)
        module = read_module(paths[name], files[paths[name]])
        for dependency in module.depends:
            visit(dependency)
        order[name] = module

    for name in wanted:
        visit(name.replace("-", "_"))
    return list(order.values())


def index_dep(modules: Iterable[Module]) -> str:
    """The text of `modules.dep`: each file, then all that it needs, nearest first."""
    by_name = {module.name: module for module in modules}

    def needs(name: str) -> list[str]:
        found: dict[str, None] = {}
        for dependency in by_name[name].depends:
            if dependency in by_name:
                found[dependency] = None
                found.update(dict.fromkeys(needs(dependency)))
        return list(found)

    return "".join(
        f"{module.file}:{''.join(f' {by_name[name].file}' for name in needs(module.name))}\n"
        for module in by_name.values()
    )


def index_alias(modules: Iterable[Module]) -> str:
    """The text of `modules.alias`, by which `modprobe fs-ext4` finds `ext4`."""
    return "".join(
        f"alias {alias} {module.name}\n" for module in modules for alias in module.aliases
    )
