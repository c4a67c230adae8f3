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
    """The options of `kasou run` as typed; sizes and drives are not read yet."""

    image: str | None = None
    bios: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    append: str | None = None
    memory: str = "512M"
    smp: int = 1
    drive: tuple[str, ...] = ()
    engine: str = "interpreter"
    lockstep: bool = False
    clock: str = "host"
    seed: int | None = None
    timeout: float | None = None
    no_reboot: bool = False
    mirror: str | None = None
    max_instructions: int | None = None
    json: bool = False


READERS = {
    "int": int,
    "int | None": int,
    "float | None": float,
    "str": str,
    "str | None": str,
}
"""How a field's annotation reads a value."""


def parse_plainly(arguments: Sequence[str]) -> RunOptions | None:
    """The options of a plainly spelled command line, or None: typer shall look at it."""
    kinds = RunOptions.__annotations__
    values: dict[str, object] = {}
    drives: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            if "image" in values or not argument:
                return None
            values["image"] = argument
            continue
        flag, equals, value = argument.partition("=")
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
        if name == "drive":
            drives.append(value)
            continue
        try:
            values[name] = READERS[kind](value)
        except ValueError:
            return None
    return RunOptions(**values, drive=tuple(drives))  # type: ignore[arg-type]


def _spelled(annotation: object) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))


UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M, 2G, 65536K; a bare number is MiB. Raises `UsageError`."""
    upper = text.strip().upper().removesuffix("IB").removesuffix("B")
    number, unit = (upper[:-1], upper[-1]) if upper[-1:].isalpha() else (upper, "")
    if unit not in UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise UsageError(f"--memory {text}: not a size; write for example 512M or 2G")
    return int(number) * UNITS[unit]


def parse_drive(text: str) -> tuple[str, bool]:
    """(path, whether read-only) of `FILE` or `FILE,ro`. Raises `UsageError`."""
    path, comma, option = text.rpartition(",")
    if comma and option == "ro":
        text, read_only = path, True
    else:
        read_only = False
    if not text:
        raise UsageError("--drive: no file named; write --drive FILE or --drive FILE,ro")
    return text, read_only
