"""Kernel modules: which files a driver needs, in loading order.

A module names the modules it needs and the devices it serves in its section `.modinfo`, as strings
`depends=a,b`, `softdep=pre: c`, `alias=...` and `name=...` (Linux, include/linux/module.h); reading
them there needs no index, and works on the union of several packages.
"""

import io
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from kasou.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Module:
    """One `.ko` file, uncompressed, and what its `.modinfo` says."""

    name: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`, the kernel's spelling."""
    return PurePosixPath(path).name.split(".ko")[0].replace("-", "_")


def read_module(path: str, data: bytes) -> Module:
    """The module in a `.ko` or `.ko.xz` file. Raises `ConfigError` when it is neither."""
    try:
        if path.endswith(".xz"):
            data = lzma.decompress(data)
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
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
    return Module(module_name(path), data, tuple(dict.fromkeys(depends)), aliases)


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
        f"{name}.ko:{''.join(f' {needed}.ko' for needed in needs(name))}\n" for name in by_name
    )


def index_alias(modules: Iterable[Module]) -> str:
    """The text of `modules.alias`, by which `modprobe fs-ext4` finds `ext4`."""
    return "".join(
        f"alias {alias} {module.name}\n" for module in modules for alias in module.aliases
    )
