"""The ACK field (RFC 9293 3.10.7.4, fifth step): what the peer has, how much more it takes.

Removes what was acknowledged, measures the round trip, takes SACK blocks and the window, and hands
the rest to `recovery`.
"""

from __future__ import annotations

from kasou.net.transport.tcp import recovery
from kasou.net.transport.tcp.connection import Connection, Timer
from kasou.net.transport.tcp.event import Event
from kasou.net.transport.tcp.scoreboard import Sent
from kasou.net.transport.tcp.sequence import MASK, unwrap
from kasou.net.transport.tcp.state import On, State
from kasou.net.wire.tcp import ECE, TcpSegment


def ack_now(c: Connection) -> None:
    """Answer with an ACK, alone if nothing else is sent."""
    c.ack_now = True
    c.mark()


def challenge(c: Connection, now: int) -> None:
    """Answer with a challenge ACK, if there have not been too many (RFC 5961)."""
    if c.host.may_challenge(now):
        c.host.statistics.challenge_acks += 1
        ack_now(c)


def acknowledge(c: Connection, s: TcpSegment, seq: int, ack: int, now: int) -> bool:
    """The fifth step's part for the synchronized states; False when the segment is dropped."""
    if ack > c.snd_nxt:
        if ack != c.probe_end:
            ack_now(c)
            return False
        c.scoreboard.send(c.snd_nxt, ack, now)  # the peer took the byte that probed its window
        c.snd_nxt = ack
    if ack < c.snd_una - c.max_snd_wnd:  # RFC 5961 5.2
        challenge(c, now)
        return False
    una = c.snd_una
    board = c.scoreboard
    delivered: list[Sent] = []
    dsack: tuple[int, int] | None = None
    n = ack - una
    if n > 0:
        retransmitted = board.retransmitted
        delivered = board.acknowledge(ack)
        c.snd_una = ack
        buffer = c.send_buffer
        buffer.acknowledge(min(ack, buffer.end))
        c.retries = 0
        c.probe_end = None
        _measure(c, s, delivered, retransmitted, now)
        if c.wants_room and 3 * (c.config.send_buffer - buffer.length) >= c.config.send_buffer:
            c.wants_room = False
            c.post(Event.WRITABLE)
    else:
        n = 0
    if s.sack and c.sack:
        dsack = _sacked(c, s, ack, delivered)
    window = s.window << c.snd_scale
    window_changed = False
    if ack >= una and (c.snd_wl1 < seq or (c.snd_wl1 == seq and c.snd_wl2 <= ack)):
        window_changed = window != c.snd_wnd
        c.snd_wnd = window
        c.snd_wl1, c.snd_wl2 = seq, ack
        if window > c.max_snd_wnd:
            c.max_snd_wnd = window
    if c.timer is Timer.PERSIST:
        c.retries = 0
        if window_changed:
            c.timer = None
            c.rtt.restore()
    elif not window:
        c.retries = 0
    if c.ecn and s.flags & ECE and ack > c.ecn_point and c.recovery_point is None:
        c.ecn_point = c.snd_nxt
        c.cwr_due = True
        c.congestion.congested(board.outstanding, now)
    if n or delivered or dsack or c.tlp_end is not None:
        tsecr = s.timestamps[1] if s.timestamps is not None else None
        recovery.acknowledged(c, delivered, n, dsack, tsecr, now)
        if (n or delivered) and c.timer is not Timer.REORDERING:
            recovery.arm(c, now)
        c.mark()
    elif window_changed:
        c.mark()
    elif not c.sack and board.outstanding and ack == una and not s.length:
        recovery.duplicate_ack(c, now)
    if n and c.fin_sequence is not None and ack > c.fin_sequence:
        _fin_acknowledged(c, now)
    return True


def _fin_acknowledged(c: Connection, now: int) -> None:
    c.step(On.ACK_OF_FIN)
    if c.state is State.FIN_WAIT_2:
        if c.discarding:
            c.host.fin_wait_2(c)
    elif c.state is State.TIME_WAIT:
        c.host.time_wait(c, now)
    else:
        c.finish()


def _measure(
    c: Connection, s: TcpSegment, delivered: list[Sent], retransmitted: int, now: int
) -> None:
    if not retransmitted:
        if delivered:
            c.rtt.sample(now - delivered[0].sent_at, now)
    elif c.timestamps and s.timestamps is not None and s.timestamps[1]:
        elapsed = (c.timestamp(now) - s.timestamps[1]) & MASK
        if elapsed < 1 << 20:  # an echo of something absurdly old is a forgery or a bug
            c.rtt.sample(max(elapsed, 1) * 1_000_000, now)


def _sacked(
    c: Connection, s: TcpSegment, ack: int, delivered: list[Sent]
) -> tuple[int, int] | None:
    """Mark what the SACK blocks say; the D-SACK block if the first is one (RFC 2883 5)."""
    dsack: tuple[int, int] | None = None
    for i, (left, right) in enumerate(s.sack):
        start, end = unwrap(left, ack), unwrap(right, ack)
        if start >= end or end > c.snd_nxt:
            continue
        if i == 0 and (start < ack or _is_inside(c, s, start, end, ack)):
            dsack = (start, end)
            continue
        if start >= c.snd_una:
            delivered += c.scoreboard.sack(start, end)
    return dsack


def _is_inside(c: Connection, s: TcpSegment, start: int, end: int, ack: int) -> bool:
    if len(s.sack) < 2:
        return False
    left, right = s.sack[1]
    return unwrap(left, ack) <= start and end <= unwrap(right, ack)
