"""Dataclasses as JSON and back, checked by their annotations.

What goes through the control socket, into `vm.json` and into snapshots is declared once, as frozen
dataclasses of `int`, `float`, `str`, `bool`, `bytes` (base64), `None`, `Literal`, enums of ints,
tuples, mappings and other such dataclasses. A field with a default may be absent; an unknown one is
an error. Where a value's class is a subclass of the annotated one (the state of one device among
others) its name is written beside its fields, as `"@"`.
"""

from __future__ import annotations

import base64
import binascii
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kasou.errors import KasouError, RemoteError

T = TypeVar("T")
Problem = Callable[[str], KasouError]
CLASS = "@"


def to_json(value: Any, declared: Any = None) -> Any:
    """`value` as what the `json` module writes; `declared` is the annotation that it stands under."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        hints = _hints(kind)
        out = {f.name: to_json(getattr(value, f.name), hints[f.name]) for f in fields(value)}
        expected = _dataclass_in(declared)
        if expected is not None and expected is not kind:
            out[CLASS] = kind.__name__
        return out
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, (tuple, list)):
        items = get_args(declared) if get_origin(declared) is tuple else ()
        every = items[0] if len(items) == 2 and items[1] is Ellipsis else None
        return [
            to_json(item, every if every is not None or n >= len(items) else items[n])
            for n, item in enumerate(value)
        ]
    if isinstance(value, Mapping):
        arguments = get_args(declared)
        item_kind = arguments[1] if len(arguments) == 2 else None
        return {str(key): to_json(item, item_kind) for key, item in value.items()}
    return value


def _dataclass_in(declared: Any) -> Any:
    """The dataclass that an annotation names, alone or beside None."""
    for kind in (declared, *get_args(declared)):
        if isinstance(kind, type) and is_dataclass(kind):
            return kind
    return None


def from_json(kind: type[T], data: Any, where: str = "", problem: Problem = RemoteError) -> T:
    """A `kind` out of what the `json` module read. Raises what `problem` makes of where it is wrong."""
    return Reader(problem).read(kind, data, where or kind.__name__)  # type: ignore[no-any-return]


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _subclasses(kind: type) -> dict[str, type]:
    found: dict[str, type] = {kind.__name__: kind}
    below: type
    for below in kind.__subclasses__():
        found |= _subclasses(below)
    return found


class Reader:
    """Reads values by their annotations; `problem` makes the exception for what does not fit."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def read(self, kind: Any, data: Any, where: str) -> Any:
        """A value of `kind`; `where` names it in messages."""
        if kind is Any:
            return data
        if is_dataclass(kind) and isinstance(kind, type):
            return self._dataclass(kind, data, where)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            return self._union(arguments, data, where)
        if origin is Literal:
            if data in arguments:
                return data
            names = ", ".join(map(str, arguments))
            raise self._problem(f"{where}: {data!r:.60}, expected one of {names}")
        if origin is tuple:
            return self._tuple(arguments, data, where)
        if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            if not isinstance(data, dict):
                raise self._wrong(where, data, "an object")
            return {
                (int(key) if arguments[0] is int else key): self.read(
                    arguments[1], item, f"{where}.{key}"
                )
                for key, item in data.items()
            }
        return self._plain(kind, data, where)

    def _plain(self, kind: Any, data: Any, where: str) -> Any:
        if kind is bytes:
            try:
                return base64.b64decode(data, validate=True)
            except (TypeError, ValueError, binascii.Error):
                raise self._wrong(where, data, "base64") from None
        if kind is float and type(data) is int:
            return float(data)
        if kind is type(None) and data is None:
            return None
        if isinstance(kind, type) and issubclass(kind, IntEnum) and type(data) is int:
            try:
                return kind(data)
            except ValueError:
                raise self._wrong(where, data, kind.__name__) from None
        if type(data) is not kind:  # bool is an int to Python, not to us
            raise self._wrong(where, data, getattr(kind, "__name__", str(kind)))
        return data

    def _tuple(self, kinds: tuple[Any, ...], data: Any, where: str) -> Any:
        if not isinstance(data, list):
            raise self._wrong(where, data, "a list")
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(data)
        if len(kinds) != len(data):
            raise self._wrong(where, data, f"a list of {len(kinds)}")
        return tuple(
            self.read(kind, item, f"{where}[{n}]")
            for n, (kind, item) in enumerate(zip(kinds, data, strict=True))
        )

    def _dataclass(self, kind: Any, data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            raise self._wrong(where, data, "an object")
        data = dict(data)
        if CLASS in data:
            name = data.pop(CLASS)
            actual = _subclasses(kind).get(name) if isinstance(name, str) else None
            if actual is None:
                raise self._wrong(where, name, f"a kind of {kind.__name__}")
            kind = actual
        hints = _hints(kind)
        known = {field.name: field for field in fields(kind)}
        if unknown := sorted(set(data) - set(known)):
            raise self._problem(f"{where}: unknown field {unknown[0]!r:.60}")
        values = {}
        for name, field in known.items():
            if name in data:
                values[name] = self.read(hints[name], data[name], f"{where}.{name}")
            elif field.default is MISSING and field.default_factory is MISSING:
                raise self._problem(f"{where}: lacks the field {name!r}")
        return kind(**values)

    def _union(self, kinds: tuple[Any, ...], data: Any, where: str) -> Any:
        if data is None and type(None) in kinds:
            return None
        problems = []
        for kind in kinds:
            if kind is type(None):
                continue
            try:
                return self.read(kind, data, where)
            except KasouError as problem:
                problems.append(problem)
        raise problems[0]

    def _wrong(self, where: str, data: Any, expected: str) -> KasouError:
        return self._problem(f"{where}: {type(data).__name__} {data!r:.60}, expected {expected}")
