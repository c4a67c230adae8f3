import random
from typing import Any

from kasou.net.physical.link import SimulatedLink

PACKETS = [n.to_bytes(4, "big") * 25 for n in range(400)]


def run(**faults: Any) -> tuple[SimulatedLink, list[bytes]]:
    link = SimulatedLink(random.Random(7), **faults)
    for n, packet in enumerate(PACKETS):
        link.send(packet, n * 1000)
    got: list[bytes] = []
    while (now := link.deadline()) is not None:
        got += link.receive(now)
    return link, got


def test_a_perfect_wire_keeps_order_and_delay() -> None:
    link = SimulatedLink(random.Random(1), delay_ns=10)
    link.send(b"a", 0)
    link.send(b"b", 1)
    assert link.receive(9) == [] and link.deadline() == 10
    assert link.receive(10) == [b"a"] and link.receive(11) == [b"b"] and link.deadline() is None


def test_loss_loses_about_its_share() -> None:
    link, got = run(loss=0.3)
    assert len(got) == 400 - link.statistics.lost and 80 < link.statistics.lost < 160
    assert got == [p for p in PACKETS if p in set(got)]


def test_duplicates_arrive_twice() -> None:
    link, got = run(duplicate=0.5)
    assert len(got) == 400 + link.statistics.duplicated and set(got) == set(PACKETS)


def test_reordering_and_jitter_lose_nothing() -> None:
    cases: tuple[dict[str, Any], ...] = ({"reorder": 0.2}, {"jitter_ns": 50_000})
    for faults in cases:
        _, got = run(**faults)
        assert sorted(got) == sorted(PACKETS) and got != PACKETS


def test_corruption_inverts_one_bit() -> None:
    link, got = run(corrupt=1.0)
    assert link.statistics.corrupted == 400
    for sent, received in zip(PACKETS, got, strict=True):
        difference = int.from_bytes(sent, "big") ^ int.from_bytes(received, "big")
        assert difference.bit_count() == 1


def test_bandwidth_spaces_packets_and_the_queue_drops_at_its_tail() -> None:
    link = SimulatedLink(random.Random(1), bits_per_second=8_000_000, queue_bytes=250)
    for _ in range(4):
        link.send(b"x" * 100, 0)  # 100 us each
    assert link.statistics.overflowed == 2
    assert len(link.receive(100_000)) == 1 and len(link.receive(200_000)) == 1


def test_a_seed_repeats_a_run() -> None:
    faults: dict[str, Any] = {
        "loss": 0.1,
        "duplicate": 0.1,
        "reorder": 0.1,
        "corrupt": 0.1,
        "jitter_ns": 999,
    }
    assert run(**faults)[1] == run(**faults)[1]
