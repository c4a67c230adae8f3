"""What `kasou run` is asked for, and the fast reader of its plain spellings.

`RunOptions` is the one list of options: a field is an option of the same name, its type says how
it is read. typer (in `kasou.cli.app`) is the full parser and has the help texts; importing it
costs more than starting the machine, so `parse_plainly` reads `--name value`, `--name=value` and
`--flag` alone and leaves everything else (help, mistakes) to typer. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kasou.errors import ConfigError


class UsageError(ConfigError):
    """The command line makes no sense as it stands: exit code 2."""


class RunOptions(NamedTuple):
    """The options of `kasou run` as typed; sizes, drives and ports are not read yet."""

    image: str | None = None
    name: str | None = None
    bios: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    append: str | None = None
    memory: str = "512M"
    cpus: int = 1
    drive: tuple[str, ...] = ()
    port: tuple[str, ...] = ()
    volume: tuple[str, ...] = ()
    network: str | None = None
    egress: str = "allow"
    cloud_init: str | None = None
    disk_errors: str = "report"
    minimal: bool = False
    technique: str = "direct"
    paging: str = "direct"
    io: str = "virtio"
    scheduler: str = "direct"
    engine: str = "interpreter"
    lockstep: bool = False
    clock: str = "host"
    seed: int | None = None
    timeout: float | None = None
    no_reboot: bool = False
    mirror: str | None = None
    max_instructions: int | None = None
    json: bool = False


ALIASES = {
    "-n": "--name", "-c": "--cpus", "--smp": "--cpus", "-m": "--memory", "-p": "--port",
    "-v": "--volume", "--disk": "--drive",
}  # fmt: skip
"""Other spellings, here and in typer."""

READERS = {
    "int": int,
    "int | None": int,
    "float | None": float,
    "str": str,
    "str | None": str,
}
"""How a field's annotation reads a value; tuples collect what is given more than once."""


def parse_plainly(arguments: Sequence[str]) -> RunOptions | None:
    """The options of a plainly spelled command line, or None: typer shall look at it."""
    kinds = RunOptions.__annotations__
    values: dict[str, object] = {}
    lists: dict[str, list[str]] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            if "image" in values or not argument:
                return None
            values["image"] = argument
            continue
        flag, equals, value = argument.partition("=")
        if equals and not flag.startswith("--"):
            return None
        flag = ALIASES.get(flag, flag)
        name = flag[2:].replace("-", "_")
        if not flag.startswith("--") or "_" in flag or name not in kinds or name == "image":
            return None
        kind = _spelled(kinds[name])
        if kind == "bool":
            if equals:
                return None
            values[name] = True
            continue
        if not equals:
            following = next(rest, None)
            if following is None or following.startswith("-"):
                return None
            value = following
        if kind.startswith("tuple"):
            lists.setdefault(name, []).append(value)
            continue
        try:
            values[name] = READERS[kind](value)
        except ValueError:
            return None
    values |= {name: tuple(items) for name, items in lists.items()}
    return RunOptions(**values)  # type: ignore[arg-type]


def _spelled(annotation: object) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))
