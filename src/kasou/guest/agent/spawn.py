"""Starting a process in the guest: where it is found, who it runs as, what it is connected to.

The agent has one thread, so `posix_spawn` (a vfork: no page of the agent is copied) is used
wherever it can do what is asked. Only another user needs a real fork. Part of the agent's script.
"""

import errno
import fcntl
import os
import pwd
import signal
import struct
from contextlib import suppress

_TIOCSWINSZ = 0x5414
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEFAULTED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ERRNO = struct.Struct("i")


class Failure(Exception):
    """The service cannot be done; `errno_name` is empty when no system call failed."""

    def __init__(self, message: str, errno_name: str = "") -> None:
        super().__init__(message)
        self.errno_name = errno_name


class NotRunnable(Exception):
    """There is no such program (127), or it cannot be run (126), as a shell puts it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Process:
    """A process that leads its own session and group.

    `stdin` and those in `outputs` (file descriptor to True for standard error) are the agent's
    ends, not blocking, and closed by whoever holds this object. With a terminal all are its master.
    """

    def __init__(self, pid: int, stdin: int, outputs: dict[int, bool], is_tty: bool) -> None:
        self.pid = pid
        self.stdin = stdin
        self.outputs = outputs
        self.is_tty = is_tty

    def kill(self, number: int) -> None:
        """Send a signal to the group, and to the one in the foreground of the terminal."""
        groups = {self.pid}
        if self.is_tty and self.stdin >= 0:
            with suppress(OSError):
                groups.add(os.tcgetpgrp(self.stdin))
        groups.discard(0)  # a terminal that nobody has: 0 would mean the agent's own
        for group in groups:
            with suppress(OSError):
                os.killpg(group, number)


def start(
    argv: list[str],
    env: dict[str, str],
    cwd: str | None = None,
    user: str | None = None,
    tty: tuple[int, int] | None = None,
    stdin: bool = True,
) -> Process:
    """Run `argv` without a shell. Raises `Failure` or `NotRunnable`.

    `tty` is columns and rows. The environment is a small login's with `env` over it; the default
    `cwd` is the user's home.
    """
    account = _account(user)
    whole = {
        "PATH": _PATH,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
        "LANG": "C.UTF-8",
    }
    if tty:
        whole["TERM"] = "xterm-256color"
    whole.update(env)
    theirs: list[int] = []
    ours: list[int] = []
    try:
        try:
            process, connect = _connect(tty, stdin, theirs, ours)
            if account.pw_uid == os.getuid():
                process.pid = _spawn(argv, whole, cwd, account, connect)
            else:
                process.pid = _fork(argv, whole, cwd, account, connect)
        except (OSError, ValueError) as error:  # too many files; a NUL in an argument
            number = getattr(error, "errno", 0) or 0
            raise Failure(f"{argv[0]}: {error}", errno.errorcode.get(number, "")) from None
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return process


def set_size(fd: int, columns: int, rows: int) -> None:
    """The terminal's size; its foreground group gets SIGWINCH."""
    fcntl.ioctl(fd, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _account(user: str | None) -> pwd.struct_passwd:
    """Who to be: a name or a number. Raises `Failure`."""
    try:
        if user is None:
            return pwd.getpwuid(os.getuid())
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if user is not None:
            raise Failure(f"user {user}: there is none of that name") from None
    uid = os.getuid()
    return pwd.struct_passwd(("root", "x", uid, os.getgid(), "", "/", "/bin/sh"))


class _Connect:
    """What becomes of descriptors 0, 1 and 2: copies of these, or the terminal at `path`."""

    def __init__(self, fds: tuple[int, int, int], path: str | None) -> None:
        self.fds = fds
        self.path = path

    def file_actions(self) -> list[tuple[int, int, int] | tuple[int, int, str, int, int]]:
        """For posix_spawn. A session leader that opens a terminal gets it as its own."""
        if self.path is not None:
            return [
                (os.POSIX_SPAWN_OPEN, 0, self.path, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
            ]
        return [(os.POSIX_SPAWN_DUP2, fd, i) for i, fd in enumerate(self.fds)]

    def perform(self) -> None:
        """The same in a forked child."""
        fds = self.fds
        if self.path is not None:
            fds = (os.open(self.path, os.O_RDWR),) * 3
        for i, fd in enumerate(fds):
            os.dup2(fd, i)


def _connect(
    tty: tuple[int, int] | None, stdin: bool, theirs: list[int], ours: list[int]
) -> tuple[Process, _Connect]:
    """The descriptors of both sides; each is also put in `theirs` or `ours` as it is opened."""
    if tty:
        master, slave = os.openpty()
        ours.append(master)
        theirs.append(slave)
        set_size(master, *tty)
        os.set_blocking(master, False)
        path = os.ttyname(slave)
        return Process(0, master, {master: False}, True), _Connect((slave,) * 3, path)
    ends = []
    for _ in range(2):
        read, write = os.pipe()
        ours.append(read)
        theirs.append(write)
        ends.append((read, write))
    if stdin:
        source, sink = os.pipe()
        ours.append(sink)
        os.set_blocking(sink, False)
    else:
        source, sink = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
    theirs.append(source)
    (out, out_end), (err, err_end) = ends
    os.set_blocking(out, False)
    os.set_blocking(err, False)
    process = Process(0, sink, {out: False, err: True}, False)
    return process, _Connect((source, out_end, err_end), None)


def _spawn(
    argv: list[str],
    env: dict[str, str],
    cwd: str | None,
    account: pwd.struct_passwd,
    connect: _Connect,
) -> int:
    _enter(cwd, account)
    try:
        path = _find(argv[0], env)
        actions = connect.file_actions()
        return os.posix_spawn(
            path, argv, env, file_actions=actions, setsid=True, setsigdef=_DEFAULTED, setsigmask=()
        )
    except OSError as error:
        raise _not_runnable(argv[0], error.errno or errno.ENOEXEC) from None
    finally:
        os.chdir("/")


def _fork(
    argv: list[str],
    env: dict[str, str],
    cwd: str | None,
    account: pwd.struct_passwd,
    connect: _Connect,
) -> int:
    """As `_spawn`, as another user, who must be able to reach `cwd` and the program."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        stage = b"e"
        try:
            for number in _DEFAULTED:
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            if connect.path is not None:
                os.chown(connect.path, account.pw_uid, -1)
            connect.perform()
            stage = b"u"
            os.initgroups(account.pw_name, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            stage = b"c"
            if cwd is None and not os.access(account.pw_dir, os.X_OK):
                cwd = "/"
            os.chdir(cwd or account.pw_dir)
            stage = b"e"
            os.execve(_find(argv[0], env), argv, env)
        except NotRunnable as error:
            os.write(tell, b"n" + _ERRNO.pack(error.status) + str(error).encode())
        except OSError as error:
            os.write(tell, stage + _ERRNO.pack(error.errno or 0))
        finally:
            os._exit(127)
    os.close(tell)
    with open(told, "rb") as pipe:
        message = pipe.read()
    if not message:
        return pid
    os.waitpid(pid, 0)
    stage, number, text = message[:1], _ERRNO.unpack(message[1:5])[0], message[5:].decode()
    if stage == b"n":
        raise NotRunnable(number, text)
    if stage == b"e":
        raise _not_runnable(argv[0], number)
    what = f"directory {cwd or account.pw_dir}" if stage == b"c" else f"user {account.pw_name}"
    raise Failure(f"{what}: {os.strerror(number)}", errno.errorcode.get(number, ""))


def _enter(cwd: str | None, account: pwd.struct_passwd) -> None:
    """Go there; a home that is missing is no reason not to run."""
    try:
        os.chdir(cwd or account.pw_dir)
    except OSError as error:
        if cwd is not None:
            name = errno.errorcode.get(error.errno or 0, "")
            raise Failure(f"directory {cwd}: {error.strerror}", name) from None
        os.chdir("/")


def _find(name: str, env: dict[str, str]) -> str:
    """The program's path, as a shell finds it. Raises `NotRunnable`."""
    if "/" in name:
        return name
    met = False
    for directory in env.get("PATH", _PATH).split(":"):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            met = True
    if met:
        raise NotRunnable(126, f"{name}: Permission denied")
    raise NotRunnable(127, f"{name}: command not found")


def _not_runnable(name: str, number: int) -> NotRunnable:
    status = 127 if number in (errno.ENOENT, errno.ENOTDIR) else 126
    return NotRunnable(status, f"{name}: {os.strerror(number)}")
