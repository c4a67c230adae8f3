"""What commands print: columns for people, one JSON document for programs.

With `--json` standard output carries exactly one document: the result, or
`{"error": {"kind": ..., "message": ..., "code": EXIT_CODE}}`. `run` and `exec` leave standard output
to the guest and put theirs on standard error. `ls -q` and the like print names, one a line.
"""

from __future__ import annotations

import json as json_text
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kasou.json_values import to_json

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="VMs, by name.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A VM.")]


def print_json(value: Any) -> None:
    """One document, from dataclasses too."""
    print(json_text.dumps(to_json(value), indent=2))


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns; the last one is not padded."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(header) - 1)]
    for line in lines:
        print(
            "  ".join(
                [f"{text:<{w}}" for text, w in zip(line, widths, strict=False)] + line[-1:]
            ).rstrip()
        )


def say(text: str) -> None:
    """A line for a person, on standard error."""
    print(f"kasou: {text}", file=sys.stderr, flush=True)


def ago(then: float | None) -> str:
    """How long since `then`, in seconds since 1970: 5s, 12m, 3h, 4d."""
    if then is None:
        return ""
    seconds = max(0.0, time.time() - then)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


class Patience:
    """Says on standard error what is being done, once it has taken two seconds.

    A context manager, for terminals: the line is removed again when it is done.
    """

    SECONDS = 2.0

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> Patience:
        import threading

        self._shown = False
        self._lock = threading.Lock()
        self._text = self.what
        self._timer = threading.Timer(self.SECONDS, self._show)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._shown and sys.stderr.isatty():
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = True

    def _show(self) -> None:
        with self._lock:
            if not self._shown:
                self._shown = True
                self._print()

    def _print(self) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[Kkasou: {self._text} ...", end="", file=sys.stderr, flush=True)

    def progress(self, text: str) -> None:
        """How far it is."""
        with self._lock:
            self._text = f"{self.what}: {text}"
            if self._shown and sys.stderr.isatty():
                self._print()
