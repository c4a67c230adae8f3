"""A VM's end of a named network: what `UserNetwork` is to a lone VM, with the network elsewhere.

One thread sends and receives; `JoinedPort.send` only queues. When the network's process ends, the
wire is dead: the client comes back by itself once there is a network again (`connect` is asked every
second), with the forwards it had; connections of the guest that crossed the old gateway are gone.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kasou import errors
from kasou.control.network.frame_socket import FrameSocket, Object
from kasou.control.network.reactor import READ, Reactor
from kasou.errors import ConfigError, HostError, KasouError, RemoteError
from kasou.net.gateway.capture import Capture
from kasou.net.gateway.forward import Forward, Forwarded
from kasou.net.wire.address import mac, mac_text
from kasou.ports import ByteSink, Frame, FrameSink

log = logging.getLogger("kasou.network")

ANSWER_S = 30.0
RETRY_S = 1.0
MAX_QUEUED_FRAMES = 2048


class JoinedPort:
    """The VM's end of its wire: `kasou.ports.Port`, and what was opened for it."""

    def __init__(self, client: NetworkClient, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.forwards: list[Forwarded] = []
        self.sink: FrameSink | None = None
        self.outgoing: deque[Frame] = deque()
        self.dropped = 0
        self._client = client

    def send(self, frames: Sequence[Frame]) -> None:
        """Frames of the VM; never blocks."""
        if len(self.outgoing) >= MAX_QUEUED_FRAMES:
            self.dropped += len(frames)
            return
        self.outgoing.extend(frames)
        self._client.wake()

    def attach(self, sink: FrameSink | None) -> None:
        """Say who takes the frames for the VM; None drops them."""
        self.sink = sink

    def add_forward(self, forward: Forward | str) -> Forwarded:
        """`NetworkClient.add_forward` to this VM."""
        return self._client.add_forward(self, forward)

    def remove_forward(self, opened: Forwarded) -> None:
        """`NetworkClient.remove_forward` of this VM's."""
        self._client.remove_forward(self, opened)

    def reset_connections(self) -> None:
        """`NetworkClient.reset_connections` of this VM's."""
        self._client.reset_connections()


class NetworkClient:
    """A VM's membership. `connect` opens a socket to the network, raising `KasouError` or `OSError`."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._reactor = Reactor()
        self._frames: FrameSocket | None = None
        self._port: JoinedPort | None = None
        self._joined: Object = {}
        self._captures: list[Capture] = []
        self._answers: dict[int, Callable[[Object], None]] = {}
        self._number = 0
        self._retry_at: float | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ what people ask for

    def add_port(
        self,
        name: str,
        mac_address: bytes | str,
        forwards: Iterable[Forward | str] = (),
        egress: str | None = None,
    ) -> JoinedPort:
        """Join as VM `name`, once. Raises `ConfigError`, `HostError`, as `UserNetwork.add_port`."""
        if self._port is not None or self._closing:
            raise ConfigError("a network client joins once")
        packed = mac(mac_address) if isinstance(mac_address, str) else mac_address
        wanted = [Forward.parse(each) if isinstance(each, str) else each for each in forwards]
        self._joined = {
            "name": name,
            "mac": mac_text(packed),
            "forwards": [str(each) for each in wanted],
            "egress": egress or "allow",
        }
        self._open(self._dial())
        self._thread = threading.Thread(target=self._run, name="kasou-network", daemon=True)
        self._thread.start()
        try:
            answer = self._ask({"join": self._joined})
        except BaseException:
            self.close()
            raise
        port = JoinedPort(self, name, str(answer["address"]))
        self._adopt(port, answer)
        self._port = port
        return port

    def add_forward(self, port: JoinedPort, forward: Forward | str) -> Forwarded:
        """Lead a port of the host to the VM. Raises `ConfigError`, `HostError`."""
        wanted = Forward.parse(forward) if isinstance(forward, str) else forward
        _, number = self._ask({"add_forward": str(wanted)})
        opened = Forwarded(wanted, number)
        port.forwards.append(opened)
        return opened

    def remove_forward(self, port: JoinedPort, opened: Forwarded) -> None:
        """Close a forwarded port."""
        if opened in port.forwards:
            place = port.forwards.index(opened)
            self._ask({"remove_forward": place})
            port.forwards.remove(opened)

    def reset_connections(self) -> None:
        """The VM went back to an earlier moment; see `UserNetwork.reset_connections`."""
        self._ask({"reset_connections": None})

    def capture(
        self, name: str, sink: ByteSink, *, snap_bytes: int = 0, whole: bool = False
    ) -> Callable[[], None]:
        """Write what passes this VM's port to `sink` as pcapng; call the answer to stop."""
        if self._port is None or name != self._port.name:
            raise ConfigError(f"there is no VM named {name!r} here")
        epoch = time.time_ns() - time.monotonic_ns()
        capture = Capture(sink, name, epoch=epoch, snap_bytes=snap_bytes, whole=whole)
        self._reactor.post(lambda: self._captures.append(capture))

        def stop() -> None:
            done = threading.Event()

            def remove() -> None:
                if capture in self._captures:
                    self._captures.remove(capture)
                done.set()

            self._reactor.post(remove)
            if self._thread is not None and self._thread.is_alive():
                done.wait(ANSWER_S)

        return stop

    def statistics(self) -> dict[str, Any]:
        """The whole network's counters."""
        return dict(self._ask({"statistics": None}))

    def close(self) -> None:
        """Leave the network. May be called twice."""
        self._closing = True
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._reactor.wake()
        thread.join()
        if self._frames is not None:
            self._frames.close()
        self._reactor.close()

    def wake(self) -> None:
        """The port has frames to send. From any thread."""
        self._reactor.wake()

    # ------------------------------------------------------------------ requests

    def _ask(self, request: Object) -> Any:
        """Send a request and wait for its answer. Raises what the answer says, or `HostError`."""
        done = threading.Event()
        answers: list[Object] = []

        def answered(answer: Object) -> None:
            answers.append(answer)
            done.set()

        self._reactor.post(lambda: self._send(request, answered))
        if not done.wait(ANSWER_S):
            raise HostError(f"the network did not answer within {ANSWER_S:.0f} s")
        return _unwrapped(answers[0])

    def _send(self, request: Object, answered: Callable[[Object], None]) -> None:
        if self._frames is None:
            return answered({"error": ["HostError", "the network's process has ended"]})
        self._number += 1
        self._answers[self._number] = answered
        self._frames.send_object({"id": self._number, **request})

    # ------------------------------------------------------------------ the thread

    def _idle(self) -> bool:
        port = self._port
        return not self._closing and (port is None or not port.outgoing or self._frames is None)

    def _run(self) -> None:
        while not self._closing:
            timeout = None
            if self._retry_at is not None:
                timeout = max(0.0, self._retry_at - time.monotonic())
            ready = self._reactor.wait(timeout, self._idle)
            if self._closing:
                return
            try:
                self._turn(ready)
            except Exception:
                log.exception("the network client met a bug of ours; this batch is dropped")

    def _turn(self, ready: list[Any]) -> None:
        self._reactor.run(ready)
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._come_back()
        port = self._port
        if port is not None and port.outgoing:
            outgoing = port.outgoing
            frames = [outgoing.popleft() for _ in range(len(outgoing))]
            if self._frames is not None:
                self._note(frames)
                self._frames.send_frames(frames)

    def _note(self, frames: Sequence[Frame]) -> None:
        for capture in self._captures:
            capture.frames(frames, time.monotonic_ns())

    def _ready(self, mask: int) -> None:
        frames = self._frames
        if frames is None:
            return
        if mask & ~READ:
            frames.flush()
        if not mask & READ:
            return
        try:
            items = frames.receive()
        except RemoteError as error:
            log.warning("%s", error)
            items = None
        if items is None:
            return self._lost()
        received = [item for item in items if isinstance(item, Frame)]
        port = self._port
        if received and port is not None:
            self._note(received)
            if port.sink is not None:
                port.sink(received)
        for item in items:
            if not isinstance(item, Frame):
                answered = self._answers.pop(item.get("id", 0), None)
                if answered is not None:
                    answered(item)

    # ------------------------------------------------------------------ losing and finding it

    def _dial(self) -> socket.socket:
        try:
            return self._connect()
        except OSError as error:
            raise HostError(f"the network cannot be joined: {error.strerror}") from None

    def _open(self, sock: socket.socket) -> None:
        self._frames = FrameSocket(self._reactor, sock)
        self._frames.start(self._ready)

    def _lost(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames = None
        answers, self._answers = self._answers, {}
        for answered in answers.values():
            answered({"error": ["HostError", "the network's process has ended"]})
        if self._port is not None:
            log.warning(
                "%s: the network's process has ended; trying to join again", self._port.name
            )
            self._retry_at = time.monotonic() + RETRY_S

    def _come_back(self) -> None:
        port = self._port
        self._retry_at = time.monotonic() + RETRY_S
        try:
            sock = self._dial()
        except KasouError:
            return
        self._open(sock)
        self._retry_at = None
        assert port is not None
        again = [str(_at(each.forward, each.port)) for each in port.forwards]
        self._send({"join": {**self._joined, "forwards": again}}, self._back)

    def _back(self, answer: Object) -> None:
        assert self._port is not None
        try:
            self._adopt(self._port, _unwrapped(answer))
        except KasouError as error:
            log.warning("%s: not on the network again: %s", self._port.name, error)
            if self._frames is not None:
                self._lost()

    @staticmethod
    def _adopt(port: JoinedPort, answer: Any) -> None:
        port.address = str(answer["address"])
        port.forwards[:] = [
            Forwarded(Forward.parse(str(spec)), int(number)) for spec, number in answer["forwards"]
        ]


def _at(forward: Forward, port: int) -> Forward:
    """`forward` at the port that it was given."""
    return Forward(forward.host, port, forward.guest_port, forward.protocol, forward.keep_source)


def _unwrapped(answer: Object) -> Any:
    """What an answer says. Raises the error that it tells of."""
    if "error" not in answer:
        return answer.get("ok")
    name, message = answer["error"]
    kind = getattr(errors, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, KasouError)):
        kind = HostError
    raise kind(str(message))
