"""What the guest tests share: the default image (fetched once) and a console to type at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kasou.errors import HostError
from kasou.images import DefaultGuest, ensure
from kasou.machine.machine import Machine, MachineConfig, Outcome, Peripherals

PROMPT = b"root@kasou:~# "
OPENSBI = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic")


@pytest.fixture(scope="session")
def debian() -> DefaultGuest:
    """The default guest, or a skip that says why it cannot be had here."""
    try:
        return ensure("debian:minimal")
    except HostError as problem:
        pytest.skip(f"not run: the Debian guest cannot be fetched: {problem}")


@pytest.fixture
def opensbi() -> Path:
    """Debian's OpenSBI, or a skip."""
    if not OPENSBI.is_dir():
        pytest.skip("not run: Debian's package opensbi is not installed")
    return OPENSBI


class Session:
    """A machine whose console a test reads and types at."""

    def __init__(self, config: MachineConfig, peripherals: Peripherals | None = None) -> None:
        self.output = bytearray()
        self._changed = threading.Condition()
        self.machine = Machine(config, self._write, peripherals)
        self.outcome: Outcome | None = None
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _write(self, data: bytes) -> None:
        with self._changed:
            self.output += data
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self.outcome = self.machine.run(300)
        except BaseException as problem:
            self._problem = problem
        with self._changed:
            self._changed.notify_all()

    def start(self) -> None:
        """Run in the background."""
        self._thread.start()

    def wait_for(self, text: bytes, seconds: float = 120, start: int = 0) -> int:
        """Wait until `text` is printed after offset `start`; where it ends."""
        end = time.monotonic() + seconds
        with self._changed:
            while (at := self.output.find(text, start)) < 0:
                assert time.monotonic() < end and self._thread.is_alive(), (
                    f"{text!r} not seen; {self._problem!r}; last: {bytes(self.output[-600:])!r}"
                )
                self._changed.wait(1)
            return at + len(text)

    def type(self, line: str) -> bytes:
        """Type a command and give what it printed."""
        before = len(self.output)
        self.machine.console_input(line.encode() + b"\n")
        after = self.wait_for(b"\n", start=before)
        return bytes(self.output[after : self.wait_for(PROMPT, start=after) - len(PROMPT)])

    def finish(self, line: str) -> Outcome:
        """Type the last command and wait for the machine's end."""
        self.machine.console_input(line.encode() + b"\n")
        self._thread.join(60)
        assert self._problem is None
        assert self.outcome is not None, bytes(self.output[-600:])
        return self.outcome


@pytest.fixture
def boot(debian: DefaultGuest) -> Callable[..., Session]:
    """Boot Debian to its prompt with a configuration's fields."""

    def start(**fields: Any) -> Session:
        append = f"{debian.append} {fields.pop('append', '')}".strip()
        files: dict[str, Any] = {"kernel": debian.kernel, "initrd": debian.initrd}
        peripherals = fields.pop("peripherals", None)
        session = Session(MachineConfig(append=append, **files, **fields), peripherals)
        session.start()
        session.wait_for(PROMPT)
        return session

    return start
