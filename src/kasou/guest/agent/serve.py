"""The agent itself: one thread, one epoll, a job for each connection. Part of its script.

    accept -> REQUEST -> a question: ANSWER, close
                      -> a process:  STARTED ... EXIT, close

EXIT is sent when the process itself has ended and what it wrote has been read; a child it left
behind that still holds its output does not keep the host waiting.

When the host goes away, the process's group gets SIGTERM, and SIGKILL `GRACE_S` later or as soon
as the process itself has ended. When the machine was restored, however, the kernel says so
(ECONNRESET): a process without a terminal then runs on, its output read and dropped.
"""

import errno
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from kasou.guest.agent.facts import load, ping, ports
from kasou.guest.agent.protocol import (
    HOST_CID,
    PIECE,
    PORT,
    WINDOW,
    BadFrame,
    FrameReader,
    Kind,
    exit_frame,
    frame,
    json_frame,
    parse_json,
    parse_size,
    taken_frame,
)
from kasou.guest.agent.renew import renew
from kasou.guest.agent.spawn import Failure, NotRunnable, Process, set_size, start
from kasou.guest.agent.trees import get_command, mount_command, put_command

GRACE_S = 2.0
MAX_CONNECTIONS = 256
BACKLOG = 1 << 18
"""Bytes that wait for the host before no more output is read."""
_LEFT_BEHIND = 1 << 20
"""Most bytes of each output that are read after the process has ended."""
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_FINAL = select.EPOLLHUP | select.EPOLLERR


class Loop:
    """Which function is called when a descriptor is ready, or a time has come."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._new: set[int] = set()
        self._timers: dict[object, tuple[float, Callable[[], None]]] = {}

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready` with what happened; 0 for `events` stops it, errors and hang-ups too."""
        before = self._watched.get(fd)
        if not events:
            if before is not None:
                del self._watched[fd]
                self._epoll.unregister(fd)
            return
        if before is None:
            self._epoll.register(fd, events)
            self._new.add(fd)
        elif before[0] != events:
            self._epoll.modify(fd, events)
        self._watched[fd] = events, ready

    def after(self, seconds: float, key: object, due: Callable[[], None] | None) -> None:
        """Call `due` once; None forgets what was to be called for `key`."""
        if due is None:
            self._timers.pop(key, None)
        else:
            self._timers[key] = (time.monotonic() + seconds, due)

    def run(self) -> None:
        """For ever."""
        while True:
            self.step()

    def step(self) -> None:
        """Wait for one batch of events."""
        timeout = None
        if self._timers:
            timeout = max(0.0, min(at for at, _ in self._timers.values()) - time.monotonic())
        self._new.clear()
        for fd, events in self._epoll.poll(timeout):
            # A number that was closed and given out again meanwhile: the event is not its own.
            if fd in self._watched and fd not in self._new:
                self._watched[fd][1](events)
        if self._timers:
            now = time.monotonic()
            for key, (at, due) in list(self._timers.items()):
                if at <= now and key in self._timers:
                    del self._timers[key]
                    due()

    def run_alone(self, argv: list[str]) -> None:
        """Start a program that nobody waits for, with nothing to read or write."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)]
        try:
            pid = os.posix_spawn(argv[0], argv, dict(os.environ), file_actions=actions, setsid=True)
        finally:
            os.close(null)
        pidfd = os.pidfd_open(pid)

        def ended(_: int) -> None:
            self.watch(pidfd, 0, ended)
            os.close(pidfd)
            os.waitpid(pid, 0)

        self.watch(pidfd, select.EPOLLIN, ended)


class Connection:
    """A connection from the host: frames in, frames out, one request."""

    def __init__(self, loop: Loop, sock: socket.socket, closed: Callable[[], None]) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._closed = closed
        self._reader = FrameReader()
        self._out: deque[bytes] = deque()
        self._ending = False
        self._job: Job | None = None
        self.backlog = 0
        self._events = 0
        self._watch()

    def send(self, data: bytes) -> None:
        """Send now what can be sent, keep the rest."""
        if self._fd < 0:
            return
        if not self._out:
            try:
                n = self._sock.send(data)
            except BlockingIOError:
                n = 0
            except OSError:
                return  # the hang-up is told by the loop
            if n == len(data):
                return
            data = data[n:]
        self._out.append(data)
        self.backlog += len(data)
        self._watch()

    def finish(self, last: bytes) -> None:
        """Send `last`, then close."""
        self.send(last)
        self._ending = True
        self._job = None
        if not self._out:
            self._close()

    def _watch(self) -> None:
        events = select.EPOLLRDHUP | (0 if self._ending else select.EPOLLIN)
        if self._out:
            events |= select.EPOLLOUT
        if events != self._events:
            self._events = events
            self._loop.watch(self._fd, events, self._ready)

    def _ready(self, events: int) -> None:
        if events & select.EPOLLIN and not events & _GONE:
            self._readable()
        elif events & (_FINAL if self._ending else _GONE):
            self._gone()
            return
        if events & select.EPOLLOUT and self._fd >= 0:
            self._writable()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone()
            return
        try:
            for kind, payload in self._reader.receive(data):
                self._frame(kind, payload)
        except BadFrame as error:
            self._give_up(f"the host broke the protocol: {error}")

    def _writable(self) -> None:
        try:
            while self._out:
                n = self._sock.send(self._out[0])
                self.backlog -= n
                if n < len(self._out[0]):
                    self._out[0] = self._out[0][n:]
                    break
                self._out.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._gone()
            return
        if self._ending and not self._out:
            self._close()
            return
        self._watch()
        if self._job is not None and self.backlog < BACKLOG:
            self._job.resume()

    def _frame(self, kind: int, payload: bytes) -> None:
        if self._job is not None:
            self._job.receive(kind, payload)
        elif not self._ending:
            if kind != Kind.REQUEST:
                raise BadFrame(f"a frame of kind {kind:#x} before the request")
            self._request(parse_json(payload))

    def _request(self, request: dict[str, object]) -> None:
        name = request.get("do")
        try:
            if name in QUESTIONS:
                self.finish(json_frame(Kind.ANSWER, QUESTIONS[str(name)](request, self._loop)))
            elif name in PROCESSES:
                process, info = PROCESSES[str(name)](request)
                self.send(json_frame(Kind.STARTED, {"pid": process.pid, **info}))
                self._job = Job(self._loop, process, self)
            else:
                raise Failure(f"no service {name!r} in agent version {ping({})['version']}")
        except NotRunnable as error:
            self.send(frame(Kind.STDERR, f"{error}\n".encode(errors="surrogateescape")))
            self.finish(exit_frame(error.status))
        except Failure as error:
            self._give_up(str(error), error.errno_name)
        except OSError as error:
            self._give_up(str(error), errno.errorcode.get(error.errno or 0, ""))
        except (ValueError, TypeError, KeyError) as error:
            self._give_up(f"{name}: {type(error).__name__}: {error}")

    def _give_up(self, message: str, errno_name: str = "") -> None:
        job = self._job
        self.finish(json_frame(Kind.FAILED, {"message": message, "errno": errno_name}))
        if job is not None:
            job.abandon()

    def _gone(self) -> None:
        """The host went away, or the whole machine was taken from it."""
        restored = False
        if self._sock.family == socket.AF_VSOCK:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            restored = code == errno.ECONNRESET
        job, self._job = self._job, None
        self._close()
        if job is not None:
            job.abandon(run_on=restored)

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.watch(self._fd, 0, self._ready)
            self._fd = -1
            self._sock.close()
            self._closed()


class Job:
    """A process and the connection it serves; `None` when its output goes nowhere."""

    def __init__(self, loop: Loop, process: Process, connection: Connection) -> None:
        self._loop = loop
        self._process = process
        self._connection: Connection | None = connection
        self._stdin: deque[bytes] = deque()
        self._stdin_ends = False
        self._taken = 0
        self._status: int | None = None
        self._left = dict.fromkeys(process.outputs, _LEFT_BEHIND)
        self._paused = False
        self._abandoned = False
        self._pidfd = os.pidfd_open(process.pid)
        loop.watch(self._pidfd, select.EPOLLIN, self._ended)
        self._watch()

    # ------------------------------------------------------------------ from the host
    def receive(self, kind: int, payload: bytes) -> None:
        """A frame for the process. Raises `BadFrame`."""
        process = self._process
        if kind == Kind.STDIN:
            if process.stdin < 0 or self._stdin_ends:
                self._take(len(payload))
                return
            self._stdin.append(payload)
            if sum(map(len, self._stdin)) > WINDOW:
                raise BadFrame("more standard input than the window allows")
            self._feed()
        elif kind == Kind.STDIN_EOF:
            if not self._stdin_ends:
                self._stdin_ends = True
                if process.is_tty:
                    self._stdin.append(b"\x04")  # VEOF: what a person would type
                self._feed()
        elif kind == Kind.SIGNAL:
            if len(payload) != 1 or not 0 < payload[0] < signal.NSIG:
                raise BadFrame("no signal of that number")
            if self._status is None:
                process.kill(payload[0])
        elif kind == Kind.RESIZE:
            columns, rows = parse_size(payload)
            if process.is_tty and process.stdin >= 0:
                set_size(process.stdin, columns, rows)
        else:
            raise BadFrame(f"a frame of kind {kind:#x} to a process")

    def resume(self) -> None:
        """The connection took what waited."""
        if self._paused:
            self._paused = False
            self._watch()
        if self._status is not None:
            self._drain()

    def abandon(self, run_on: bool = False) -> None:
        """Nobody listens any more: end the process, or let it run on after a restore."""
        self._connection = None
        self._stdin.clear()
        self._paused = False
        if self._status is not None:
            self._release()
            return
        if not run_on or self._process.is_tty:
            self._abandoned = True
            self._process.kill(signal.SIGTERM)
            self._process.kill(signal.SIGHUP)
            self._process.kill(signal.SIGCONT)
            self._loop.after(GRACE_S, self, lambda: self._process.kill(signal.SIGKILL))
        self._watch()

    # ------------------------------------------------------------------ standard input
    def _feed(self) -> None:
        """Write what the process can take."""
        process, queue = self._process, self._stdin
        while queue and process.stdin >= 0:
            try:
                n = os.write(process.stdin, queue[0])
            except BlockingIOError:
                break
            except OSError:  # EPIPE: it reads no more
                self._take(sum(map(len, queue)))
                queue.clear()
                self._close_stdin()
                break
            self._take(n)
            if n < len(queue[0]):
                queue[0] = queue[0][n:]
            else:
                queue.popleft()
        if self._stdin_ends and not queue and not process.is_tty:
            self._close_stdin()
        self._watch()

    def _take(self, n: int) -> None:
        """Tell the host in steps; every byte would be a packet of its own."""
        self._taken += n
        if self._connection is not None and (self._taken >= PIECE or not self._stdin):
            self._connection.send(taken_frame(self._taken))
            self._taken = 0

    def _close_stdin(self) -> None:
        process = self._process
        if process.stdin >= 0 and process.stdin not in process.outputs:
            self._loop.watch(process.stdin, 0, self._stdin_ready)
            os.close(process.stdin)
        process.stdin = -1
        self._stdin_ends = True

    def _stdin_ready(self, events: int) -> None:
        self._feed()

    # ------------------------------------------------------------------ output
    def _watch(self) -> None:
        """Watch what can make progress, and nothing else."""
        process = self._process
        wants_in = select.EPOLLOUT if self._stdin else 0
        for fd in process.outputs:
            events = 0 if self._paused else select.EPOLLIN
            if process.is_tty:
                events |= wants_in
            self._loop.watch(fd, events, partial(self._output_ready, fd))
        if process.stdin >= 0 and not process.is_tty:
            self._loop.watch(process.stdin, wants_in, self._stdin_ready)

    def _output_ready(self, fd: int, events: int) -> None:
        if events & select.EPOLLOUT:
            self._feed()
        if events & ~select.EPOLLOUT and fd in self._process.outputs and not self._paused:
            self._read(fd)

    def _read(self, fd: int) -> bool:
        """Read once; False when there is nothing now, or never again."""
        try:
            data = os.read(fd, PIECE)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the terminal open
            data = b""
        if not data:
            self._close_output(fd)
            return False
        self._left[fd] -= len(data) if self._status is not None else 0
        connection = self._connection
        if connection is not None:
            kind = Kind.STDERR if self._process.outputs[fd] else Kind.STDOUT
            connection.send(frame(kind, data))
            if connection.backlog >= BACKLOG:
                self._paused = True
                self._watch()
        return True

    def _close_output(self, fd: int) -> None:
        self._loop.watch(fd, 0, self._ended)
        del self._process.outputs[fd]
        if fd == self._process.stdin:
            self._process.stdin = -1
            self._take(sum(map(len, self._stdin)))
            self._stdin.clear()
            self._stdin_ends = True
        os.close(fd)

    # ------------------------------------------------------------------ the end
    def _ended(self, events: int) -> None:
        if self._abandoned:
            self._process.kill(signal.SIGKILL)  # the rest of its group
        _, status = os.waitpid(self._process.pid, 0)
        self._status = status
        self._loop.watch(self._pidfd, 0, self._ended)
        os.close(self._pidfd)
        self._loop.after(0, self, None)
        self._drain()

    def _drain(self) -> None:
        """Send what the process left in its pipes, then its end."""
        for fd in list(self._process.outputs):
            while not self._paused and self._left[fd] > 0 and self._read(fd):
                pass
        if self._paused:
            return
        self._release()
        connection, status = self._connection, self._status
        if connection is not None and status is not None:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            code = 128 + number if number else os.WEXITSTATUS(status)
            connection.finish(exit_frame(code, number))

    def _release(self) -> None:
        self._close_stdin()
        for fd in list(self._process.outputs):
            self._close_output(fd)


class Agent:
    """The listening socket."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._connections = 0
        sock.setblocking(False)
        self._watch()

    def _watch(self) -> None:
        events = select.EPOLLIN if self._connections < MAX_CONNECTIONS else 0
        self._loop.watch(self._sock.fileno(), events, self._accept)

    def _accept(self, events: int) -> None:
        try:
            sock, peer = self._sock.accept()
        except OSError:
            return
        if sock.family == socket.AF_VSOCK and peer[0] != HOST_CID:
            sock.close()  # somebody inside the guest, by the loopback transport
            return
        sock.setblocking(False)
        self._connections += 1
        Connection(self._loop, sock, self._closed)
        self._watch()

    def _closed(self) -> None:
        self._connections -= 1
        self._watch()


# ---------------------------------------------------------------------- services
def _exec(request: dict[str, object]) -> tuple[Process, dict[str, object]]:
    argv = _strings(request, "argv")
    if not argv:
        raise Failure("exec: no program named")
    env = request.get("env") or {}
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise Failure("exec: env is not an object of strings")
    tty = request.get("tty")
    size = None
    if tty:
        columns, rows = tty if isinstance(tty, list) else (80, 24)
        size = (min(int(columns), 0xFFFF), min(int(rows), 0xFFFF))
    process = start(
        argv,
        env,
        _string_or_none(request, "cwd"),
        _string_or_none(request, "user"),
        size,
        bool(request.get("stdin", True)),
    )
    return process, {}


def _put(request: dict[str, object]) -> tuple[Process, dict[str, object]]:
    argv, name = put_command(
        _string(request, "path"), _string(request, "name"), bool(request.get("contents"))
    )
    return start(argv, {}, "/", _string_or_none(request, "user")), {"name": name}


def _get(request: dict[str, object]) -> tuple[Process, dict[str, object]]:
    argv, info = get_command(_string(request, "path"), bool(request.get("contents")))
    return start(argv, {}, "/", _string_or_none(request, "user"), stdin=False), info


def _mount(request: dict[str, object]) -> tuple[Process, dict[str, object]]:
    argv = mount_command(
        _string(request, "tag"), _string(request, "path"), bool(request.get("read_only"))
    )
    return start(argv, {}, "/", stdin=False), {}


def _sync(request: dict[str, object], loop: Loop) -> dict[str, object]:
    os.sync()
    return {}


def _halt(verb: str) -> Callable[[dict[str, object], Loop], dict[str, object]]:
    def halt(request: dict[str, object], loop: Loop) -> dict[str, object]:
        if os.path.isdir("/run/systemd/system"):
            loop.run_alone(["/bin/systemctl", "--no-block", verb])
        else:
            loop.run_alone([f"/sbin/{verb}"])
        return {}

    return halt


def _string(request: dict[str, object], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value:
        raise Failure(f"{request.get('do')}: {name} is not a string")
    return value


def _string_or_none(request: dict[str, object], name: str) -> str | None:
    return None if request.get(name) is None else _string(request, name)


def _strings(request: dict[str, object], name: str) -> list[str]:
    value = request.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Failure(f"{request.get('do')}: {name} is not a list of strings")
    return value


QUESTIONS: dict[str, Callable[[dict[str, object], Loop], dict[str, object]]] = {
    "ping": lambda request, loop: ping(request),
    "ports": lambda request, loop: ports(request),
    "load": lambda request, loop: load(request),
    "renew": lambda request, loop: renew(request, loop.run_alone),
    "sync": _sync,
    "poweroff": _halt("poweroff"),
    "reboot": _halt("reboot"),
}
PROCESSES: dict[str, Callable[[dict[str, object]], tuple[Process, dict[str, object]]]] = {
    "exec": _exec,
    "put": _put,
    "get": _get,
    "mount": _mount,
}


def main(arguments: list[str]) -> None:
    """Serve AF_VSOCK; with `--unix PATH` a socket of that name, for tests."""
    if arguments[:1] == ["--unix"]:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(arguments[1])
    else:
        sock = socket.socket(socket.AF_VSOCK)
        sock.bind((socket.VMADDR_CID_ANY, PORT))
    sock.listen(128)
    os.chdir("/")
    os.umask(0o022)
    loop = Loop()
    Agent(loop, sock)
    loop.run()


if __name__ == "__main__":
    main(sys.argv[1:])
