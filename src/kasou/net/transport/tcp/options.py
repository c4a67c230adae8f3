"""What both sides agree on in their SYNs (RFC 9293 3.7.1; RFC 7323; RFC 2018; RFC 3168 6.1.1)."""

from __future__ import annotations

from kasou.errors import ConfigError
from kasou.net.transport.tcp.congestion import CongestionControl, NewReno
from kasou.net.transport.tcp.connection import Connection
from kasou.net.transport.tcp.cubic import Cubic
from kasou.net.transport.tcp.sequence import wrap
from kasou.net.transport.tcp.state import State
from kasou.net.wire.tcp import ACK, CWR, ECE, SYN, TcpSegment

CONTROLLERS: dict[str, type[NewReno] | type[Cubic]] = {"newreno": NewReno, "cubic": Cubic}


def controller(name: str, mss: int) -> CongestionControl:
    """The controller called `name` in `TcpConfig.congestion`. Raises `ConfigError`."""
    if name not in CONTROLLERS:
        known = ", ".join(CONTROLLERS)
        raise ConfigError(f"congestion control {name!r} is not one of {known}")
    return CONTROLLERS[name](mss)


def window_shift(capacity: int) -> int:
    """The smallest shift that fits a window of `capacity` bytes into 16 bits, at most 14."""
    return min(max(capacity.bit_length() - 16, 0), 14)


def offer(c: Connection, now: int) -> TcpSegment:
    """Our SYN, or SYN-ACK in SYN-RECEIVED, which offers only what the peer's SYN had."""
    headers = 40 if len(c.local.address) == 4 else 60
    answering = c.state is State.SYN_RECEIVED
    flags = SYN | ACK if answering else SYN
    if answering:
        if c.ecn:
            flags |= ECE
    elif c.config.ecn and c.retries == 0:
        flags |= ECE | CWR
    scale = window_shift(c.capacity) if c.config.window_scale else None
    return TcpSegment(
        c.local.port,
        c.remote.port,
        wrap(c.iss),
        wrap(c.rcv_nxt) if answering else 0,
        flags,
        min(c.capacity - c.receive_buffer.readable, 65535),
        mss=max(c.host.mtu_to(c.remote.address) - headers, 8),
        window_scale=None if answering and not c.scaling else scale,
        sack_permitted=c.sack,
        timestamps=(c.timestamp(now), c.ts_recent) if c.timestamps else None,
    )


def take(c: Connection, segment: TcpSegment, now: int) -> None:
    """The peer's SYN or SYN-ACK: initial receive sequence number, options, ECN."""
    config = c.config
    c.irs = segment.sequence
    c.rcv_nxt = c.last_ack_sent = c.irs + 1
    c.receive_buffer.next = c.rcv_nxt
    c.rcv_adv = c.rcv_nxt + min(c.capacity, 65535)
    if segment.mss is not None:
        c.peer_mss = max(segment.mss, 64)
    c.scaling = config.window_scale and segment.window_scale is not None
    if c.scaling:
        c.snd_scale = min(segment.window_scale or 0, 14)
        c.rcv_scale = window_shift(c.capacity)
    else:
        c.capacity = min(c.capacity, 65535)
    c.timestamps = config.timestamps and segment.timestamps is not None
    if segment.timestamps is not None:
        c.ts_recent, c.ts_recent_at = segment.timestamps[0], now
    c.sack = config.sack and segment.sack_permitted
    if segment.flags & ACK:
        c.ecn = config.ecn and segment.flags & (ECE | CWR) == ECE
    else:
        c.ecn = config.ecn and segment.flags & (ECE | CWR) == ECE | CWR
    c.congestion = controller(config.congestion, c.mss)
    c.set_mss()
    # Built for the mss that is now known; a lost SYN starts from one segment (RFC 5681 3.1).
    c.congestion = controller(config.congestion, c.mss)
    if c.retries:
        c.congestion.cwnd = c.mss
