"""What may be chosen about a host's TCP, with the defaults and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

MS = 1_000_000
SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """Sizes in bytes, times in ns."""

    receive_buffer: int = 1 << 20
    send_buffer: int = 1 << 20
    congestion: str = "cubic"
    """`cubic` (RFC 9438) or `newreno` (RFC 5681, 6582)."""
    gso: bool = True
    """Whether data leaves in units of many segments, to be cut later."""
    max_unit: int = 65535 - 20 - 60
    """Payload of a unit at most: the whole must fit IPv4's length field."""
    nodelay: bool = True
    """Nagle's algorithm off. Both users here, sockets of asyncio and the gateway, want that."""
    window_scale: bool = True
    timestamps: bool = True
    sack: bool = True
    ecn: bool = False
    delayed_ack: int = 40 * MS
    """RFC 9293 3.8.6.3 allows 500 ms; Linux waits 40."""
    initial_rto: int = SECOND
    min_rto: int = 200 * MS
    """RFC 6298 says 1 s and allows less; Linux's value."""
    max_rto: int = 60 * SECOND
    retries: int = 15
    """Retransmissions of the same data before giving up (R2, RFC 9293 3.8.3)."""
    syn_retries: int = 6
    msl: int = 30 * SECOND
    """Half of TIME-WAIT. RFC 9293 says 2 minutes; 60 s in TIME-WAIT is Linux's choice."""
    fin_wait_2: int = 60 * SECOND
    """How long a connection whose user will read no more waits for the peer's FIN."""
    keepalive: int | None = None
    """Idle time before the first probe; None: no keepalives."""
    keepalive_interval: int = 75 * SECOND
    keepalive_probes: int = 9
    challenge_acks: int = 100
    """At most so many challenge ACKs a second over all connections (RFC 5961 7)."""
