from dataclasses import dataclass

import pytest

from kasou.devices.bus import Bus
from kasou.devices.register import ANY_SIZE, DeviceState, Register, RegisterDevice
from kasou.errors import BusError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyState(DeviceState):
    pass


class Toy(RegisterDevice[ToyState]):
    registers = (
        Register("PLAIN", 0, size=4, reset=5),
        Register("WIDE", 8, size=8, sizes=(4, 8)),
        Register("BYTE", 16, size=1, sizes=ANY_SIZE),
        Register("RO", 20, size=4, access="r", reset=9),
        Register("A", 24, size=4, when="a"),
        Register("B", 24, size=4, when="b", reset=7),
        Register("ARRAY", 0x100, size=4, count=3, stride=16),
    )

    def __init__(self) -> None:
        super().__init__()
        self.bank = "a"
        self.array = [1, 2, 3]

    def read_array(self, index: int) -> int:
        return self.array[index]

    def write_array(self, index: int, value: int) -> None:
        self.array[index] = value


class LaxToy(Toy):
    lax = True


def test_plain_register_keeps_what_is_written() -> None:
    toy = Toy()
    assert toy.read(0, 4) == 5
    toy.write(0, 4, 6)
    assert toy.read(0, 4) == 6
    toy.reset()
    assert toy.read(0, 4) == 5


def test_pieces_of_a_wide_register() -> None:
    toy = Toy()
    toy.write(8, 8, 0x1122334455667788)
    assert (toy.read(8, 4), toy.read(12, 4)) == (0x55667788, 0x11223344)
    toy.write(12, 4, 0xAABBCCDD)
    assert toy.read(8, 8) == 0xAABBCCDD55667788


def test_wider_access_reaches_the_register_alone() -> None:
    toy = Toy()
    toy.write(16, 4, 0xFFFF_FF41)
    assert toy.read(16, 1) == toy.read(16, 8) == 0x41


def test_arrays_and_banks() -> None:
    toy = Toy()
    toy.write(0x110, 4, 22)
    assert [toy.read(0x100 + 16 * i, 4) for i in range(3)] == [1, 22, 3]
    toy.write(24, 4, 1)
    toy.bank = "b"
    assert toy.read(24, 4) == 7
    toy.bank = "a"
    assert toy.read(24, 4) == 1


@pytest.mark.parametrize(
    ("offset", "size", "write", "words"),
    [
        (0, 8, False, "Toy.PLAIN: 8-byte access"),
        (2, 2, False, "Toy.PLAIN: 2-byte access"),
        (20, 4, True, "Toy.RO: write to a read-only register"),
        (0x40, 4, False, "Toy: no register for a 4-byte access at 0x40"),
    ],
)
def test_bad_access(offset: int, size: int, write: bool, words: str) -> None:
    toy = Toy()
    with pytest.raises(BusError, match=words):
        toy.write(offset, size, 0) if write else toy.read(offset, size)


def test_lax_device_has_holes_that_read_zero() -> None:
    toy = LaxToy()
    assert toy.read(0x40, 4) == 0
    toy.write(0x40, 4, 1)
    toy.write(20, 4, 1)
    assert toy.read(20, 4) == 9
    with pytest.raises(BusError):
        toy.read(0, 8)
    with pytest.raises(BusError):
        toy.read(0x42, 4)


def test_bus_finds_the_device_and_refuses_the_rest() -> None:
    bus, toy, other = Bus(), Toy(), Toy()
    bus.attach(0x2000, 0x200, other, "other")
    bus.attach(0x1000, 0x200, toy, "toy")
    bus.write(0x1000, 4, 0x1_0000_0003)
    assert (bus.read(0x1000, 4), bus.read(0x2000, 4)) == (3, 5)
    assert [w.name for w in bus.windows] == ["toy", "other"]
    for gpa in (0, 0xFFF, 0x11FE, 0x1200, 0x3000):
        with pytest.raises(BusError):
            bus.read(gpa, 4)
        with pytest.raises(BusError):
            bus.write(gpa, 4, 0)
    with pytest.raises(ConfigError, match=r"new \[0x11ff, 0x1201\) overlaps toy"):
        bus.attach(0x11FF, 2, Toy(), "new")
    bus.attach(0x1200, 0xE00, Toy(), "between")
