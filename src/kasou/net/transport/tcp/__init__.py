"""TCP (RFC 9293), sans-IO: bytes of segments in, bytes of segments out, time as an argument.

Addresses are packed: `bytes` of 4 (IPv4) or 16 (IPv6), `ipaddress.ip_address(x).packed`. Times are
ints in ns of one monotonic clock. An `Endpoint` is `(address: bytes, port: int)`, a named tuple.

A host has one `Tcp`:

    Tcp(rng: random.Random, *, secret: bytes | None = None, config: TcpConfig = TcpConfig(),
        mtu_to: Callable[[bytes], int] = 1500 to everyone)      # IP MTU towards a remote address

    tcp.receive(source: bytes, destination: bytes, segment: bytes | memoryview, now: int, *,
                trusted: bool = False, ecn: int = 0) -> None
        One segment (TCP header and payload, up to 64 KiB) of an IP packet. The payload is kept, not
        copied: the buffer must not change afterwards. The checksum is verified unless `trusted`
        (`Frame.trusted`, or `Frame.csum` still open). Malformed ones are counted, never raised.
    tcp.to_send(now, limit: int | None = None) -> list[OutgoingSegment]
        All that may leave now (at most about `limit` units). Call after any receive, timer or use
        of a connection: writing, reading, closing only take effect here, so one call for a whole
        batch of frames also gives one ACK for the batch.
    tcp.deadline() -> int | None ; tcp.handle_timer(now) -> None
    tcp.deliver_events() -> None
        Calls the `on_event` and `on_accept` of whatever happened. Call after `receive` and
        `handle_timer`, never inside a callback. Callbacks may use connections freely.
    tcp.connect(local: Endpoint, remote: Endpoint, now, *, options...) -> Connection
        Port 0 takes an ephemeral one. Raises `LocalError` when the pair is in use.
    tcp.listen(address: bytes | None, port: int, on_accept: Callable[[Connection], None], *,
               backlog: int = 128) -> Listener           # .address, .port, .close()
        None is any address, both families. Port 0 takes an ephemeral one. `on_accept` is called
        with ESTABLISHED connections; set their `on_event` there. Raises `LocalError` in use.
    tcp.on_unclaimed_syn: Callable[[Connection], None] | None = None
        For a gateway: a SYN to an address and port where nobody listens. The connection is in
        SYN-RECEIVED and has sent nothing; now or later (the SYN's repetitions are absorbed) call
        one of   .accept() (SYN-ACK)   .refuse() (RST)   .ignore() (silence; `.first_header` holds
        the SYN's TCP header, for an ICMP unreachable that the caller sends). It is then like any
        other; ESTABLISHED arrives as an event. With None, such a SYN is answered by RST.
    tcp.path_mtu_changed(local: Endpoint, remote: Endpoint, sequence: int, mtu: int, now)
        ICMP "fragmentation needed" / "packet too big"; `sequence` is that of the quoted header.
    tcp.unreachable(local: Endpoint, remote: Endpoint, sequence: int, now)
        ICMP destination unreachable: fails a connection that is being opened, else a soft error.
    tcp.statistics: TcpStatistics    # malformed, bad_checksum, retransmitted, resets_sent, ...
    tcp.connections: dict            # (local address, local port, remote address, remote port)

`OutgoingSegment` (named tuple), one IP packet's payload or a unit that stands for many:

    source: bytes, destination: bytes
    header: bytes            # TCP header; its checksum field holds the folded pseudo-header sum,
                             #  not complemented: what `Frame.csum` and virtio's NEEDS_CSUM want
    payload: Sequence[bytes | memoryview]      # join once with the headers below
    length: int              # of header and payload, bytes
    gso_size: int | None     # payload is to be cut into pieces of this size; None: one packet
    ecn: int                 # ECN field for the IP header (0, or 2 for ECT(0))
    .checksummed() -> bytes  # header and payload with the checksum computed (gso_size or not)
    .cut() -> list[OutgoingSegment]   # what a GSO unit means, as single packets (slow, exact)
    .csum_offset == 16

A `Connection`:

    state: State ; local: Endpoint ; remote: Endpoint
    on_event: Callable[[Connection, Event], None] | None ; owner: object     # the user's own two
    next_event() -> Event | None           # for those without on_event
    write(data) -> int          # bytes taken, as much as the send buffer has room for; `bytes` and
                                #  read-only views are kept without a copy. After a partial write
                                #  WRITABLE comes. Raises `LocalError` after close or reset.
    writable: int               # bytes that write would take now
    unsent_or_unacknowledged: int
    read(n: int = all) -> bytes | memoryview   # next piece, at most n bytes; b"" when there is
                                #  none. Reading opens the receive window: what is not read holds
                                #  the peer back.
    peek(n) -> list[memoryview] ; consume(n)   # the same in two steps, for socket.sendmsg(views):
                                #  only what the host took is consumed
    readable: int               # bytes
    remote_closed: bool         # FIN seen and all data before it read or readable
    close()                     # FIN after the queued data; reading goes on (half-close)
    abort()                     # RST, everything is dropped
    set_nodelay(bool) ; set_keepalive(idle_ns: int | None, interval_ns, probes)
    error: Event | None         # RESET, TIMED_OUT, UNREACHABLE, REFUSED once it failed

    `close()` by a user who will not read any more: also call `discard_input()`; later data is then
    answered by RST as a Unix `close` does.

Events, each at most once while undelivered:

    ESTABLISHED     opened (active, accepted, or deferred)
    READABLE        data arrived
    WRITABLE        a write was short, and now there is room for at least a third of the buffer
    REMOTE_CLOSED   the peer's FIN has arrived in order, after READABLE for what came before
    RESET / TIMED_OUT / UNREACHABLE / REFUSED     it failed; CLOSED follows at once
    CLOSED          the last event, exactly once: no more data in either direction (a connection in
                    TIME-WAIT says CLOSED when it enters it; nothing is left for the user to do)

Reading order: `state`, `sequence`, `config`, `event`, `segment`, `send_buffer`, `receive_buffer`,
`congestion`, `cubic`, `rto`, `scoreboard`, `rack`, `connection`, `options`, `recovery`,
`acknowledgment`, `arrives`, `output`, `timers`, `host`.
"""

from kasou.net.transport.tcp.config import TcpConfig
from kasou.net.transport.tcp.connection import Connection
from kasou.net.transport.tcp.event import Event
from kasou.net.transport.tcp.host import Listener, Tcp, TcpStatistics
from kasou.net.transport.tcp.segment import Endpoint, OutgoingSegment
from kasou.net.transport.tcp.state import State

__all__ = [
    "Connection",
    "Endpoint",
    "Event",
    "Listener",
    "OutgoingSegment",
    "State",
    "Tcp",
    "TcpConfig",
    "TcpStatistics",
]
