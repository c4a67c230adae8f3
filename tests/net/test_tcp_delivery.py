"""Whatever the wire does, the bytes arrive, in order, both ways, and both ends come to an end."""

import random

import pytest
from net.tcp_wire import CLIENT, MS, SERVER, Sender, Wire

from kasou.net.transport.tcp import Event, TcpConfig


def exchange(seed, size=60_000, limit=1_000_000):
    rng = random.Random(seed)
    faults = {
        "loss": rng.choice((0, 0.01, 0.05, 0.1, 0.3)),
        "duplicate": rng.choice((0, 0.02, 0.2)),
        "reorder": rng.choice((0, 0.05, 0.3)),
        "corrupt": rng.choice((0, 0.01, 0.1)),
        "jitter_ns": rng.choice((0, MS, 30 * MS)),
        "delay_ns": rng.choice((10_000, MS, 20 * MS, 150 * MS)),
    }
    configs = [
        TcpConfig(
            receive_buffer=rng.choice((2000, 20_000, 65_535, 1 << 20)),
            send_buffer=rng.choice((3000, 1 << 17, 1 << 20)),
            congestion=rng.choice(("cubic", "newreno")),
            gso=rng.random() < 0.7,
            nodelay=rng.random() < 0.5,
            timestamps=rng.random() < 0.7,
            sack=rng.random() < 0.7,
            window_scale=rng.random() < 0.8,
            retries=100,
            syn_retries=30,
            max_rto=5_000 * MS,
        )
        for _ in range(2)
    ]
    wire = Wire(seed, configs[0], configs[1], **faults)
    client, server = (
        Sender(rng.randbytes(rng.choice((0, 1, 3000, 60_000, size))), rng) for _ in range(2)
    )
    wire.server.listen(None, SERVER.port, server.attach)
    client.attach(wire.client.connect(CLIENT, SERVER, wire.now))
    for _ in range(limit):
        if not wire.step():
            break
    else:
        raise AssertionError(f"seed {seed}: still going, {faults}, {configs}")
    assert bytes(server.received) == client.data, f"seed {seed}"
    assert bytes(client.received) == server.data, f"seed {seed}"
    for side in (client, server):
        assert side.events[-1] is Event.CLOSED and Event.RESET not in side.events, f"seed {seed}"
        assert Event.TIMED_OUT not in side.events, f"seed {seed}"
    assert not wire.client.connections and not wire.server.connections
    return wire


@pytest.mark.parametrize("seed", range(40))
def test_byte_exact(seed):
    exchange(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_byte_exact_in_a_thousand_seeds(block):
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        exchange(seed, size=600_000)
