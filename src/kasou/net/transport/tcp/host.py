"""All of a host's TCP: which segment is whose, listeners, ports, clocks, resets (RFC 9293 3.10).

Connections that have something to send stand in `dirty`, those with news for their user in
`eventful`, and those whose clock runs in a heap; entries of the heap that a later deadline made
useless are left there and looked at again when they come up.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kasou.errors import LocalError
from kasou.net.transport.tcp import arrives, timers
from kasou.net.transport.tcp.config import TcpConfig
from kasou.net.transport.tcp.connection import Connection
from kasou.net.transport.tcp.event import Event
from kasou.net.transport.tcp.output import output
from kasou.net.transport.tcp.segment import Endpoint, OutgoingSegment
from kasou.net.transport.tcp.sequence import is_before, unwrap, wrap
from kasou.net.transport.tcp.state import On, State
from kasou.net.wire.checksum import pseudo_header
from kasou.net.wire.error import ParseError
from kasou.net.wire.tcp import (
    ACK,
    FIN,
    PROTOCOL,
    RST,
    SYN,
    TcpSegment,
    emit_header,
    is_intact,
    parse,
)

_EPHEMERAL = range(49152, 65536)
_UNLIMITED = 1 << 30
_ETHERNET_MTU = 1500

Key = tuple[bytes, int, bytes, int]
"""Local address and port, remote address and port."""


@dataclass(slots=True)
class TcpStatistics:
    """Counts of segments unless said otherwise."""

    received: int = 0
    sent: int = 0
    malformed: int = 0
    bad_checksum: int = 0
    retransmitted: int = 0
    resets_sent: int = 0
    challenge_acks: int = 0
    paws_dropped: int = 0
    without_timestamp: int = 0
    backlog_overflows: int = 0


class Listener:
    """A port that accepts connections. `address` None stands for any."""

    __slots__ = ("_host", "address", "backlog", "embryos", "on_accept", "port")

    def __init__(
        self,
        host: Tcp,
        address: bytes | None,
        port: int,
        on_accept: Callable[[Connection], None],
        backlog: int,
    ) -> None:
        self._host = host
        self.address, self.port = address, port
        self.on_accept = on_accept
        self.backlog = max(backlog, 1)
        self.embryos = 0  # connections in SYN-RECEIVED

    def close(self) -> None:
        """Stop listening. Connections being opened are reset, established ones stay."""
        self._host.unlisten(self)


class Tcp:
    """See the package docstring."""

    def __init__(
        self,
        rng: random.Random,
        *,
        secret: bytes | None = None,
        config: TcpConfig | None = None,
        mtu_to: Callable[[bytes], int] = lambda address: _ETHERNET_MTU,
    ) -> None:
        self.config = config or TcpConfig()
        self.mtu_to = mtu_to
        self.statistics = TcpStatistics()
        self.connections: dict[Key, Connection] = {}
        self.on_unclaimed_syn: Callable[[Connection], None] | None = None
        self.dirty: deque[Connection] = deque()
        self.eventful: deque[Connection] = deque()
        self._rng = rng
        self._secret = secret or rng.randbytes(32)
        self._listeners: dict[tuple[bytes | None, int], Listener] = {}
        self._replies: list[OutgoingSegment] = []
        self._clocks: list[tuple[int, int, Connection]] = []
        self._clock_number = 0
        self._challenge_second = -1
        self._challenges = 0

    # ---- segments in

    def receive(
        self,
        source: bytes,
        destination: bytes,
        segment: bytes | memoryview,
        now: int,
        *,
        trusted: bool = False,
        ecn: int = 0,
    ) -> None:
        """Process one segment; see the package docstring."""
        statistics = self.statistics
        statistics.received += 1
        try:
            s = parse(segment)
        except ParseError:
            statistics.malformed += 1
            return
        if not trusted and not is_intact(source, destination, segment):
            statistics.bad_checksum += 1
            return
        c = self.connections.get((destination, s.destination_port, source, s.source_port))
        if c is not None and c.state is State.TIME_WAIT and self._may_reopen(c, s):
            c.step(On.TIMEOUT)
            c.finish()
            c = None
        if c is None:
            self._no_connection(source, destination, s, segment, now)
            return
        arrives.segment_arrives(c, s, ecn, now)
        self._schedule(c)

    def _may_reopen(self, c: Connection, s: TcpSegment) -> bool:
        """Whether a SYN is so surely new that TIME-WAIT may end (RFC 9293 3.6.1, RFC 6191)."""
        if s.flags & (SYN | ACK | RST) != SYN:
            return False
        if c.timestamps and s.timestamps is not None and s.timestamps[0] != c.ts_recent:
            return is_before(c.ts_recent, s.timestamps[0])
        return unwrap(s.sequence, c.rcv_nxt) > c.rcv_nxt

    def _no_connection(
        self,
        source: bytes,
        destination: bytes,
        s: TcpSegment,
        segment: bytes | memoryview,
        now: int,
    ) -> None:
        """3.10.7.2 (LISTEN) and 3.10.7.1 (CLOSED)."""
        local, remote = Endpoint(destination, s.destination_port), Endpoint(source, s.source_port)
        if s.flags & RST:
            return
        listener = self._listeners.get((destination, local.port))
        if listener is None:
            listener = self._listeners.get((None, local.port))
        is_syn = s.flags & (SYN | ACK | FIN) == SYN
        if not is_syn or (listener is None and self.on_unclaimed_syn is None):
            self.reply_reset(local, remote, s)
            return
        if listener is not None and listener.embryos >= listener.backlog:
            self.statistics.backlog_overflows += 1
            return
        c = self._create(local, remote, now)
        arrives.listen(c, s, now)
        if listener is not None:
            c.listener = listener
            listener.embryos += 1
            c.syn_due = True
            c.mark()
        elif self.on_unclaimed_syn is not None:
            c.deferred = True
            c.first_header = bytes(segment[: len(segment) - len(s.payload)])
            self.on_unclaimed_syn(c)

    def _create(self, local: Endpoint, remote: Endpoint, now: int) -> Connection:
        """A connection in CLOSED with the initial sequence number of RFC 6528."""
        ports = (local.port << 16 | remote.port).to_bytes(4, "big")
        names = local.address + remote.address + ports
        digest = hashlib.blake2s(names, key=self._secret[:32]).digest()
        iss = wrap(now // 4000 + int.from_bytes(digest[:4], "big"))  # M counts every 4 us
        c = Connection(self, local, remote, iss, int.from_bytes(digest[4:8], "big"))
        self.connections[local.address, local.port, remote.address, remote.port] = c
        return c

    def reply_reset(self, local: Endpoint, remote: Endpoint, s: TcpSegment) -> None:
        """The RST for a segment that belongs to nothing (3.10.7.1)."""
        reset = TcpSegment(local.port, remote.port, 0, flags=RST)
        if s.flags & ACK:
            reset.sequence = s.acknowledgment
        else:
            reset.acknowledgment = wrap(s.sequence + s.length)
            reset.flags |= ACK
        reset.checksum = pseudo_header(local.address, remote.address, PROTOCOL, 20)
        header = emit_header(reset)
        self._replies.append(OutgoingSegment(local.address, remote.address, header, (), 20))
        self.statistics.resets_sent += 1

    # ---- segments out

    @property
    def wants_to_send(self) -> bool:
        """Whether `to_send` has something to look at."""
        return bool(self.dirty or self._replies)

    def to_send(self, now: int, limit: int | None = None) -> list[OutgoingSegment]:
        """What may leave; about `limit` units at most, the rest waits for the next call."""
        out, self._replies = self._replies, []
        room = _UNLIMITED if limit is None else limit
        dirty = self.dirty
        for _ in range(len(dirty)):
            if len(out) >= room:
                break
            c = dirty.popleft()
            c.dirty = False
            if not output(c, now, out, room - len(out)):
                c.mark()  # goes to the end of the queue: the others come first
            self._schedule(c)
        self.statistics.sent += len(out)
        return out

    # ---- time

    def _schedule(self, c: Connection) -> None:
        at = c.deadline()
        if at is not None and (c.scheduled_at is None or at < c.scheduled_at):
            c.scheduled_at = at
            self._clock_number += 1
            heapq.heappush(self._clocks, (at, self._clock_number, c))

    def deadline(self) -> int | None:
        """When `handle_timer` wants to be called, ns; None: not at all."""
        clocks = self._clocks
        while clocks:
            at, _, c = clocks[0]
            if c.scheduled_at != at:
                heapq.heappop(clocks)  # an earlier one took its place
                continue
            true = c.deadline()
            if true is not None and true <= at:
                return at
            heapq.heappop(clocks)
            c.scheduled_at = None
            self._schedule(c)
        return None

    def handle_timer(self, now: int) -> None:
        """Do what is due at `now`."""
        while (at := self.deadline()) is not None and at <= now:
            _, _, c = heapq.heappop(self._clocks)
            c.scheduled_at = None
            timers.expire(c, now)
            self._schedule(c)

    def time_wait(self, c: Connection, now: int) -> None:
        """Enter TIME-WAIT, or start it anew."""
        c.timer = c.delayed_ack_at = c.keepalive_at = None
        c.time_wait_at = now + 2 * self.config.msl
        c.post(Event.CLOSED)

    def fin_wait_2(self, c: Connection) -> None:
        """Nobody will read: do not wait for the peer's FIN for ever."""
        c.time_wait_at = c.last_received_at + self.config.fin_wait_2
        self._schedule(c)

    # ---- the user's calls

    def connect(
        self,
        local: Endpoint,
        remote: Endpoint,
        now: int,
        *,
        nodelay: bool | None = None,
    ) -> Connection:
        """Active OPEN. Port 0 of `local` takes an ephemeral one. Raises `LocalError`."""
        if not 0 < remote.port < 65536:
            raise LocalError(f"connect to {remote}: port {remote.port} is not 1 to 65535")
        if not local.port:
            local = Endpoint(local.address, self._ephemeral(local.address, remote))
        elif (*local, *remote) in self.connections:
            raise LocalError(f"connect {local} -> {remote}: the pair is in use")
        c = self._create(Endpoint(*local), Endpoint(*remote), now)
        if nodelay is not None:
            c.nodelay = nodelay
        c.last_received_at = now
        c.step(On.ACTIVE_OPEN)
        c.syn_due = True
        c.mark()
        return c

    def _ephemeral(self, address: bytes, remote: Endpoint | None) -> int:
        """A free port, chosen at random and then in turn (RFC 6056 3.3.2)."""
        first = self._rng.choice(_EPHEMERAL)
        for i in range(len(_EPHEMERAL)):
            port = _EPHEMERAL[(first + i) % len(_EPHEMERAL)]
            if remote is not None:
                if (address, port, *remote) not in self.connections:
                    return port
            elif (None, port) not in self._listeners and (address, port) not in self._listeners:
                return port
        raise LocalError("no ephemeral TCP port is free")

    def listen(
        self,
        address: bytes | None,
        port: int,
        on_accept: Callable[[Connection], None],
        *,
        backlog: int = 128,
    ) -> Listener:
        """Passive OPEN of any number of connections. Raises `LocalError` when it is in use."""
        if not port:
            port = self._ephemeral(address or b"", None)
        if not 0 < port < 65536:
            raise LocalError(f"listen: port {port} is not 1 to 65535")
        if (address, port) in self._listeners:
            raise LocalError(f"listen: TCP port {port} is in use")
        listener = Listener(self, address, port, on_accept, backlog)
        self._listeners[address, port] = listener
        return listener

    def unlisten(self, listener: Listener) -> None:
        """See `Listener.close`."""
        if self._listeners.get((listener.address, listener.port)) is not listener:
            return
        del self._listeners[listener.address, listener.port]
        for c in list(self.connections.values()):
            if c.listener is listener:
                c.abort()

    def forget(self, c: Connection) -> None:
        """`c` is CLOSED: its addresses are free."""
        key = (*c.local, *c.remote)
        if self.connections.get(key) is c:
            del self.connections[key]
        if c.listener is not None:
            c.listener.embryos -= 1
            c.listener = None

    def deliver_events(self) -> None:
        """Call the users of connections to which something happened."""
        eventful = self.eventful
        while eventful:
            c = eventful.popleft()
            c.announced = False
            listener = c.listener
            if listener is not None:
                event = c.next_event()
                assert event is Event.ESTABLISHED, f"{c}: {event}"
                c.listener = None
                listener.embryos -= 1
                listener.on_accept(c)
            while c.on_event is not None and (event := c.next_event()) is not None:
                c.on_event(c, event)

    # ---- from other layers

    def may_challenge(self, now: int) -> bool:
        """Whether one more challenge ACK may be sent in this second (RFC 5961 7)."""
        second = now // 1_000_000_000
        if second != self._challenge_second:
            self._challenge_second, self._challenges = second, 0
        self._challenges += 1
        return self._challenges <= self.config.challenge_acks

    def path_mtu_changed(
        self, local: Endpoint, remote: Endpoint, sequence: int, mtu: int, now: int
    ) -> None:
        """A router could not pass on a packet of ours; what was too long is sent again, shorter.

        Ignored unless `sequence`, from the quoted header, is in flight (RFC 5927 4.1).
        """
        c = self.connections.get((*local, *remote))
        if c is None or not c.snd_una <= unwrap(sequence, c.snd_una) < c.snd_nxt:
            return
        # Smaller IPv4 links are a forger's (RFC 5927 7.4); Linux has the same floor.
        smallest = 552 if len(local.address) == 4 else 1280
        mtu = max(mtu, smallest)
        if mtu >= c.mtu:
            return
        c.mtu = mtu
        c.set_mss()
        board = c.scoreboard
        for record in board.records:
            if record.size > c.mss:
                board.lose(record)
        c.force_retransmit = True
        c.mark()

    def unreachable(self, local: Endpoint, remote: Endpoint, sequence: int, now: int) -> None:
        """ICMP said so. Only a connection being opened gives up (RFC 5927 5.2)."""
        c = self.connections.get((*local, *remote))
        if c is None or not c.snd_una <= unwrap(sequence, c.snd_una) < c.snd_nxt:
            return
        if c.state is State.SYN_SENT:
            c.fail(Event.UNREACHABLE, On.TIMEOUT)
