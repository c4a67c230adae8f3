"""Two hosts on a wire: what they say to one another, and that nothing can make them fall."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.net.link.offload import complete, segment
from kasou.net.network.interface import Interface
from kasou.net.network.ip import Echo
from kasou.net.network.slaac import Slaac
from kasou.net.stack import Host
from kasou.net.transport.tcp import Connection, Endpoint, Event
from kasou.net.transport.udp import Received
from kasou.net.wire.address import ip, mac
from kasou.net.wire.icmpv4 import Icmpv4
from kasou.net.wire.ipv4 import Ipv4Header, parse_ipv4
from kasou.ports import Frame

SECOND = 1_000_000_000


class Wire:
    """Two hosts, a and b, 10.0.0.1 and .2, fd00::1 and ::2; frames pass as they are, or `cut`."""

    def __init__(self, cut: bool = False, mtu: int = 1500) -> None:
        self.now, self.cut = 0, cut
        self.hosts: list[Host] = []
        self.interfaces: list[Interface] = []
        self.passed: list[Frame] = []
        for number in (1, 2):
            host = Host(random.Random(number))
            link = host.add_interface("eth0", bytes((2, 0, 0, 0, 0, number)), mtu)
            host.add_address(link, ip(f"10.0.0.{number}"), 24)
            host.add_address(link, ip(f"fd00::{number}"), 64)
            self.hosts.append(host)
            self.interfaces.append(link)
        self.a, self.b = self.hosts

    def settle(self) -> None:
        for _ in range(1000):
            moved = False
            for number, host in enumerate(self.hosts):
                host.deliver_events()
                for _, frames in host.to_send(self.now):
                    moved = True
                    if self.cut:
                        frames = [piece for frame in frames for piece in segment(frame)]
                        frames = [frame._replace(trusted=False) for frame in frames]
                    self.passed += frames
                    self.hosts[1 - number].receive(self.interfaces[1 - number], frames, self.now)
            if not moved:
                return
        raise AssertionError("no rest")

    def run(self, seconds: float) -> None:
        end = self.now + int(seconds * SECOND)
        while True:
            self.settle()
            due = min((t for t in (h.deadline() for h in self.hosts) if t is not None), default=end)
            if due >= end:
                self.now = end
                return
            self.now = max(due, self.now)
            for host in self.hosts:
                host.handle_timer(self.now)


def test_ping_and_udp_over_both_versions() -> None:
    wire = Wire()
    for destination in ("10.0.0.2", "fd00::2"):
        replies: list[Echo] = []
        wire.a.ping(ip(destination), 1, 2, b"abc", replies.append)
        wire.settle()
        assert [(each.source, each.data) for each in replies] == [(ip(destination), b"abc")]
        server = wire.b.udp.bind(None, 7 if len(replies[0].source) == 4 else 8)
        client = wire.a.udp.bind()
        client.send(b"hello", ip(destination), server.port)
        wire.settle()
        got = server.receive()
        assert got is not None and got.payload == b"hello"
        server.send(b"answer", got.source, got.source_port)
        wire.settle()
        answer = client.receive()
        assert answer == Received(b"answer", ip(destination), server.port, got.source)


def test_a_closed_port_and_a_silent_neighbor() -> None:
    wire = Wire()
    client = wire.a.udp.bind()
    client.send(b"x", ip("10.0.0.2"), 9)
    wire.settle()
    assert client.unreachable
    client.unreachable = False
    client.send(b"x", ip("10.0.0.77"), 9)
    wire.run(5)
    assert client.unreachable and wire.a.ip.counters["undeliverable"] == 1
    events: list[Event] = []
    connection = wire.a.tcp.connect(
        Endpoint(ip("10.0.0.1"), 0), Endpoint(ip("10.0.0.88"), 80), wire.now
    )
    connection.on_event = lambda connection, event: events.append(event)
    wire.run(5)
    assert events == [Event.UNREACHABLE, Event.CLOSED]


def transfer(wire: Wire, address: str, size: int = 400_000) -> bytes:
    source = "10.0.0.1" if "." in address else "fd00::1"
    accepted: list[Connection] = []
    got = bytearray()

    def reading(connection: Connection, event: Event) -> None:
        while data := connection.read():
            got.extend(data)

    def accept(connection: Connection) -> None:
        accepted.append(connection)
        connection.on_event = reading

    wire.b.tcp.listen(None, 80, accept)
    connection = wire.a.tcp.connect(Endpoint(ip(source), 0), Endpoint(ip(address), 80), wire.now)
    wire.settle()
    connection.write(random.Random(5).randbytes(size))
    wire.run(5)
    return bytes(got)


def test_tcp_units_pass_whole_or_cut_alike() -> None:
    data = random.Random(5).randbytes(400_000)
    for address in ("10.0.0.2", "fd00::2"):
        whole, cut = Wire(), Wire(cut=True)
        assert transfer(whole, address) == data
        assert transfer(cut, address) == data
        assert any(frame.gso for frame in whole.passed)
        assert max(len(frame.data) for frame in cut.passed) <= 1514
        for host in cut.hosts:
            assert host.tcp.statistics.bad_checksum == 0
            assert host.ip.interfaces[0].statistics.malformed == 0


def test_a_host_talks_to_itself() -> None:
    wire = Wire()
    server, client = wire.a.udp.bind(None, 7), wire.a.udp.bind()
    client.send(b"me", ip("10.0.0.1"), 7)
    wire.settle()
    got = server.receive()
    assert got is not None and got.payload == b"me"


def test_too_big_lowers_the_path_mtu() -> None:
    """A router in between says 1400: UDP is fragmented to that, TCP's segments shrink."""
    wire = Wire()
    client = wire.a.udp.bind()
    client.send(bytes(1472), ip("10.0.0.2"), 9)
    wire.settle()
    sent = next(f for f in wire.passed if f.data[23:24] == b"\x11").data[14:]
    body = Icmpv4(3, 4, 1400, sent[:28]).emit()
    report = Ipv4Header(ip("10.0.0.2"), ip("10.0.0.1"), 1).emit(len(body)) + body
    frame = wire.interfaces[0].mac + wire.interfaces[1].mac + b"\x08\x00" + report
    wire.a.receive(wire.interfaces[0], [Frame(frame)], wire.now)
    assert wire.a.ip.mtu_to(ip("10.0.0.2"), wire.now) == 1400
    wire.passed.clear()
    client.send(bytes(1472), ip("10.0.0.2"), 9)
    wire.settle()
    sizes = [len(f.data) - 14 for f in wire.passed if f.data[23:24] == b"\x11"]
    assert max(sizes) <= 1400 and len(sizes) == 2


def test_a_duplicate_address_is_not_used() -> None:
    wire = Wire()
    newcomer = Host(random.Random(3))
    link = newcomer.add_interface(
        "eth0", wire.interfaces[1].mac
    )  # the same MAC, so the same EUI-64
    slaac = Slaac(newcomer.ip, link, random.Random(3), 0)
    for _, frames in newcomer.to_send(0):
        wire.b.receive(wire.interfaces[1], [f._replace(data=f.data) for f in frames], 0)
    for _, frames in wire.b.to_send(0):
        newcomer.receive(link, frames, 0)
    assert slaac.duplicates == [wire.interfaces[1].link_local]
    assert link.link_local not in link.addresses


def test_offloads_mean_plain_frames() -> None:
    wire = Wire()
    transfer(wire, "10.0.0.2")
    unit = next(frame for frame in wire.passed if frame.gso)
    pieces = segment(unit)
    assert unit.gso is not None
    payload = b"".join(piece.data[unit.gso.headers :] for piece in pieces)
    assert payload == unit.data[unit.gso.headers :] and len(pieces) > 1
    for piece in pieces:
        header, _ = parse_ipv4(piece.data[14:])
        assert piece.csum is None and header.destination == ip("10.0.0.2")
    one = next(frame for frame in wire.passed if frame.csum and not frame.gso)
    assert complete(one).csum is None and len(complete(one).data) == len(one.data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_make_a_host_fall(data: st.DataObject) -> None:
    wire = Wire()
    kind = data.draw(st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06\x00", b""]))
    body = data.draw(st.binary(max_size=100))
    destination = data.draw(st.sampled_from([wire.interfaces[0].mac, b"\xff" * 6]))
    frame = Frame(
        destination + mac("02:00:00:00:00:02") + kind + body,
        data.draw(st.none() | st.just((34, 16))),
        None,
        data.draw(st.booleans()),
    )
    wire.a.receive(wire.interfaces[0], [frame], 0)
    wire.a.deliver_events()
    wire.a.to_send(0)
    wire.a.handle_timer(120 * SECOND)
