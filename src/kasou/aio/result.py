"""What a command in the guest came to, and the errors for those that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from kasou.errors import KasouError

SHOWN = 2000
"""Characters of output in an error's text."""


@dataclass(frozen=True, slots=True)
class Result:
    """A command that ended. `duration` in seconds of the host.

    `returncode` is the command's, 128 + N when signal N ended it.
    """

    command: str | Sequence[str]
    returncode: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration: float

    @property
    def stdout(self) -> str:
        """Its standard output as text; what is not UTF-8 is replaced."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Its standard error as text; what is not UTF-8 is replaced."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def check(self) -> Self:
        """Itself. Raises `CommandError` when the command failed."""
        if self.returncode != 0:
            raise CommandError(self)
        return self

    def __bool__(self) -> bool:
        """Whether the command succeeded."""
        return self.returncode == 0


class CommandError(KasouError):
    """A command in the guest failed; `result` holds what it said."""

    def __init__(self, result: Result, what: str = "") -> None:
        output = (result.stderr.strip() or result.stdout.strip())[-SHOWN:]
        what = what or f"exit code {result.returncode}"
        super().__init__(f"{shown(result.command)}: {what}" + (f": {output}" if output else ""))
        self.result = result


class TimedOut(KasouError, TimeoutError):
    """Something did not happen in time."""


def shown(command: str | Sequence[str]) -> str:
    """A command as a person would type it."""
    import shlex

    text = command if isinstance(command, str) else shlex.join(command)
    return text if len(text) <= 200 else text[:197] + "..."
