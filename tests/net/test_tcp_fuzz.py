"""Segments that nearly make sense, in every state: nothing raises, and what must hold holds."""

import random

import pytest
from net.dialogue import PEER, PEER_ISN, US, Dialogue
from net.tcp_wire import check

from kasou.errors import LocalError
from kasou.net.transport.tcp import State
from kasou.net.wire import tcp as wire

EDGES = (-70000, -1001, -1, 0, 1, 2, 10, 999, 1000, 1001, 5000, 65535, 90000, 1 << 31)


def segment(rng, d):
    c = d.connection
    ours = c.snd_nxt if c else 0
    una = c.snd_una if c else 0
    theirs = c.rcv_nxt if c else PEER_ISN
    flags = rng.choice((0x10, 0x10, 0x10, 0x18, 0x11, 0x02, 0x12, 0x04, 0x14, rng.randrange(256)))
    s = wire.TcpSegment(PEER.port, US.port, (theirs + rng.choice(EDGES)) & wire_mask)
    if rng.random() < 0.6:
        s.sequence = theirs & wire_mask
    base = rng.choice((una, ours))
    s.acknowledgment = (base + (rng.choice(EDGES) if rng.random() < 0.4 else 0)) & wire_mask
    s.flags, s.window = flags, rng.choice((0, 1, 500, 8000, 65535))
    s.payload = bytes(rng.choice((0, 0, 1, 100, 1000, 3000)))
    if rng.random() < 0.7:
        s.timestamps = (
            rng.choice((1, 50, 100, 1 << 31, d.now // 1_000_000)) & wire_mask,
            d.last_ts,
        )
    if rng.random() < 0.3:
        s.sack = tuple(
            ((una + rng.choice(EDGES)) & wire_mask, (una + rng.choice(EDGES)) & wire_mask)
            for _ in range(rng.randrange(1, 4))
        )
        s.sack = s.sack[: 3 if s.timestamps else 4]
    if flags & wire.SYN:
        s.mss, s.window_scale = rng.choice((None, 0, 1, 536, 65535)), rng.choice((None, 0, 14, 255))
        s.sack, s.sack_permitted = (), rng.random() < 0.7
    return s


wire_mask = 0xFFFF_FFFF


def act(rng, d):
    """What a user might do, wisely or not."""
    c = d.connection
    match rng.randrange(9):
        case 0 | 1:
            try:
                c.write(bytes(rng.choice((1, 700, 20_000))))
            except LocalError:
                assert c.fin_queued or c.state in (State.CLOSED, State.CLOSING, State.LAST_ACK)
        case 2:
            c.read(rng.choice((None, 1, 5000)))
        case 3 if rng.random() < 0.2:
            c.close()
        case 4 if rng.random() < 0.05:
            c.abort()
        case 5 if rng.random() < 0.05:
            c.discard_input()
        case 6:
            d.tcp.path_mtu_changed(
                US, PEER, c.snd_una & wire_mask, rng.choice((68, 576, 1400)), d.now
            )
        case 7:
            c.set_keepalive(rng.choice((None, 1_000_000_000)))


def converse(seed):
    rng = random.Random(seed)
    config = {
        "sack": rng.random() < 0.7, "timestamps": rng.random() < 0.5, "ecn": rng.random() < 0.3,
        "gso": rng.random() < 0.5, "nodelay": rng.random() < 0.5,
        "receive_buffer": rng.choice((1000, 65535, 1 << 20)),
    }  # fmt: skip
    ts = " ts=100" if rng.random() < 0.5 else ""
    match rng.randrange(4):
        case 0:
            d = Dialogue.connecting(**config)
        case 1:
            d = Dialogue.listening(**config)
        case 2:
            d = Dialogue(**config)
            d.tcp.on_unclaimed_syn = d.take
            d.peer("SYN seq=0 mss=1000 sackok" + ts)
            d.connection.accept()
        case _:
            d = Dialogue.listening(**config)
            d.peer("SYN seq=0 mss=1000 sackok" + ts)
            d.peer("ACK seq=1 ack=1" + ts)
    for _ in range(120):
        s = segment(rng, d)
        data = wire.emit_header(s) + s.payload
        if rng.random() < 0.02:
            data = data[: rng.randrange(len(data) + 1)]
        d.tcp.receive(PEER.address, US.address, data, d.now, trusted=True, ecn=rng.randrange(4))
        d.tcp.deliver_events()
        if d.connection is not None and rng.random() < 0.5:
            act(rng, d)
        if rng.random() < 0.7:
            d.flush()
            for c in d.tcp.connections.values():
                check(c)
        if rng.random() < 0.5:
            d.passes(ms=rng.choice((1, 30, 250, 5000)))
        d.out.clear()


@pytest.mark.parametrize("block", range(4))
def test_near_misses(block):
    for seed in range(50 * block, 50 * block + 50):
        try:
            converse(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


@pytest.mark.slow
def test_many_near_misses():
    for seed in range(1000, 4000):
        try:
            converse(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
