"""The host's side of one request to the agent: bytes in, events out, no I/O.

    client = ExecClient(["ls", "/"])
    stream.write(client.to_send())              # again after every verb
    for event in client.receive(data): ...      # Started, Stdout, Stderr, Room, Exit | Answer | Failed
    client.receive_eof()                        # the connection ended; Failed if that was too early

A client is `done` after Exit, Answer or Failed, which comes once and last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kasou.errors import LocalError
from kasou.guest.agent.protocol import (
    MAX_PAYLOAD,
    PIECE,
    WINDOW,
    BadFrame,
    FrameReader,
    Kind,
    frame,
    json_frame,
    parse_count,
    parse_exit,
    parse_json,
    resize_frame,
)


@dataclass(frozen=True, slots=True)
class Started:
    """The process runs; `info` is what the service tells of it beside its pid in the guest."""

    pid: int
    info: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Stdout:
    """Standard output, or all output of a terminal."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Stderr:
    """Standard error."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Room:
    """The process read on: `write_stdin` takes `n` bytes now."""

    n: int


@dataclass(frozen=True, slots=True)
class Exit:
    """The end: 0 to 255 as a shell gives it, 128 + `signal` if one killed it, else `signal` 0."""

    status: int
    signal: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question."""

    value: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Failed:
    """The service could not be done, or not to its end; `errno` is a name such as ENOENT, or ""."""

    message: str
    errno: str = ""


Event = Started | Stdout | Stderr | Room | Exit | Answer | Failed


class Client:
    """One request; for a question (`ping`, `ports`, `load`, `renew`, `sync`, `poweroff`...)."""

    def __init__(self, do: str, fields: Mapping[str, object] | None = None) -> None:
        request = json_frame(Kind.REQUEST, {"do": do, **(fields or {})})
        if len(request) > MAX_PAYLOAD:
            raise LocalError(f"{do}: arguments of {len(request)} bytes, at most {MAX_PAYLOAD}")
        self.done = False
        self._out = bytearray(request)
        self._reader = FrameReader()
        self._room = WINDOW

    def to_send(self) -> bytes:
        """What is to be sent now; it counts as sent."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[Event]:
        """Bytes from the agent. What breaks the protocol is a `Failed`."""
        events: list[Event] = []
        try:
            for kind, payload in self._reader.receive(data):
                if self.done:
                    break
                events.append(self._event(kind, payload))
        except BadFrame as error:
            self.done = True
            events.append(Failed(f"the guest's agent broke the protocol: {error}", "EPROTO"))
        return events

    def receive_eof(self, reason: str = "") -> list[Event]:
        """The connection ended."""
        if self.done:
            return []
        self.done = True
        detail = f": {reason}" if reason else ""
        return [Failed(f"the guest's agent closed the connection{detail}", "ECONNRESET")]

    def _event(self, kind: int, payload: bytes) -> Event:
        if kind == Kind.STDOUT:
            return Stdout(payload)
        if kind == Kind.STDERR:
            return Stderr(payload)
        if kind == Kind.TAKEN:
            self._room = min(WINDOW, self._room + parse_count(payload))
            return Room(self._room)
        if kind == Kind.STARTED:
            info = parse_json(payload)
            pid = info.pop("pid", 0)
            if not isinstance(pid, int):
                raise BadFrame("a pid that is no number")
            return Started(pid, info)
        if kind == Kind.EXIT:
            event: Event = Exit(*parse_exit(payload))
        elif kind == Kind.ANSWER:
            event = Answer(parse_json(payload))
        elif kind == Kind.FAILED:
            reason = parse_json(payload)
            event = Failed(str(reason.get("message", "")), str(reason.get("errno", "")))
        else:
            raise BadFrame(f"a frame of kind {kind:#x}")
        self.done = True
        return event


class ProcessClient(Client):
    """A request that runs a process in the guest."""

    _stdin_open = True

    @property
    def stdin_room(self) -> int:
        """How many bytes `write_stdin` takes now."""
        return self._room if self._stdin_open and not self.done else 0

    def write_stdin(self, data: bytes) -> int:
        """Take as much as the window allows and say how many bytes; `Room` tells when to go on."""
        taken = min(len(data), self.stdin_room)
        for at in range(0, taken, PIECE):
            self._out += frame(Kind.STDIN, data[at : min(at + PIECE, taken)])
        self._room -= taken
        return taken

    def close_stdin(self) -> None:
        """No more standard input."""
        if self._stdin_open and not self.done:
            self._stdin_open = False
            self._out += frame(Kind.STDIN_EOF)

    def kill(self, signal: int) -> None:
        """Send a signal to the process's group."""
        if not 0 < signal < 65:
            raise LocalError(f"there is no signal {signal}")
        if not self.done:
            self._out += frame(Kind.SIGNAL, bytes((signal,)))

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has a new size."""
        if not self.done:
            self._out += resize_frame(columns, rows)


class ExecClient(ProcessClient):
    """Run `argv`, no shell implied. With `tty` (columns, rows) all output is `Stdout`.

    `user` is a name or a number, root by default; `cwd` is the user's home by default; `env` is
    laid over a login's environment. Without `stdin` the process reads nothing.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: tuple[int, int] | None = None,
        stdin: bool = True,
    ) -> None:
        fields: dict[str, object] = {"argv": list(argv), "env": dict(env or {}), "cwd": cwd}
        fields |= {"user": user, "tty": list(tty) if tty else None, "stdin": stdin}
        super().__init__("exec", fields)
        self._stdin_open = stdin or tty is not None


class PutClient(ProcessClient):
    """Put a tree or file at the guest's `path`; standard input takes the tar stream.

    `Started.info["name"]` is what the archive's root must be called (`kasou.guest.agent.tree`).
    """

    def __init__(
        self, path: str, name: str, *, contents: bool = False, user: str | None = None
    ) -> None:
        fields: dict[str, object] = {"path": path, "name": name, "contents": contents}
        super().__init__("put", fields | {"user": user})


class GetClient(ProcessClient):
    """Get a tree or file; `Stdout` brings the tar stream.

    `Started.info` has `name` (what it is called), `root` (its name in the archive) and
    `is_directory`.
    """

    _stdin_open = False

    def __init__(self, path: str, *, contents: bool = False, user: str | None = None) -> None:
        super().__init__("get", {"path": path, "contents": contents, "user": user})


class MountClient(ProcessClient):
    """Mount the directory shared as `tag` at the guest's `path`, made if it is not there.

    Done again it does nothing. `Exit` is that of `mount`, whose complaints come as `Stderr`.
    """

    _stdin_open = False

    def __init__(self, tag: str, path: str, *, read_only: bool = False) -> None:
        super().__init__("mount", {"tag": tag, "path": path, "read_only": read_only})
