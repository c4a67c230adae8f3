"""Sizes as people write them."""

from __future__ import annotations

from kasou.errors import ConfigError

UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str | int) -> int:
    """Bytes of a size such as 512M, 2G, 65536K; a bare number is MiB. Raises `ConfigError`."""
    upper = str(text).strip().upper().removesuffix("IB").removesuffix("B")
    number, unit = (upper[:-1], upper[-1]) if upper[-1:].isalpha() else (upper, "")
    if unit not in UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise ConfigError(f"{text}: not a size; write for example 512M or 2G")
    return int(number) * UNITS[unit]


def format_size(size: int) -> str:
    """`size` bytes for a person: 512M, 1.5G."""
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if size >= factor:
            number = f"{size / factor:.1f}".removesuffix(".0")
            return f"{number}{unit}"
    return f"{size}"
