import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.devices.virtio.device import Status
from kasou.devices.virtio.vsock import (
    EVENT,
    FIRST_EPHEMERAL,
    MAX_REPLIES,
    MAX_STREAMS,
    RECEIVE,
    TRANSMIT,
    VirtioVsock,
)
from kasou.devices.virtio.vsock_packet import BOTH_WAYS, Header, Op, Shutdown, Type
from kasou.devices.virtio.vsock_stream import RECEIVE_BYTES, WRITE_BYTES, State, VsockStream
from kasou.errors import GuestError, LocalError

CID, BUFFER, SIZE = 3, 4096, 128
NEXT, WRITE = 1, 2


class Ram:
    def __init__(self, n: int) -> None:
        self.bytes = bytearray(n)

    def read(self, gpa: int, n: int) -> bytes:
        if gpa + n > len(self.bytes):
            raise GuestError(f"{n} bytes at {gpa:#x} are outside RAM")
        return bytes(self.bytes[gpa : gpa + n])

    def write(self, gpa: int, data: bytes) -> None:
        if gpa + len(data) > len(self.bytes):
            raise GuestError(f"{len(data)} bytes at {gpa:#x} are outside RAM")
        self.bytes[gpa : gpa + len(data)] = data

    def view(self, gpa: int, n: int) -> memoryview:
        if gpa + n > len(self.bytes):
            raise GuestError(f"{n} bytes at {gpa:#x} are outside RAM")
        return memoryview(self.bytes)[gpa : gpa + n]

    def wrote(self, gpa: int, n: int) -> None: ...


class Guest:
    """A driver with three rings; what the device sends is in `packets`."""

    def __init__(self, receive_buffers: int = SIZE, buf_alloc: int = 1 << 18) -> None:
        self.ram = Ram(0x40_0000)
        self.device = VirtioVsock(self.ram, CID)
        self.buf_alloc = buf_alloc
        self.fwd_cnt = 0
        self.packets: list[tuple[Header, bytes]] = []
        self.events: list[int] = []
        self.avail = [0, 0, 0]
        self.seen = [0, 0, 0]
        self.interrupts = 0
        self.device.connect(self._interrupted)
        self.start(receive_buffers)

    def _interrupted(self, *_: object) -> None:
        self.interrupts += 1

    def start(self, receive_buffers: int = SIZE, events: int = 4) -> None:
        self.avail, self.seen = [0, 0, 0], [0, 0, 0]
        self.device.set_status(0)
        self.device.accept(1 << 32)
        self.device.set_status(11)
        for index, queue in enumerate(self.device.queues):
            base = 0x10_0000 * index
            queue.size = 16 if index == EVENT else SIZE
            queue.desc, queue.driver, queue.device = base, base + 0x1000, base + 0x2000
            self.ram.write(base + 0x1000, bytes(0x2000))
            self.device.enable_queue(index)
        self.device.set_status(15)
        for i in range(receive_buffers):
            self.offer(RECEIVE, i, BUFFER, WRITE)
        for i in range(events):
            self.offer(EVENT, i, 8, WRITE)

    def offer(self, index: int, slot: int, n: int, flags: int = 0) -> None:
        base = 0x10_0000 * index
        gpa = base + 0x10000 + 0x1000 * slot if index != TRANSMIT else base + 0x10000
        self.ram.write(base + 16 * slot, struct.pack("<QIHH", gpa, n, flags, 0))
        size = 16 if index == EVENT else SIZE
        at = base + 0x1004 + 2 * (self.avail[index] % size)
        self.ram.write(at, struct.pack("<H", slot))
        self.avail[index] += 1
        self.ram.write(base + 0x1002, struct.pack("<H", self.avail[index] & 0xFFFF))
        self.device.notify(index)

    def used(self, index: int) -> list[tuple[int, bytes]]:
        base, size = 0x10_0000 * index, 16 if index == EVENT else SIZE
        (idx,) = struct.unpack("<H", self.ram.read(base + 0x2002, 2))
        found = []
        while self.seen[index] & 0xFFFF != idx:
            at = base + 0x2004 + 8 * (self.seen[index] % size)
            slot, n = struct.unpack("<II", self.ram.read(at, 8))
            found.append((slot, self.ram.read(base + 0x10000 + 0x1000 * slot, n)))
            self.seen[index] += 1
        return found

    def poll(self, refill: bool = True) -> list[tuple[Header, bytes]]:
        """The packets that came, their buffers given back."""
        came: list[tuple[Header, bytes]] = []
        while used := self.used(RECEIVE):
            for _, raw in used:
                header = Header.parse(raw[:44])
                assert len(raw) == 44 + header.n
                came.append((header, raw[44:]))
            for slot, _ in used:
                if refill:
                    self.offer(RECEIVE, slot, BUFFER, WRITE)
        self.events += [struct.unpack("<I", raw)[0] for _, raw in self.used(EVENT)]
        return came

    def raw(self, packet: bytes) -> None:
        self.ram.write(0x10_0000 * TRANSMIT + 0x10000, packet)
        self.offer(TRANSMIT, self.avail[TRANSMIT] % SIZE, len(packet))

    def send(self, op: int, host_port: int, port: int, data: bytes = b"", **fields: Any) -> None:
        header = Header(
            CID, 2, port, host_port, len(data), Type.STREAM, op, 0, self.buf_alloc, self.fwd_cnt
        )
        self.raw(header._replace(**fields).pack() + data)

    def ops(self) -> list[Op]:
        return [Op(header.op) for header, _ in self.poll()]


class Owner:
    def __init__(self, stream: VsockStream, consume: bool = True) -> None:
        self.stream = stream
        self.log: list[str] = []
        self.data = bytearray()
        self.consume = consume
        stream.on_connected = lambda: self.log.append("connected")
        stream.on_data = self._data
        stream.on_eof = lambda: self.log.append("eof")
        stream.on_writable = lambda: self.log.append("writable")
        stream.on_closed = lambda reason: self.log.append(f"closed: {reason}")

    def _data(self, data: bytes) -> None:
        self.data += data
        if self.consume:
            self.stream.consume(len(data))


def connected(guest: Guest, port: int = 1024, consume: bool = True) -> Owner:
    owner = Owner(guest.device.connect_to(port), consume)
    assert guest.ops()[-1] is Op.REQUEST
    guest.send(Op.RESPONSE, owner.stream.host_port, port)
    assert owner.log == ["connected"]
    return owner


def test_host_connects_talks_and_closes() -> None:
    guest = Guest()
    stream = guest.device.connect_to(1024)
    owner = Owner(stream)
    ((request, _),) = guest.poll()
    assert request == Header(
        2, CID, FIRST_EPHEMERAL, 1024, 0, Type.STREAM, Op.REQUEST, 0, RECEIVE_BYTES, 0
    )
    assert stream.write(b"early") == 5
    assert guest.poll() == []
    guest.send(Op.RESPONSE, stream.host_port, 1024)
    ((header, data),) = guest.poll()
    assert (header.op, data, owner.log) == (Op.RW, b"early", ["connected"])
    guest.send(Op.RW, stream.host_port, 1024, b"answer")
    assert owner.data == b"answer"
    stream.close()
    ((header, _),) = guest.poll()
    assert (header.op, header.flags, header.fwd_cnt) == (Op.SHUTDOWN, BOTH_WAYS, 6)
    guest.send(Op.RST, stream.host_port, 1024)
    assert owner.log == ["connected", "closed: "]
    assert stream.write(b"late") == 0
    assert guest.interrupts


def test_guest_refuses() -> None:
    guest = Guest()
    owner = Owner(guest.device.connect_to(7))
    guest.poll()
    guest.send(Op.RST, owner.stream.host_port, 7)
    assert owner.log == ["closed: refused by the guest"]
    assert guest.ops() == []


def test_guest_connects_shuts_one_way_then_both() -> None:
    guest = Guest()
    owners: list[Owner] = []
    guest.device.listen(80, lambda stream: owners.append(Owner(stream)))
    guest.send(Op.REQUEST, 80, 5000)
    assert guest.ops() == [Op.RESPONSE]
    (owner,) = owners
    guest.send(Op.SHUTDOWN, 80, 5000, flags=Shutdown.SEND)
    assert owner.log == ["connected", "eof"]
    assert owner.stream.write(b"still") == 5
    assert guest.poll()[0][1] == b"still"
    guest.send(Op.SHUTDOWN, 80, 5000, flags=Shutdown.RECEIVE)
    assert owner.log == ["connected", "eof", "closed: "]
    assert guest.ops() == [Op.RST]


def test_shutdown_goes_after_the_data() -> None:
    guest = Guest(buf_alloc=10)
    owner = connected(guest)
    owner.stream.write(bytes(25))
    owner.stream.shutdown()
    assert owner.stream.write(b"more") == 0
    got = bytearray()
    ops: list[int] = []
    for fwd in (10, 20, 25):
        for header, data in guest.poll():
            ops.append(header.op)
            got += data
        assert len(got) == fwd
        guest.fwd_cnt = fwd
        guest.send(Op.CREDIT_UPDATE, owner.stream.host_port, 1024)
    assert ops == [Op.RW, Op.CREDIT_REQUEST] * 2 + [Op.RW, Op.SHUTDOWN]
    assert header.flags == Shutdown.SEND
    guest.send(Op.RW, owner.stream.host_port, 1024, b"reply")
    assert owner.data == b"reply"


def test_credit_of_the_guest_is_respected_and_asked_for_once() -> None:
    guest = Guest(buf_alloc=5000)
    owner = connected(guest)
    assert owner.stream.write(bytes(range(250)) * 40) == 10_000
    packets = guest.poll()
    assert [h.op for h, _ in packets] == [Op.RW, Op.RW, Op.CREDIT_REQUEST]
    assert sum(len(data) for _, data in packets) == 5000
    guest.send(Op.CREDIT_UPDATE, owner.stream.host_port, 1024)
    assert guest.poll() == []
    guest.fwd_cnt = 4999
    guest.send(Op.CREDIT_UPDATE, owner.stream.host_port, 1024)
    assert sum(len(data) for _, data in guest.poll()) == 4999


def test_writing_is_bounded_and_goes_on() -> None:
    guest = Guest(receive_buffers=0)
    owner = Owner(guest.device.connect_to(9))
    data = random.Random(1).randbytes(3 * WRITE_BYTES)
    sent = owner.stream.write(data)
    assert sent == WRITE_BYTES
    assert owner.stream.write(b"x") == 0
    for i in range(SIZE):
        guest.offer(RECEIVE, i, BUFFER, WRITE)
    got = bytearray()
    for header, data_in in guest.poll():
        if header.op == Op.REQUEST:
            guest.send(Op.RESPONSE, owner.stream.host_port, 9)
        got += data_in
    while len(got) < len(data):
        if owner.log[-1] == "writable":
            owner.log.pop()
            sent += owner.stream.write(data[sent:])
        for _, data_in in guest.poll():
            got += data_in
        guest.fwd_cnt = len(got)
        guest.send(Op.CREDIT_UPDATE, owner.stream.host_port, 9)
    assert got == data


def test_owner_gives_credit_back() -> None:
    guest = Guest()
    owner = connected(guest, consume=False)
    piece = bytes(1 << 16)
    for _ in range(4):
        guest.send(Op.RW, owner.stream.host_port, 1024, piece)
    assert len(owner.data) == RECEIVE_BYTES
    owner.stream.consume(1 << 16)
    ((header, _),) = guest.poll()
    assert (header.op, header.fwd_cnt) == (Op.CREDIT_UPDATE, 1 << 16)
    guest.send(Op.RW, owner.stream.host_port, 1024, piece)
    assert owner.log == ["connected"]
    guest.send(Op.RW, owner.stream.host_port, 1024, b"!")
    assert owner.log[-1] == "closed: the guest broke the protocol of the connection"
    assert guest.ops()[-1] is Op.RST


def test_credit_updates_do_not_pile_up_without_buffers() -> None:
    guest = Guest()
    owner = connected(guest, consume=False)
    guest.used(RECEIVE)
    queue = guest.device.queues[RECEIVE]
    while chain := queue.next_chain():
        queue.complete(chain, 0)
    guest.used(RECEIVE)
    for _ in range(4):
        guest.send(Op.RW, owner.stream.host_port, 1024, bytes(1 << 16))
    for _ in range(RECEIVE_BYTES // 64):
        owner.stream.consume(64)
    guest.avail[RECEIVE] = guest.device.queues[RECEIVE].save().next_avail
    guest.offer(RECEIVE, 0, BUFFER, WRITE)
    guest.offer(RECEIVE, 1, BUFFER, WRITE)
    ((header, _),) = guest.poll(refill=False)
    assert (header.op, header.fwd_cnt) == (Op.CREDIT_UPDATE, RECEIVE_BYTES)


def test_guest_asks_for_credit() -> None:
    guest = Guest()
    owner = connected(guest)
    guest.send(Op.CREDIT_REQUEST, owner.stream.host_port, 1024)
    ((header, _),) = guest.poll()
    assert (header.op, header.buf_alloc) == (Op.CREDIT_UPDATE, RECEIVE_BYTES)


@pytest.mark.parametrize(
    ("op", "fields", "answer"),
    [
        (Op.REQUEST, {}, [Op.RST]),
        (Op.RW, {}, [Op.RST]),
        (Op.RST, {}, []),
        (99, {}, [Op.RST]),
        (Op.REQUEST, {"type": Type.SEQPACKET}, [Op.RST]),
        (Op.REQUEST, {"dst_cid": 77}, [Op.RST]),
        (Op.REQUEST, {"src_cid": 77}, []),
    ],
)
def test_what_belongs_nowhere_is_refused(op: int, fields: dict[str, Any], answer: list[Op]) -> None:
    guest = Guest()
    guest.send(op, 80, 5000, **fields)
    packets = guest.poll()
    assert [h.op for h, _ in packets] == answer
    for header, _ in packets:
        assert header.type == fields.get("type", Type.STREAM)
        assert (header.src_cid, header.src_port) == (fields.get("dst_cid", 2), 80)
        assert (header.dst_cid, header.dst_port) == (CID, 5000)


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, Op.INVALID, 99])
def test_packets_out_of_place_end_a_connection(op: int) -> None:
    guest = Guest()
    owner = connected(guest)
    guest.send(op, owner.stream.host_port, 1024)
    assert owner.log[-1].startswith("closed: the guest broke")
    assert guest.ops() == [Op.RST]


def test_broken_packets_break_the_device_and_end_connections() -> None:
    for packet in (bytes(43), Header(CID, 2, 1, 1, 5, 1, Op.RW).pack() + bytes(4)):
        guest = Guest()
        owner = connected(guest)
        guest.raw(packet)
        assert guest.device.status & Status.DEVICE_NEEDS_RESET
        assert owner.log[-1] == "closed: the guest's driver failed"
        guest.start()
        connected(guest)


def test_receive_buffer_without_room() -> None:
    guest = Guest(receive_buffers=0)
    guest.offer(RECEIVE, 0, 44, WRITE)
    assert not guest.device.status & Status.DEVICE_NEEDS_RESET
    guest.device.connect_to(1)
    assert guest.device.status & Status.DEVICE_NEEDS_RESET


def test_too_many_replies_leave_the_guest_waiting() -> None:
    guest = Guest(receive_buffers=0)
    for _ in range(MAX_REPLIES + 50):
        guest.send(Op.RW, 80, 5000)
    taken = len(guest.used(TRANSMIT))
    assert taken == MAX_REPLIES
    for i in range(SIZE):
        guest.offer(RECEIVE, i, BUFFER, WRITE)
    assert guest.ops() == [Op.RST] * (MAX_REPLIES + 50)
    assert taken + len(guest.used(TRANSMIT)) == MAX_REPLIES + 50


def test_connections_are_bounded() -> None:
    guest = Guest()
    guest.device.listen(80, lambda stream: None)
    for port in range(MAX_STREAMS):
        guest.send(Op.REQUEST, 80, port)
        assert guest.ops() == [Op.RESPONSE]
    guest.send(Op.REQUEST, 80, MAX_STREAMS)
    assert guest.ops() == [Op.RST]
    with pytest.raises(LocalError):
        guest.device.connect_to(1)
    guest.send(Op.RST, 80, 5)
    guest.device.connect_to(1)


def test_connects_that_wait_for_a_driver_leave_nothing_behind() -> None:
    device = VirtioVsock(Ram(0x1000), CID)
    for _ in range(3000):
        owner = Owner(device.connect_to(1024))
        owner.stream.reset()
        assert owner.log == ["closed: reset by the host"]
    assert not device._replies and not device._streams and not device._ready


def test_owners_may_call_back_from_everywhere() -> None:
    guest = Guest(receive_buffers=3)
    guest.device.listen(80, lambda stream: stream.reset())
    guest.send(Op.REQUEST, 80, 1)
    assert guest.ops() == [Op.RST]

    def echo(stream: VsockStream) -> None:
        def data(data: bytes) -> None:
            stream.write(data)
            stream.consume(len(data))

        stream.on_data, stream.on_eof = data, stream.close

    guest.device.listen(81, echo)
    guest.send(Op.REQUEST, 81, 2)
    guest.send(Op.RW, 81, 2, b"hello")
    guest.send(Op.SHUTDOWN, 81, 2, flags=Shutdown.SEND)
    assert [(h.op, d) for h, d in guest.poll()] == [
        (Op.RESPONSE, b""), (Op.RW, b"hello"), (Op.SHUTDOWN, b"")
    ]  # fmt: skip


def test_streams_take_turns() -> None:
    guest = Guest(receive_buffers=2)
    a, b = connected(guest, 1), connected(guest, 2)
    guest.poll(refill=False)
    a.stream.write(bytes(100_000))
    b.stream.write(bytes(100_000))
    ports = [h.dst_port for h, _ in guest.poll()][2:12]
    assert ports.count(1) == ports.count(2) == 5


def test_restore_resets_connections_and_tells_the_guest() -> None:
    guest = Guest()
    owner = connected(guest)
    state = guest.device.save()
    assert owner.log == ["connected"]
    other = VirtioVsock(guest.ram, 9)
    other.restore(state)
    guest.device = other
    assert other.guest_cid == CID
    other.transport_reset()
    assert guest.poll() == [] and guest.events == [0]
    guest.send(Op.RW, owner.stream.host_port, 1024, b"stale")
    assert guest.ops() == [Op.RST]
    connected(guest)
    assert guest.events == [0]


def test_transport_reset_waits_for_a_buffer() -> None:
    guest = Guest()
    guest.start(events=0)
    owner = connected(guest)
    guest.device.transport_reset()
    assert owner.log[-1] == "closed: the machine was restored"
    state = guest.device.save()
    guest.device = VirtioVsock(guest.ram, CID)
    guest.device.restore(state)
    guest.offer(EVENT, 0, 8, WRITE)
    guest.poll()
    assert guest.events == [0]


def test_driver_reset_ends_connections() -> None:
    guest = Guest()
    owner = connected(guest)
    guest.start()
    assert owner.log[-1] == "closed: the guest's driver was reset"
    assert owner.stream.state is State.CLOSED


def test_a_cid_is_checked() -> None:
    for cid in (0, 1, 2, 0xFFFF_FFFF):
        with pytest.raises(LocalError):
            VirtioVsock(Ram(64), cid)


_ops = st.one_of(st.integers(0, 8), st.just(0xFFFF))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            _ops,
            st.integers(0, 3),
            st.integers(0, 3),
            st.integers(0, 300),
            st.sampled_from([0, 1, 2, 3, 7]),
            st.integers(0, 0xFFFF_FFFF),
        ),
        max_size=60,
    )
)
def test_any_packets_are_survived(steps: list[tuple[int, int, int, int, int, int]]) -> None:
    guest = Guest()
    closed: list[str] = []

    def accept(stream: VsockStream) -> None:
        def data(data: bytes) -> None:
            stream.write(data)
            stream.consume(len(data) // 2)

        stream.on_data, stream.on_closed = data, closed.append

    for port in range(2):
        guest.device.listen(port, accept)
    mine = [Owner(guest.device.connect_to(port)) for port in range(3)]
    for op, host_port, port, n, flags, credit in steps:
        if host_port == 3:
            host_port = mine[port % 3].stream.host_port
        guest.send(
            op, host_port, port, bytes(n), flags=flags, buf_alloc=credit, fwd_cnt=credit // 3
        )
        guest.poll()
    assert guest.device.running
    for owner in mine:
        assert sum(line.startswith("closed") for line in owner.log) <= 1
