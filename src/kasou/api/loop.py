"""asyncio for those who do not use it: one private loop on a thread of its own.

`blocking` makes of a coroutine method a method that waits for it, with the same arguments and
documentation. Waiting is interruptible: Ctrl-C cancels what was waited for.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_pid = 0


class Facade(Protocol[A]):
    """An object that stands for an asynchronous one."""

    _behind: A


def private_loop() -> asyncio.AbstractEventLoop:
    """The loop, started at its first use; a forked process gets one of its own."""
    global _loop, _pid
    with _lock:
        if _loop is None or _pid != os.getpid():
            _loop, _pid = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="kasou-client", daemon=True).start()
        return _loop


def wait_for(work: Coroutine[Any, Any, R]) -> R:
    """Run `work` on the private loop and wait for it; Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, private_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def blocking(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """A method of a `Facade` that waits for `method` of the object behind it."""

    @functools.wraps(method)
    def waits(self: Facade[A], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return wait_for(method(self._behind, *args, **kwargs))

    return waits


def same_arguments(
    original: Callable[Concatenate[Any, P], Any],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """A decorator: the function takes what `original` takes, and is documented as that is."""
    return functools.wraps(original)
