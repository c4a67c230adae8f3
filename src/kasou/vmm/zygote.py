"""Processes in milliseconds: a child that has everything imported and forks when asked.

A process with threads must not fork: a lock that another thread holds would stay locked in the
child for ever. So a VM's process, before it starts its first thread, leaves a *zygote* behind: a
single-threaded child that waits on a socket. For every request it forks once more; the new process
calls the function that was named, with the bytes and the open files of the request.

    VM process ---- request, files ----> zygote ---- fork ----> new VM process
               <--------- pid ----------

The zygote ends with the process that made it; those that it gave birth to live on.
"""

from __future__ import annotations

import array
import gc
import importlib
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Sequence

from kasou.errors import HostError, LocalError

_REQUEST = struct.Struct("<III")
"""Bytes of the entry's name, bytes of the payload, number of files."""
_PID = struct.Struct("<q")
MOST_FILES = 250
"""SCM_MAX_FD of Linux is 253."""
SECONDS = 20.0


class Zygote:
    """The parent's end. Make it while the process has one thread; `close` or exit ends the child."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        """Fork the zygote; it imports the modules named in `preload` first."""
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError as error:
            raise HostError(f"no process for forks can be made: {error.strerror}") from error
        if pid == 0:
            ours.close()
            _live(theirs, preload)
        theirs.close()
        ours.settimeout(SECONDS)
        self.pid = pid
        self._socket = ours

    def spawn(self, entry: str, payload: bytes, files: Sequence[int] = ()) -> int:
        """Start a process that runs `entry` ("module:function") with (payload, files); its pid.

        The new process has no terminal and none of this process's files but standard error and those
        given, under new numbers. Raises `HostError` when none can be made.
        """
        if len(files) > MOST_FILES:
            raise LocalError(f"{len(files)} files for a fork; at most {MOST_FILES} can be passed")
        name = entry.encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        try:
            self._socket.sendmsg(
                [_REQUEST.pack(len(name), len(payload), len(files))], rights if files else []
            )
            self._socket.sendall(name + payload)
            (pid,) = _PID.unpack(_read(self._socket, _PID.size))
        except (OSError, EOFError) as error:
            raise HostError(f"the process that makes forks does not answer ({error})") from error
        if pid < 0:
            raise HostError(f"a fork cannot be made: {os.strerror(-pid)}")
        return int(pid)

    def close(self) -> None:
        """End the zygote; may be called twice."""
        self._socket.close()
        if self.pid:
            pid, self.pid = self.pid, 0
            os.waitpid(pid, 0)


def _read(source: socket.socket, n: int) -> bytes:
    out = bytearray()
    while len(out) < n:
        piece = source.recv(n - len(out))
        if not piece:
            raise EOFError("it has ended")
        out += piece
    return bytes(out)


def _live(source: socket.socket, preload: Sequence[str]) -> None:
    """The zygote's life: never returns."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)  # it ends with its parent, not before
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are nobody's zombies
        signal.set_wakeup_fd(-1)
        os.setsid()
        _only_standard_files(source.fileno())
        for module in preload:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # or a collection in a child would write to every page it shares
        while _serve(source):
            pass
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(source: socket.socket) -> bool:
    """One request; False when the parent has gone."""
    header, files, _, _ = socket.recv_fds(source, _REQUEST.size, MOST_FILES)
    if not header:
        return False
    try:
        header += _read(source, _REQUEST.size - len(header))
        name, length, _ = _REQUEST.unpack(header)
        entry, payload = _read(source, name).decode(), _read(source, length)
    except (EOFError, OSError):
        return False
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or 1)
    if pid == 0:
        source.close()
        _begin(entry, payload, files)
    for fd in files:
        os.close(fd)
    try:
        source.sendall(_PID.pack(pid))
    except OSError:
        return False
    return True


def _begin(entry: str, payload: bytes, files: list[int]) -> None:
    """The new process: never returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        module, _, function = entry.partition(":")
        getattr(importlib.import_module(module), function)(payload, files)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _only_standard_files(keep: int) -> None:
    """Close what was inherited: a socket that stays open here would never end for its peer."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                continue  # the listing's own
