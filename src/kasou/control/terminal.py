"""The user's terminal, lent to a guest.

Rules:

* On a tty the terminal is raw: every key, Ctrl-C and Ctrl-Z included, is the guest's. It is given
  back as it was on every way out that lets this process act: return, exception, SIGINT, SIGTERM,
  SIGHUP, SIGQUIT, suspension from outside (SIGTSTP), interpreter exit.
* Ctrl-] three times within a second ends the machine. The keys pass to the guest all the same, so
  one or two of them still mean what the guest says. (`escape_times` 1: one ends the attachment; 0: none does.)
* Not a tty: plain bytes, no escape. The end of input is not the end of the machine.
* The loop runs on the main thread and waits in `select`; harts run elsewhere and call `write`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import termios
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

ESCAPE = 0x1D
"""Ctrl-]"""
ESCAPE_TIMES = 3
ESCAPE_SECONDS = 1.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
CHUNK = 4096


class EscapeFilter:
    """Notices the escape key pressed `times` in a row within `ESCAPE_SECONDS`."""

    def __init__(self, times: int = ESCAPE_TIMES) -> None:
        self.pressed: deque[float] = deque(maxlen=times)

    def escaped(self, data: bytes, now: float) -> bool:
        """Whether `data`, typed at `now` seconds, completes the escape."""
        for byte in data if self.pressed.maxlen else b"":
            if byte != ESCAPE:
                self.pressed.clear()
                continue
            self.pressed.append(now)
            if len(self.pressed) == self.pressed.maxlen and now - self.pressed[0] <= ESCAPE_SECONDS:
                return True
        return False


class Terminal:
    """Standard input and output as a guest's console; a context manager around one `run`.

    `resized(columns, rows)` is called on entry and, by `run`, whenever the window changes. Must be
    made, entered and run on the main thread: Python handles signals there only.
    """

    def __init__(
        self,
        stdin: int = 0,
        stdout: int = 1,
        resized: Callable[[int, int], None] | None = None,
        escape_times: int = ESCAPE_TIMES,
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.resized = resized
        self.escape_times = escape_times
        self.is_tty = os.isatty(stdin)
        self.output_closed = False
        """Whether whoever read our output went away."""
        self.ended_by: str | None = None
        """Name of the signal that asked for the end, or "escape"."""
        self._size_changed = False
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._wake_read = self._wake_write = self._wakeup_before = -1
        self._writing = threading.Lock()

    # -- the terminal's mode -------------------------------------------------------------------

    def __enter__(self) -> Terminal:
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        # A signal that arrives just before `select` sleeps runs no Python handler and interrupts
        # nothing; its number in the pipe does wake the loop.
        self._wakeup_before = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        atexit.register(self.restore)
        for number in ENDING_SIGNALS:
            self._handle(number, self._end_on_signal)
        if self.is_tty:
            self._handle(signal.SIGTSTP, self._suspend)
            self._handle(signal.SIGWINCH, self._window_changed)
            self.make_raw()
        self._report_size()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()
        atexit.unregister(self.restore)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        signal.set_wakeup_fd(self._wakeup_before)
        write, self._wake_write = self._wake_write, -1
        os.close(self._wake_read)
        os.close(write)

    def make_raw(self) -> None:
        """Every key to us as it is typed, nothing echoed, no output translated."""
        if not self.is_tty:
            return
        mode = termios.tcgetattr(self.stdin)
        if self._saved is None:
            self._saved = [*mode[:6], list(mode[6])]
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.stdin, termios.TCSADRAIN, mode)

    def restore(self) -> None:
        """Give the terminal back as it was; may be called any number of times."""
        saved, self._saved = self._saved, None
        if saved is not None:
            with contextlib.suppress(termios.error):  # the terminal itself may be gone
                termios.tcsetattr(self.stdin, termios.TCSANOW, saved)

    def size(self) -> tuple[int, int]:
        """Columns and rows of the window; 80 and 24 when there is none."""
        try:
            return tuple(os.get_terminal_size(self.stdin))  # type: ignore[return-value]
        except OSError:
            return 80, 24

    # -- signals -------------------------------------------------------------------------------

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        if signal.getsignal(number) is signal.SIG_IGN:
            return  # as with nohup: what our parent had ignored stays so
        self._handlers[number] = signal.signal(number, handler)

    def _end_on_signal(self, number: int, frame: FrameType | None) -> None:
        self.ended_by = signal.Signals(number).name
        self.wake()

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.make_raw()
        self._window_changed(number, frame)

    def _window_changed(self, number: int, frame: FrameType | None) -> None:
        # A handler interrupts the main thread anywhere, a lock in its hands included: the loop
        # does the reporting.
        self._size_changed = True
        self.wake()

    def _report_size(self) -> None:
        if self.resized is not None and self.is_tty:
            self.resized(*self.size())

    # -- bytes ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write all of `data` to standard output now; safe from any thread."""
        with self._writing:
            view = memoryview(data)
            while view and not self.output_closed:
                try:
                    view = view[os.write(self.stdout, view) :]
                except BlockingIOError:
                    select.select([], [self.stdout], [])
                except OSError:  # EPIPE, EIO: nobody is left to read
                    self.output_closed = True
                    self.wake()

    def wake(self) -> None:
        """Make `run` look at `finished` again; safe from any thread and from a signal handler."""
        if self._wake_write >= 0:
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(self._wake_write, b"\0")

    def run(
        self,
        receive: Callable[[bytes], None],
        finished: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        """Hand what is typed to `receive` until `finished()`, an escape, a signal or closed output.

        `now()` gives seconds. Afterwards `ended_by` and `output_closed` say why, if it was not
        `finished`. Whoever makes `finished` true calls `wake`.
        """
        escape = EscapeFilter(self.escape_times)
        watched = [self._wake_read]
        with contextlib.suppress(OSError):  # started with standard input closed: nothing to watch
            os.fstat(self.stdin)
            watched.append(self.stdin)
        while not (finished() or self.ended_by or self.output_closed):
            ready, _, _ = select.select(watched, [], [])
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, CHUNK)
            if self._size_changed:
                self._size_changed = False
                self._report_size()
            if self.stdin in ready:
                data = self._read()
                if data is None:
                    continue
                if not data:
                    watched.remove(self.stdin)
                    continue
                if self.is_tty and escape.escaped(data, now()):
                    self.ended_by = "escape"
                    return
                receive(data)

    def _read(self) -> bytes | None:
        """What was typed; empty at the end of input, None when there was nothing after all."""
        try:
            return os.read(self.stdin, CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # EIO: the terminal hung up
            return b""
