"""VMs as processes: their life, their death, and moments of them, with the teaching kernel."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kasou
from kasou.control.vm_directory import VmDirectory, all_vms
from kasou.errors import ConfigError
from kasou.paths import runtime_directory

KASOU = [sys.executable, "-c", "from kasou.cli.main import main; main()"]


def cli(*arguments: str, code: int = 0, input: str = "") -> str:
    """Run a command line that is to end with `code`; its output, or its error if it fails."""
    done = subprocess.run(
        [*KASOU, *arguments], input=input, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done
    return done.stdout if code == 0 else done.stderr


def gone(pid: int, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_life(home: Path) -> None:
    assert cli("launch", "tiny", "-n", "web", "-m", "16M", "-c", "2") == "web\n"
    vms = json.loads(cli("ls", "--json"))
    assert [(vm["name"], vm["state"], vm["cpus"]) for vm in vms] == [("web", "running", 2)]
    assert "there is a VM of this name" in cli("launch", "tiny", "-n", "web", code=125)
    assert "running already" in cli("start", "web", code=125)
    cli("pause", "web")
    assert json.loads(cli("info", "web", "--json"))["state"] == "paused"
    cli("resume", "web")
    assert "is running" in cli("rm", "web", code=125)
    assert "no agent" in cli("stop", "web", code=125)
    out = cli("console", "web", input="hart\rpoweroff\r")
    assert "this is hart" in out and "bye" in out
    assert "not running" in cli("wait", "web", code=125)
    info = json.loads(cli("info", "web", "--json"))
    assert info["state"] == "stopped" and info["ended"]["kind"] == "poweroff"
    assert "bye" in cli("logs", "web") and cli("logs", "-n", "1", "web") == "bye\n"
    cli("start", "web")
    cli("stop", "-f", "web")
    cli("rm", "web")
    assert cli("ls") == "no VMs; kasou launch makes one\n"
    assert not (home / "vms" / "web").exists() and not (home / "state" / "vms" / "web").exists()


def test_errors_as_json(home: Path) -> None:
    done = subprocess.run([*KASOU, "info", "nobody", "--json"], capture_output=True, text=True)
    assert done.returncode == 125 and done.stderr == ""
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["code"]) == ("config", 125) and "nobody" in error["message"]
    done = subprocess.run([*KASOU, "ls", "--wat", "--json"], capture_output=True, text=True)
    assert done.returncode == 2 and json.loads(done.stdout)["error"]["code"] == 2


def test_a_killed_process_is_a_crashed_vm_that_starts_again(home: Path) -> None:
    cli("launch", "tiny", "-n", "web")
    pid = json.loads(cli("info", "web", "--json"))["pid"]
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert (runtime_directory() / "web.sock").exists()  # stale
    assert json.loads(cli("info", "web", "--json"))["state"] == "crashed"
    assert "crashed, not running" in cli("pause", "web", code=125)
    assert not (runtime_directory() / "web.sock").exists()
    cli("start", "web")
    assert json.loads(cli("info", "web", "--json"))["state"] == "running"
    cli("rm", "-f", "web")


def test_sigterm_ends_it_cleanly(home: Path) -> None:
    cli("launch", "tiny", "-n", "web")
    pid = json.loads(cli("info", "web", "--json"))["pid"]
    os.kill(pid, signal.SIGTERM)
    assert gone(pid)
    assert json.loads(cli("info", "web", "--json"))["state"] == "stopped"


def test_a_damaged_directory_is_told_and_removed(home: Path) -> None:
    cli("launch", "tiny", "-n", "web")
    cli("stop", "-f", "web")
    (home / "vms" / "web" / "vm.json").write_text('{"name": 3')
    assert "damaged" in cli("start", "web", code=125)
    assert "damaged" in subprocess.run([*KASOU, "ls"], capture_output=True, text=True).stderr
    cli("rm", "-f", "web")
    assert not VmDirectory("web").exists


def test_a_newer_version_is_refused(home: Path) -> None:
    cli("launch", "tiny", "-n", "web")
    cli("stop", "-f", "web")
    path = home / "vms" / "web" / "vm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    assert "newer kasou" in cli("start", "web", code=125)


def test_what_keeps_a_vm_from_starting_is_said_and_leaves_nothing(home: Path) -> None:
    (home / "text").write_text("no kernel")
    error = cli("launch", "--kernel", str(home / "text"), "-n", "x", code=125)
    assert "text" in error and error.count("\n") == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = cli("launch", "tiny", "-p", f"{port}:80", code=125)
        assert "in use" in error and error.count("\n") == 1
    assert all_vms() == []


def test_an_ephemeral_vm_dies_with_its_python(home: Path) -> None:
    code = (
        "import kasou, time; vm = kasou.VM('tiny', memory='16M'); vm.start(); fork = vm.fork();"
        "print(vm.info().pid, fork.info().pid, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pids = [int(word) for word in child.stdout.readline().split()]
    child.kill()
    child.wait()
    assert len(pids) == 2 and all(map(gone, pids))
    deadline = time.monotonic() + 5
    while all_vms() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all_vms() == []


def test_run_is_a_vm_for_all_other_commands(home: Path) -> None:
    child = subprocess.Popen(
        [*KASOU, "run", "tiny"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert child.stdin is not None and child.stdout is not None
    seen = b""
    while b"tiny> " not in seen:
        seen += os.read(child.stdout.fileno(), 1000)
    for _ in range(100):
        if (runtime_directory() / "tiny-1.sock").exists():
            break
        time.sleep(0.05)
    assert json.loads(cli("ls", "--json"))[0]["name"] == "tiny-1"
    (copy,) = cli("fork", "tiny-1").split()
    assert "this is hart" in cli("console", copy, input="hart\rpoweroff\r")
    child.stdin.write(b"poweroff\r")
    assert child.wait(30) == 0
    cli("rm", copy)
    assert all_vms() == []


# ---------------------------------------------------------------------- moments
def ask(vm: kasou.VM, line: str, answer: str) -> None:
    vm.console.send_line(line)
    vm.console.expect(answer, timeout=30)


def test_snapshots_forks_and_files_with_a_disk(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"base" + bytes((1 << 20) - 4))
    with kasou.VM("tiny", memory="16M", drives=[f"{disk},snapshot"]) as vm:
        vm.console.expect("tiny> ", timeout=60)
        first = vm.snapshot("first")
        second = vm.snapshot(name="second")
        assert (first.name, second.parent) == ("1", "1")
        with pytest.raises(ConfigError, match="has a snapshot second"):
            vm.snapshot(name="second")
        a, b = vm.fork_many(2)
        inner = a.fork()
        for one in (vm, a, b, inner):
            ask(one, "trap", "trapped: scause 2")
        vm.restore(first)
        ask(vm, "hart", "this is hart")
        third = vm.snapshot()
        assert third.parent == "1"
        assert [one.name for one in vm.snapshots() if one.current] == [third.name]
        with pytest.raises(ConfigError, match="did you mean second"):
            vm.restore("secnd")
        vm.save(tmp_path / "vm.kasou", stop=False)
        images = set(os.listdir(vm.directory.path / "disks"))
        vm.remove_snapshot(second)
        assert set(os.listdir(vm.directory.path / "disks")) < images
        a.close()
        b.close()
        ask(inner, "hart", "this is hart")  # its parent is gone, its disks are its own
        inner.close()
    assert all_vms() == []
    moved = tmp_path / "elsewhere" / "vm.kasou"
    moved.parent.mkdir()
    (tmp_path / "vm.kasou").rename(moved)
    disk.rename(tmp_path / "gone.img")
    with pytest.raises(ConfigError, match=r"uses the disk .* not here"):
        kasou.VM.load(moved)
    (tmp_path / "gone.img").rename(disk)
    with kasou.VM.load(moved) as vm:
        ask(vm, "hart", "this is hart")
    assert disk.read_bytes()[:4] == b"base"


def test_a_stopped_vm_starts_from_a_snapshot(home: Path) -> None:
    cli("launch", "tiny", "-n", "web", "-m", "16M")
    cli("snapshot", "create", "web", "ready", "-m", "a comment")
    cli("stop", "-f", "web")
    assert "a comment" in cli("snapshot", "ls", "web")
    cli("snapshot", "restore", "web", "ready")
    assert "this is hart" in cli("console", "web", input="hart\rpoweroff\r")
    cli("rm", "-f", "web")


def test_foreign_and_damaged_files_are_refused(home: Path, tmp_path: Path) -> None:
    assert "not a snapshot" in cli("load", "/etc/passwd", code=125)
    with kasou.VM("tiny", memory="16M") as vm:
        vm.console.expect("tiny> ")
        vm.save(tmp_path / "good.kasou")
    data = bytearray((tmp_path / "good.kasou").read_bytes())
    data[-10] ^= 1
    (tmp_path / "bad.kasou").write_bytes(data)
    assert "damaged" in cli("load", str(tmp_path / "bad.kasou"), code=125)
    (tmp_path / "cut.kasou").write_bytes(data[: len(data) // 2])
    assert "damaged" in cli("load", str(tmp_path / "cut.kasou"), code=125)
    assert all_vms() == []


def test_a_written_drive_keeps_snapshots_away(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with kasou.VM("tiny", memory="16M", drives=[str(disk)]) as vm:
        with pytest.raises(ConfigError, match=r"written directly.*,snapshot"):
            vm.snapshot()
        with pytest.raises(ConfigError, match="in use"):
            kasou.VM("tiny", drives=[str(disk)]).start()
