"""A driver in miniature against the console and its ports."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.console import (
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    RECEIVE,
    TRANSMIT,
    ConsoleFeature,
    ConsolePort,
    Event,
    VirtioConsole,
)
from kasou.devices.virtio.device import Status
from kasou.devices.virtio.driver_model import WRITE, Driver, MmioFace, Ram
from kasou.devices.virtio.mmio import VirtioMmio
from kasou.devices.virtio.rng import VirtioRng
from kasou.errors import ConfigError

Message = tuple[int, Event, int, bytes]


class Guest:
    """A console with the port `agent`."""

    def __init__(self, features: int = -1, start: bool = True) -> None:
        self.ram = Ram(1 << 20)
        self.sent, self.agent_sent = bytearray(), bytearray()
        self.opened: list[bool] = []
        self.agent = ConsolePort("agent", self.agent_sent.extend, self.opened.append)
        self.console = VirtioConsole(
            self.ram, self.sent.extend, columns=100, rows=30, ports=[self.agent]
        )
        self.driver = Driver(
            self.ram, MmioFace(VirtioMmio(self.console, lambda on: None)), features
        )
        self.rooms: dict[tuple[int, int], int] = {}
        if start:
            self.give(CONTROL_RECEIVE, *[64] * 12)
            self.say(0, Event.DEVICE_READY)

    def give(self, queue: int, *rooms: int) -> None:
        for n in rooms:
            gpa = self.driver.room(n)
            self.rooms[queue, self.driver.rings[queue].offer([(gpa, n, WRITE)])] = gpa
        self.driver.kick(queue)

    def taken(self, queue: int) -> list[bytes]:
        back = self.driver.rings[queue].collect()
        return [self.ram.read(self.rooms.pop((queue, head)), n) for head, n in back]

    def say(self, port: int, event: int, value: int = 1) -> None:
        self.driver.send(CONTROL_TRANSMIT, struct.pack("<IHH", port, event, value))

    def heard(self) -> list[Message]:
        found = []
        for raw in self.taken(CONTROL_RECEIVE):
            port, event, value = struct.unpack_from("<IHH", raw)
            found.append((port, Event(event), value, raw[8:]))
        return found


def test_ports_are_introduced() -> None:
    guest = Guest()
    assert struct.unpack_from("<HHI", guest.console.config) == (100, 30, 2)
    assert guest.heard() == [(0, Event.PORT_ADD, 1, b""), (1, Event.PORT_ADD, 1, b"")]
    guest.say(0, Event.PORT_READY)
    assert guest.heard() == [
        (0, Event.CONSOLE_PORT, 1, b""),
        (0, Event.RESIZE, 0, struct.pack("<HH", 100, 30)),
        (0, Event.PORT_OPEN, 1, b""),
    ]
    guest.agent.set_open(False)
    guest.say(1, Event.PORT_READY)
    assert guest.heard() == [(1, Event.PORT_NAME, 1, b"agent")]
    guest.agent.set_open(True)
    guest.agent.set_open(True)
    assert guest.heard() == [(1, Event.PORT_OPEN, 1, b"")]
    guest.console.resize(80, 24)
    assert guest.heard() == [(0, Event.RESIZE, 0, struct.pack("<HH", 80, 24))]


def test_a_named_port_carries_bytes_both_ways() -> None:
    guest = Guest()
    guest.agent.receive(b"early ")
    guest.give(4, 64, 4)
    assert guest.taken(4) == []
    assert guest.agent.waiting == 6
    guest.say(1, Event.PORT_OPEN)
    assert guest.opened == [True]
    assert guest.agent.guest_open
    assert guest.taken(4) == [b"early "]
    guest.agent.receive(b"birdsong")
    assert guest.taken(4) == [b"bird"]
    guest.give(4, 64)
    assert guest.taken(4) == [b"song"]
    guest.driver.send(5, b"hello")
    guest.driver.send(TRANSMIT, b"console")
    assert (bytes(guest.agent_sent), bytes(guest.sent)) == (b"hello", b"console")


def test_what_waits_for_a_closed_port_is_gone() -> None:
    guest = Guest()
    guest.say(1, Event.PORT_OPEN)
    guest.agent.receive(b"to nobody")
    guest.say(1, Event.PORT_OPEN, 0)
    assert guest.opened == [True, False]
    assert guest.agent.waiting == 0
    guest.agent.receive(b"kept")
    guest.say(1, Event.PORT_OPEN)
    guest.give(4, 64)
    assert guest.taken(4) == [b"kept"]


def test_the_console_waits_until_it_is_opened() -> None:
    guest = Guest()
    guest.console.receive(b"typed")
    guest.give(RECEIVE, 64)
    assert guest.taken(RECEIVE) == []
    guest.say(0, Event.PORT_OPEN)
    assert guest.taken(RECEIVE) == [b"typed"]


def test_a_driver_for_one_port() -> None:
    guest = Guest(features=~int(ConsoleFeature.MULTIPORT), start=False)
    guest.give(RECEIVE, 64)
    guest.console.receive(b"typed")
    assert guest.taken(RECEIVE) == [b"typed"]
    guest.driver.send(TRANSMIT, b"out")
    assert guest.sent == b"out"
    guest.driver.rings[CONTROL_TRANSMIT].offer([(guest.driver.place(bytes(8)), 8, 0)])
    guest.driver.kick(CONTROL_TRANSMIT)
    guest.console.resize(1, 2)
    guest.agent.receive(b"x")
    guest.give(CONTROL_RECEIVE, 64)
    assert guest.heard() == []


def test_without_further_ports_there_are_two_queues() -> None:
    console = VirtioConsole(Ram(), lambda data: None)
    assert len(console.queues) == 2
    assert not console.offered & ConsoleFeature.MULTIPORT


def test_messages_wait_for_buffers() -> None:
    guest = Guest(start=False)
    guest.say(0, Event.DEVICE_READY)
    guest.say(1, Event.PORT_READY)
    guest.give(CONTROL_RECEIVE, *[64] * 8)
    assert [(port, event) for port, event, _, _ in guest.heard()] == [
        (0, Event.PORT_ADD),
        (1, Event.PORT_ADD),
        (1, Event.PORT_NAME),
        (1, Event.PORT_OPEN),
    ]


def test_a_driver_that_only_talks_needs_reset() -> None:
    guest = Guest(start=False)
    with pytest.raises(AssertionError):
        for _ in range(200):
            guest.say(0, Event.DEVICE_READY)
    assert guest.console.status & Status.DEVICE_NEEDS_RESET


@pytest.mark.parametrize(("queue", "part"), [(CONTROL_TRANSMIT, 0), (CONTROL_RECEIVE, WRITE)])
def test_a_control_buffer_too_small_needs_reset(queue: int, part: int) -> None:
    guest = Guest(start=False)
    guest.say(0, Event.DEVICE_READY)
    guest.driver.rings[queue].offer([(guest.driver.room(8), 7, part)])
    guest.driver.kick(queue)
    assert guest.console.status & Status.DEVICE_NEEDS_RESET


def test_reset_closes_the_ports() -> None:
    guest = Guest()
    guest.say(1, Event.PORT_READY)
    guest.say(1, Event.PORT_OPEN)
    guest.console.set_status(0)
    assert guest.opened == [True, False]
    assert not guest.agent.ready
    guest.agent.receive(b"for the next driver")
    assert guest.agent.waiting == 19


def test_names_are_needed_and_differ() -> None:
    for names in (["a", "a"], [""], [str(n) for n in range(32)]):
        with pytest.raises(ConfigError):
            VirtioConsole(Ram(), print, ports=[ConsolePort(name, print) for name in names])


def test_state_continues() -> None:
    guest = Guest()
    guest.say(1, Event.PORT_READY)
    guest.say(1, Event.PORT_OPEN)
    guest.agent.receive(b"waits")
    for _ in range(5):
        guest.say(0, Event.DEVICE_READY)
    guest.agent.set_open(False)
    state = guest.console.save()
    assert state.messages
    other = Guest(start=False)
    other.console = VirtioConsole(guest.ram, print, ports=[other.agent])
    other.console.restore(state)
    assert other.console.save() == state
    assert (other.agent.guest_open, other.agent.host_open, other.agent.waiting) == (True, False, 5)
    for wrong in (VirtioConsole(Ram(), print), VirtioConsole(Ram(), print, ports=[])):
        with pytest.raises(ConfigError):
            wrong.restore(state)
    with pytest.raises(ConfigError):
        other.console.restore(VirtioRng(Ram(), bytes).save())


@settings(max_examples=200, deadline=None)
@given(
    messages=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 31, 0xFFFF_FFFF]),
            st.integers(0, 9) | st.just(0xFFFF),
            st.sampled_from([0, 1, 0xFFFF]),
        ),
        max_size=30,
    )
)
def test_whatever_the_driver_says_the_console_goes_on(messages: list[tuple[int, int, int]]) -> None:
    guest = Guest()
    guest.give(4, 16)
    for message in messages:
        guest.say(*message)
        guest.agent.receive(b"?")
        while taken := guest.taken(CONTROL_RECEIVE):
            guest.give(CONTROL_RECEIVE, *[64] * len(taken))
    assert guest.console.running
