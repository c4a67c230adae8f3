import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.driver_model import Ram
from kasou.devices.virtio.queue import MAX_CHAIN, Chain, Virtqueue
from kasou.errors import GuestError

DESC, AVAIL, USED, DATA = 0x0, 0x400, 0x600, 0x1000
NEXT, WRITE, INDIRECT = 1, 2, 4


class Driver:
    """The other side of a queue."""

    def __init__(self, size: int = 8, event_idx: bool = False) -> None:
        self.ram = Ram()
        self.size = size
        self.queue = Virtqueue(self.ram, 64)
        self.queue.size, self.queue.desc = size, DESC
        self.queue.driver, self.queue.device = AVAIL, USED
        self.queue.indirect, self.queue.event_idx = True, event_idx
        self.queue.enable()
        self.idx = 0

    def descriptor(self, i: int, gpa: int, n: int, flags: int = 0, following: int = 0) -> None:
        self.ram.write(DESC + 16 * i, struct.pack("<QIHH", gpa, n, flags, following))

    def offer(self, head: int) -> None:
        self.ram.write(AVAIL + 4 + 2 * (self.idx % self.size), struct.pack("<H", head))
        self.idx = (self.idx + 1) & 0xFFFF
        self.ram.write(AVAIL + 2, struct.pack("<H", self.idx))

    def used(self) -> tuple[int, list[tuple[int, int]]]:
        idx: int = struct.unpack("<H", self.ram.read(USED + 2, 2))[0]
        ring = [struct.unpack("<II", self.ram.read(USED + 4 + 8 * i, 8)) for i in range(self.size)]
        return idx, [(head, n) for head, n in ring]

    def word(self, gpa: int, value: int) -> None:
        self.ram.write(gpa, struct.pack("<H", value))


def test_chain_goes_in_and_comes_back() -> None:
    d = Driver()
    d.descriptor(2, DATA, 4, NEXT, 3)
    d.descriptor(3, DATA + 100, 6, NEXT, 0)
    d.descriptor(0, DATA + 200, 8, NEXT | WRITE, 1)
    d.descriptor(1, DATA + 300, 8, WRITE)
    d.ram.write(DATA, b"abcd")
    d.ram.write(DATA + 100, b"efghij")
    d.offer(2)
    (chain,) = d.queue.chains()
    assert (chain.head, chain.readable_bytes, chain.writable_bytes) == (2, 10, 16)
    assert chain.read(0, 10) == b"abcdefghij"
    assert chain.read(3, 3) == b"def"
    chain.write(6, b"12345")
    assert d.ram.read(DATA + 206, 2) == b"12"
    assert d.ram.read(DATA + 300, 3) == b"345"
    d.queue.complete(chain, 11)
    assert d.used()[0] == 1
    assert d.used()[1][0] == (2, 11)
    assert list(d.queue.chains()) == []


def test_indices_wrap() -> None:
    d = Driver(size=4)
    d.descriptor(0, DATA, 1)
    for _ in range(70_000):
        d.offer(0)
        for chain in d.queue.chains():
            d.queue.complete(chain, 0)
    assert d.used()[0] == 70_000 & 0xFFFF


def test_indirect_table_after_a_direct_part() -> None:
    d = Driver()
    d.descriptor(0, DATA, 4, NEXT, 1)
    d.descriptor(1, 0x3000, 32, INDIRECT | WRITE)
    d.ram.write(0x3000, struct.pack("<QIHHQIHH", DATA + 8, 4, NEXT, 1, DATA + 16, 4, WRITE, 0))
    d.offer(0)
    (chain,) = d.queue.chains()
    assert chain.readable == [(DATA, 4), (DATA + 8, 4)]
    assert chain.writable == [(DATA + 16, 4)]


def broken_loop(d: Driver) -> None:
    d.descriptor(0, DATA, 4, NEXT, 1)
    d.descriptor(1, DATA, 4, NEXT, 0)


def broken_index(d: Driver) -> None:
    d.descriptor(0, DATA, 4, NEXT, 8)


def broken_order(d: Driver) -> None:
    d.descriptor(0, DATA, 4, NEXT | WRITE, 1)
    d.descriptor(1, DATA, 4)


def broken_table_length(d: Driver) -> None:
    d.descriptor(0, DATA, 17, INDIRECT)


def broken_table_too_long(d: Driver) -> None:
    d.descriptor(0, DATA, 16 * (MAX_CHAIN + 1), INDIRECT)


def broken_table_in_table(d: Driver) -> None:
    d.descriptor(0, 0x3000, 16, INDIRECT)
    d.ram.write(0x3000, struct.pack("<QIHH", 0x3000, 16, INDIRECT, 0))


def broken_table_with_next(d: Driver) -> None:
    d.descriptor(0, 0x3000, 16, INDIRECT | NEXT, 1)


def broken_table_loop(d: Driver) -> None:
    d.descriptor(0, 0x3000, 16, INDIRECT)
    d.ram.write(0x3000, struct.pack("<QIHH", DATA, 16, NEXT, 0))


def broken_table_outside(d: Driver) -> None:
    d.descriptor(0, 1 << 60, 16, INDIRECT)


def broken_not_negotiated(d: Driver) -> None:
    d.queue.indirect = False
    d.queue.enable()
    d.descriptor(0, 0x3000, 16, INDIRECT)


def broken_total(d: Driver) -> None:
    d.descriptor(0, DATA, 0xFFFF_FFFF, NEXT, 1)
    d.descriptor(1, DATA, 0xFFFF_FFFF)


@pytest.mark.parametrize(
    "setup",
    [
        broken_loop,
        broken_index,
        broken_order,
        broken_table_length,
        broken_table_too_long,
        broken_table_in_table,
        broken_table_with_next,
        broken_table_loop,
        broken_table_outside,
        broken_not_negotiated,
        broken_total,
    ],
)
def test_broken_chains(setup: Callable[[Driver], None]) -> None:
    d = Driver()
    setup(d)
    d.offer(0)
    with pytest.raises(GuestError):
        list(d.queue.chains())


def test_broken_rings() -> None:
    d = Driver()
    d.word(AVAIL + 2, 9)
    with pytest.raises(GuestError, match="ahead"):
        list(d.queue.chains())
    d = Driver()
    d.offer(8)
    with pytest.raises(GuestError):
        list(d.queue.chains())
    for field, value in (("size", 0), ("size", 3), ("size", 128), ("desc", 8), ("device", 2)):
        queue = Virtqueue(Ram(), 64)
        setattr(queue, field, value)
        with pytest.raises(GuestError):
            queue.enable()


def finish(d: Driver, times: int = 1) -> bool:
    for _ in range(times):
        d.offer(0)
    for chain in d.queue.chains():
        d.queue.complete(chain, 0)
    return d.queue.wants_interrupt()


def test_interrupt_suppression_by_flag() -> None:
    d = Driver()
    d.descriptor(0, DATA, 1)
    assert not d.queue.wants_interrupt()
    assert finish(d)
    d.word(AVAIL, 1)
    assert not finish(d)


def test_event_indices() -> None:
    d = Driver(event_idx=True)
    d.descriptor(0, DATA, 1)
    used_event = AVAIL + 4 + 2 * d.size
    assert finish(d)  # used_event 0: the first completion passes it
    assert not finish(d)
    d.word(used_event, 3)
    assert not finish(d)
    assert finish(d, times=2)
    avail_event: int = struct.unpack("<H", d.ram.read(USED + 4 + 8 * d.size, 2))[0]
    assert avail_event == d.idx


def test_several_chains_come_back_together() -> None:
    d = Driver(size=4)
    for i in range(4):
        d.descriptor(i, DATA, 1)
    finish(d, times=3)
    for head in (2, 3, 1):
        d.offer(head)
    taken = list(d.queue.chains())
    d.queue.complete_many([(chain, 10 + chain.head) for chain in taken])
    assert d.used() == (6, [(3, 13), (1, 11), (0, 0), (2, 12)])


def test_chains_given_back_are_taken_again() -> None:
    d = Driver()
    for head in (5, 6, 7):
        d.descriptor(head, DATA, 1)
        d.offer(head)
    first = d.queue.next_chain()
    assert first is not None
    d.queue.give_back(list(d.queue.chains()))
    assert [chain.head for chain in d.queue.chains()] == [6, 7]


def test_state_continues() -> None:
    d = Driver()
    d.descriptor(0, DATA, 1)
    finish(d, times=3)
    d.offer(0)
    again = Virtqueue(d.ram, 64)
    again.restore(d.queue.save())
    assert [c.head for c in again.chains()] == [0]


words = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 64, 0xFFF0, 0xFFFF])
descriptors = st.tuples(
    st.sampled_from([0, 1, DESC, AVAIL, USED, DATA, 0xFFF0, 1 << 32, (1 << 64) - 1]),
    st.sampled_from([0, 1, 16, 48, 0x1000, 16 * MAX_CHAIN, 0xFFFF_FFFF]),
    st.integers(0, 7) | words,
    st.integers(0, 8) | words,
)


@settings(max_examples=300, deadline=None)
@given(
    table=st.lists(descriptors, min_size=8, max_size=8),
    inner=st.lists(descriptors, max_size=8),
    heads=st.lists(st.integers(0, 9) | words, min_size=8, max_size=8),
    idx=st.integers(0, 9) | words,
    event_idx=st.booleans(),
    noise=st.binary(max_size=64),
)
def test_whatever_the_rings_hold_the_walk_ends(
    table: list[tuple[int, int, int, int]],
    inner: list[tuple[int, int, int, int]],
    heads: list[int],
    idx: int,
    event_idx: bool,
    noise: bytes,
) -> None:
    d = Driver(event_idx=event_idx)
    d.ram.write(0xFFF0 - 64, noise)
    for i, entry in enumerate(table):
        d.descriptor(i, *entry)
    for i, entry in enumerate(inner):
        d.ram.write(DATA + 16 * i, struct.pack("<QIHH", *entry))
    for i, head in enumerate(heads):
        d.word(AVAIL + 4 + 2 * i, head)
    d.word(AVAIL + 2, idx)
    taken: list[Chain] = []
    try:
        for chain in d.queue.chains():
            taken.append(chain)
            chain.read(0, min(chain.readable_bytes, 64))
            chain.write(0, bytes(min(chain.writable_bytes, 64)))
            d.queue.complete(chain, 0)
            d.queue.wants_interrupt()
    except GuestError:
        pass
    assert len(taken) <= d.size
    assert all(len(c.readable) + len(c.writable) <= MAX_CHAIN for c in taken)
