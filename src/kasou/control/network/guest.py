"""For tests: a guest of our own stack at a `Port`, in real time on the caller's thread."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Sequence

from kasou.net.stack import Host
from kasou.net.transport.tcp import Connection, Endpoint, Event, State
from kasou.net.wire.address import IpAddress, ip, mac
from kasou.ports import Frame, Port


class StackGuest:
    """A `Host` with one interface on `port`, configured by hand."""

    def __init__(self, port: Port, mac_text: str, address: str, gateway: str = "10.0.2.2") -> None:
        self.port = port
        self._frames: queue.SimpleQueue[Sequence[Frame]] = queue.SimpleQueue()
        port.attach(lambda frames: self._frames.put(list(frames)))
        self.host = Host(random.Random(1))
        self.interface = self.host.add_interface("eth0", mac(mac_text))
        self.address: IpAddress = ip(address)
        self.host.add_address(self.interface, self.address, 24)
        self.host.add_default_route(self.interface, ip(gateway))

    def turn(self, wait_s: float = 0.02) -> None:
        """Send what is to be sent, wait a little, receive what came."""
        host = self.host
        now = time.monotonic_ns()
        host.deliver_events()
        for _, frames in host.to_send(now):
            self.port.send(frames)
        due = host.deadline()
        if due is not None:
            wait_s = min(wait_s, max(0.0, (due - now) / 1e9))
        try:
            received = self._frames.get(timeout=wait_s) if wait_s else self._frames.get_nowait()
        except queue.Empty:
            received = []
        now = time.monotonic_ns()
        host.receive(self.interface, received, now)
        host.handle_timer(now)
        host.deliver_events()

    def run(self, until: Callable[[], bool], seconds: float = 10) -> None:
        """Take turns until it holds; an `AssertionError` when it does not in time."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"it did not come within {seconds} s"
            self.turn()

    def connect(self, address: str, port: int) -> Talk:
        """A TCP connection."""
        local, remote = Endpoint(self.address, 0), Endpoint(ip(address), port)
        return Talk(self, self.host.tcp.connect(local, remote, time.monotonic_ns()))

    def accept(self, port: int) -> list[Talk]:
        """Listen; the connections that come appear in the list."""
        talks: list[Talk] = []
        self.host.tcp.listen(None, port, lambda connection: talks.append(Talk(self, connection)))
        return talks


class Talk:
    """A connection with what it received and what happened to it."""

    def __init__(self, guest: StackGuest, connection: Connection) -> None:
        self.guest, self.connection = guest, connection
        self.events: list[Event] = []
        self.received = bytearray()
        self._outgoing = memoryview(b"")
        self._close = False
        connection.on_event = self._on_event
        self._read()

    def send(self, data: bytes, close: bool = False) -> None:
        """Send all of `data`, as it is taken, and then the end."""
        self._outgoing = memoryview(bytes(self._outgoing) + data)
        self._close = close
        self._write()

    @property
    def ended(self) -> bool:
        """Whether the other side has ended, or it failed."""
        return self.connection.error is not None or bool(
            {Event.REMOTE_CLOSED, Event.CLOSED} & set(self.events)
        )

    def _on_event(self, connection: Connection, event: Event) -> None:
        self.events.append(event)
        if event is Event.READABLE:
            self._read()
        elif event in (Event.WRITABLE, Event.ESTABLISHED):
            self._write()

    def _read(self) -> None:
        while data := self.connection.read():
            self.received += data

    def _write(self) -> None:
        while self._outgoing:
            taken = self.connection.write(self._outgoing)
            if not taken:
                return
            self._outgoing = self._outgoing[taken:]
        if self._close and self.connection.state is not State.SYN_SENT:
            self._close = False
            self.connection.close()
