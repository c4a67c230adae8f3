"""The pytest plugin, on tests of its own, with and without xdist."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from kasou.control.vm_directory import all_vms, find
from kasou.pytest_plugin import arguments_of

TESTS = """
import pytest

@pytest.mark.kasou("tiny", memory="16M", seed=3)
@pytest.mark.parametrize("n", range(6))
def test_each(vm, n):
    vm.console.send_line("trap")
    vm.console.expect("trapped: scause 2", timeout=60)
    assert vm.config.parent is not None and n != 3

def test_two(vm_factory):
    a, b = vm_factory("tiny", memory="16M"), vm_factory("tiny", memory="16M")
    assert a.name != b.name and a.config.parent == b.config.parent
"""


def run(tmp_path: Path, *options: str) -> str:
    (tmp_path / "test_machines.py").write_text(TESTS)
    installed = any(one.value == "kasou.pytest_plugin" for one in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "kasou.pytest_plugin"]  # or it is registered twice
    command = [sys.executable, "-m", "pytest", "-q", *plugin, *options]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=180,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_fork_for_each_test(home: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    out = run(tmp_path, *options)
    assert "1 failed, 6 passed" in out
    assert "serial port of tiny-1-fork-" in out and "trapped: scause 2" in out
    deadline = time.monotonic() + 15  # a base ends when its last holder's connection closes
    while all_vms() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all_vms() == []


def test_a_failed_machine_can_be_entered_again(home: Path, tmp_path: Path) -> None:
    out = run(tmp_path, "--kasou-on-fail=snapshot")
    (line,) = [line for line in out.splitlines() if line.startswith("kasou resume ")]
    vm = find(line.split()[2])
    assert vm.state().state == "paused" and not vm.read_config().ephemeral


def test_the_markers_words() -> None:
    mark = pytest.mark.kasou("tiny", "16M", 7, False).mark
    assert arguments_of(mark) == {"image": "tiny", "memory": "16M", "seed": 7, "network": False}
    assert arguments_of(pytest.mark.kasou(net="lab").mark) == {"network": "lab"}
    assert arguments_of(None) == {}
