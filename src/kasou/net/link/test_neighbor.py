from typing import Any

from kasou.net.link.neighbor import (
    DELAY_FIRST_PROBE_NS,
    MAX_WAITING,
    REACHABLE_NS,
    RETRANSMIT_NS,
    NeighborCache,
    Reachability,
)
from kasou.net.wire.address import ip, mac

HOST, AT = ip("10.0.2.15"), mac("52:54:00:12:34:56")


def send(cache: NeighborCache[Any], packet: Any, now: int) -> bytes | None:
    found = cache.lookup(HOST, now)
    if found is None:
        cache.wait(HOST, packet)
    return found


def test_packets_wait_for_the_answer() -> None:
    cache: NeighborCache[str] = NeighborCache()
    assert send(cache, "one", 0) is None and send(cache, "two", 1) is None
    assert cache.to_solicit() == [(HOST, None)] and cache.to_solicit() == []
    assert cache.learn(HOST, AT, 2, confirmed=True) == ["one", "two"]
    assert send(cache, "three", 3) == AT and cache.deadline() is None


def test_nobody_answers() -> None:
    cache: NeighborCache[str] = NeighborCache()
    send(cache, "one", 0)
    asked, failed, now = cache.to_solicit(), [], 0
    while (due := cache.deadline()) is not None:
        now = due
        failed += cache.handle_timer(now)
        asked += cache.to_solicit()
    assert asked == [(HOST, None)] * 3 and failed == ["one"] and now == 3 * RETRANSMIT_NS
    assert cache.state(HOST) is None


def test_the_oldest_waiting_packet_gives_way() -> None:
    cache: NeighborCache[int] = NeighborCache()
    for number in range(MAX_WAITING + 2):
        send(cache, number, 0)
    assert cache.learn(HOST, AT, 1, confirmed=True) == list(range(2, MAX_WAITING + 2))


def test_a_stale_neighbor_is_used_and_probed() -> None:
    cache: NeighborCache[str] = NeighborCache()
    cache.learn(HOST, AT, 0, confirmed=True)
    assert send(cache, "x", REACHABLE_NS) == AT and cache.state(HOST) is Reachability.PROBE
    assert cache.deadline() == REACHABLE_NS + DELAY_FIRST_PROBE_NS
    cache.handle_timer(REACHABLE_NS + DELAY_FIRST_PROBE_NS)
    assert cache.to_solicit() == [(HOST, AT)]
    cache.confirm(HOST, REACHABLE_NS + DELAY_FIRST_PROBE_NS + 1)
    assert cache.state(HOST) is Reachability.REACHABLE


def test_unasked_news_makes_no_entry_but_a_changed_address_is_taken() -> None:
    cache: NeighborCache[str] = NeighborCache()
    other = mac("52:54:00:00:00:01")
    cache.learn(HOST, AT, 0, confirmed=False, create=False)
    assert cache.peek(HOST) is None
    cache.learn(HOST, AT, 0, confirmed=True)
    cache.learn(HOST, other, 1, confirmed=False)
    assert cache.peek(HOST) == other and cache.state(HOST) is Reachability.STALE
