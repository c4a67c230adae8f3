"""How far a download is: a bar on standard error, if it lasts longer than two seconds."""

import sys
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

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
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._now = now
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._label = ""
        self._since = 0.0

    def __enter__(self) -> "TerminalReport":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def step(self, text: str) -> None:
        """A line saying what is being done."""
        self._stop()
        self._console.print(f"kasou: {text}", markup=False)

    def warn(self, text: str) -> None:
        """A line that begins with `warning`."""
        self._stop()
        self._console.print(f"kasou: warning: {text}", markup=False)

    def advance(self, label: str, done: int, total: int) -> None:
        """Move the bar, which appears when a download has lasted for two seconds."""
        if label != self._label:
            self._stop()
            self._label, self._since = label, self._now()
        if self._progress is None:
            if done >= total or self._now() - self._since < PATIENCE_SECONDS:
                return
            if not self._console.is_terminal:
                return
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                TransferSpeedColumn(), TimeRemainingColumn(),
                console=self._console, transient=True,
            )  # fmt: skip
            self._task = self._progress.add_task(label, total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._label = None, ""
