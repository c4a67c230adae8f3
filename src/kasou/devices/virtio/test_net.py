"""A driver in miniature against the network card."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.device import Feature, Interrupt, Status
from kasou.devices.virtio.driver_model import (
    EVENT_IDX,
    PACKED,
    WRITE,
    Driver,
    MmioFace,
    Ram,
)
from kasou.devices.virtio.mmio import VirtioMmio
from kasou.devices.virtio.net import MAX_WAITING_FRAMES, NetState, VirtioNet
from kasou.devices.virtio.net_header import MAX_FRAME, NetFeature
from kasou.devices.virtio.rng import VirtioRng
from kasou.devices.virtio.test_offload import check_tcp4, slow_checksum, tcp4
from kasou.errors import ConfigError
from kasou.ports import Frame, FrameSink, Gso

MAC = bytes.fromhex("525400123456")
PEER = bytes.fromhex("525400000001")
V1 = int(Feature.VERSION_1)
ALL = -1


class Wire:
    """A `Port` that keeps what is sent, in its batches."""

    def __init__(self) -> None:
        self.batches: list[list[Frame]] = []

    def send(self, frames: Sequence[Frame]) -> None:
        self.batches.append(list(frames))

    def attach(self, sink: FrameSink | None) -> None: ...

    @property
    def frames(self) -> list[Frame]:
        return [frame for batch in self.batches for frame in batch]


class Guest:
    """Card, driver and wire."""

    def __init__(
        self,
        features: int = ALL,
        size: int = 64,
        pairs: int = 1,
        mtu: int | None = None,
        packed: bool = False,
    ) -> None:
        self.ram = Ram(4 << 20)
        self.wire = Wire()
        self.card = VirtioNet(self.ram, self.wire, MAC, queue_pairs=pairs, mtu=mtu)
        if packed:
            self.card.offer(PACKED)
        self.irq = False
        self.driver = Driver(self.ram, MmioFace(VirtioMmio(self.card, self.drive)), features, size)
        self.header_bytes = 12 if self.card.accepted & (V1 | NetFeature.MRG_RXBUF) else 10
        self.rooms: dict[tuple[int, int], tuple[int, int]] = {}

    def drive(self, on: bool) -> None:
        self.irq = on

    def interrupts(self) -> int:
        """Why there was one since last asked."""
        why = self.driver.face.acknowledge()
        assert not self.irq
        return why

    def transmit(self, data: bytes, header: bytes = b"", pair: int = 0) -> None:
        self.driver.send(2 * pair + 1, header.ljust(self.header_bytes, b"\0") + data)

    def give(self, *rooms: int, pair: int = 0) -> None:
        """Receive buffers."""
        for n in rooms:
            gpa = self.driver.room(n)
            head = self.driver.rings[2 * pair].offer([(gpa, n, WRITE)])
            self.rooms[pair, head] = (gpa, n)
        self.driver.kick(2 * pair)

    def received(self, pair: int = 0) -> list[tuple[bytes, bytes]]:
        """Header and data of what arrived, merged buffers put together."""
        used = self.driver.rings[2 * pair].collect()
        found = []
        while used:
            raw, buffers = b"", 0
            while len(raw) < self.header_bytes:
                head, n = used[buffers]
                raw += self.ram.read(self.rooms[pair, head][0], n)
                buffers += 1
            more = 0
            if self.header_bytes == 12:
                more = struct.unpack_from("<H", raw, 10)[0] - buffers
            used = used[buffers:]
            for head, n in used[:more]:
                raw += self.ram.read(self.rooms[pair, head][0], n)
            used = used[more:]
            found.append((raw[: self.header_bytes], raw[self.header_bytes :]))
        return found

    def command(self, kind: int, command: int, data: bytes) -> int:
        last = len(self.driver.rings) - 1
        index = last if self.card.accepted & NetFeature.MQ else 2
        (answer,) = self.driver.send(index, bytes((kind, command)) + data, 1)
        return answer


def header(
    flags: int = 0, gso: int = 0, hdr_len: int = 0, size: int = 0, start: int = 0, offset: int = 0
) -> bytes:
    return struct.pack("<BBHHHH", flags, gso, hdr_len, size, start, offset)


def plain(n: int = 60, to: bytes = MAC, kind: bytes = b"\x88\xb5") -> bytes:
    return to + PEER + kind + bytes(i & 255 for i in range(n - 14))


# ---------------------------------------------------------------------- transmit
def test_a_frame_goes_out() -> None:
    guest = Guest()
    guest.transmit(plain(100))
    assert guest.wire.batches == [[Frame(plain(100))]]
    assert (guest.card.sent.packets, guest.card.sent.bytes, guest.card.sent.drops) == (1, 100, 0)
    assert guest.interrupts() == Interrupt.USED_BUFFER


def test_frames_of_one_notification_are_one_batch() -> None:
    guest = Guest()
    for n in (60, 61, 62):
        packet = bytes(12) + plain(n)
        gpa = guest.driver.place(packet)
        guest.driver.rings[1].offer([(gpa, 12, 0), (gpa + 12, 20, 0), (gpa + 32, n - 20, 0)])
    guest.driver.kick(1)
    assert [[frame.data for frame in b] for b in guest.wire.batches] == [
        [plain(60), plain(61), plain(62)]
    ]
    assert len(guest.driver.rings[1].collect()) == 3


def test_offloads_of_the_guest_reach_the_wire() -> None:
    guest = Guest()
    guest.transmit(plain(100), header(1, 0, 0, 0, 34, 16))
    data = tcp4(b"x" * 3000)
    guest.transmit(data, header(1, 1, 1, 1000, 34, 16))
    cwr = tcp4(b"x" * 3000, flags=0x90)
    guest.transmit(cwr, header(1, 0x81, 66, 1000, 34, 16))
    guest.transmit(plain(200), header(1, 5, 0, 50, 54, 6))
    assert guest.wire.frames == [
        Frame(plain(100), (34, 16), None, True),
        Frame(data, (34, 16), Gso("tcp4", 1000, 66), True),
        Frame(cwr, (34, 16), Gso("tcp4", 1000, 66), True),
        Frame(plain(200), (54, 6), Gso("udp", 50, 62), True),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        header(1, 0, 0, 0, 0xFFFF, 0xFFFF),
        header(1, 0, 0, 0, 99, 0),
        header(1, 1, 0, 0, 34, 16),
        header(0, 1, 0, 1000, 34, 16),
        header(1, 1, 0, 1000, 34, 6),
        header(1, 1, 0, 1000, 10, 16),
        header(1, 1, 0, 1000, 80, 16),
        header(1, 2, 0, 1000, 34, 16),
        header(1, 3, 0, 1000, 34, 6),
        header(1, 5, 0, 1000, 92, 6),
        header(1, 0x85, 0, 10, 34, 6),
    ],
)
def test_a_header_that_lies_costs_the_frame_only(wrong: bytes) -> None:
    guest = Guest()
    guest.transmit(plain(100), wrong)
    assert guest.wire.frames == []
    assert guest.card.sent.drops == 1
    assert guest.card.running
    guest.transmit(plain(100))
    assert len(guest.wire.frames) == 1


def test_what_was_not_negotiated_is_dropped() -> None:
    guest = Guest(features=V1)
    guest.transmit(plain(100), header(1, 0, 0, 0, 34, 16))
    assert guest.card.sent.drops == 1
    guest = Guest(features=V1 | NetFeature.CSUM)
    guest.transmit(tcp4(b"x" * 3000), header(1, 1, 66, 1000, 34, 16))
    assert guest.card.sent.drops == 1


def test_frames_too_short_and_too_long_are_dropped() -> None:
    guest = Guest()
    guest.transmit(b"")
    guest.transmit(bytes(13))
    guest.transmit(bytes(MAX_FRAME + 1))
    assert guest.card.sent.drops == 3
    guest.transmit(plain(MAX_FRAME))
    assert guest.wire.frames[0].data == plain(MAX_FRAME)


def test_a_chain_without_a_header_needs_reset() -> None:
    guest = Guest()
    guest.transmit(plain())
    guest.driver.rings[1].offer([(guest.driver.place(bytes(11)), 11, 0)])
    guest.driver.kick(1)
    assert guest.card.status & Status.DEVICE_NEEDS_RESET
    assert len(guest.wire.frames) == 1


def test_the_short_header_of_old_drivers() -> None:
    guest = Guest(features=int(NetFeature.MAC))
    guest.transmit(plain())
    assert guest.wire.frames == [Frame(plain())]
    guest.give(1600)
    guest.card.receive([Frame(plain(70))])
    assert guest.received() == [(bytes(10), plain(70))]


# ---------------------------------------------------------------------- receive
def test_a_frame_comes_in() -> None:
    guest = Guest()
    guest.give(1600, 1600)
    guest.card.receive([Frame(plain(100)), Frame(plain(60), trusted=True)])
    assert guest.received() == [
        (bytes(10) + b"\1\0", plain(100)),
        (header(flags=2) + b"\1\0", plain(60)),
    ]
    assert guest.interrupts() == Interrupt.USED_BUFFER
    assert (guest.card.received.packets, guest.card.received.bytes) == (2, 160)


@pytest.mark.parametrize("features", [ALL, ~EVENT_IDX, ~PACKED, ~(PACKED | EVENT_IDX)])
def test_a_large_frame_fills_several_buffers_at_once(features: int) -> None:
    guest = Guest(features, size=128, packed=True)
    guest.give(*[1536] * 64)
    frame = Frame(tcp4(bytes(range(256)) * 200), (34, 16), Gso("tcp4", 1448, 66), True)
    guest.card.receive([frame, Frame(plain())])
    (large, data), (_, small) = guest.received()
    assert data == frame.data
    assert large[:10] == header(1, 1, 66, 1448, 34, 16)
    assert struct.unpack_from("<H", large, 10)[0] == (12 + len(data) + 1535) // 1536
    assert small == plain()


@pytest.mark.parametrize("packed", [False, True])
def test_a_frame_waits_until_there_is_room_for_all_of_it(packed: bool) -> None:
    guest = Guest(packed=packed)
    guest.give(1000)
    guest.card.receive([Frame(plain(2500)), Frame(plain(60))])
    assert guest.received() == []
    guest.give(1000)
    assert guest.received() == []
    guest.give(1000, 1000)
    assert [data for _, data in guest.received()] == [plain(2500), plain(60)]


def test_a_frame_larger_than_the_whole_ring_is_dropped() -> None:
    guest = Guest(size=4)
    guest.give(100, 100, 100, 100)
    guest.card.receive([Frame(plain(1000)), Frame(plain(60))])
    assert [data for _, data in guest.received()] == [plain(60)]
    assert guest.card.received.drops == 1


def test_without_merging_a_frame_must_fit_one_buffer() -> None:
    guest = Guest(features=ALL & ~int(NetFeature.MRG_RXBUF))
    guest.give(200, 70000)
    guest.card.receive([Frame(plain(1000)), Frame(plain(100)), Frame(plain(65000))])
    assert [data for _, data in guest.received()] == [plain(100), plain(65000)]
    assert guest.card.received.drops == 1


def test_waiting_is_bounded() -> None:
    guest = Guest()
    guest.card.receive([Frame(plain())] * (MAX_WAITING_FRAMES + 5))
    assert guest.card.received.drops == 5
    other = Guest()
    other.card.receive([Frame(plain(65536))] * 1000)
    assert other.card.received.drops == 1000 - 128


def test_segmentation_for_a_driver_without_it() -> None:
    payload = bytes(range(256)) * 16
    frame = Frame(tcp4(payload), (34, 16), Gso("tcp4", 1000, 66), True)
    for features in (V1, V1 | NetFeature.MRG_RXBUF):
        guest = Guest(features=features)
        guest.give(*[1600] * 5)
        guest.card.receive([frame])
        parts = [check_tcp4(data)[2] for _, data in guest.received()]
        assert [len(part) for part in parts] == [1000, 1000, 1000, 1000, 96]
        assert b"".join(parts) == payload
    guest = Guest(features=V1 | NetFeature.GUEST_CSUM)
    guest.give(*[1600] * 5)
    guest.card.receive([frame])
    assert [h[:10] for h, _ in guest.received()] == [header(1, 0, 0, 0, 34, 16)] * 5


def test_ecn_is_offered_as_such() -> None:
    frame = Frame(tcp4(bytes(3000), flags=0x90), (34, 16), Gso("tcp4", 1000, 66))
    guest = Guest()
    guest.give(*[1600] * 5)
    guest.card.receive([frame])
    assert [h[1] for h, _ in guest.received()] == [0x81]
    guest = Guest(features=ALL & ~int(NetFeature.GUEST_ECN))
    guest.give(*[1600] * 5)
    guest.card.receive([frame])
    assert [data[47] for _, data in guest.received()] == [0x90, 0x10, 0x10]


def test_checksum_for_a_driver_without_it() -> None:
    guest = Guest(features=V1)
    guest.give(1600, 1600)
    data = plain(100)
    guest.card.receive([Frame(data, (34, 16), None, True), Frame(data, (90, 50))])
    ((head, seen),) = guest.received()
    assert head == bytes(10) + b"\1\0"
    assert seen[50:52] == slow_checksum(data[34:]).to_bytes(2, "big")
    assert guest.card.received.drops == 1


def test_nothing_reaches_a_card_without_driver_or_cable() -> None:
    card = VirtioNet(Ram(), Wire(), MAC)
    card.receive([Frame(plain())])
    assert card.received.drops == 1
    guest = Guest()
    guest.give(1600)
    guest.interrupts()
    guest.card.set_link(False)
    guest.card.set_link(False)
    assert guest.interrupts() == Interrupt.CONFIG_CHANGE
    assert guest.card.config[6:8] == b"\0\0"
    guest.card.receive([Frame(plain())])
    guest.transmit(plain())
    assert (guest.received(), guest.wire.frames) == ([], [])
    assert (guest.card.received.drops, guest.card.sent.drops) == (1, 1)
    guest.card.set_link(True)
    guest.card.receive([Frame(plain())])
    assert len(guest.received()) == 1


def test_a_receive_buffer_that_is_not_writable_needs_reset() -> None:
    guest = Guest()
    guest.driver.rings[0].offer([(0x1000, 100, 0)])
    guest.card.receive([Frame(plain())])
    assert guest.card.status & Status.DEVICE_NEEDS_RESET


# ---------------------------------------------------------------------- control
MULTICAST = bytes.fromhex("01005e000001")
OTHER = bytes.fromhex("525400999999")


def passing(guest: Guest) -> set[bytes]:
    destinations = (MAC, OTHER, MULTICAST, b"\xff" * 6)
    guest.give(*[1600] * 4)
    guest.card.receive([Frame(plain(to=to)) for to in destinations])
    return {data[:6] for _, data in guest.received()}


def test_the_filter_obeys() -> None:
    guest = Guest()
    assert len(passing(guest)) == 4
    assert guest.command(0, 0, b"\0") == 0
    assert passing(guest) == {MAC, b"\xff" * 6}
    table = struct.pack("<I", 1) + OTHER + struct.pack("<I", 1) + MULTICAST
    assert guest.command(1, 0, table) == 0
    assert len(passing(guest)) == 4
    assert guest.command(1, 0, bytes(8)) == 0
    assert guest.command(0, 1, b"\1") == 0
    assert passing(guest) == {MAC, MULTICAST, b"\xff" * 6}
    assert guest.command(0, 5, b"\1") == 0
    assert guest.command(0, 3, b"\1") == 0
    assert passing(guest) == {MAC}
    assert guest.command(0, 2, b"\1") == 0
    assert passing(guest) == {MAC, OTHER}
    assert guest.command(0, 4, b"\1") == 0
    assert passing(guest) == set()


def test_a_table_too_large_passes_all() -> None:
    guest = Guest()
    guest.command(0, 0, b"\0")
    many = b"".join(bytes((2, 0, 0, 0, 0, i)) for i in range(65))
    assert guest.command(1, 0, struct.pack("<I", 65) + many + bytes(4)) == 0
    assert passing(guest) == {MAC, OTHER, b"\xff" * 6}


def test_a_new_address() -> None:
    guest = Guest()
    guest.command(0, 0, b"\0")
    assert guest.command(1, 1, OTHER) == 0
    assert guest.card.mac == OTHER
    assert passing(guest) == {OTHER, b"\xff" * 6}
    guest.card.set_status(0)
    assert guest.card.mac == MAC


def test_vlans() -> None:
    guest = Guest()
    guest.command(0, 0, b"\0")
    frames = [Frame(plain(kind=b"\x81\x00\x20" + bytes((vlan,)))) for vlan in (5, 6)]

    def seen() -> list[int]:
        guest.give(1600, 1600)
        guest.card.receive(frames)
        return [data[15] for _, data in guest.received()]

    assert seen() == []
    assert guest.command(2, 0, struct.pack("<H", 5)) == 0
    assert seen() == [5]
    assert guest.command(2, 1, struct.pack("<H", 5)) == 0
    assert seen() == []
    assert guest.command(2, 0, struct.pack("<H", 4096)) == 1


def test_the_guest_announces_itself_on_request() -> None:
    guest = Guest()
    guest.card.announce()
    assert guest.card.config[6] == 3
    assert guest.interrupts() & Interrupt.CONFIG_CHANGE
    assert guest.command(3, 0, b"") == 0
    assert guest.card.config[6] == 1


def test_offloads_switched_off_by_the_driver() -> None:
    guest = Guest()
    guest.give(*[1600] * 4)
    assert guest.command(5, 0, bytes(8)) == 0
    guest.card.receive([Frame(tcp4(bytes(2000)), (34, 16), Gso("tcp4", 1000, 66))])
    assert [len(check_tcp4(data)[2]) for _, data in guest.received()] == [1000, 1000]
    assert guest.command(5, 0, struct.pack("<Q", 1 << 10)) == 1


@pytest.mark.parametrize(
    ("kind", "command", "data"),
    [
        (0, 0, b""),
        (0, 6, b"\1"),
        (0, 255, b"\1"),
        (1, 0, b""),
        (1, 0, b"\xff\xff\xff\xff" + bytes(12)),
        (1, 0, bytes(9)),
        (1, 1, bytes(5)),
        (1, 2, bytes(6)),
        (2, 2, bytes(2)),
        (4, 0, b"\1\0"),
        (4, 0, b""),
        (5, 0, bytes(7)),
        (9, 9, b"?" * 20000),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(kind: int, command: int, data: bytes) -> None:
    guest = Guest()
    assert guest.command(kind, command, data) == 1
    assert guest.card.running


def test_a_command_without_room_for_an_answer_needs_reset() -> None:
    guest = Guest()
    guest.driver.rings[2].offer([(guest.driver.place(bytes(8)), 8, 0)])
    guest.driver.kick(2)
    assert guest.card.status & Status.DEVICE_NEEDS_RESET


# ---------------------------------------------------------------------- several queues
def udp(source: int, destination: int, to_guest: bool) -> bytes:
    here, there = b"\x0a\0\0\1", b"\x0a\0\0\2"
    ip = bytes(9) + b"\x11\0\0" + (there + here if to_guest else here + there)
    return (
        plain(14, kind=b"\x08\x00")
        + b"\x45"
        + ip[1:]
        + struct.pack(">HH", source, destination)
        + bytes(20)
    )


def test_queue_pairs() -> None:
    guest = Guest(pairs=4)
    assert len(guest.driver.rings) == 9
    assert guest.card.config[8:10] == b"\4\0"
    for pair in range(4):
        guest.give(*[1600] * 8, pair=pair)
    replies = [Frame(udp(53, 1000 + n, to_guest=True)) for n in range(8)]
    guest.card.receive(replies)
    assert len(guest.received(0)) == 8
    assert guest.command(4, 0, struct.pack("<H", 5)) == 1
    assert guest.command(4, 0, struct.pack("<H", 0)) == 1
    assert guest.command(4, 0, struct.pack("<H", 3)) == 0
    for n in range(8):
        guest.transmit(udp(1000 + n, 53, to_guest=False), pair=n % 3)
    guest.give(*[1600] * 8)
    guest.card.receive(replies)
    for pair in range(3):
        ports = [struct.unpack_from(">H", data, 36)[0] - 1000 for _, data in guest.received(pair)]
        assert ports == list(range(pair, 8, 3))
    assert guest.received(3) == []


def test_several_pairs_offered_and_not_wanted() -> None:
    guest = Guest(features=ALL & ~int(NetFeature.MQ), pairs=2)
    assert guest.command(1, 1, OTHER) == 0
    assert guest.card.mac == OTHER


# ---------------------------------------------------------------------- building, rest
def test_configuration() -> None:
    guest = Guest(mtu=9000)
    assert guest.card.config == MAC + struct.pack("<HHHIB", 1, 1, 9000, 10000, 1)
    assert guest.card.offered & NetFeature.MTU
    assert not guest.card.offered & NetFeature.MQ
    for wrong in (MULTICAST, bytes(5)):
        with pytest.raises(ConfigError):
            VirtioNet(Ram(), Wire(), wrong)
    with pytest.raises(ConfigError):
        VirtioNet(Ram(), Wire(), MAC, queue_pairs=0)
    with pytest.raises(ConfigError):
        VirtioNet(Ram(), Wire(), MAC, mtu=67)


def test_state_continues() -> None:
    guest = Guest(pairs=2)
    guest.command(0, 0, b"\0")
    guest.command(1, 1, OTHER)
    guest.command(4, 0, struct.pack("<H", 2))
    guest.command(2, 0, struct.pack("<H", 7))
    guest.command(5, 0, struct.pack("<Q", 2))
    guest.give(1000)
    guest.card.receive([Frame(plain(2000, to=OTHER))])
    state = guest.card.save()
    again = VirtioNet(guest.ram, guest.wire, MAC, queue_pairs=2)
    again.restore(state)
    assert again.save() == state
    guest.card = again
    guest.driver.face = MmioFace(VirtioMmio(again, guest.drive))
    guest.give(1000, 1000)
    again.receive([Frame(plain(to=MAC)), Frame(plain(1500, to=OTHER))])
    assert [data for _, data in guest.received()] == [plain(1500, to=OTHER)]
    with pytest.raises(ConfigError):
        VirtioNet(Ram(), Wire(), MAC).restore(state)
    with pytest.raises(ConfigError):
        again.restore(VirtioRng(Ram(), bytes).save())
    with pytest.raises(ConfigError):
        VirtioNet(Ram(), Wire(), MAC, queue_pairs=2).restore(
            NetState(
                **{n: getattr(state, n) for n in state.__dataclass_fields__ if n != "active_pairs"},
                active_pairs=3,
            )
        )


numbers = st.sampled_from([0, 1, 2, 5, 12, 14, 34, 66, 100, 0x8000, 0xFFFF]) | st.integers(0, 200)


@settings(max_examples=200, deadline=None)
@given(
    features=st.integers(0, (1 << 64) - 1) | st.just(-1),
    flags=st.integers(0, 7),
    gso=st.sampled_from([0, 1, 2, 3, 4, 5, 0x81, 0x84, 0x85, 255]),
    fields=st.tuples(numbers, numbers, numbers, numbers),
    data=st.binary(max_size=200) | st.binary(max_size=300).map(tcp4),
    rooms=st.lists(st.integers(1, 300), max_size=12),
)
def test_whatever_one_guest_sends_another_survives(
    features: int,
    flags: int,
    gso: int,
    fields: tuple[int, int, int, int],
    data: bytes,
    rooms: list[int],
) -> None:
    sender = Guest()
    sender.transmit(data, header(flags, gso, *fields))
    assert sender.card.running
    receiver = Guest(features, packed=True)
    receiver.give(*rooms)
    receiver.card.receive(sender.wire.frames)
    receiver.received()
    assert receiver.card.running


@settings(max_examples=200, deadline=None)
@given(
    commands=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.binary(max_size=40)), max_size=20
    ),
    pairs=st.integers(1, 3),
)
def test_whatever_is_commanded_the_card_goes_on(
    commands: list[tuple[int, int, bytes]], pairs: int
) -> None:
    guest = Guest(pairs=pairs)
    guest.give(*[1600] * 4)
    for kind, command, data in commands:
        assert guest.command(kind, command, data) in (0, 1)
        guest.card.receive([Frame(plain()), Frame(tcp4(bytes(99)), (34, 16), Gso("tcp4", 50, 66))])
    guest.card.restore(guest.card.save())
    assert guest.card.running
