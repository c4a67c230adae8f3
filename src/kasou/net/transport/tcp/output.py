"""What leaves, when a connection is visited: opening, losses, new data, FIN, and ACKs last.

Every segment carries the current acknowledgment and window, so a separate ACK is made only when
nothing else took it along. Data leaves in units of many segments (`gso_size`).
"""

from __future__ import annotations

from kasou.net.transport.tcp import options, recovery
from kasou.net.transport.tcp.connection import Connection, Timer
from kasou.net.transport.tcp.segment import OutgoingSegment
from kasou.net.transport.tcp.sequence import wrap
from kasou.net.transport.tcp.state import State
from kasou.net.wire.tcp import (
    ACK,
    CHECKSUM_OFFSET,
    CWR,
    ECE,
    FIN,
    FIXED,
    PSH,
    RST,
    TIMESTAMPS_ALIGNED,
    WITH_TIMESTAMPS,
    TcpSegment,
    emit_header,
)

_NOT_ECT, _ECT0 = 0, 2


def output(c: Connection, now: int, out: list[OutgoingSegment], limit: int) -> bool:
    """Append what `c` may send now to `out`, at most about `limit` segments; False: more waits."""
    state = c.state
    if c.reset_due:
        c.reset_due = False
        _emit(c, c.snd_nxt, 0, RST | ACK, now, out)
        return True
    if state is State.CLOSED:
        return True
    if c.syn_due:
        _send_syn(c, now, out)
        return True
    if state is State.SYN_SENT or state is State.SYN_RECEIVED:
        if c.ack_now and state is State.SYN_RECEIVED and not c.deferred:
            _emit(c, c.snd_nxt, 0, ACK, now, out)
        return True
    limit += len(out)
    before = len(out)
    done = True
    if c.scoreboard.lost:
        done = _retransmit(c, now, out, limit)
    if c.unsent or (c.fin_queued and c.fin_sequence is None):
        _after_idle(c, now)
        done = _send_new(c, now, out, limit) and done
    elif c.snd_una == c.snd_nxt:
        c.cwnd_limited = False
    if c.probe_due:
        _probe(c, now, out)
    if c.keepalive_due:
        c.keepalive_due = False
        _emit(c, c.snd_una - 1, 0, ACK, now, out)
    if len(out) == before and c.ack_now:
        _emit(c, c.snd_nxt, 0, ACK, now, out)
    return done


def _send_syn(c: Connection, now: int, out: list[OutgoingSegment]) -> None:
    c.syn_due = False
    segment = options.offer(c, now)
    segment.checksum = _pseudo(c, 0)
    header = emit_header(segment)
    segment.checksum = _pseudo(c, len(header))
    header = emit_header(segment)
    c.snd_nxt = c.iss + 1
    c.last_sent_at = now
    c.ack_now = False
    c.start_timer(Timer.SYN, now + c.rtt.rto)
    out.append(OutgoingSegment(c.local.address, c.remote.address, header, (), len(header)))


def _retransmit(c: Connection, now: int, out: list[OutgoingSegment], limit: int) -> bool:
    board = c.scoreboard
    while (i := board.first_lost()) is not None:
        if len(out) >= limit:
            return False
        record = board.records[i]
        room = c.congestion.cwnd - c.pipe
        if c.force_retransmit:
            room = max(room, c.mss)
            c.force_retransmit = False
        if room < min(c.mss, record.size):
            c.cwnd_limited = True
            return True
        size = _whole(min(record.size, room, _unit(c)), record.size, c.mss)
        if size < record.size:
            board.split(i, record.start + size)
        _send_record(c, record.start, record.end, now, out)
        board.resend(record, now)
        c.host.statistics.retransmitted += 1
        if c.timer is None or c.timer is Timer.PERSIST:
            recovery.arm(c, now)
    return True


def _unit(c: Connection) -> int:
    return max(c.config.max_unit // c.mss * c.mss, c.mss) if c.config.gso else c.mss


def _whole(n: int, available: int, mss: int) -> int:
    """`n` cut to whole segments, unless it is all there is or less than one."""
    return n if n == available or n < mss else n // mss * mss


def _send_record(c: Connection, start: int, end: int, now: int, out: list[OutgoingSegment]) -> None:
    """Sequence numbers [start, end), of which the last may be the FIN."""
    data_end = min(end, c.send_buffer.end)
    flags = ACK | FIN if end > data_end else ACK
    if data_end == c.send_buffer.end and data_end > start:
        flags |= PSH
    _emit(c, start, data_end - start, flags, now, out)


def _after_idle(c: Connection, now: int) -> None:
    if c.snd_una == c.snd_nxt and now - c.last_sent_at > c.rtt.rto:
        c.congestion.idle((now - c.last_sent_at) // c.rtt.rto)


def _send_new(c: Connection, now: int, out: list[OutgoingSegment], limit: int) -> bool:
    mss = c.mss
    unit = _unit(c)
    start = c.snd_nxt
    c.cwnd_limited = False
    while True:
        unsent = c.unsent
        fin = c.fin_queued and c.fin_sequence is None
        if not unsent and not fin:
            break
        if len(out) >= limit:
            return False
        usable = c.snd_una + c.snd_wnd - c.snd_nxt
        room = c.congestion.cwnd - c.pipe
        size = min(unsent, usable, room, unit)
        if room < min(unsent, mss) or (not unsent and room <= 0 and c.pipe):
            c.cwnd_limited = True
            break
        if unsent > room:
            c.cwnd_limited = True
        if not _worth_sending(c, size, unsent, usable, unit):
            break
        size = _whole(size, unsent, mss)
        with_fin = fin and size == unsent and usable > size
        end = c.snd_nxt + size + with_fin
        if with_fin:
            c.fin_sequence = end - 1
        c.scoreboard.send(c.snd_nxt, end, now)
        c.snd_nxt = end
        _send_record(c, end - size - with_fin, end, now, out)
        c.last_sent_at = now
    if c.snd_nxt != start:
        running = c.timer is Timer.RTO and c.recovery_point is not None
        if c.timer is not Timer.REORDERING and not running:
            recovery.arm(c, now)
    elif c.timer is None and not c.scoreboard.outstanding:
        # Nothing in flight will bring the ACK that opens the window: RFC 9293 3.8.6.1.
        c.start_timer(Timer.PERSIST, now + c.rtt.rto)
    return True


def _worth_sending(c: Connection, size: int, unsent: int, usable: int, unit: int) -> bool:
    """The sender's silly window avoidance (RFC 9293 3.8.6.2.1) with Nagle's algorithm (3.7.4).

    With whole units there is one more reason to wait: while an ACK is on its way that will allow
    more, a small part of a unit is not worth its cost.
    """
    idle = c.snd_una == c.snd_nxt
    if size < unsent and size >= c.mss:
        enough = min(unit, max(c.congestion.cwnd, c.mss) // 3, unsent)
        return size >= enough or usable < c.congestion.cwnd or not c.pipe
    if size >= c.mss:
        return True
    if size == unsent:
        if not unsent:
            return usable > 0  # a FIN
        return size > 0 and (c.nodelay or idle or c.fin_queued)
    return size > 0 and idle and 2 * size >= c.max_snd_wnd


def _probe(c: Connection, now: int, out: list[OutgoingSegment]) -> None:
    """A probe of a closed window, or of the end of a flight (RFC 8985 7.3)."""
    c.probe_due = False
    if c.timer is Timer.PERSIST:
        usable = c.snd_una + c.snd_wnd - c.snd_nxt
        if c.unsent and usable > 0:  # the override timeout of 3.8.6.2.1 (4)
            _send_small(c, min(c.unsent, usable, c.mss), now, out)
        elif c.unsent:
            # A byte beyond the window; it counts as sent only if the peer takes it.
            c.probe_end = c.snd_nxt + 1
            _emit(c, c.snd_nxt, 1, ACK, now, out)
        else:
            _emit(c, c.snd_una - 1, 0, ACK, now, out)
        return
    board = c.scoreboard
    if not board.records:
        return
    usable = c.snd_una + c.snd_wnd - c.snd_nxt
    size = min(c.unsent, c.mss)
    c.tlp_end = c.snd_nxt  # one probe at a time
    if size and size <= usable:
        _send_small(c, size, now, out)
        c.tlp_is_retransmission = False
    else:
        last = board.records[-1]
        if last.size > c.mss:
            board.split(len(board.records) - 1, last.end - c.mss)
            last = board.records[-1]
        _send_record(c, last.start, last.end, now, out)
        board.resend(last, now)
        c.host.statistics.retransmitted += 1
        c.tlp_is_retransmission = True
    c.tlp_end = c.snd_nxt


def _send_small(c: Connection, size: int, now: int, out: list[OutgoingSegment]) -> None:
    start = c.snd_nxt
    c.scoreboard.send(start, start + size, now)
    c.snd_nxt = start + size
    _send_record(c, start, start + size, now, out)
    recovery.arm(c, now)


def _window(c: Connection) -> int:
    """The window field; moves `rcv_adv`, never back (RFC 9293 3.8.6.2.2, RFC 7323 2.4)."""
    left = max(c.rcv_adv - c.rcv_nxt, 0)  # a FIN may stand just behind the edge
    room = c.capacity - c.receive_buffer.readable
    scale = c.rcv_scale
    if room - left >= min(c.capacity // 2, c.mss):
        field = min(room >> scale, 65535)
        if field << scale >= left:
            c.rcv_adv = c.rcv_nxt + (field << scale)
            return field
    return min((left + (1 << scale) - 1) >> scale, 65535)


def _pseudo(c: Connection, length: int) -> int:
    return (c.pseudo + length) % 0xFFFF


def _emit(
    c: Connection, start: int, n: int, flags: int, now: int, out: list[OutgoingSegment]
) -> None:
    """One unit: `n` bytes of the send buffer from `start` on, behind a header."""
    window = _window(c)
    ecn = _NOT_ECT
    if c.ecn:
        if c.ece_due and flags & ACK:
            flags |= ECE
        if n and start + n >= c.snd_nxt:
            ecn = _ECT0
            if c.cwr_due:
                flags |= CWR
                c.cwr_due = False
    mss = c.mss
    buffer = c.receive_buffer
    if c.sack and (buffer.has_gap or buffer.duplicate is not None):
        blocks = tuple((wrap(a), wrap(b)) for a, b in buffer.sack_blocks(3 if c.timestamps else 4))
        mss -= 4 + 8 * len(blocks)
        segment = TcpSegment(
            c.local.port,
            c.remote.port,
            wrap(start),
            wrap(c.rcv_nxt),
            flags,
            window,
            sack=blocks,
            timestamps=(c.timestamp(now), c.ts_recent) if c.timestamps else None,
        )
        header = bytearray(emit_header(segment))
        pseudo = (c.pseudo + len(header) + n) % 0xFFFF
        header[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 2] = pseudo.to_bytes(2, "big")
        head = bytes(header)
    elif c.timestamps:
        head = WITH_TIMESTAMPS.pack(
            c.local.port,
            c.remote.port,
            start & 0xFFFF_FFFF,
            c.rcv_nxt & 0xFFFF_FFFF,
            0x80,
            flags,
            window,
            (c.pseudo + 32 + n) % 0xFFFF,
            0,
            TIMESTAMPS_ALIGNED,
            (now // 1_000_000 + c.ts_offset) & 0xFFFF_FFFF,
            c.ts_recent,
        )
    else:
        head = FIXED.pack(
            c.local.port,
            c.remote.port,
            start & 0xFFFF_FFFF,
            c.rcv_nxt & 0xFFFF_FFFF,
            0x50,
            flags,
            window,
            (c.pseudo + 20 + n) % 0xFFFF,
            0,
        )
    c.ack_now = False
    c.delayed_ack_at = None
    c.unacknowledged = 0
    c.last_ack_sent = c.rcv_nxt
    out.append(
        OutgoingSegment(
            c.local.address,
            c.remote.address,
            head,
            c.send_buffer.slice(start, n) if n else (),
            len(head) + n,
            mss if n > mss else None,
            ecn,
        )
    )
