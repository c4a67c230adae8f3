"""SIGKILL at random points of a write workload: what was flushed is there, images check clean.

`KASOU_SOAK_KILLS` says how often (`make soak`: 1,000).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("KASOU_SOAK_KILLS", "200"))
TESTS = Path(__file__).parents[1]


def test_nothing_flushed_is_lost(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "storage.kill", str(tmp_path), str(KILLS), "1"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=TESTS, check=False)
    assert not done.returncode, done.stderr[-2000:]
    words = dict(word.split("=") for word in done.stdout.split())
    assert int(words["kills"]) == KILLS
    assert int(words["with_flush"]) > KILLS // 3, done.stdout
