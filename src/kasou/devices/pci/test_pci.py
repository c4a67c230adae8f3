import pytest

from kasou.devices.pci.config_space import Bar, ConfigSpace
from kasou.devices.pci.function import PciFunction, PciFunctionState
from kasou.devices.pci.host import PciHost, PciState
from kasou.errors import BusError, ConfigError

MEMORY, MEMORY64 = 0x4000_0000, 0x4_0000_0000
NONE = 0xFFFF_FFFF


class Scratch:
    """Words, 4 bytes only."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def read(self, offset: int, size: int) -> int:
        if size != 4:
            raise BusError("4 bytes only")
        return self.words.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            raise BusError("4 bytes only")
        self.words[offset] = value


class Card(PciFunction):
    def __init__(self, pin: int = 1, **bars: Bar) -> None:
        self.scratch = Scratch()
        made = {int(name[3:]): bar for name, bar in bars.items()}
        super().__init__(
            ConfigSpace(0x1234, 0x5678, 0x020000, revision=3, subsystem=(0xAAAA, 0xBBBB),
                        interrupt_pin=pin, bars=made)
        )  # fmt: skip


class Bus:
    def __init__(self) -> None:
        self.lines = [False] * 4
        self.host = PciHost([self._line(n) for n in range(4)], MEMORY, MEMORY64)

    def _line(self, n: int):  # type: ignore[no-untyped-def]
        return lambda on: self.lines.__setitem__(n, on)

    def r(self, device: int, offset: int, size: int = 4) -> int:
        return self.host.ecam.read((device << 15) + offset, size)

    def w(self, device: int, offset: int, value: int, size: int = 4) -> None:
        self.host.ecam.write((device << 15) + offset, size, value)


def test_identity_and_absence() -> None:
    bus = Bus()
    assert bus.host.add(Card()) == 1
    assert bus.host.add(Card(), 31) == 31
    assert bus.r(0, 0) == 0x0008_1B36
    assert bus.r(0, 8) >> 8 == 0x060000
    assert bus.r(1, 0) == 0x5678_1234
    assert bus.r(1, 2, 2) == 0x5678
    assert bus.r(1, 8) == 0x020000_03
    assert bus.r(1, 0x2C) == 0xBBBB_AAAA
    assert bus.r(31, 0x3D, 1) == 1
    assert bus.r(2, 0) == NONE
    assert bus.r(2, 0, 1) == 0xFF
    assert bus.host.ecam.read((1 << 15) + (1 << 12), 4) == NONE, "function 1"
    assert bus.host.ecam.read(1 << 20, 4) == NONE, "bus 1"
    assert bus.r(1, 0x100) == 0, "no extended capabilities"
    bus.w(2, 0, 0)
    bus.w(1, 0x100, NONE)
    bus.w(1, 0, 0)
    assert bus.r(1, 0) == 0x5678_1234
    with pytest.raises(ConfigError):
        bus.host.add(Card(), 1)
    with pytest.raises(ConfigError):
        bus.host.add(Card(), 32)
    for _ in range(29):
        bus.host.add(Card())
    with pytest.raises(ConfigError, match="32 places"):
        bus.host.add(Card())


def test_bars_are_sized_and_moved() -> None:
    bus = Bus()
    card = Card()
    card = Card(bar0=Bar(0x1000, card.scratch), bar1=Bar(0x40, card.scratch, io=True),
                bar2=Bar(0x4000, card.scratch, wide=True, prefetchable=True))  # fmt: skip
    scratch = card.config.bars[0].device
    bus.host.add(card)
    for offset in range(0x10, 0x28, 4):
        bus.w(1, offset, NONE)
    sizes = [bus.r(1, offset) for offset in range(0x10, 0x28, 4)]
    assert sizes == [0xFFFF_F000, 0xFFFF_FFC1, 0xFFFF_C00C, NONE, 0, 0]
    bus.w(1, 0x10, MEMORY + 0x1000)
    bus.w(1, 0x14, 0x1000)
    bus.w(1, 0x18, 0)
    bus.w(1, 0x1C, 4)
    host = bus.host
    assert host.memory32.read(0x1010, 4) == NONE, "not decoded yet"
    bus.w(1, 4, 3, 2)
    host.memory32.write(0x1010, 4, 7)
    assert scratch.read(0x10, 4) == 7
    host.io.write(0x1010, 4, 8)
    assert host.memory64.read(0x10, 4) == 8
    assert host.memory32.read(0x1010, 2) == 0xFFFF, "refused by the device"
    host.memory32.write(0x1010, 2, 0)
    assert host.memory32.read(0x1FFE, 4) == NONE, "half outside"
    assert host.memory32.read(0x2000, 4) == host.memory32.read(0, 4) == NONE
    bus.w(1, 0x10, MEMORY + 0x8000)
    assert host.memory32.read(0x1010, 4) == NONE
    assert host.memory32.read(0x8010, 4) == 8
    bus.w(1, 4, 1, 2)
    assert host.memory32.read(0x8010, 4) == NONE
    assert host.io.read(0x1010, 4) == 8


def test_overlapping_bars_hurt_nobody_else() -> None:
    bus = Bus()
    cards = []
    for _ in range(3):
        scratch = Scratch()
        card = Card(bar0=Bar(0x1000, scratch))
        bus.host.add(card)
        cards.append(scratch)
    for device, at in ((1, 0), (2, 0), (3, 0x1000)):
        bus.w(device, 0x10, MEMORY + at)
        bus.w(device, 4, 2, 2)
    bus.host.memory32.write(0x1000, 4, 5)
    assert cards[2].words == {0: 5}
    bus.w(2, 0x10, MEMORY + 0x3000)
    bus.host.memory32.write(0x3000, 4, 6)
    assert cards[1].words == {0: 6}


def test_pins_are_turned_and_shared() -> None:
    bus = Bus()
    cards = [Card() for _ in range(5)] + [Card(pin=2)]
    for card in cards:
        bus.host.add(card)  # 1 to 6
    cards[0].set_interrupt(True)
    assert bus.lines == [False, True, False, False]
    cards[4].set_interrupt(True)
    cards[0].set_interrupt(False)
    assert bus.lines == [False, True, False, False], "device 5 still asserts"
    assert bus.r(1, 6, 2) & 8 == 0
    assert bus.r(5, 6, 2) & 8 == 8
    bus.w(5, 4, 1 << 10, 2)
    assert bus.lines == [False] * 4
    assert bus.r(5, 6, 2) & 8 == 8, "asks, but is not let through"
    bus.w(5, 4, 0, 2)
    assert bus.lines[1]
    cards[5].set_interrupt(True)
    assert bus.lines == [False, True, False, True], "device 6, pin B"
    bus.host.reset()
    assert bus.lines == [False] * 4


def test_capabilities_are_a_list() -> None:
    config = ConfigSpace(1, 2, 3)
    assert config.load(0x34, 1) == 0
    assert config.load(6, 2) & 0x10 == 0
    first = config.add_capability(9, b"abc", b"\0\xff\0")
    second = config.add_capability(5, b"defg")
    assert (first, second) == (0x40, 0x48)
    assert config.load(0x34, 1) == first
    assert config.load(6, 2) & 0x10
    assert [config.load(at + 1, 1) for at in (first, second)] == [second, 0]
    config.store(first, 4, 0)
    config.store(first + 4, 1, 0)
    assert config.load(first, 4).to_bytes(4, "little") == b"\x09\x48a\0"
    config.reset()
    assert config.load(first + 2, 3).to_bytes(3, "little") == b"abc"


def test_state_comes_back() -> None:
    def build() -> tuple[Bus, Card]:
        bus, card = Bus(), Card(bar0=Bar(0x1000, Scratch()))
        bus.host.add(card)
        return bus, card

    bus, card = build()
    bus.w(1, 0x10, MEMORY + 0x5000)
    bus.w(1, 4, 2, 2)
    bus.w(1, 0x3C, 0x55, 1)
    card.set_interrupt(True)
    state = bus.host.save()
    other, _ = build()
    other.host.restore(state)
    assert other.host.save() == state
    assert other.lines == [False, True, False, False]
    assert other.host.memory32.read(0x5000, 4) == 0
    assert other.r(1, 0x3C, 1) == 0x55
    with pytest.raises(ConfigError, match="not in both"):
        Bus().host.restore(state)
    with pytest.raises(ConfigError):
        other.host.restore(PciState(functions=()))
    foreign = PciFunctionState(config=bytes(256), interrupt=False)
    with pytest.raises(ConfigError, match="another PCI function"):
        other.host.restore(PciState(functions=(foreign, *state.functions[1:])))
