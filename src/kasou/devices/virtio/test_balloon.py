"""A driver in miniature against the balloon."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.balloon import (
    DEFLATE,
    HINT,
    INFLATE,
    PAGE,
    REPORT,
    STATS,
    BalloonFeature,
    Statistic,
    VirtioBalloon,
)
from kasou.devices.virtio.device import Interrupt, Status
from kasou.devices.virtio.driver_model import WRITE, Driver, MmioFace, Ram
from kasou.devices.virtio.mmio import VirtioMmio
from kasou.devices.virtio.rng import VirtioRng
from kasou.errors import ConfigError, GuestError

RAM_PAGES = 256


class Guest:
    def __init__(self, features: int = -1) -> None:
        self.ram = Ram(RAM_PAGES * PAGE)
        self.given: list[tuple[int, int]] = []
        self.updates = 0
        self.balloon = VirtioBalloon(self.ram, self.give_up, updated=self.updated)
        self.driver = Driver(
            self.ram, MmioFace(VirtioMmio(self.balloon, lambda on: None)), features
        )

    def give_up(self, gpa: int, n: int) -> None:
        if gpa + n > RAM_PAGES * PAGE:
            raise GuestError("outside RAM")
        self.given.append((gpa, n))

    def updated(self) -> None:
        self.updates += 1

    def pages(self, queue: int, *numbers: int) -> None:
        self.driver.send(queue, struct.pack(f"<{len(numbers)}I", *numbers))

    def offer(self, queue: int, *parts: tuple[int, int, int]) -> None:
        self.driver.rings[queue].offer(parts)
        self.driver.kick(queue)

    def tell(self, *statistics: tuple[int, int]) -> None:
        data = b"".join(struct.pack("<HQ", tag, value) for tag, value in statistics)
        self.offer(STATS, (self.driver.place(data), len(data), 0))


def test_inflate_and_deflate() -> None:
    guest = Guest()
    guest.balloon.set_target(10 * PAGE + 5)
    assert guest.driver.face.acknowledge() == Interrupt.CONFIG_CHANGE
    assert guest.balloon.config[:4] == b"\x0a\0\0\0"
    guest.pages(INFLATE, 7, 5, 6, 9, 5)
    assert guest.given == [(5 * PAGE, 3 * PAGE), (9 * PAGE, PAGE)]
    guest.balloon.write_config(4, struct.pack("<I", 4))
    assert (guest.balloon.actual_bytes, guest.balloon.target_bytes) == (4 * PAGE, 10 * PAGE)
    guest.pages(DEFLATE, 5, 6)
    assert len(guest.given) == 2
    guest.balloon.write_config(0, b"\xff" * 4)
    guest.balloon.write_config(2, b"\xff" * 4)
    assert guest.balloon.target_bytes == 10 * PAGE
    with pytest.raises(ConfigError):
        guest.balloon.set_target(-1)


@pytest.mark.parametrize("numbers", [[RAM_PAGES], [0xFFFF_FFFF], [RAM_PAGES - 1, RAM_PAGES]])
def test_pages_that_are_not_ram_need_reset(numbers: list[int]) -> None:
    guest = Guest()
    guest.driver.rings[INFLATE].offer(
        [(guest.driver.place(struct.pack(f"<{len(numbers)}I", *numbers)), 4 * len(numbers), 0)]
    )
    guest.driver.kick(INFLATE)
    assert guest.balloon.status & Status.DEVICE_NEEDS_RESET
    assert guest.given == []


def test_half_a_number_needs_reset() -> None:
    guest = Guest()
    guest.offer(INFLATE, (0x8000, 6, 0))
    assert guest.balloon.status & Status.DEVICE_NEEDS_RESET


def test_free_pages_are_given_up_and_their_edges_kept() -> None:
    guest = Guest()
    guest.offer(REPORT, (16 * PAGE, 4 * PAGE, WRITE), (32 * PAGE + 1, 2 * PAGE, WRITE))
    guest.offer(REPORT, (40 * PAGE + 1, PAGE, WRITE))
    assert guest.given == [(16 * PAGE, 4 * PAGE), (33 * PAGE, PAGE)]
    assert guest.balloon.reported_bytes == 5 * PAGE
    assert [n for _, n in guest.driver.rings[REPORT].collect()] == [0, 0]


def test_poisoned_pages_are_kept() -> None:
    guest = Guest()
    guest.balloon.write_config(12, b"\xaa\0\0\0")
    guest.offer(REPORT, (16 * PAGE, PAGE, WRITE))
    assert guest.given == []
    guest.balloon.write_config(12, bytes(4))
    guest.offer(REPORT, (16 * PAGE, PAGE, WRITE))
    assert guest.given == [(16 * PAGE, PAGE)]


def test_reports_of_a_driver_that_counts_queues() -> None:
    guest = Guest(~int(BalloonFeature.FREE_PAGE_HINT))
    guest.offer(HINT, (16 * PAGE, PAGE, WRITE))
    assert guest.given == [(16 * PAGE, PAGE)]
    other = Guest()
    other.offer(HINT, (16 * PAGE, PAGE, WRITE))
    assert other.given == []
    assert len(other.driver.rings[HINT].collect()) == 1


def test_statistics_go_to_and_fro() -> None:
    guest = Guest()
    assert not guest.balloon.request_statistics()
    guest.tell((4, 1000), (5, 4000), (99, 1), (6, (1 << 64) - 1))
    assert guest.balloon.statistics == {
        Statistic.FREE_MEMORY: 1000,
        Statistic.TOTAL_MEMORY: 4000,
    }
    assert guest.driver.rings[STATS].collect() == []
    assert guest.balloon.request_statistics()
    assert not guest.balloon.request_statistics()
    assert guest.driver.face.acknowledge() == Interrupt.USED_BUFFER
    assert len(guest.driver.rings[STATS].collect()) == 1
    guest.tell((4, 900))
    assert guest.balloon.statistics == {Statistic.FREE_MEMORY: 900}
    assert guest.updates == 2
    guest.tell((4, 800))
    assert len(guest.driver.rings[STATS].collect()) == 1


def test_state_continues() -> None:
    guest = Guest()
    guest.balloon.set_target(3 * PAGE)
    guest.balloon.write_config(4, b"\2")
    guest.tell((4, 1000))
    state = guest.balloon.save()
    again = VirtioBalloon(guest.ram, guest.give_up)
    again.restore(state)
    assert again.save() == state
    again.resume()
    assert again.statistics == {Statistic.FREE_MEMORY: 1000}
    assert again.actual_bytes == 2 * PAGE
    assert again.request_statistics()
    assert len(guest.driver.rings[STATS].collect()) == 1
    with pytest.raises(ConfigError):
        again.restore(VirtioRng(guest.ram, bytes).save())


def test_reset_empties_the_balloon() -> None:
    guest = Guest()
    guest.balloon.set_target(3 * PAGE)
    guest.balloon.write_config(4, b"\2\0\0\0")
    guest.tell((4, 1000))
    guest.balloon.set_status(0)
    assert (guest.balloon.target_bytes, guest.balloon.actual_bytes) == (3 * PAGE, 0)
    assert not guest.balloon.request_statistics()


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 4),
            st.lists(
                st.tuples(
                    st.integers(0, RAM_PAGES * PAGE + 10) | st.just((1 << 64) - 1),
                    st.integers(0, 10) | st.sampled_from([PAGE, 1 << 17, 0xFFFF_FFFF]),
                ),
                min_size=1,
                max_size=3,
            ),
        ),
        max_size=10,
    ),
    features=st.integers(0, 63),
)
def test_whatever_is_asked_nothing_but_ram_is_given_up(
    requests: list[tuple[int, list[tuple[int, int]]]], features: int
) -> None:
    guest = Guest(features)
    for queue, parts in requests:
        if not guest.balloon.running:
            break
        flags = WRITE if queue in (HINT, REPORT) else 0
        guest.offer(queue, *((gpa, n, flags) for gpa, n in parts))
        guest.driver.rings[queue].collect()
    guest.balloon.request_statistics()
    assert all(gpa >= 0 and n > 0 and gpa % PAGE == n % PAGE == 0 for gpa, n in guest.given)
