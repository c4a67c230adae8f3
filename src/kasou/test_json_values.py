from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import pytest

from kasou.errors import ConfigError, RemoteError
from kasou.json_values import from_json, to_json


class Colour(IntEnum):
    RED = 1


@dataclass(frozen=True)
class Base:
    number: int


@dataclass(frozen=True)
class Derived(Base):
    more: bytes = b""


@dataclass(frozen=True)
class All:
    one: Base
    many: tuple[Base, ...]
    pair: tuple[int, str]
    table: Mapping[str, int]
    colour: Colour
    kind: Literal["a", "b"]
    maybe: Base | None = None


VALUE = All(
    Derived(1, b"\0x"), (Base(2), Derived(3)), (4, "five"), {"six": 7}, Colour.RED, "b", Derived(8)
)


def test_what_is_written_is_read() -> None:
    assert from_json(All, to_json(VALUE)) == VALUE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"one": {"number": True}}, "All.one.number: bool True, expected int"),
        ({"one": {"number": 1, "@": "str"}}, "expected a kind of Base"),
        ({"many": [{"number": "x"}]}, r"All.many\[0\].number"),
        ({"pair": [1]}, "a list of 2"),
        ({"table": []}, "an object"),
        ({"colour": 9}, "Colour"),
        ({"kind": "c"}, "expected one of a, b"),
        ({"what": 1}, "unknown field 'what'"),
        ({"one": {"number": 1, "@": "Derived", "more": "?"}}, "base64"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], says: str) -> None:
    data = {**to_json(VALUE), **change}
    with pytest.raises(RemoteError, match=says):
        from_json(All, data)


def test_a_missing_field_and_the_kind_of_error() -> None:
    with pytest.raises(ConfigError, match="thing: lacks the field 'number'"):
        from_json(Base, {}, "thing", ConfigError)
