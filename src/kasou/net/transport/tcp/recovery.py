"""Loss recovery: what an ACK, or its absence, says of what is in flight.

With SACK, RACK decides what is lost and a tail loss probe (RFC 8985) makes the receiver speak when
the end of a flight is lost; without, duplicate ACKs do (NewReno, RFC 6582). An episode begins with
the first loss, shrinks the window once, and ends when everything sent before it is acknowledged
(`recovery_point`). `in_loss`: the episode began with a timeout and grows the window from one
segment. A first ACK that answers the original and not the retransmission shows that the episode
was a mistake (Eifel, RFC 3522): the window is restored.
"""

from __future__ import annotations

from collections.abc import Sequence

from kasou.net.transport.tcp.connection import Connection, Timer
from kasou.net.transport.tcp.scoreboard import Sent
from kasou.net.transport.tcp.sequence import is_before
from kasou.net.transport.tcp.state import State

_DUP_THRESH = 3
_MS = 1_000_000


def acknowledged(
    c: Connection,
    delivered: Sequence[Sent],
    n: int,
    dsack: tuple[int, int] | None,
    tsecr: int | None,
    now: int,
) -> None:
    """An ACK moved `snd_una` by `n` bytes and delivered records (sacked ones among them)."""
    board = c.scoreboard
    in_recovery = c.recovery_point is not None
    if c.undo_stamp is not None and c.snd_una > c.undo_after:
        _eifel(c, tsecr)
    if c.sack:
        c.rack.deliver(delivered, now, c.rtt)
        if dsack is not None:
            c.rack.saw_dsack(c.snd_una, c.snd_nxt)
        if c.tlp_end is not None:
            _tail_probe_answered(c, dsack, bool(delivered), n, now)
        if board.sacked or board.retransmitted:
            detect_losses(c, now)
    elif in_recovery and n:
        c.dupacks = max(0, c.dupacks - n // c.mss)
        partial = c.recovery_point is not None and c.snd_una < c.recovery_point
        if partial and not c.in_loss and board.records:
            _lose_head(c)  # the next hole
            c.force_retransmit = True
    elif n:
        c.dupacks = 0
    if c.recovery_point is not None and n and c.snd_una >= c.recovery_point:
        c.recovery_point = None
        c.in_loss = False
        c.dupacks = 0
        c.undo_stamp = None
        c.rack.recovered()
    if n and c.cwnd_limited and (c.recovery_point is None or c.in_loss):
        c.congestion.acknowledged(n, now, c.rtt.srtt or 0)


def duplicate_ack(c: Connection, now: int) -> None:
    """A duplicate ACK (RFC 5681 2) on a connection without SACK."""
    c.dupacks += 1
    if c.recovery_point is None and c.dupacks >= _DUP_THRESH:
        _lose_head(c)
        _enter(c, now)
    c.mark()


def _lose_head(c: Connection) -> None:
    board = c.scoreboard
    if board.records[0].size > c.mss:
        board.split(0, board.records[0].start + c.mss)
    board.lose(board.records[0])


def detect_losses(c: Connection, now: int) -> None:
    """RFC 8985 6.2 step 5, and the timer for what reordering leaves open."""
    board = c.scoreboard
    in_recovery = c.recovery_point is not None
    window = c.rack.window(in_recovery, board.sacked // c.mss, c.rtt)
    before = board.lost
    again = c.rack.detect(board, window, now)
    if board.lost > before:
        if not in_recovery:
            _enter(c, now)
        c.mark()
    if again is not None:
        c.start_timer(Timer.REORDERING, again)
    elif c.timer is Timer.REORDERING:
        arm(c, now)


def _enter(c: Connection, now: int) -> None:
    c.recovery_point = c.snd_nxt
    c.force_retransmit = True  # the first goes out whatever the pipe (RFC 6675 5 (4.3))
    c.tlp_end = None
    _remember_stamp(c, now)
    c.congestion.congested(c.scoreboard.outstanding, now)


def _remember_stamp(c: Connection, now: int) -> None:
    first = c.scoreboard.first_lost()
    if c.timestamps and first is not None:
        c.undo_stamp = c.timestamp(now)
        c.undo_after = c.scoreboard.records[first].start


def _eifel(c: Connection, tsecr: int | None) -> None:
    # The answer to the retransmission echoes a timestamp of its time or later.
    stamp, c.undo_stamp = c.undo_stamp, None
    if stamp is not None and tsecr is not None and is_before(tsecr, stamp):
        c.congestion.undo()
        for record in c.scoreboard.records:
            if record.lost and not record.retransmitted:
                record.lost = False
                c.scoreboard.lost -= record.size
        c.recovery_point = None
        c.in_loss = False


def timed_out(c: Connection, now: int) -> None:
    """The RTO expired (RFC 6298 5.4 to 5.6, RFC 8985 6.3)."""
    board = c.scoreboard
    if c.retries == 1:
        c.congestion.timed_out(board.outstanding, now)
    else:
        c.congestion.cwnd = c.mss
    c.in_loss = True
    c.recovery_point = c.snd_nxt
    c.tlp_end = None
    c.dupacks = 0
    c.rtt.back_off()
    if board.records[0].sacked:
        board.forget_sacks()
    window = c.rack.window(True, 0, c.rtt)
    for i, record in enumerate(board.records):
        if i == 0 or not c.sack or record.sent_at + c.rack.rtt + window <= now:
            board.lose(record)
    if c.retries == 1:
        _remember_stamp(c, now)
    c.force_retransmit = True
    c.start_timer(Timer.RTO, now + c.rtt.rto)
    c.mark()


def arm(c: Connection, now: int) -> None:
    """(Re)start the timer after data was sent or acknowledged: a probe if one is due, else RTO."""
    board = c.scoreboard
    if not board.outstanding:
        if c.timer is not Timer.PERSIST:
            c.timer = None
        return
    rto = now + c.rtt.rto
    may_probe = c.sack and c.recovery_point is None and not board.sacked and c.tlp_end is None
    if may_probe and c.state is not State.SYN_RECEIVED and c.rtt.srtt is not None:
        probe = now + 2 * c.rtt.srtt + 2 * _MS
        if board.outstanding <= c.mss:
            probe += c.config.delayed_ack  # the ACK of a lone segment may be delayed
        if probe < rto:
            c.start_timer(Timer.PROBE, probe)
            return
    c.start_timer(Timer.RTO, rto)


def probe_tail(c: Connection, now: int) -> None:
    """The probe timer expired (RFC 8985 7.3): new data if there is any, else the last segment."""
    c.probe_due = True
    c.start_timer(Timer.RTO, now + c.rtt.rto)
    c.mark()


def _tail_probe_answered(
    c: Connection, dsack: tuple[int, int] | None, delivered: bool, n: int, now: int
) -> None:
    # RFC 8985 7.4.2
    end = c.tlp_end
    if end is None or c.snd_una < end:
        return
    if not c.tlp_is_retransmission or (dsack is not None and dsack[1] == end):
        c.tlp_end = None
    elif c.snd_una > end:
        c.tlp_end = None
        if c.recovery_point is None:  # the probe itself repaired a loss
            c.congestion.congested(c.scoreboard.outstanding, now)
    elif not n and not delivered:
        c.tlp_end = None
