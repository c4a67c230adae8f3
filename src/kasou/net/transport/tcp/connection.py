"""One connection: its variables under the names of RFC 9293 3.3.1, and what its user calls.

Nothing is sent here. A call changes variables and marks the connection as one that `output` has to
visit. Sequence numbers are unwrapped (`sequence`), windows are in bytes.

    SND:   snd_una <= snd_nxt <= send_buffer.end + 1 (the FIN)
    RCV:   rcv_nxt <= rcv_adv, the right edge of the window as the peer knows it, which only grows
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from kasou.errors import LocalError
from kasou.net.transport.tcp.congestion import CongestionControl, NewReno
from kasou.net.transport.tcp.event import Event
from kasou.net.transport.tcp.rack import Rack
from kasou.net.transport.tcp.receive_buffer import ReceiveBuffer
from kasou.net.transport.tcp.rto import RttEstimator
from kasou.net.transport.tcp.scoreboard import Scoreboard
from kasou.net.transport.tcp.segment import Endpoint
from kasou.net.transport.tcp.send_buffer import SendBuffer
from kasou.net.transport.tcp.state import MAY_SEND, TRANSITIONS, On, State
from kasou.net.wire.checksum import pseudo_header
from kasou.net.wire.tcp import PROTOCOL

if TYPE_CHECKING:
    from kasou.net.transport.tcp.host import Listener, Tcp


class Timer(Enum):
    """What the one retransmission timer waits for; at most one of them is running."""

    SYN = "SYN"
    RTO = "RTO"
    PROBE = "PTO"  # RFC 8985 7
    REORDERING = "reordering"  # RFC 8985 6.2 step 5
    PERSIST = "persist"


class Connection:
    """See the package docstring. `local` and `remote` never change."""

    # fmt: off
    __slots__ = (  # noqa: RUF023 - in the order of their meaning
        # who
        "local", "remote", "state", "owner", "_on_event", "error", "host", "listener", "config",
        "pseudo",
        # send sequence variables
        "iss", "snd_una", "snd_nxt", "snd_wnd", "snd_wl1", "snd_wl2", "max_snd_wnd", "snd_scale", "scaling",
        "send_buffer", "fin_queued", "fin_sequence", "peer_mss", "mtu", "mss", "nodelay",
        "probe_end", "wants_room", "user_closed",
        # receive sequence variables
        "irs", "rcv_nxt", "rcv_adv", "rcv_scale", "receive_buffer", "rcv_fin", "fin_received",
        "discarding", "capacity",
        # acknowledgment
        "ack_now", "delayed_ack_at", "unacknowledged",
        # options
        "timestamps", "ts_offset", "ts_recent", "ts_recent_at", "last_ack_sent", "sack",
        # ECN
        "ecn", "ece_due", "cwr_due", "ecn_point",
        # loss and congestion
        "scoreboard", "rack", "rtt", "congestion", "recovery_point", "in_loss", "dupacks",
        "force_retransmit", "tlp_end", "tlp_is_retransmission", "probe_due", "retries",
        "cwnd_limited", "last_sent_at", "undo_stamp", "undo_after",
        # timers
        "timer", "timer_at", "keepalive_at", "keepalive_idle", "keepalive_interval",
        "keepalive_limit", "keepalive_sent", "keepalive_due", "last_received_at", "time_wait_at",
        "scheduled_at",
        # opening
        "syn_due", "deferred", "first_header", "reset_due",
        # events
        "dirty", "announced", "_events", "_closed_posted",
    )
    # fmt: on

    def __init__(self, host: Tcp, local: Endpoint, remote: Endpoint, iss: int, ts_offset: int):
        config = host.config
        self.host, self.config = host, config
        self.local, self.remote = local, remote
        self.pseudo = pseudo_header(local.address, remote.address, PROTOCOL, 0)
        self.state = State.CLOSED
        self.owner: object = None
        self._on_event: Callable[[Connection, Event], None] | None = None
        self.error: Event | None = None
        self.listener: Listener | None = None

        self.iss = self.snd_una = self.snd_nxt = iss
        self.snd_wnd = self.snd_wl1 = self.snd_wl2 = self.max_snd_wnd = 0
        self.snd_scale = 0
        self.scaling = False
        self.send_buffer = SendBuffer(iss + 1)
        self.fin_queued = False
        self.fin_sequence: int | None = None  # its sequence number, once sent
        self.peer_mss = 536 if len(local.address) == 4 else 1220  # RFC 9293 3.7.1
        self.mtu = host.mtu_to(remote.address)
        self.mss = self.peer_mss
        self.nodelay = config.nodelay
        self.probe_end: int | None = None  # behind the byte with which a closed window is probed
        self.wants_room = False
        self.user_closed = False

        self.irs = self.rcv_nxt = self.rcv_adv = 0
        self.rcv_scale = 0
        self.receive_buffer = ReceiveBuffer(0)
        self.rcv_fin: int | None = None  # the FIN's sequence number, once seen
        self.fin_received = False
        self.discarding = False
        self.capacity = config.receive_buffer

        self.ack_now = False
        self.delayed_ack_at: int | None = None
        self.unacknowledged = 0

        self.timestamps = config.timestamps
        self.ts_offset = ts_offset
        self.ts_recent = 0
        self.ts_recent_at: int | None = None
        self.last_ack_sent = 0
        self.sack = config.sack

        self.ecn = False
        self.ece_due = self.cwr_due = False
        self.ecn_point = iss

        self.scoreboard = Scoreboard()
        self.rack = Rack()
        self.rtt = RttEstimator(config)
        self.congestion: CongestionControl = NewReno(self.mss)
        self.recovery_point: int | None = None
        self.in_loss = False
        self.dupacks = 0
        self.force_retransmit = False
        self.tlp_end: int | None = None
        self.tlp_is_retransmission = False
        self.probe_due = False
        self.retries = 0
        self.cwnd_limited = False
        self.last_sent_at = 0
        self.undo_stamp: int | None = None  # timestamp of an episode's first retransmission
        self.undo_after = 0  # where what it retransmitted starts

        self.timer: Timer | None = None
        self.timer_at = 0
        self.keepalive_at: int | None = None
        self.keepalive_idle = config.keepalive
        self.keepalive_interval = config.keepalive_interval
        self.keepalive_limit = config.keepalive_probes
        self.keepalive_sent = 0
        self.keepalive_due = False
        self.last_received_at = 0
        self.time_wait_at: int | None = None
        self.scheduled_at: int | None = None

        self.syn_due = False
        self.deferred = False
        self.first_header = b""
        self.reset_due = False

        self.dirty = False
        self.announced = False
        self._events: deque[Event] = deque()
        self._closed_posted = False

    def __repr__(self) -> str:
        return f"<Connection {self.local} {self.remote} {self.state.value}>"

    @property
    def on_event(self) -> Callable[[Connection, Event], None] | None:
        """Who is told of events; what waits for someone to listen is told to the first who does."""
        return self._on_event

    @on_event.setter
    def on_event(self, listener: Callable[[Connection, Event], None] | None) -> None:
        self._on_event = listener
        if listener is not None and self._events:
            self._announce()

    # ---- the user's calls (RFC 9293 3.10.1 to 3.10.6)

    @property
    def writable(self) -> int:
        """Bytes that `write` would take now."""
        if self.fin_queued or self.state not in MAY_SEND:
            return 0
        return max(0, self.config.send_buffer - self.send_buffer.length)

    @property
    def unsent_or_unacknowledged(self) -> int:
        """Bytes written and not yet acknowledged."""
        return self.send_buffer.length

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Queue as much of `data` as there is room for; the number of bytes taken.

        Raises `LocalError` when nothing can ever be sent again.
        """
        if self.fin_queued or self.state not in MAY_SEND:
            why = self.error.value if self.error else "closed"
            raise LocalError(f"write to {self.local} -> {self.remote}: the connection is {why}")
        buffer = self.send_buffer
        room = self.config.send_buffer - buffer.length
        n = len(data)
        if n > room:
            self.wants_room = True
            n = max(room, 0)
            data = memoryview(data)[:n]
        if not n:
            return 0
        if type(data) is not bytes and not (type(data) is memoryview and data.readonly):
            data = bytes(data)
        buffer.append(data)
        if not self.dirty:
            self.mark()
        return n

    @property
    def readable(self) -> int:
        """Bytes that may be read."""
        return self.receive_buffer.readable

    @property
    def remote_closed(self) -> bool:
        """Whether the peer's FIN has arrived in order: behind `readable` bytes comes nothing."""
        return self.fin_received

    def read(self, n: int | None = None) -> bytes | memoryview:
        """The next piece of what arrived, at most `n` bytes; empty when there is none."""
        piece = self.receive_buffer.read(n)
        if len(piece):
            self._window_opened()
        return piece

    def peek(self, n: int) -> list[memoryview]:
        """The first `n` readable bytes as views, left in the buffer."""
        return self.receive_buffer.peek(n)

    def consume(self, n: int) -> None:
        """Drop the first `n` readable bytes, which opens the window."""
        self.receive_buffer.consume(n)
        self._window_opened()

    def _window_opened(self) -> None:
        """Tell the peer when the window has become worth it (RFC 9293 3.8.6.2.2)."""
        left = self.rcv_adv - self.rcv_nxt
        gain = self.capacity - self.receive_buffer.readable - left
        enough = gain >= self.capacity // 2 or (gain >= 2 * self.mss and gain >= left)
        if enough and not self.fin_received and self.state is not State.CLOSED:
            self.ack_now = True
            self.mark()

    def close(self) -> None:
        """Send a FIN after what is queued. Harmless when closed already."""
        self.user_closed = True
        state = self.state
        if state in (State.CLOSED, State.LISTEN) or self.fin_queued:
            return
        if state is State.SYN_SENT:
            self.step(On.CLOSE)
            self.finish()
        elif self.deferred:
            self.refuse()
        else:
            self.fin_queued = True
            if state is not State.SYN_RECEIVED:  # there it waits for ESTABLISHED
                self.step(On.CLOSE)
            self.mark()

    def discard_input(self) -> None:
        """Nobody will read: drop what there is; more data from the peer is answered by RST."""
        self.discarding = True
        self.receive_buffer.clear()
        if self.state is State.FIN_WAIT_2:
            self.host.fin_wait_2(self)
        self._window_opened()

    def abort(self) -> None:
        """Drop everything; the peer gets a RST (3.10.5)."""
        if self.state in (State.CLOSED, State.LISTEN):
            return
        # RST is not for SYN-SENT, nor where both FINs have been seen.
        silent = (State.SYN_SENT, State.TIME_WAIT)
        self.reset_due = self.state not in silent and not self.deferred
        self.step(On.ABORT)
        self.finish()

    def set_nodelay(self, on: bool) -> None:
        """Nagle's algorithm (RFC 9293 3.7.4): off when `on`."""
        self.nodelay = on
        self.mark()

    def set_keepalive(
        self, idle: int | None, interval: int | None = None, probes: int | None = None
    ) -> None:
        """Probe a peer that was silent for `idle` ns (RFC 9293 3.8.4); None: never."""
        self.keepalive_idle = idle
        self.keepalive_interval = interval or self.keepalive_interval
        self.keepalive_limit = probes or self.keepalive_limit
        self.keepalive_at = None if idle is None else self.last_received_at + idle
        self.mark()

    # ---- a SYN that nobody listened for

    def accept(self) -> None:
        """Answer the deferred SYN."""
        if self.deferred:
            self.deferred = False
            self.syn_due = True
            self.mark()

    def refuse(self) -> None:
        """Answer the deferred SYN by RST."""
        if self.deferred:
            self.deferred = False
            self.reset_due = True
            self.step(On.ABORT)
            self.finish()

    def ignore(self) -> None:
        """Forget the deferred SYN; should it come again, the hook is asked again."""
        if self.deferred:
            self.deferred = False
            self.step(On.ABORT)
            self.finish()

    # ---- for the other files of this package

    def step(self, on: On) -> None:
        """The only way to another state."""
        to = TRANSITIONS.get((self.state, on))
        assert to is not None, f"{self}: no transition on {on.value}"
        self.state = to

    def mark(self) -> None:
        """Something may be there to send."""
        if not self.dirty:
            self.dirty = True
            self.host.dirty.append(self)

    def post(self, event: Event) -> None:
        """Tell the user, unless he has been told and has not listened yet."""
        if event in self._events or self._closed_posted:
            return
        self._closed_posted = event is Event.CLOSED
        self._events.append(event)
        self._announce()

    def _announce(self) -> None:
        if not self.announced:
            self.announced = True
            self.host.eventful.append(self)

    def next_event(self) -> Event | None:
        """The oldest event not yet delivered."""
        return self._events.popleft() if self._events else None

    def fail(self, reason: Event, on: On) -> None:
        """It ended badly."""
        self.error = reason
        self.step(on)
        self.post(reason)
        self.finish()

    def finish(self) -> None:
        """It is CLOSED: stop all clocks, drop what was queued, leave the host's table."""
        self.timer = None
        self.delayed_ack_at = self.keepalive_at = self.time_wait_at = None
        self.ack_now = self.syn_due = self.deferred = False
        self.send_buffer.clear()
        self.scoreboard.clear()
        self.host.forget(self)
        self.post(Event.CLOSED)
        if self.reset_due:
            self.mark()

    @property
    def unsent(self) -> int:
        """Bytes written that were never sent."""
        if self.fin_sequence is not None:
            return 0
        return self.send_buffer.end - self.snd_nxt

    @property
    def pipe(self) -> int:
        """Bytes thought to be in flight; without SACK a duplicate ACK stands for a segment."""
        pipe = self.scoreboard.pipe
        return max(0, pipe - self.dupacks * self.mss) if self.dupacks else pipe

    def timestamp(self, now: int) -> int:
        """TSval: milliseconds from a secret origin (RFC 7323 5.4)."""
        return (now // 1_000_000 + self.ts_offset) & 0xFFFF_FFFF

    def set_mss(self) -> None:
        """Take SndMSS from the peer's MSS, the path's MTU and the options (RFC 6691)."""
        headers = 40 if len(self.local.address) == 4 else 60
        mss = min(self.peer_mss, self.mtu - headers) - (12 if self.timestamps else 0)
        self.mss = self.congestion.mss = max(mss, 48)  # room for SACK blocks beside data

    def start_timer(self, timer: Timer, at: int) -> None:
        """Run the retransmission timer until `at`, as `timer`."""
        self.timer, self.timer_at = timer, at

    def deadline(self) -> int | None:
        """When `timers` has something to do, ns."""
        at = self.timer_at if self.timer is not None else None
        for other in (self.delayed_ack_at, self.keepalive_at, self.time_wait_at):
            if other is not None and (at is None or other < at):
                at = other
        return at
