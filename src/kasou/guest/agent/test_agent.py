"""The very script that a guest gets, run here, with real processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kasou.guest.agent.bundle import agent_script
from kasou.guest.agent.client import (
    Answer,
    Client,
    Event,
    ExecClient,
    Exit,
    Failed,
    GetClient,
    ProcessClient,
    PutClient,
    Room,
    Started,
    Stderr,
    Stdout,
)
from kasou.guest.agent.protocol import VERSION, WINDOW, Kind, frame, json_frame
from kasou.guest.agent.tree import Unpacker, pack

BIG = 20_000_000


class Talk:
    """A client on a socket, pumped by hand."""

    def __init__(self, path: Path, client: Client) -> None:
        self.client = client
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.sock.settimeout(20)
        self.events: list[Event] = []

    def step(self) -> list[Event]:
        with contextlib.suppress(BrokenPipeError):  # it may have finished; then it says why
            self.sock.sendall(self.client.to_send())
        try:
            data = self.sock.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        events = self.client.receive(data) if data else self.client.receive_eof()
        self.events += events
        return events

    def finish(self, stdin: bytes = b"") -> Event:
        client = self.client
        sent = 0
        while not client.done:
            if isinstance(client, ProcessClient):
                sent += client.write_stdin(stdin[sent:])
                if sent == len(stdin):
                    client.close_stdin()
            self.step()
        self.sock.close()
        return self.events[-1]

    def until(self, text: bytes) -> None:
        while text not in self.out:
            assert not self.client.done, self.events
            self.step()

    @property
    def out(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, Stdout))

    @property
    def err(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, Stderr))

    @property
    def pid(self) -> int:
        while not self.events:
            self.step()
        assert isinstance(self.events[0], Started)
        return self.events[0].pid


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("agent")
    script, path = directory / "agent.py", directory / "socket"
    script.write_bytes(agent_script())
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), "--unix", str(path)]
    ) as process:
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        yield path
        assert process.poll() is None, "the agent died"
        process.kill()


def run(agent: Path, *argv: str, **options: object) -> Talk:
    talk = Talk(agent, ExecClient(argv, **options))  # type: ignore[arg-type]
    talk.finish()
    return talk


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether the process ends, reaped or not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_output_and_status(agent: Path) -> None:
    talk = run(agent, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (talk.out, talk.err) == (b"out\n", b"err\n")
    assert isinstance(talk.events[0], Started)
    assert talk.events[-1] == Exit(3, 0)


@pytest.mark.parametrize(
    ("argv", "end", "message"),
    [
        (["true"], Exit(0, 0), b""),
        (["sh", "-c", "kill -TERM $$"], Exit(143, 15), b""),
        (["sh", "-c", "kill -KILL $$"], Exit(137, 9), b""),
        (["no-such-program"], Exit(127, 0), b"no-such-program: command not found\n"),
        (["/no/such/program"], Exit(127, 0), b"/no/such/program: No such file or directory\n"),
        (["/etc/passwd"], Exit(126, 0), b"/etc/passwd: Permission denied\n"),
        (["/"], Exit(126, 0), b"/: Permission denied\n"),
    ],
)
def test_status_is_a_shells(agent: Path, argv: list[str], end: Exit, message: bytes) -> None:
    talk = run(agent, *argv)
    assert talk.events[-1] == end
    assert talk.err == message


def test_no_shell_is_implied(agent: Path) -> None:
    talk = run(agent, "printf", "%s|", "$HOME", "a b", "*", "", "caf\udce9")
    assert talk.out == b"$HOME|a b|*||caf\xe9|"


def test_environment_and_directory(agent: Path, tmp_path: Path) -> None:
    talk = run(
        agent, "sh", "-c", 'pwd; echo "$A $USER"', env={"A": "1", "USER": "x"}, cwd=str(tmp_path)
    )
    assert talk.out.decode() == f"{tmp_path}\n1 x\n"
    talk = run(agent, "env")
    assert b"PATH=/usr/local/sbin:" in talk.out and b"HOME=/" in talk.out
    assert b"VIRTUAL_ENV" not in talk.out and b"TERM=" not in talk.out
    (tmp_path / "here").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "here").chmod(0o755)
    assert run(agent, "./here", cwd=str(tmp_path)).out == b"found\n"
    assert run(agent, "here", env={"PATH": str(tmp_path)}).out == b"found\n"


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        ({"do": "exec", "argv": ["true"], "cwd": "/no/such"}, "ENOENT"),
        ({"do": "exec", "argv": ["true"], "user": "nobody-of-that-name"}, ""),
        ({"do": "exec", "argv": []}, ""),
        ({"do": "exec", "argv": "true"}, ""),
        ({"do": "exec", "argv": ["true", "a\0b"]}, ""),
        ({"do": "exec", "argv": ["true"], "env": {"a": 1}}, ""),
        ({"do": "exec", "argv": ["true"], "tty": ["a", "b"]}, ""),
        ({"do": "get", "path": "/no/such"}, "ENOENT"),
        ({"do": "get"}, ""),
        ({"do": "dance"}, ""),
        ({}, ""),
    ],
)
def test_bad_requests(agent: Path, request_: dict[str, object], errno: str) -> None:
    talk = Talk(
        agent, Client(str(request_.get("do")), {k: v for k, v in request_.items() if k != "do"})
    )
    end = talk.finish()
    assert isinstance(end, Failed) and end.errno == errno and end.message


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frame(Kind.REQUEST, b"[1]"),
        frame(Kind.STDIN, b"early"),
        frame(99),
        json_frame(Kind.REQUEST, {"do": "exec", "argv": ["cat"]}) + frame(Kind.RESIZE, b"1"),
        json_frame(Kind.REQUEST, {"do": "exec", "argv": ["cat"]}) + frame(Kind.SIGNAL, b"\xff"),
        json_frame(Kind.REQUEST, {"do": "exec", "argv": ["cat"]}) + frame(0x55),
    ],
)
def test_broken_frames(agent: Path, raw: bytes) -> None:
    talk = Talk(agent, Client("ping"))
    talk.client.to_send()
    talk.sock.sendall(raw)
    assert isinstance(talk.finish(), Failed)
    assert Talk(agent, Client("ping")).finish()


def test_binary_data_through_cat(agent: Path) -> None:
    data = os.urandom(BIG)
    talk = Talk(agent, ExecClient(["cat"]))
    assert talk.finish(data) == Exit(0, 0)
    assert talk.out == data


def test_no_standard_input(agent: Path) -> None:
    assert run(agent, "cat", stdin=False).events[-1] == Exit(0, 0)


def test_process_that_does_not_read_can_be_killed(agent: Path) -> None:
    client = ExecClient(["sleep", "100"])
    talk = Talk(agent, client)
    assert talk.pid
    assert client.write_stdin(bytes(2 * WINDOW)) == WINDOW
    talk.sock.sendall(client.to_send())
    client.kill(signal.SIGTERM)
    while not client.done:
        talk.step()
    assert talk.events[-1] == Exit(143, 15)


def test_process_that_closes_its_input(agent: Path) -> None:
    talk = Talk(agent, ExecClient(["sh", "-c", "exec <&-; echo closed; sleep 0.2"]))
    assert talk.finish(bytes(BIG)) == Exit(0, 0)
    assert talk.out == b"closed\n"
    assert any(isinstance(event, Room) for event in talk.events)


def test_output_is_held_back(agent: Path) -> None:
    talk = Talk(agent, ExecClient(["sh", "-c", "yes | head -c 50000000; echo done >&2"]))
    assert talk.pid
    time.sleep(0.3)
    (line,) = (
        line
        for line in Path(f"/proc/{agent_pid(agent)}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    assert int(line.split()[1]) < 40_000
    assert talk.finish() == Exit(0, 0)
    assert len(talk.out) == 50_000_000 and talk.err == b"done\n"


def agent_pid(agent: Path) -> int:
    talk = run(agent, "sh", "-c", "echo $PPID")
    return int(talk.out)


def test_a_child_left_behind_does_not_keep_the_host(agent: Path) -> None:
    start = time.monotonic()
    talk = run(agent, "sh", "-c", "sleep 30 & echo $!")
    assert time.monotonic() - start < 5
    child = int(talk.out)
    assert not gone(child, 0.2)  # a daemon started by hand lives on
    os.kill(child, signal.SIGKILL)


def test_a_child_that_floods_does_not_keep_the_host(agent: Path) -> None:
    talk = run(agent, "sh", "-c", "yes & echo $! >&2; sleep 0.1")
    assert talk.events[-1] == Exit(0, 0)
    assert gone(int(talk.err))  # nobody reads it: SIGPIPE


def test_hang_up_ends_the_group(agent: Path) -> None:
    talk = Talk(agent, ExecClient(["sh", "-c", "sleep 100 & echo $!; wait"]))
    talk.until(b"\n")
    child = int(talk.out)
    talk.sock.close()
    assert gone(talk.pid) and gone(child)


def test_hang_up_ends_those_who_ignore_it(agent: Path) -> None:
    script = "trap '' TERM HUP; echo ready; while :; do sleep 0.1; done"
    talk = Talk(agent, ExecClient(["sh", "-c", script]))
    talk.until(b"ready")
    talk.sock.close()
    assert not gone(talk.pid, 0.5)
    assert gone(talk.pid, 5)


def test_signals_reach_the_group(agent: Path) -> None:
    client = ExecClient(
        ["sh", "-c", "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.05; done"]
    )
    talk = Talk(agent, client)
    talk.until(b"ready")
    client.kill(signal.SIGUSR1)
    while not client.done:
        talk.step()
    assert talk.out.endswith(b"got\n")
    assert talk.events[-1] == Exit(5, 0)


def test_signals_start_as_they_should_be(agent: Path) -> None:
    status = run(agent, "cat", "/proc/self/status").out.decode()
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert int(fields["SigIgn"], 16) & ((1 << 12) | (1 << 24)) == 0  # SIGPIPE, SIGXFSZ
    assert int(fields["SigBlk"], 16) == 0
    listing = run(agent, "ls", "/proc/self/fd").out.split()
    assert listing == [b"0", b"1", b"2", b"3"]  # 3 is the directory itself


def test_terminal(agent: Path) -> None:
    client = ExecClient(["sh"], tty=(100, 30), env={"PS1": "$ "})
    talk = Talk(agent, client)
    talk.until(b"$ ")
    client.write_stdin(b"stty size; tty; echo $TERM\n")
    talk.until(b"xterm-256color")
    assert b"30 100\r\n" in talk.out and b"/dev/pts/" in talk.out
    client.resize(132, 43)
    client.write_stdin(b"stty size\n")
    talk.until(b"43 132\r\n")
    client.write_stdin(b"sleep 100\n")
    talk.sock.sendall(client.to_send())
    time.sleep(0.3)
    client.write_stdin(b"\x03")
    talk.until(b"^C")
    client.write_stdin(b"echo interrupted=$?\n")
    talk.until(b"interrupted=130")
    client.close_stdin()
    while not client.done:
        talk.step()
    assert talk.events[-1] == Exit(0, 0)


def test_signal_reaches_the_foreground_of_a_terminal(agent: Path) -> None:
    client = ExecClient(["bash", "--norc", "-i"], tty=(80, 24), env={"PS1": "$ "})
    talk = Talk(agent, client)
    talk.until(b"$ ")
    client.write_stdin(b"cat\n")
    talk.until(b"\r\n")
    talk.sock.sendall(client.to_send())
    time.sleep(0.3)
    client.kill(signal.SIGINT)
    seen = len(talk.out)
    while b"$ " not in talk.out[seen:]:
        talk.step()
    client.write_stdin(b"echo status=$?\n")
    talk.until(b"status=130")
    talk.sock.close()
    assert gone(talk.pid)


def test_terminal_of_a_host_that_went_away(agent: Path) -> None:
    talk = Talk(agent, ExecClient(["cat"], tty=(80, 24)))
    assert talk.pid
    talk.sock.close()
    assert gone(talk.pid)


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")
def test_other_users(agent: Path) -> None:
    talk = run(agent, "sh", "-c", "id -un; id -gn; echo $HOME; pwd", user="nobody")
    assert talk.out == b"nobody\nnogroup\n/nonexistent\n/\n"
    assert run(agent, "id", "-u", user="65534").out == b"65534\n"
    assert run(agent, "no-such", user="nobody").events[-1] == Exit(127, 0)
    assert run(agent, "/etc/shadow", user="nobody").events[-1] == Exit(126, 0)
    failed = run(agent, "true", user="nobody", cwd="/root").events[-1]
    assert failed == Failed("directory /root: Permission denied", "EACCES")
    talk = run(agent, "sh", "-c", "tty; id -un", user="nobody", tty=(80, 24))
    assert b"/dev/pts/" in talk.out and b"nobody" in talk.out


def test_questions(agent: Path) -> None:
    answer = Talk(agent, Client("ping")).finish()
    assert isinstance(answer, Answer) and answer.value["version"] == VERSION
    assert len(str(answer.value["boot_id"])) == 36
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as server6,
    ):
        answer = Talk(agent, Client("ports")).finish()
        assert isinstance(answer, Answer)
        assert ["127.0.0.1", server.getsockname()[1]] in answer.value["tcp"]  # type: ignore[operator]
        assert ["0:0:0:0:0:0:0:1", server6.getsockname()[1]] in answer.value["tcp"]  # type: ignore[operator]
    answer = Talk(agent, Client("load")).finish()
    assert isinstance(answer, Answer)
    assert 0 < answer.value["memory_available"] <= answer.value["memory_total"]  # type: ignore[operator]
    assert answer.value["cpus"] == os.cpu_count()
    assert Talk(agent, Client("sync")).finish() == Answer({})


def test_renewal_reports_what_failed(agent: Path) -> None:
    request = {"machine_id": "short", "entropy": "not hex", "mac": "01:00:00:00:00:00"}
    answer = Talk(agent, Client("renew", {**request, "interface": "no0"})).finish()
    assert isinstance(answer, Answer)
    assert answer.value["done"] == [] and set(answer.value["failed"]) == set(request)  # type: ignore[call-overload]
    assert Talk(agent, Client("renew")).finish() == Answer({"done": [], "failed": {}})


def put(agent: Path, source: Path, path: str, contents: bool = False) -> Talk:
    talk = Talk(agent, client := PutClient(path, source.name, contents=contents))
    assert talk.pid
    assert isinstance(talk.events[0], Started)
    for piece in pack(source, str(talk.events[0].info["name"])):
        at = 0
        while not client.done and (at := at + client.write_stdin(piece[at:])) < len(piece):
            talk.step()
    talk.finish()
    return talk


def get(agent: Path, path: str, directory: Path, name: str, contents: bool = False) -> Started:
    talk = Talk(agent, GetClient(path, contents=contents))
    assert talk.finish() == Exit(0, 0), talk.err
    assert isinstance(talk.events[0], Started)
    unpacker = Unpacker(directory, str(talk.events[0].info["root"]), name)
    unpacker.feed(talk.out)
    unpacker.close()
    return talk.events[0]


def test_files_go_in_and_come_out(agent: Path, tmp_path: Path) -> None:
    source, guest, back = tmp_path / "site", tmp_path / "guest", tmp_path / "back"
    (source / "sub").mkdir(parents=True)
    (source / "sub/index").write_bytes(os.urandom(700_000))
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o750)
    (source / "link").symlink_to("sub/index")
    guest.mkdir()
    back.mkdir()
    data = (source / "sub/index").read_bytes()
    assert put(agent, source, f"{guest}").events[-1] == Exit(0, 0)  # into what is there
    assert (guest / "site/sub/index").read_bytes() == data
    assert put(agent, source, f"{guest}/new").events[-1] == Exit(0, 0)  # under a new name
    assert (guest / "new/run").stat().st_mode & 0o777 == 0o750
    assert put(agent, source, f"{guest}/made/here/", contents=True).events[-1] == Exit(0, 0)
    assert os.readlink(guest / "made/here/link") == "sub/index"
    assert put(agent, source / "run", f"{guest}/made/here/sub").events[-1] == Exit(0, 0)
    assert (guest / "made/here/sub/run").read_text() == "#!/bin/sh\n"
    assert put(agent, source / "run", f"{guest}/deep/er/ran").events[-1] == Exit(0, 0)
    assert (guest / "deep/er/ran").is_file()
    guest.chmod(0o711)
    assert put(agent, source, f"{guest}/", contents=True).events[-1] == Exit(0, 0)
    assert guest.stat().st_mode & 0o777 == 0o711  # the directory itself stays as it is

    started = get(agent, f"{guest}/site", back, "whole")
    assert started.info == {"name": "site", "root": "site", "is_directory": True}
    assert (back / "whole/sub/index").read_bytes() == data
    assert os.readlink(back / "whole/link") == "sub/index"
    started = get(agent, f"{guest}/site/link", back, "one")  # followed, as by cp
    assert started.info == {"name": "link", "root": "index", "is_directory": False}
    assert (back / "one").read_bytes() == data
    get(agent, f"{guest}/site/", back, "", contents=True)
    assert (back / "run").stat().st_mode & 0o777 == 0o750
    end = Talk(agent, GetClient(f"{guest}/site/run", contents=True)).finish()
    assert isinstance(end, Failed) and end.errno == "ENOTDIR"


def test_many_at_once_and_many_in_a_row(agent: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    pid = agent_pid(agent)
    time.sleep(0.1)
    before = descriptors()
    talks = [Talk(agent, ExecClient(["sh", "-c", f"read x; echo {i}"])) for i in range(50)]
    for i, talk in enumerate(talks):
        assert talk.finish(b"\n") == Exit(0, 0)
        assert talk.out == f"{i}\n".encode()
    start = time.monotonic()
    for _ in range(1000):
        assert run(agent, "/bin/true").events[-1] == Exit(0, 0)
    assert time.monotonic() - start < 30
    time.sleep(0.1)
    assert descriptors() == before
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children == []


def test_more_connections_than_are_served(agent: Path) -> None:
    idle = [socket.socket(socket.AF_UNIX) for _ in range(300)]
    for sock in idle:
        sock.connect(str(agent))
    for sock in idle:
        sock.close()
    assert isinstance(Talk(agent, Client("ping")).finish(), Answer)
