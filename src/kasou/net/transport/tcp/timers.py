"""What happens when a connection's clocks run out (RFC 9293 3.10.8 and the RFCs of each)."""

from __future__ import annotations

from kasou.net.transport.tcp import recovery
from kasou.net.transport.tcp.connection import Connection, Timer
from kasou.net.transport.tcp.event import Event
from kasou.net.transport.tcp.state import On, State


def expire(c: Connection, now: int) -> None:
    """Run everything of `c` that is due."""
    if c.time_wait_at is not None and c.time_wait_at <= now:
        c.step(On.TIMEOUT)
        c.finish()
        return
    if c.delayed_ack_at is not None and c.delayed_ack_at <= now:
        c.delayed_ack_at = None
        c.ack_now = True
        c.mark()
    if c.keepalive_at is not None and c.keepalive_at <= now and not _keep_alive(c, now):
        return
    if c.timer is not None and c.timer_at <= now:
        _retransmission(c, now)


def _retransmission(c: Connection, now: int) -> None:
    timer, c.timer = c.timer, None
    if timer is Timer.REORDERING:
        recovery.detect_losses(c, now)
        if c.timer is None:
            recovery.arm(c, now)
        return
    if timer is Timer.PROBE:
        recovery.probe_tail(c, now)
        return
    if c.retries >= (c.config.syn_retries if timer is Timer.SYN else c.config.retries):
        c.fail(Event.TIMED_OUT, On.TIMEOUT)  # R2, RFC 9293 3.8.3
        return
    c.retries += 1
    if timer is Timer.SYN:
        c.rtt.back_off()
        c.syn_due = True
        c.mark()
    elif timer is Timer.PERSIST:
        c.rtt.back_off()
        c.probe_due = True
        c.start_timer(Timer.PERSIST, now + c.rtt.rto)
        c.mark()
    elif c.scoreboard.records:
        recovery.timed_out(c, now)


def _keep_alive(c: Connection, now: int) -> bool:
    """RFC 9293 3.8.4: an idle connection is asked whether it is still there."""
    if c.state not in (State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT_2):
        c.keepalive_at = None
        return True
    if c.scoreboard.outstanding or c.timer is Timer.PERSIST:  # those ask more urgently
        c.keepalive_at = now + (c.keepalive_idle or c.keepalive_interval)
        return True
    if c.keepalive_sent >= c.keepalive_limit:
        c.reset_due = True
        c.fail(Event.TIMED_OUT, On.TIMEOUT)
        return False
    c.keepalive_sent += 1
    c.keepalive_due = True
    c.keepalive_at = now + c.keepalive_interval
    c.mark()
    return True
