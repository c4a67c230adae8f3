"""Commands in the guest, from Python and from the command line, over a real agent."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import kasou
from kasou.aio import VM as AsyncVM
from kasou.errors import ConfigError

KASOU = [sys.executable, "-c", "from kasou.cli.main import main; main()"]


@pytest.fixture
def vm(fake_vm) -> kasou.VM:
    return kasou.VM.open("fake")


def test_a_string_is_for_the_shell_and_a_list_is_not(vm: kasou.VM) -> None:
    result = vm.run("echo out; echo err >&2; exit 3")
    assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert not result and result.duration > 0
    assert vm.run(["echo", "$HOME; x"]).stdout == "$HOME; x\n"
    assert vm.run(["sh", "-c", "kill -TERM $$"]).returncode == 143
    assert vm.run(["no-such-program"]).returncode == 127


def test_check_raises_with_what_it_said(vm: kasou.VM) -> None:
    with pytest.raises(kasou.CommandError, match="exit code 4: broken pipes"):
        vm.run("echo broken pipes >&2; exit 4", check=True)


def test_input_environment_directory_bytes(vm: kasou.VM) -> None:
    assert vm.run("cat", input="typed").stdout == "typed"
    assert vm.run("cat", input=b"\xff\x00").stdout_bytes == b"\xff\x00"
    assert vm.run("cat").stdout == ""
    assert vm.run("echo $A", env={"A": "b c"}).stdout == "b c\n"
    assert vm.run("pwd", cwd="/usr").stdout == "/usr\n"
    with pytest.raises(ConfigError, match="nobody-at-all"):
        vm.run("true", user="nobody-at-all")


def test_timeout_kills(vm: kasou.VM, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"still ran after 0\.3 s"):
        vm.run(f"sleep 5; touch {tmp_path}/alive", timeout=0.3)
    assert time.monotonic() - started < 4


def test_megabytes_both_ways(vm: kasou.VM) -> None:
    data = bytes(range(256)) * 20_000
    assert vm.run("cat", input=data).stdout_bytes == data


def test_popen_is_a_conversation(vm: kasou.VM) -> None:
    with vm.popen(["cat", "-u"]) as process:
        process.write("one\n")
        assert process.stdout.readline() == b"one\n"
        assert process.poll() is None and process.pid > 1
        process.close_stdin()
        assert process.wait(timeout=5) == 0
    process = vm.popen("sleep 60")
    process.terminate()
    assert process.wait(5) == 143
    with vm.popen("seq 3") as process:
        assert [line for line in process.stdout] == [b"1\n", b"2\n", b"3\n"]


def test_verbs_of_nixos_tests(vm: kasou.VM, tmp_path: Path) -> None:
    assert vm.succeed("echo a", ["echo", "b"]) == "a\nb\n"
    with pytest.raises(kasou.CommandError):
        vm.succeed("false")
    vm.fail("false")
    with pytest.raises(kasou.CommandError, match="was to fail"):
        vm.fail("true")
    flag = tmp_path / "flag"
    threading.Timer(0.4, flag.touch).start()
    vm.wait_until_succeeds(f"test -e {flag}", timeout=10)
    with pytest.raises(kasou.TimedOut):
        vm.wait_until_fails("true", timeout=0.1)


def test_wait_for_open_port(vm: kasou.VM) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        threading.Timer(0.4, listener.listen).start()
        vm.wait_for_open_port(port, timeout=10)
    with pytest.raises(kasou.TimedOut):
        vm.wait_for_open_port(port, timeout=0.1)


def test_copies_there_and_back(vm: kasou.VM, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index.html").write_bytes(b"x" * 300_000)
    (site / "sub" / "run").write_text("#!/bin/sh\n")
    (site / "sub" / "run").chmod(0o755)
    (site / "link").symlink_to("index.html")
    there = tmp_path / "there"
    there.mkdir()
    vm.put(site, f"{there}")
    assert (there / "site" / "sub" / "run").stat().st_mode & 0o777 == 0o755
    vm.put(f"{site}/", f"{there}/www")
    assert (there / "www" / "index.html").read_bytes() == b"x" * 300_000
    vm.get(f"{there}/site", tmp_path / "back")
    assert (tmp_path / "back" / "link").readlink() == Path("index.html")
    vm.get(f"{there}/site/index.html", tmp_path)
    assert (tmp_path / "index.html").stat().st_size == 300_000
    with pytest.raises(ConfigError):
        vm.get("/no/such/file", tmp_path)
    with pytest.raises(ConfigError):
        vm.put("/no/such/file", "/tmp")


def test_the_same_names_in_asyncio(fake_vm) -> None:
    async def work() -> list[str]:
        vm = await AsyncVM.open("fake")
        results = await asyncio.gather(*(vm.run(f"sleep 0.3; echo {n}") for n in range(10)))
        return [result.stdout.strip() for result in results]

    started = time.monotonic()
    assert asyncio.run(work()) == [str(n) for n in range(10)]
    assert time.monotonic() - started < 2.5


def test_ctrl_c_interrupts_a_wait(fake_vm) -> None:
    code = "import kasou; print('on', flush=True); kasou.VM.open('fake').run('sleep 60')"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"on\n"
    time.sleep(1.0)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=20)
    assert b"KeyboardInterrupt" in error


# ---------------------------------------------------------------------- the command line
def exec(*arguments: str, input: bytes = b"", timeout: float = 60) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [*KASOU, "exec", *arguments], input=input, capture_output=True, timeout=timeout
    )
    return done.returncode, done.stdout, done.stderr


def test_exec_streams_and_returns_the_code(fake_vm) -> None:
    assert exec("fake", "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert exec("fake", "echo", "$HOME", ";", "-x", "--json") == (0, b"$HOME ; -x --json\n", b"")
    assert exec("fake", "--", "cat", input=b"typed") == (0, b"typed", b"")
    assert exec("-n", "fake", "cat", input=b"typed") == (0, b"", b"")
    assert exec("-e", "A=1", "-w", "/usr", "fake", "sh", "-c", "echo $A; pwd")[1] == b"1\n/usr\n"
    assert exec("fake", "no-such-program")[0] == 127
    code, out, _ = exec("--timeout", "0.5", "fake", "sh", "-c", "echo on; sleep 30")
    assert (code, out) == (124, b"on\n")


def test_exec_with_a_terminal(fake_vm) -> None:
    code, out, _ = exec("-t", "fake", "sh", "-c", "test -t 0 && tty && stty size")
    assert code == 0 and b"/dev/pts/" in out and b"24 80" in out


def test_exec_is_interrupted_like_a_local_command(fake_vm) -> None:
    child = subprocess.Popen(
        [*KASOU, "exec", "fake", "sh", "-c", "trap 'echo got; exit 9' INT; echo on; sleep 30 & wait"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == b"on\n"
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=20)
    assert (child.returncode, out) == (9, b"got\n")


def test_exec_stops_when_its_reader_does(fake_vm) -> None:
    line = f"{sys.executable} -c '{KASOU[2]}' exec fake yes | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"y\n", b"", 141)


def test_exec_in_a_vm_that_does_not_run(home: Path) -> None:
    from kasou.control.vm_config import VmConfig
    from kasou.control.vm_directory import VmDirectory

    VmDirectory("off").create(VmConfig(name="off", created="now", agent=True))
    code, out, error = exec("off", "true")
    assert (code, out) == (125, b"") and error.count(b"\n") == 1
    assert b"off: stopped, not running; kasou start off" in error


def test_cp(fake_vm, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    run = lambda *words: subprocess.run([*KASOU, "cp", *words], capture_output=True, text=True)  # noqa: E731
    assert run(str(tmp_path / "a"), f"fake:{tmp_path}/b").returncode == 0
    assert (tmp_path / "b").read_text() == "text"
    (tmp_path / "d").mkdir()
    assert run(f"fake:{tmp_path}/a", f"fake:{tmp_path}/b", f"{tmp_path}/d").returncode == 0
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["a", "b"]
    assert run("a", "b").returncode == 2
    assert run("fake:/a", "fake:/b").returncode == 2
    bad = run("fake:/no/such", str(tmp_path))
    assert bad.returncode == 125 and bad.stderr.count("\n") == 1


def test_a_guest_cannot_write_to_the_terminal_through_errors(fake_vm) -> None:
    done = subprocess.run([*KASOU, "stop", "fake"], capture_output=True)
    assert done.returncode == 125
    assert done.stderr == b"kasou: evil \\x1b[31mred\\x0d line\n"
