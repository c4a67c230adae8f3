"""How far a download is: a bar on standard error, if it lasts longer than two seconds."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # rich is imported when there is a bar to draw: a start from the cache has none
    from rich.progress import Progress, TaskID

PATIENCE_SECONDS = 2.0


class Report(Protocol):
    """Is told how a build goes on. All of it is for a person to read."""

    def step(self, text: str) -> None:
        """A stage of the work begins."""
        ...

    def warn(self, text: str) -> None:
        """Something a person should know, though the work goes on."""
        ...

    def advance(self, label: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `label` have arrived; called often."""
        ...


class Silent:
    """Says nothing."""

    def step(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def advance(self, label: str, done: int, total: int) -> None:
        """Nothing."""


class TerminalReport:
    """Writes to standard error: steps and warnings as lines, a bar where that is a terminal.

    Used as a context manager, so that a bar does not outlive an error.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._bar: tuple[Progress, TaskID] | None = None
        self._label = ""
        self._since = 0.0

    def __enter__(self) -> "TerminalReport":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def step(self, text: str) -> None:
        """A line saying what is being done."""
        self._stop()
        print(f"kasou: {text}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """A line that begins with `warning`."""
        self._stop()
        print(f"kasou: warning: {text}", file=sys.stderr)

    def advance(self, label: str, done: int, total: int) -> None:
        """Move the bar, which appears when a download has lasted for two seconds."""
        if label != self._label:
            self._stop()
            self._label, self._since = label, self._now()
        if self._bar is None:
            if done >= total or self._now() - self._since < PATIENCE_SECONDS:
                return
            if not sys.stderr.isatty():
                return
            self._bar = _bar(label, total)
        progress, task = self._bar
        progress.update(task, completed=done, total=total)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
        self._bar, self._label = None, ""


def _bar(label: str, total: int) -> "tuple[Progress, TaskID]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(file=sys.stderr), transient=True,
    )  # fmt: skip
    progress.start()
    return progress, progress.add_task(label, total=total)
