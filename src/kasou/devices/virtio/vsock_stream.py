"""One vsock connection, seen from the host: data, credit both ways, half-closes.

    CONNECTING --RESPONSE--> CONNECTED --SHUTDOWN both ways--> CLOSED
        |                      |   close(): SHUTDOWN sent, then CLOSING
        +------- RST ----------+------------- RST ----------> CLOSED

What the owner writes waits in a bounded buffer until the guest has granted credit and a receive
buffer. What the guest sends goes to `on_data` at once; the guest may send on only as far as the
owner gives the room back with `consume`. (Virtio 1.2, 5.10.6.3)
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple, Protocol

from kasou.devices.virtio.vsock_packet import BOTH_WAYS, MAX_DATA, Op, Shutdown

RECEIVE_BYTES = 1 << 18
"""What the guest may have under way to one stream: our `buf_alloc`."""
WRITE_BYTES = 1 << 18
"""What the owner may have waiting in one stream towards the guest."""
_MASK = 0xFFFF_FFFF


class State(Enum):
    """Where a connection stands."""

    CONNECTING = auto()
    CONNECTED = auto()
    CLOSING = auto()
    CLOSED = auto()


class Wire(Protocol):
    """What a stream needs from its device."""

    def forward(self, stream: "VsockStream") -> None:
        """The stream has something to send."""
        ...

    def forget(self, stream: "VsockStream", tell: bool) -> None:
        """The stream is closed; with `tell` the guest is to hear of it by RST."""
        ...


class Outgoing(NamedTuple):
    """A packet of one stream, but for its addresses."""

    op: Op
    flags: int = 0
    data: bytes = b""


def _nothing(*_: object) -> None:
    """A callback its owner did not set."""


class VsockStream:
    """A connection between a host port and a guest port. All calls under the board's lock.

    The owner sets the callbacks, which may call the stream in turn:
    `on_connected()`, `on_data(data)`, `on_writable()` after a `write` that took less than it was
    given, `on_eof()` when the guest will send no more, and `on_closed(reason)`, called once and
    last; its reason is empty when the guest closed in an orderly way.
    """

    def __init__(self, wire: Wire, host_port: int, guest_port: int, opening: Op) -> None:
        self.host_port, self.guest_port = host_port, guest_port
        self.state = State.CONNECTING
        self.on_connected: Callable[[], None] = _nothing
        self.on_data: Callable[[bytes], None] = _nothing
        self.on_writable: Callable[[], None] = _nothing
        self.on_eof: Callable[[], None] = _nothing
        self.on_closed: Callable[[str], None] = _nothing
        self._wire = wire
        self._out = bytearray()
        self._owner_waits = False
        self._opening: Op | None = opening
        self._credit_request_due = self._credit_requested = self._credit_update_due = False
        self._shutdown_due = self._sent_shutdown = self._peer_shutdown = Shutdown(0)
        self._peer_buf_alloc = self._peer_fwd_cnt = self._tx_cnt = 0
        self._rx_cnt = self.fwd_cnt = self._told_fwd_cnt = 0

    def __repr__(self) -> str:
        return f"VsockStream({self.host_port} - {self.guest_port}, {self.state.name})"

    # ------------------------------------------------------------------ for the owner
    def write(self, data: bytes) -> int:
        """Take as much of `data` as there is room for and say how many bytes that was.

        After less than all of it, `on_writable` tells when to go on. A stream that can send no
        more takes nothing.
        """
        if not self._may_write:
            return 0
        taken = min(len(data), WRITE_BYTES - len(self._out))
        self._owner_waits = self._owner_waits or taken < len(data)
        if taken:
            self._out += data[:taken]
            self._wire.forward(self)
        return taken

    def consume(self, n: int) -> None:
        """The owner is done with `n` bytes that `on_data` brought: the guest may send as many."""
        assert n <= (self._rx_cnt - self.fwd_cnt) & _MASK, "consumed more than was received"
        self.fwd_cnt = (self.fwd_cnt + n) & _MASK
        if self.state is not State.CONNECTED or self._peer_shutdown & Shutdown.SEND:
            return
        guest_sees = RECEIVE_BYTES - ((self._rx_cnt - self._told_fwd_cnt) & _MASK)
        if guest_sees < RECEIVE_BYTES // 2:
            self._credit_update_due = True
            self._wire.forward(self)

    def shutdown(self) -> None:
        """Send no more; what waits goes out first. The guest may still send."""
        self._shut(Shutdown.SEND)

    def close(self) -> None:
        """Neither send nor receive; what waits goes out first. `on_closed` follows."""
        self._shut(BOTH_WAYS)

    def reset(self) -> None:
        """End the connection now; `on_closed` is called before this returns."""
        self.end("reset by the host", tell=self._opening is not Op.REQUEST)

    # ------------------------------------------------------------------ for the device
    @property
    def has_packet(self) -> bool:
        """Whether `next_packet` has something to send now."""
        if self._opening or self._credit_update_due or self._credit_request_due:
            return self.state is not State.CLOSED
        if self.state not in (State.CONNECTED, State.CLOSING):
            return False
        if self._out:
            return self._credit > 0
        return bool(self._shutdown_due & ~self._sent_shutdown)

    def next_packet(self, room: int) -> Outgoing:
        """The next packet, with at most `room` bytes of data; only while `has_packet`."""
        self._told_fwd_cnt = self.fwd_cnt  # every packet carries it
        if opening := self._opening:
            self._opening = None
            return Outgoing(opening)
        if self._credit_request_due:
            self._credit_request_due, self._credit_requested = False, True
            return Outgoing(Op.CREDIT_REQUEST)
        if self._credit_update_due:
            self._credit_update_due = False
            return Outgoing(Op.CREDIT_UPDATE)
        if self._out:
            n = min(len(self._out), self._credit, room, MAX_DATA)
            data = bytes(self._out[:n])
            del self._out[:n]
            self._tx_cnt = (self._tx_cnt + n) & _MASK
            return Outgoing(Op.RW, data=data)
        self._sent_shutdown |= self._shutdown_due
        return Outgoing(Op.SHUTDOWN, int(self._sent_shutdown))

    def rest(self) -> None:
        """Nothing more can be sent now: ask for credit, or let the owner go on."""
        if self._out and self.state is not State.CONNECTING and not self._credit_requested:
            self._credit_request_due = True
            self._wire.forward(self)
        elif self._owner_waits and len(self._out) <= WRITE_BYTES // 2 and self._may_write:
            self._owner_waits = False
            self.on_writable()

    def grant(self, buf_alloc: int, fwd_cnt: int) -> None:
        """What the guest's packet says of its buffer."""
        self._peer_buf_alloc, self._peer_fwd_cnt = buf_alloc, fwd_cnt
        if self._out and self._credit:
            self._credit_requested = False
            self._wire.forward(self)

    def want_credit_update(self) -> None:
        """The guest said CREDIT_REQUEST."""
        self._credit_update_due = True
        self._wire.forward(self)

    def accepted(self) -> None:
        """The guest said RESPONSE, or we did."""
        self.state = State.CONNECTED
        self.on_connected()
        self._wire.forward(self)

    def received(self, data: bytes) -> bool:
        """Data from the guest; False when it broke the rules: no credit, or sent after the end."""
        in_flight = (self._rx_cnt - self.fwd_cnt) & _MASK
        if self._peer_shutdown & Shutdown.SEND or in_flight + len(data) > RECEIVE_BYTES:
            return False
        self._rx_cnt = (self._rx_cnt + len(data)) & _MASK
        if data and self.state is State.CONNECTED:
            self.on_data(data)
        elif data:
            self.fwd_cnt = (self.fwd_cnt + len(data)) & _MASK
        return True

    def peer_shut(self, flags: Shutdown) -> bool:
        """The guest said SHUTDOWN; True when it will neither send nor receive any more."""
        new = flags & ~self._peer_shutdown
        self._peer_shutdown |= flags
        if flags & Shutdown.RECEIVE:
            self._out.clear()
        if new & Shutdown.SEND and self._peer_shutdown != BOTH_WAYS:
            self.on_eof()
        self._wire.forward(self)
        return self._peer_shutdown == BOTH_WAYS

    def end(self, reason: str, tell: bool = False) -> None:
        """The connection is no more; with `tell` the guest hears of it."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._out.clear()
        self._wire.forget(self, tell)
        self.on_closed(reason)

    # ------------------------------------------------------------------
    @property
    def _credit(self) -> int:
        in_flight = (self._tx_cnt - self._peer_fwd_cnt) & _MASK
        return max(0, self._peer_buf_alloc - in_flight)

    @property
    def _may_write(self) -> bool:
        open_ = self.state in (State.CONNECTING, State.CONNECTED)
        return open_ and not self._shutdown_due and not self._peer_shutdown & Shutdown.RECEIVE

    def _shut(self, flags: Shutdown) -> None:
        if self.state is State.CLOSED:
            return
        self._shutdown_due |= flags
        if flags & Shutdown.RECEIVE:
            if self.state is State.CONNECTING:
                self.reset()
                return
            self.state = State.CLOSING
        self._wire.forward(self)
