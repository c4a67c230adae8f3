"""Both layouts against a driver written from the specification's other side."""

import random
from collections.abc import Iterator

import pytest

from kasou.devices.virtio.driver_model import (
    INDIRECT,
    NEXT,
    WRITE,
    DriverRing,
    PackedDriverRing,
    Ram,
    SplitDriverRing,
)
from kasou.devices.virtio.packed import AVAIL, DISABLE, USED, WRAP, PackedRing
from kasou.devices.virtio.queue import Chain, QueueState, Virtqueue
from kasou.errors import ConfigError, GuestError

AT, DATA, TABLE = 0x1000, 0x8000, 0x10000
LAYOUTS = [(packed, event_idx) for packed in (False, True) for event_idx in (False, True)]


class Pair:
    """A queue and its driver."""

    def __init__(self, packed: bool, event_idx: bool, size: int = 8) -> None:
        self.ram = Ram()
        layout = PackedDriverRing if packed else SplitDriverRing
        self.driver: DriverRing = layout(self.ram, AT, size, event_idx)
        self.queue = Virtqueue(self.ram, 256)
        self.queue.size, self.queue.packed = size, packed
        self.queue.event_idx, self.queue.indirect = event_idx, True
        self.queue.desc, self.queue.driver, self.queue.device = self.driver.areas
        self.queue.enable()

    def offer(self, n: int = 1) -> list[int]:
        return [self.driver.offer([(DATA + 64 * i, 4, WRITE * (i % 2))]) for i in range(n)]


@pytest.fixture(params=LAYOUTS, ids=lambda p: f"{'packed' if p[0] else 'split'}-{p[1]:d}")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield Pair(*request.param)


def test_a_chain_goes_in_and_comes_back(pair: Pair) -> None:
    pair.ram.write(DATA, b"abcdef")
    pair.ram.write(DATA + 0x100, b"ghij")
    head = pair.driver.offer(
        [(DATA, 6, 0), (DATA + 0x100, 4, 0), (DATA + 0x200, 8, WRITE), (DATA + 0x300, 8, WRITE)]
    )
    (chain,) = pair.queue.chains()
    assert (chain.readable_bytes, chain.writable_bytes) == (10, 16)
    assert chain.read_all() == b"abcdefghij"
    assert chain.read(5, 2) == b"fg"
    assert b"".join(chain.readable_views(4)) == b"efghij"
    assert b"".join(chain.readable_views(5, 2)) == b"fg"
    chain.write(6, b"12345")
    assert pair.ram.read(DATA + 0x206, 2) == b"12"
    assert pair.ram.read(DATA + 0x300, 3) == b"345"
    pair.ram.writes.clear()
    for view in chain.writable_views(7, 3):
        view[:] = b"x" * len(view)
    assert pair.ram.read(DATA + 0x206, 2) == b"1x"
    assert pair.ram.read(DATA + 0x300, 3) == b"xx5"
    chain.wrote(7, 3)
    assert pair.ram.writes == [(DATA + 0x207, 1), (DATA + 0x300, 2)]
    assert pair.driver.collect() == []
    pair.queue.complete(chain, 11)
    assert pair.driver.collect() == [(head, 11)]
    assert list(pair.queue.chains()) == []


def test_through_an_indirect_table(pair: Pair) -> None:
    head = pair.driver.offer([(DATA, 4, 0), (DATA + 8, 4, 0), (DATA + 16, 4, WRITE)], TABLE)
    chain = pair.queue.next_chain()
    assert chain is not None
    assert chain.readable == [(DATA, 4), (DATA + 8, 4)]
    assert chain.writable == [(DATA + 16, 4)]
    pair.queue.complete(chain, 4)
    assert pair.driver.collect() == [(head, 4)]


def test_any_order_and_number_for_many_laps(pair: Pair) -> None:
    rng = random.Random(1)
    held: list[Chain] = []
    offered: set[int] = set()
    room = pair.driver.size
    slots: dict[int, int] = {}
    for _ in range(3000):
        parts = [(DATA + 4 * i, 4, 0) for i in range(rng.randint(1, 3))]
        if len(parts) <= room and rng.random() < 0.6:
            table = TABLE if rng.random() < 0.3 else None
            head = pair.driver.offer(parts, table)
            slots[head] = 1 if table else len(parts)
            room -= slots[head]
            offered.add(head)
            taken = list(pair.queue.chains())
            assert [(c.head, len(c.readable)) for c in taken] == [(head, len(parts))]
            held += taken
        elif held:
            chain = held.pop(rng.randrange(len(held)))
            pair.queue.complete(chain, 7)
            assert pair.driver.collect() == [(chain.head, 7)]
            offered.remove(chain.head)
            room += slots[chain.head]
    assert len(held) == len(offered)


def test_several_come_back_as_one(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = pair.offer(3)
    chains = list(pair.queue.chains())
    seen: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(pair.ram, "wrote", lambda gpa, n: seen.append(pair.driver.collect()))
    pair.queue.complete_many([(chain, 5) for chain in chains])
    assert seen == [[(head, 5) for head in heads]]


def test_chains_given_back_are_next(pair: Pair) -> None:
    heads = pair.offer(4)
    taken = list(pair.queue.chains())
    pair.queue.complete(taken[0], 0)
    pair.queue.give_back(taken[2:])
    assert [c.head for c in pair.queue.chains()] == heads[2:]
    assert pair.queue.next_chain() is None
    for chain in taken[1:]:
        pair.queue.complete(chain, 0)
    assert [head for head, _ in pair.driver.collect()] == heads


def test_what_a_reset_queue_lent_is_dropped(pair: Pair) -> None:
    pair.offer()
    (chain,) = pair.queue.chains()
    assert pair.queue.holds(chain)
    pair.queue.disable()
    assert not pair.queue.holds(chain)
    pair.queue.enable()
    before = bytes(pair.ram.bytes)
    pair.queue.complete(chain, 4)
    pair.queue.complete_many([(chain, 4)])
    pair.queue.give_back([chain])
    assert bytes(pair.ram.bytes) == before
    pair.queue.disable()
    pair.queue.complete(chain, 4)
    assert list(pair.queue.chains()) == []
    assert pair.queue.next_chain() is None


def test_a_reset_while_chains_are_being_taken_ends_them(pair: Pair) -> None:
    pair.offer(3)
    for chain in pair.queue.chains():
        pair.queue.disable()
        pair.queue.complete(chain, 0)
    assert pair.driver.collect() == []


def test_state_continues_with_chains_in_use(pair: Pair) -> None:
    for _ in range(13):  # somewhere in the second lap
        pair.offer()
        for chain in pair.queue.chains():
            pair.queue.complete(chain, 1)
        pair.driver.collect()
    heads = pair.offer(4)
    taken = list(pair.queue.chains())
    pair.queue.complete(taken[1], 1)  # packed: overwrites the first one's descriptor
    state = pair.queue.save()
    assert len(state.in_use) == 3
    other = Virtqueue(pair.ram, 256)
    other.restore(state)
    assert other.save() == state
    assert other.has_chains_again
    again = list(other.chains())
    assert [c.head for c in again] == [heads[0], *heads[2:]]
    assert [c.readable for c in again] == [taken[i].readable for i in (0, 2, 3)]
    for chain in again:
        other.complete(chain, 2)
    assert [head for head, _ in pair.driver.collect()] == [heads[1], heads[0], *heads[2:]]
    pair.offer(8)
    assert len(list(other.chains())) == 8


def test_damaged_state_is_refused(pair: Pair) -> None:
    state = pair.queue.save()
    fields = {name: getattr(state, name) for name in QueueState.__dataclass_fields__}
    for change in ({"desc": 1 << 60}, {"driver": 1}, {"size": 0}, {"version": 1}):
        with pytest.raises(ConfigError):
            Virtqueue(pair.ram, 256).restore(QueueState(**fields | change))


def notified(pair: Pair, n: int) -> bool:
    """Offer, serve and complete `n` chains: does the driver get an interrupt?"""
    pair.offer(n)
    for chain in pair.queue.chains():
        pair.queue.complete(chain, 0)
    return pair.queue.wants_interrupt()


def test_interrupts_come_when_they_are_wanted(pair: Pair) -> None:
    for _ in range(40):
        pair.driver.interrupt_after(None)
        for n in (1, 3):
            assert not notified(pair, n)
            pair.driver.collect()
        pair.driver.interrupt_after(1)
        assert notified(pair, 2)
        assert not pair.queue.wants_interrupt()
        pair.driver.collect()
    if pair.queue.event_idx:
        for _ in range(20):
            pair.driver.interrupt_after(3)
            assert [notified(pair, 1) for _ in range(4)] == [False, False, True, False]
            pair.driver.collect()


def test_kicks_are_asked_for_whenever_the_device_has_seen_all(pair: Pair) -> None:
    list(pair.queue.chains())
    for n in (1, 2, 1, 5, 3, 8, 1, 1, 7) * 5:
        pair.offer(n)
        assert pair.driver.needs_kick()
        if pair.queue.event_idx and n < 8:
            pair.offer()
            assert not pair.driver.needs_kick()
        for chain in pair.queue.chains():
            pair.queue.complete(chain, 0)
        pair.driver.collect()
        assert pair.queue.next_chain() is None


def test_what_comes_while_chains_are_taken_is_seen_or_kicked(pair: Pair) -> None:
    """The driver adds in the middle of the service, as another hart can."""
    rng = random.Random(2)
    for _ in range(500):
        waiting = set(pair.offer(rng.randint(1, 3)))
        assert pair.driver.needs_kick()
        kicked = False
        for chain in pair.queue.chains():
            waiting.remove(chain.head)
            pair.queue.complete(chain, 0)
            pair.driver.collect()
            if rng.random() < 0.5:
                waiting.update(pair.offer())
                kicked |= pair.driver.needs_kick()
        assert kicked or not waiting
        for chain in pair.queue.chains():
            waiting.remove(chain.head)
            pair.queue.complete(chain, 0)
        assert not waiting
        pair.driver.collect()
        pair.driver.needs_kick()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_that_never_stops_gets_its_turn_and_no_more(event_idx: bool) -> None:
    pair = Pair(True, event_idx)
    pair.offer()
    for count, chain in enumerate(pair.queue.chains()):
        pair.queue.complete(chain, 0)
        pair.driver.collect()
        pair.offer()
        assert count < 100
    assert pair.driver.needs_kick(), "what is left has been notified"
    assert len(list(pair.queue.chains())) == 1


def test_packed_rings_of_any_size() -> None:
    for size in (1, 3, 5, 7):
        pair = Pair(True, True, size)
        for _ in range(50):
            heads = pair.offer(size)
            assert pair.driver.needs_kick()
            taken = list(pair.queue.chains())
            assert [c.head for c in taken] == heads
            pair.queue.complete_many([(c, 1) for c in reversed(taken)])
            assert len(pair.driver.collect()) == size


# ---------------------------------------------------------------------- packed rings that are wrong
def packed(*entries: tuple[int, int, int, int]) -> Pair:
    """Descriptors (gpa, n, id, flags) as the first lap's."""
    pair = Pair(True, False, 4)
    for slot, entry in enumerate(entries):
        pair.ram.put(AT + 16 * slot, "QIHH", *entry)
    return pair


@pytest.mark.parametrize(
    "entries",
    [
        [(DATA, 4, 0, AVAIL | NEXT)] * 4,
        [(DATA, 4, 0, AVAIL | NEXT | WRITE), (DATA, 4, 0, AVAIL)],
        [(DATA, 4, 0, AVAIL | NEXT), (TABLE, 16, 0, AVAIL | INDIRECT)],
        [(TABLE, 16, 0, AVAIL | INDIRECT | NEXT), (DATA, 4, 0, AVAIL)],
        [(TABLE, 17, 0, AVAIL | INDIRECT)],
        [(TABLE, 0, 0, AVAIL | INDIRECT)],
        [(TABLE, 16 * 1025, 0, AVAIL | INDIRECT)],
        [(1 << 60, 16, 0, AVAIL | INDIRECT)],
        [(DATA, 0xFFFF_FFFF, 0, AVAIL | NEXT), (DATA, 1, 0, AVAIL)],
    ],
)
def test_broken_packed_chains(entries: list[tuple[int, int, int, int]]) -> None:
    with pytest.raises(GuestError):
        list(packed(*entries).queue.chains())


def test_broken_packed_tables() -> None:
    for inner in ([(TABLE, 16, 0, INDIRECT)], [(DATA, 4, 0, WRITE), (DATA, 4, 0, 0)]):
        pair = packed((TABLE, 16 * len(inner), 0, AVAIL | INDIRECT))
        for i, entry in enumerate(inner):
            pair.ram.put(TABLE + 16 * i, "QIHH", *entry)
        with pytest.raises(GuestError):
            list(pair.queue.chains())


def test_packed_slots_in_use_cannot_be_made_available_again() -> None:
    pair = packed(*[(DATA, 4, i, AVAIL) for i in range(4)])
    assert len([pair.queue.next_chain() for _ in range(4)]) == 4
    for slot in range(4):
        pair.ram.put(AT + 16 * slot + 14, "H", USED)
    with pytest.raises(GuestError, match="0 free slots"):
        pair.queue.next_chain()


def test_split_chains_in_use_are_bounded() -> None:
    pair = Pair(False, False, 4)
    for index in range(4):
        pair.ram.put(pair.driver.areas[1] + 2, "H", index + 1)
        assert pair.queue.next_chain()
    pair.ram.put(pair.driver.areas[1] + 2, "H", 5)
    with pytest.raises(GuestError, match="in use"):
        pair.queue.next_chain()


def test_packed_event_flags_without_the_feature() -> None:
    pair = Pair(True, False)
    for flags, wanted in ((0, True), (DISABLE, False), (2, False), (3, True)):
        pair.ram.put(pair.driver.areas[1], "HH", WRAP, flags)
        assert notified(pair, 1) is (wanted or flags == 2)
        pair.driver.collect()


@pytest.mark.parametrize(
    "areas", [(8, 0, 0), (0, 2, 0), (0, 0, 2), (1 << 40, 0, 0), (0, 1 << 40, 0)]
)
def test_packed_areas_are_checked(areas: tuple[int, int, int]) -> None:
    with pytest.raises(GuestError):
        PackedRing(Ram(), 8, areas, indirect=True, event_idx=True)
    with pytest.raises(GuestError):
        PackedRing(Ram(), 1 << 16, (0, 0, 0), indirect=True, event_idx=True)
