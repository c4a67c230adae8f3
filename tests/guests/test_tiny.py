"""The teaching kernel, from the command line: what a first user sees."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

pytest.importorskip("kasou.machine.machine")
pytest.importorskip("kasou.isa.asm")

KASOU = [sys.executable, "-c", "from kasou.cli.main import main; main()"]


@pytest.mark.parametrize("engine", ["interpreter", "reference"])
def test_a_conversation(engine: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*KASOU, "run", "tiny", "--engine", engine, "--timeout", "120"],
        input=b"help\rhart\rtrap\rnonsense\rpoweroff\r",
        capture_output=True,
        env={**os.environ, "KASOU_HOME": str(tmp_path)},
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    for line in (
        b"this is hart 0, served by SBI 2.0\r\n",
        b"trapped: scause 2 (illegal instruction); sret went past it\r\n",
        b"nonsense: no such command; type help\r\n",
        b"bye\r\n",
    ):
        assert line in ended.stdout


def test_timeout(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*KASOU, "run", "tiny", "--timeout", "1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "KASOU_HOME": str(tmp_path)},
        timeout=60,
    )
    assert ended.returncode == 124
    assert ended.stderr.count(b"\n") == 1


def test_escape_on_a_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    child = subprocess.Popen(
        [*KASOU, "run", "tiny"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "KASOU_HOME": str(tmp_path)},
    )
    seen = b""
    deadline = time.monotonic() + 60
    while b"tiny> " not in seen and time.monotonic() < deadline:
        if select.select([master], [], [], 1)[0]:
            seen += os.read(master, 4096)
    assert b"Ctrl-]" in seen
    os.write(master, b"\x03\x1d\x1d\x1d")
    assert child.wait(30) == 130
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
