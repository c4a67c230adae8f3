"""The PCI transport, found and driven as a driver does."""

import struct

import pytest

from kasou.devices.pci.host import PciHost
from kasou.devices.virtio.console import RECEIVE, VirtioConsole
from kasou.devices.virtio.device import Feature, Interrupt
from kasou.devices.virtio.driver_model import (
    NEEDS_RESET,
    WRITE,
    Driver,
    FunctionView,
    PciFace,
    Ram,
)
from kasou.devices.virtio.pci import VirtioPci
from kasou.devices.virtio.rng import VirtioRng
from kasou.errors import ConfigError

MEMORY32, MEMORY64 = 0x4000_0000, 0x4_0000_0000


class Bench:
    def __init__(self, console: bool = False) -> None:
        self.ram = Ram()
        self.lines = [False] * 4
        self.sent = bytearray()
        self.console = VirtioConsole(self.ram, self.sent.extend)
        self.device = self.console if console else VirtioRng(self.ram, lambda n: b"r" * n)
        self.device.offer(Feature.RING_PACKED)
        self.function = VirtioPci(self.device)
        self.host = PciHost(
            [lambda on, n=n: self.lines.__setitem__(n, on) for n in range(4)],  # type: ignore[misc]
            MEMORY32,
            MEMORY64,
        )
        self.host.add(self.function)
        self.ecam = FunctionView(self.host.ecam, 1)

    def face(self) -> PciFace:
        return PciFace(self.ecam, self.host.memory64, MEMORY64 + 0x8000, MEMORY64)


def test_identity() -> None:
    ecam = Bench().ecam
    assert ecam.read(0, 4) == 0x1044_1AF4
    assert ecam.read(8, 4) == 0x00FF00_01
    assert ecam.read(0x2C, 4) == 0x1100_1AF4
    assert ecam.read(0x20, 4) == 0xC, "64 bits, prefetchable"
    kinds, at = [], ecam.read(0x34, 1)
    while at:
        assert ecam.read(at, 1) == 9
        kinds.append((ecam.read(at + 3, 1), ecam.read(at + 2, 1)))
        at = ecam.read(at + 1, 1)
    assert kinds == [(1, 16), (3, 16), (4, 16), (2, 20), (5, 20)]
    assert Bench(console=True).ecam.read(8, 4) == 0x078000_01


@pytest.mark.parametrize("features", [-1, ~(1 << 34), ~(1 << 34 | 1 << 29), 1 << 32])
def test_requests_and_interrupts(features: int) -> None:
    bench = Bench()
    face = bench.face()
    driver = Driver(bench.ram, face, features)
    assert len(driver.rings) == 1
    assert bench.function.common.read(0x12, 2) == 1
    for _ in range(20):
        assert driver.request(0, [(0x8000, 64, WRITE)]) == 64
        assert bench.lines == [False, True, False, False]
        assert face.acknowledge() == Interrupt.USED_BUFFER
        assert bench.lines == [False] * 4
        assert face.acknowledge() == 0
        driver.rings[0].interrupt_after(1)
    assert bench.ram.read(0x8000, 65) == b"r" * 64 + b"\0"


def test_configuration_and_its_generation() -> None:
    bench = Bench(console=True)
    face = bench.face()
    driver = Driver(bench.ram, face)
    config = face.config
    assert (face.memory.read(config, 2), face.memory.read(config + 2, 2)) == (80, 24)
    assert face.memory.read(config + 0x800, 4) == 0
    generation = face.r(0x15, 1)
    bench.console.resize(132, 50)
    assert face.r(0x15, 1) != generation
    assert face.memory.read(config, 4) == 132 | 50 << 16
    assert face.acknowledge() == Interrupt.CONFIG_CHANGE
    face.memory.write(config + 8, 4, ord("!"))
    assert bench.sent == b"!"
    driver.rings[RECEIVE].offer([(0x9000, 16, WRITE)])
    bench.console.receive(b"typed")
    assert bench.ram.read(0x9000, 5) == b"typed"


def test_no_memory_without_bus_mastering() -> None:
    bench = Bench(console=True)
    driver = Driver(bench.ram, bench.face())
    driver.rings[RECEIVE].offer([(0x9000, 16, WRITE)])
    driver.kick(RECEIVE)
    bench.ecam.write(4, 2, 2)
    before = bytes(bench.ram.bytes)
    bench.console.receive(b"typed")
    driver.kick(RECEIVE)
    assert bytes(bench.ram.bytes) == before
    bench.ecam.write(4, 2, 6)
    assert bench.ram.read(0x9000, 5) == b"typed"
    assert len(driver.rings[RECEIVE].collect()) == 1


def test_a_queue_alone_is_reset() -> None:
    bench = Bench(console=True)
    face = bench.face()
    driver = Driver(bench.ram, face)
    driver.rings[0].offer([(0x9000, 16, WRITE)])
    face.reset_queue(0)
    bench.console.receive(b"later")
    assert driver.rings[0].collect() == []
    driver.rings[0] = driver.ring(0x20000, 4)
    driver.start(0)
    assert face.r(0x18, 2) == 4
    assert face.r(0x20, 8) == 0x20000
    face.w(0x18, 2, 8)
    assert face.r(0x18, 2) == 4, "a running queue is left as it is"
    assert driver.request(0, [(0x9000, 16, WRITE)]) == 5
    without = Driver(bench.ram, face, ~Feature.RING_RESET)
    face.w(0x16, 2, 0)
    face.w(0x3A, 2, 1)
    assert face.r(0x1C, 2) == 1, "not negotiated"
    assert without.features


def test_a_broken_driver_gets_needs_reset_and_may_start_again() -> None:
    bench = Bench()
    face = bench.face()
    driver = Driver(bench.ram, face, 1 << 32)
    bench.ram.put(driver.rings[0].areas[1] + 2, "H", 999)
    driver.kick(0)
    assert face.status() & NEEDS_RESET
    assert face.acknowledge() == Interrupt.CONFIG_CHANGE
    driver.kick(0)
    face.set_status(0)
    assert face.r(0x16, 2) == 0
    assert Driver(bench.ram, face).request(0, [(0x8000, 8, WRITE)]) == 8


def test_what_does_not_exist() -> None:
    bench = Bench()
    face = bench.face()
    face.w(0x16, 2, 5)
    assert [face.r(at, 2) for at in (0x18, 0x1C, 0x1E)] == [0, 0, 0]
    assert [face.r(at, 8) for at in (0x20, 0x28, 0x30)] == [0, 0, 0]
    face.w(0x18, 2, 8)
    face.w(0x1C, 2, 1)
    face.w(0x20, 4, 8)
    face.w(0x3A, 2, 1)
    face.w(0x00, 4, 2)
    face.w(0x08, 4, 2)
    face.w(0x0C, 4, 1)
    assert face.r(0x04, 4) == face.r(0x0C, 4) == 0
    face.w(0x10, 2, 0)
    face.w(0x1A, 2, 0)
    assert face.r(0x10, 2) == face.r(0x1A, 2) == 0xFFFF
    assert face.r(0x14, 4) == 0xFFFF_FFFF, "one byte only"
    assert face.memory.read(face.isr + 4, 4) == face.memory.read(face.notify, 4) == 0


def test_the_window_in_configuration_space() -> None:
    bench = Bench(console=True)
    ecam = bench.ecam
    at = ecam.read(0x34, 1)
    while ecam.read(at + 3, 1) != 5:
        at = ecam.read(at + 1, 1)

    def access(offset: int, length: int, value: int | None = None, bar: int = 4) -> int:
        ecam.write(at + 4, 1, bar)
        ecam.write(at + 8, 4, offset)
        ecam.write(at + 12, 4, length)
        if value is not None:
            ecam.write(at + 16, length, value)
        return ecam.read(at + 16, length)

    assert access(0x12, 2) == 2
    assert access(0x14, 1, 3) == 3
    assert bench.device.status == 3
    assert access(0x2000, 2) == 80
    assert access(0x14, 4) == 0xFFFF_FFFF, "refused"
    assert access(0x2001, 2) == access(0x4000, 2) == access(0x2000, 2, bar=0) == 0
    assert access(0x14, 4, 0) == 0xFFFF_FFFF
    assert bench.device.status == 3
    ecam.write(at + 3, 1, 9)
    assert ecam.read(at + 3, 1) == 5


def test_state_comes_back() -> None:
    bench = Bench(console=True)
    face = bench.face()
    driver = Driver(bench.ram, face)
    driver.rings[RECEIVE].offer([(0x9000, 3, WRITE)])
    bench.console.receive(b"typed ahead")
    state = bench.host.save()
    other = Bench(console=True)
    other.ram.bytes[:] = bench.ram.bytes
    driver.ram = driver.rings[0].ram = other.ram  # type: ignore[attr-defined]
    other.host.restore(state)
    assert other.host.save() == state
    assert other.lines == bench.lines == [False, True, False, False]
    driver.face = PciFace(other.ecam, other.host.memory64, MEMORY64 + 0x8000, MEMORY64)
    assert driver.face.acknowledge() == Interrupt.USED_BUFFER
    assert [n for _, n in driver.rings[0].collect()] == [3]
    driver.rings[RECEIVE].offer([(0x9000, 30, WRITE)])
    driver.kick(RECEIVE)
    assert other.ram.read(0x9000, 9) == b"ed ahead\0"
    with pytest.raises(ConfigError):
        Bench().host.restore(state)


def test_requests_in_flight_are_served_after_restore() -> None:
    """A device that was asked and had not answered when it was saved is asked again."""

    class Slow(VirtioRng):
        patient = True

        def serve(self, index: int) -> None:
            if self.patient:
                self.kept = list(self.queues[index].chains())
            else:
                super().serve(index)

    ram = Ram()
    slow = Slow(ram, lambda n: b"s" * n)
    function = VirtioPci(slow)
    host = PciHost([lambda on: None] * 4, MEMORY32, MEMORY64)
    host.add(function)
    face = PciFace(FunctionView(host.ecam, 1), host.memory64, MEMORY64, MEMORY64)
    driver = Driver(ram, face)
    driver.rings[0].offer([(0x8000, 4, WRITE)])
    driver.kick(0)
    state = host.save()
    slow.patient = False
    host.restore(state)
    assert driver.rings[0].collect() == [], "nothing moves before all is restored"
    slow.resume()
    assert [n for _, n in driver.rings[0].collect()] == [4]
    assert struct.unpack("4s", ram.read(0x8000, 4)) == (b"ssss",)
