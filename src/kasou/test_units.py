from __future__ import annotations

import pytest

from kasou.errors import ConfigError
from kasou.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("64k", 64 << 10),
        ("128", 128 << 20),
        ("1GiB", 1 << 30),
    ],
)
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "0", "12X", "１２M"])
def test_bad_size(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert [format_size(n) for n in (0, 1000, 1536, 512 << 20, 3 << 29)] == [
        "0", "1000", "1.5K", "512M", "1.5G",
    ]  # fmt: skip
