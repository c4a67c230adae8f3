from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from kasou.control.terminal import EscapeFilter

CHILD = """
import os, signal, sys, threading, time
from kasou.control.terminal import Terminal
got = bytearray()
def receive(data):
    got.extend(data)
    terminal.write(b"<" + data + b">")
sizes = []
terminal = Terminal(resized=lambda c, r: terminal.write(b"[%dx%d]" % (c, r)))
with terminal:
    terminal.write(b"ready")
    MODE
    terminal.run(receive, lambda: b"quit" in got, time.monotonic)
os.write(1, b"end:" + str(terminal.ended_by).encode() + b".")
"""


@pytest.mark.parametrize(
    ("keys", "escaped"),
    [
        ([(b"\x1d\x1d\x1d", 0.0)], True),
        ([(b"\x1d", 0.0), (b"\x1d", 0.5), (b"\x1d", 1.0)], True),
        ([(b"\x1d", 0.0), (b"\x1d", 0.5), (b"\x1d", 1.1)], False),
        ([(b"\x1d", 0.0), (b"\x1d", 0.9), (b"\x1d", 1.1), (b"\x1d", 1.2)], True),
        ([(b"\x1d\x1dx\x1d", 0.0)], False),
        ([(b"\x03\x03\x03", 0.0)], False),
    ],
)
def test_escape(keys: list[tuple[bytes, float]], escaped: bool) -> None:
    filter = EscapeFilter()
    assert any([filter.escaped(data, now) for data, now in keys]) is escaped


class OnTty:
    """A child whose standard input and output are a pseudo-terminal."""

    def __init__(self, mode: str = "pass") -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD.replace("MODE", mode)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.seen = b""

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + 20
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            if not ready:
                self.child.kill()
                raise AssertionError(f"{text!r} did not come, only {self.seen!r}")
            self.seen += os.read(self.master, 1024)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait(self) -> None:
        assert self.child.stderr is not None
        with self.child.stderr:
            self.child.wait(20)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.slave)
        os.close(self.master)


def test_every_key_reaches_the_guest_and_the_mode_comes_back() -> None:
    tty = OnTty()
    tty.expect(b"ready")
    assert not termios.tcgetattr(tty.slave)[3] & (termios.ECHO | termios.ISIG | termios.ICANON)
    tty.type(b"\x03\x1a\x04")
    tty.expect(b"\x04>")
    tty.type(b"quit")
    tty.expect(b"end:None.")
    tty.wait()


def test_escape_ends() -> None:
    tty = OnTty()
    tty.expect(b"ready")
    tty.type(b"\x1d\x1d\x1d")
    tty.expect(b"end:escape.")
    tty.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends(number: signal.Signals) -> None:
    tty = OnTty()
    tty.expect(b"ready")
    tty.child.send_signal(number)
    tty.expect(f"end:{number.name}.".encode())
    tty.wait()


@pytest.mark.parametrize("mode", ["raise RuntimeError('broken')", "sys.exit(3)"])
def test_an_exception_gives_the_terminal_back(mode: str) -> None:
    tty = OnTty(mode)
    tty.expect(b"ready")
    tty.wait()
    assert tty.child.returncode in (1, 3)


def test_window_size() -> None:
    tty = OnTty()
    tty.expect(b"ready")
    termios.tcsetwinsize(tty.master, (50, 132))
    tty.child.send_signal(signal.SIGWINCH)
    tty.expect(b"[132x50]")
    tty.type(b"quit")
    tty.wait()


def test_plain_bytes_and_the_end_of_input_is_not_the_end() -> None:
    ended = "threading.Timer(0.3, lambda: (got.extend(b'quit'), terminal.wake())).start()"
    child = subprocess.run(
        [sys.executable, "-c", CHILD.replace("MODE", ended)],
        input=b"\x1d\x1d\x1dtyped",
        capture_output=True,
        timeout=20,
        check=True,
    )
    assert child.stdout == b"ready<\x1d\x1d\x1dtyped>end:None."


def test_closed_standard_input() -> None:
    code = "import os; os.close(0)\n" + CHILD.replace(
        "MODE", "threading.Timer(0.1, lambda: (got.extend(b'quit'), terminal.wake())).start()"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20)
    assert child.stdout == b"readyend:None.", child.stderr
