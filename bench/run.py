"""One timed run of kasou or QEMU, as a whole process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

QEMU = "qemu-system-riscv64"
PROMPT = b"~# "
KASOU = [sys.executable, "-c", "from kasou.cli.main import main; main()", "run"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of wall time, peak resident bytes, and kasou's own statistics."""

    seconds: float
    peak_bytes: int
    statistics: dict[str, float]


def have_qemu() -> bool:
    """Whether the peer is here."""
    return shutil.which(QEMU) is not None


def kasou(*options: str, type_at_prompt: bytes = b"") -> Timing:
    """`kasou run` with `options`."""
    return timed([*KASOU, *options, "--json"], type_at_prompt, statistics=True)


def qemu(*options: str, type_at_prompt: bytes = b"") -> Timing:
    """QEMU's `virt` with `options`, its threads one a hart."""
    fixed = [QEMU, "-M", "virt", "-nographic", "-accel", "tcg,thread=multi"]
    return timed([*fixed, *options], type_at_prompt)


def timed(command: list[str], type_at_prompt: bytes = b"", statistics: bool = False) -> Timing:
    """Run to the end; type a line when the shell's prompt appears."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout and process.stderr
    output = b""
    while data := os.read(process.stdout.fileno(), 65536):
        output += data
        if type_at_prompt and PROMPT in output:
            process.stdin.write(type_at_prompt)
            process.stdin.flush()
            type_at_prompt, output = b"", b""
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}: {errors[-800:]!r}")
    found: dict[str, float] = {}
    if statistics:
        found = json.loads(errors.splitlines()[-1])["statistics"]
    return Timing(seconds, usage.ru_maxrss * 1024, found)


FIRST = """
import os, sys, time
started = float(sys.argv.pop(1))
from kasou.cli import run
from kasou.cli.main import main
def timed(*arguments, run_on=run.run_on):
    from kasou.engine.interpreter import InterpreterHart
    def execute(hart, *rest, execute=InterpreterHart.execute):
        os.write(2, b"FIRST %.6f\\n" % (time.monotonic() - started))
        return execute(hart, *rest)
    InterpreterHart.execute = execute
    return run_on(*arguments)
run.run_on = timed
main()
"""


def start_warm(bytecode: Path, *options: str) -> float:
    """Seconds from before the process exists to its first entry into compiled code.

    Python's bytecode is kept in `bytecode`, as an installed package's is, whatever the caller's
    PYTHONDONTWRITEBYTECODE says: the first call fills it and is not a warm one.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", FIRST, repr(time.monotonic()), "run", *options]
    ended = subprocess.run(
        [*command, "--max-instructions", "1"],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return next(float(x[6:]) for x in ended.stderr.splitlines() if x.startswith("FIRST "))


def build_cold(home: Path) -> float:
    """Seconds to make the interpreter's object with an empty cache."""
    code = (
        "import time; from kasou.engine import object_cache; t = time.perf_counter();"
        "object_cache.load(); print(time.perf_counter() - t)"
    )
    environment = {**os.environ, "KASOU_HOME": str(home)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return float(ended.stdout)
