"""A named network: one `UserNetwork` that the processes of VMs join through a Unix socket.

A member's first object is `join` with its name, MAC, forwards and egress rules. It is answered with
its address and the open forwards, and from then on frames pass both ways; further objects add and
remove forwards or ask for statistics. When a member's socket ends, so does its port: its connections
are reset and its forwards closed.

    {"id": 1, "join": {"name": "web", "mac": "52:54:...", "forwards": ["8080:80"], "egress": "allow"}}
    {"id": 1, "ok": {"address": "10.0.2.15", "forwards": [["127.0.0.1:8080:80/tcp", 8080]]}}
    {"id": 2, "add_forward": "0:22"}       {"id": 2, "error": ["HostError", "TCP ... in use"]}
    {"id": 3, "remove_forward": 0}         (its place in the list)
    {"id": 4, "reset_connections": null}   {"id": 5, "statistics": null}
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

from kasou.control.network.frame_socket import FrameSocket, Object
from kasou.control.network.reactor import READ
from kasou.control.network.user_network import UserNetwork, UserPort
from kasou.errors import ConfigError, KasouError, RemoteError
from kasou.ports import Frame

_BATCH = 64
_ABOUT_TO_JOIN_S = 0.1


class NetworkServer:
    """Serves `network`, which has a thread, on `listener`; both are ours to close."""

    def __init__(self, listener: socket.socket, network: UserNetwork) -> None:
        self.network = network
        self._listener = listener
        self._members: set[_Member] = set()
        self._changed = threading.Condition()
        listener.setblocking(False)
        network.sockets.post(lambda: network.sockets.register(listener, READ, self._accept))

    @property
    def members(self) -> list[str]:
        """The names of the VMs that are on the network."""
        return sorted(member.port.name for member in list(self._members) if member.port)

    def wait_until_idle(self, seconds: float) -> None:
        """Return when no VM has been on the network for so long, and nobody is about to join."""
        with self._changed:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 or self._members:
                changed = self._changed.wait(max(left, _ABOUT_TO_JOIN_S))
                if changed or self.members:
                    end = time.monotonic() + seconds

    def close(self) -> None:
        """End the network; members find their sockets closed."""
        self.network.close()
        self._listener.close()
        for member in list(self._members):
            member.abandon()

    def _accept(self, mask: int) -> None:
        for _ in range(_BATCH):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._members.add(_Member(self, sock))

    def left(self, member: _Member) -> None:
        """A member's socket has ended."""
        self._members.discard(member)
        if member.port is not None:
            self.changed()

    def changed(self) -> None:
        """Somebody joined or left."""
        with self._changed:
            self._changed.notify_all()


class _Member:
    """One VM's process. All but `abandon` runs on the network's thread."""

    def __init__(self, server: NetworkServer, sock: socket.socket) -> None:
        self.port: UserPort | None = None
        self._server, self._sock = server, sock
        self._frames = FrameSocket(server.network.sockets, sock)
        self._frames.start(self._ready)

    def abandon(self) -> None:
        """The network has ended, and its thread with it."""
        self._sock.close()

    def _ready(self, mask: int) -> None:
        if self._frames.is_closed:
            return
        if mask & ~READ:
            self._frames.flush()
        if not mask & READ:
            return
        try:
            items = self._frames.receive()
            if items is None:
                return self._leave()
            self._take(items)
        except RemoteError:
            self._leave()

    def _take(self, items: list[Frame | Object]) -> None:
        frames = [item for item in items if isinstance(item, Frame)]
        if frames and self.port is not None:
            self.port.send(frames)
        for item in items:
            if not isinstance(item, Frame):
                self._request(item)

    def _leave(self) -> None:
        port = self.port
        if port is not None:
            self._server.network.remove_port(port)
        self._frames.close()
        self._server.left(self)

    def _request(self, request: Object) -> None:
        number = request.get("id")
        try:
            answer: Object = {"id": number, "ok": self._answer(request)}
        except KasouError as error:
            answer = {"id": number, "error": [type(error).__name__, str(error)]}
        self._frames.send_object(answer)

    def _answer(self, request: Object) -> Any:
        network = self._server.network
        if "join" in request:
            return self._join(request["join"])
        port = self.port
        if port is None:
            raise ConfigError("the first request on a network socket is to join")
        if "add_forward" in request:
            opened = network.add_forward(port, _text(request["add_forward"]))
            return [str(opened.forward), opened.port]
        if "remove_forward" in request:
            with contextlib.suppress(IndexError, TypeError):
                network.remove_forward(port, port.forwards[request["remove_forward"]])
            return None
        if "reset_connections" in request:
            return network.reset_connections(port)
        if "statistics" in request:
            return network.statistics()
        raise ConfigError(f"a network socket knows no request {sorted(map(str, request))}")

    def _join(self, wanted: Any) -> Object:
        if self.port is not None or not isinstance(wanted, dict):
            raise ConfigError("a network socket is joined once, with an object")
        forwards = wanted.get("forwards") or []
        if not isinstance(forwards, list):
            raise ConfigError("join: forwards is not a list")
        self.port = port = self._server.network.add_port(
            _text(wanted.get("name")),
            _text(wanted.get("mac")),
            [_text(each) for each in forwards],
            _text(wanted.get("egress") or "allow"),
        )
        port.attach(self._frames.send_frames)
        self._server.changed()
        return {
            "address": port.address,
            "forwards": [[str(each.forward), each.port] for each in port.forwards],
        }


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is not text")
    return value
