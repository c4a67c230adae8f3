"""Function boundaries of the semantic texts.

A text decorated with `@function` is an ordinary Python function on ints, and one LLVM function of
its own when staged: where paths meet again, and what may be called from many places. Arguments
after `hart` are values of the protocol; it returns one value or None.

A function that may trap is called before its caller writes any state.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""The undecorated texts by name, in the order of definition (callees may come later)."""
MAY_TRAP: set[str] = set()


def function(
    traps: bool = False, name: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a text a function boundary; `traps` states that it may raise `Trap`."""

    def define(text: Callable[..., Any]) -> Callable[..., Any]:
        key = name or text.__name__
        if key in FUNCTIONS:
            raise ValueError(f"function {key} is defined twice")
        FUNCTIONS[key] = text
        if traps:
            MAY_TRAP.add(key)

        @functools.wraps(text)
        def call(hart: Any, *args: Any) -> Any:
            return hart.call_function(key, args) if hart.staged else text(hart, *args)

        return call

    return define


def arguments(name: str) -> int:
    """How many arguments function `name` takes after the hart."""
    return len(inspect.signature(FUNCTIONS[name]).parameters) - 1
