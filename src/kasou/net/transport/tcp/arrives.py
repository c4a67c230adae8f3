"""SEGMENT ARRIVES (RFC 9293 3.10.7), in the specification's order, with RFC 5961 and RFC 7323.

`listen` (3.10.7.2) begins a connection, `syn_sent` is 3.10.7.3, `otherwise` 3.10.7.4 with its steps
first to eighth. 3.10.7.1, CLOSED, is the host's, which knows that there is no connection.
"""

from __future__ import annotations

from kasou.net.transport.tcp import options
from kasou.net.transport.tcp.acknowledgment import ack_now, acknowledge, challenge
from kasou.net.transport.tcp.connection import Connection
from kasou.net.transport.tcp.event import Event
from kasou.net.transport.tcp.sequence import is_before, unwrap
from kasou.net.transport.tcp.state import MAY_RECEIVE, On, State
from kasou.net.wire.tcp import ACK, CWR, FIN, RST, SYN, TcpSegment

_IDLE_TIMESTAMP = 24 * 24 * 3600 * 1_000_000_000
"""After so long without a segment TS.Recent says nothing (RFC 7323 5.5), ns."""
_CONGESTION_EXPERIENCED = 3


def segment_arrives(c: Connection, s: TcpSegment, ecn: int, now: int) -> None:
    """Process one segment of `c`."""
    c.last_received_at = now
    if c.keepalive_idle is not None:
        c.keepalive_at = now + c.keepalive_idle
        c.keepalive_sent = 0
    if c.state is State.SYN_SENT:
        syn_sent(c, s, now)
    else:
        otherwise(c, s, ecn, now)


def listen(c: Connection, s: TcpSegment, now: int) -> None:
    """3.10.7.2: a SYN for a new connection, which the caller has checked to be just that."""
    c.step(On.PASSIVE_OPEN)
    c.step(On.SYN)
    c.last_received_at = now
    options.take(c, s, now)
    c.snd_wnd = c.max_snd_wnd = s.window  # the window of a SYN is never scaled
    c.snd_wl1, c.snd_wl2 = c.irs, c.iss


def syn_sent(c: Connection, s: TcpSegment, now: int) -> None:
    """3.10.7.3."""
    flags = s.flags
    acceptable = False
    if flags & ACK:  # first
        ack = unwrap(s.acknowledgment, c.snd_una)
        if not c.iss < ack <= c.snd_nxt:
            if not flags & RST:
                c.host.reply_reset(c.local, c.remote, s)
            return
        acceptable = True
    if flags & RST:  # second
        if acceptable:
            c.fail(Event.REFUSED, On.RST)
        return
    if not flags & SYN:  # third (security) is obsolete; fifth
        return
    if acceptable and not c.retries:
        c.rtt.sample(now - c.last_sent_at, now)
    options.take(c, s, now)  # fourth
    c.snd_wnd = c.max_snd_wnd = s.window
    c.snd_wl1 = c.irs
    c.retries = 0
    if acceptable:
        c.snd_una = c.snd_wl2 = c.snd_nxt
        c.timer = None
        c.step(On.SYN_ACK)
        c.ack_now = True
        _established(c)
        rest = s.flags & (FIN | ACK)
        if len(s.payload) or rest & FIN:
            _text(c, c.rcv_nxt, s.payload, bool(s.flags & FIN), now)
    else:  # simultaneous open
        c.step(On.SYN)
        c.syn_due = True
    c.mark()


def _established(c: Connection) -> None:
    c.post(Event.ESTABLISHED)
    if c.keepalive_idle is not None:
        c.keepalive_at = c.last_received_at + c.keepalive_idle
    if c.fin_queued:
        c.step(On.CLOSE)
    c.mark()


def otherwise(c: Connection, s: TcpSegment, ecn: int, now: int) -> None:
    """3.10.7.4, all other states."""
    flags = s.flags
    payload = s.payload
    length = len(payload)
    seq = unwrap(s.sequence, c.rcv_nxt)
    if c.state is State.SYN_RECEIVED and flags & (SYN | RST) == SYN and seq == c.irs:
        if not flags & ACK:
            if not c.deferred:  # it did not get our SYN-ACK
                c.syn_due = True
                c.mark()
            return
        # Simultaneous open (3.5, figure 7): the SYN has been seen, the ACK is news.
        flags &= ~SYN
        seq += 1
        ack_now(c)

    # PAWS comes before the sequence check (RFC 7323 5.3).
    timestamps = s.timestamps
    if c.timestamps and not flags & RST:
        if timestamps is None:
            c.host.statistics.without_timestamp += 1
            return  # RFC 7323 3.2: silently
        if (
            is_before(timestamps[0], c.ts_recent)
            and c.ts_recent_at is not None
            and now - c.ts_recent_at < _IDLE_TIMESTAMP
        ):
            c.host.statistics.paws_dropped += 1
            _duplicate(c, seq, length)
            ack_now(c)
            return

    # first, check sequence number
    occupied = length + (1 if flags & SYN else 0) + (flags & FIN)
    end = seq + occupied
    # A pure ACK behind data that fills the window stands at its right edge.
    acceptable = seq < c.rcv_adv and end > c.rcv_nxt if occupied else c.rcv_nxt <= seq <= c.rcv_adv
    if not acceptable:
        if flags & RST:
            return
        if c.state is State.TIME_WAIT and flags & FIN:
            c.host.time_wait(c, now)
        # Otherwise two ends that disagree would answer each other for ever.
        if occupied or seq == c.rcv_nxt - 1 or c.host.may_challenge(now):
            _duplicate(c, seq, length)
            ack_now(c)
        # What it acknowledges is as true as ever: an ACK that was overtaken by data.
        if flags & ACK and not flags & SYN and seq < c.rcv_nxt and c.state in _DATA_STATES:
            ack = unwrap(s.acknowledgment, c.snd_una)
            if c.snd_una < ack <= c.snd_nxt:
                acknowledge(c, s, seq, ack, now)
        return
    if timestamps is not None and c.timestamps and seq <= c.last_ack_sent:
        c.ts_recent, c.ts_recent_at = timestamps[0], now

    # second, check the RST bit (RFC 5961 3.2)
    if flags & RST:
        if seq != c.rcv_nxt:
            challenge(c, now)
        elif c.state is State.TIME_WAIT or (
            c.state is State.SYN_RECEIVED and c.listener is not None
        ):
            c.step(On.RST)
            c.finish()
        else:
            c.fail(Event.RESET, On.RST)
        return

    # fourth, check the SYN bit (RFC 5961 4.2)
    if flags & SYN:
        challenge(c, now)
        return

    # fifth, check the ACK field
    if not flags & ACK or c.deferred:
        return
    ack = unwrap(s.acknowledgment, c.snd_una)
    if c.state is State.SYN_RECEIVED:
        if not c.snd_una < ack <= c.snd_nxt:
            c.host.reply_reset(c.local, c.remote, s)
            return
        _syn_acknowledged(c, s, seq, ack, now)
    if not acknowledge(c, s, seq, ack, now) or c.state in (State.CLOSED, State.TIME_WAIT):
        return

    # sixth, the URG bit: urgent data is in line (RFC 6093 6); seventh, text; eighth, FIN
    if c.ecn:
        if flags & CWR:
            c.ece_due = False
        if ecn == _CONGESTION_EXPERIENCED:
            c.ece_due = True
            ack_now(c)
    if length or flags & FIN:
        _text(c, seq, payload, bool(flags & FIN), now)


_DATA_STATES = frozenset(
    {
        State.ESTABLISHED,
        State.FIN_WAIT_1,
        State.FIN_WAIT_2,
        State.CLOSE_WAIT,
        State.CLOSING,
        State.LAST_ACK,
    }
)


def _duplicate(c: Connection, seq: int, length: int) -> None:
    if length and seq < c.rcv_nxt:
        c.receive_buffer.duplicate = (seq, min(seq + length, c.rcv_nxt))


def _syn_acknowledged(c: Connection, s: TcpSegment, seq: int, ack: int, now: int) -> None:
    if not c.retries:
        c.rtt.sample(now - c.last_sent_at, now)
    c.retries = 0
    c.timer = None
    c.snd_una = c.iss + 1
    c.snd_wnd = s.window << c.snd_scale
    c.max_snd_wnd = max(c.max_snd_wnd, c.snd_wnd)
    c.snd_wl1, c.snd_wl2 = seq, ack
    c.step(On.ACK_OF_SYN)
    _established(c)


def _text(c: Connection, seq: int, payload: bytes | memoryview, fin: bool, now: int) -> None:
    """The seventh and eighth step."""
    if c.state not in MAY_RECEIVE:
        if c.state is State.TIME_WAIT and fin:
            c.host.time_wait(c, now)
        return  # "This should not occur since a FIN has been received": ignored
    buffer = c.receive_buffer
    end = seq + len(payload)
    if c.discarding and len(payload) and end > c.rcv_nxt and c.user_closed:
        # RFC 9293 3.6.1: data that nobody can read any more is answered by a reset.
        c.reset_due = True
        c.fail(Event.RESET, On.ABORT)
        return
    if end > c.rcv_adv:
        payload = payload[: c.rcv_adv - seq]
        end = c.rcv_adv
        fin = False
    if fin:
        c.rcv_fin = end
    arrived = False
    length = len(payload)
    if length:
        view = payload if type(payload) is memoryview else memoryview(payload)
        gap = buffer.has_gap
        arrived = buffer.insert(seq, view)
        c.rcv_nxt = buffer.next
        if arrived and not gap:
            c.unacknowledged += length
            if c.unacknowledged >= 2 * c.mss:
                c.ack_now = True
            elif c.delayed_ack_at is None:
                c.delayed_ack_at = now + c.config.delayed_ack
        else:  # RFC 5681 4.2: what is out of order, and what fills a gap, at once
            c.ack_now = True
        if arrived:
            if c.discarding:
                buffer.clear()
            else:
                c.post(Event.READABLE)
    if c.rcv_fin is not None and c.rcv_nxt == c.rcv_fin and not c.fin_received:
        c.rcv_nxt += 1
        c.fin_received = True
        c.ack_now = True
        c.post(Event.REMOTE_CLOSED)
        c.step(On.FIN)
        if c.state is State.TIME_WAIT:
            c.host.time_wait(c, now)
    elif fin:
        c.ack_now = True
    if c.ack_now:
        c.mark()
