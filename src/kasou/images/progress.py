"""How far a download or a build is: a bar on standard error, if it lasts longer than two seconds."""

import sys
import threading
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

    def advance(self, label: str, done: int, total: int, unit: str = "bytes") -> None:
        """`done` of `total` bytes (or another `unit`) of `label` are there; called often."""
        ...


class Silent:
    """Says nothing."""

    def step(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def advance(self, label: str, done: int, total: int, unit: str = "bytes") -> None:
        """Nothing."""


class Total:
    """Many downloads as one: what they report is summed up as `label` of `size` bytes."""

    def __init__(self, report: Report, label: str, size: int) -> None:
        self._report, self._label, self._size = report, label, size
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()

    def step(self, text: str) -> None:
        """Passed on."""
        with self._lock:
            self._report.step(text)

    def warn(self, text: str) -> None:
        """Passed on."""
        with self._lock:
            self._report.warn(text)

    def advance(self, label: str, done: int, total: int, unit: str = "bytes") -> None:
        """One of them, `label`, has come so far."""
        with self._lock:
            self._done[label] = done
            self._report.advance(self._label, sum(self._done.values()), self._size, unit)

    def finish(self) -> None:
        """All have arrived, or were here already."""
        with self._lock:
            self._report.advance(self._label, self._size, self._size)


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

    def advance(self, label: str, done: int, total: int, unit: str = "bytes") -> None:
        """Move the bar, which appears when it has lasted for two seconds."""
        if label != self._label:
            self._stop()
            self._label, self._since = label, self._now()
        if self._bar is None:
            if done >= total or self._now() - self._since < PATIENCE_SECONDS:
                return
            if not sys.stderr.isatty():
                return
            bar = _download_bar() if unit == "bytes" else _count_bar()
            bar.start()
            self._bar = bar, bar.add_task(label, total=total)
        progress, task = self._bar
        progress.update(task, completed=done, total=total)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
        self._bar, self._label = None, ""


def _download_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(file=sys.stderr), transient=True,
    )  # fmt: skip


def _count_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(file=sys.stderr), transient=True,
    )  # fmt: skip
