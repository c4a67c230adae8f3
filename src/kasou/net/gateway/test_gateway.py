"""Dialogues of guests with the gateway: who asks what, and what comes of it outside."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.errors import ConfigError, HostError
from kasou.net.gateway.config import GatewayConfig
from kasou.net.gateway.egress import EgressPolicy
from kasou.net.gateway.forward import Forward
from kasou.net.gateway.lan import FakeStream, Guest, Lan
from kasou.net.gateway.network import NetworkPort
from kasou.net.gateway.outside import EchoReply, Failure
from kasou.net.network.ip import Echo, IcmpError
from kasou.net.network.slaac import Slaac
from kasou.net.transport.tcp import Connection, Endpoint, Event
from kasou.net.transport.udp import Received
from kasou.net.wire.address import Prefix, ip, ip_text, mac
from kasou.ports import Frame

WEB = ip("93.184.216.34")
GATEWAY = ip("10.0.2.2")


def connect(
    lan: Lan, guest: Guest, address: bytes = WEB, port: int = 80
) -> tuple[Connection, list[Event]]:
    """A connection that a guest begins, and its events to come."""
    events: list[Event] = []
    local = guest.host.ip.source_for(address)
    assert local is not None
    connection = guest.host.tcp.connect(Endpoint(local, 0), Endpoint(address, port), lan.now)
    connection.on_event = lambda connection, event: events.append(event)
    lan.settle()
    return connection, events


def opened(lan: Lan, guest: Guest, **to: object) -> tuple[Connection, FakeStream]:
    connection, events = connect(lan, guest, **to)  # type: ignore[arg-type]
    stream = lan.outside.streams[-1]
    assert stream.on_connected is not None
    stream.on_connected(None)
    lan.settle()
    assert events == [Event.ESTABLISHED]
    return connection, stream


def read(connection: Connection) -> bytes:
    data = b""
    while piece := connection.read():
        data += piece
    return data


# ---------------------------------------------------------------------- TCP


def test_a_syn_is_answered_when_the_host_is_connected() -> None:
    lan = Lan()
    guest = lan.add()
    connection, events = connect(lan, guest)
    (stream,) = lan.outside.streams
    assert (stream.address, stream.port) == (WEB, 80) and events == []
    assert stream.on_connected is not None
    stream.on_connected(None)
    lan.settle()
    assert events == [Event.ESTABLISHED]
    connection.write(b"GET /")
    stream.arrive(b"200 ", b"OK")
    lan.settle()
    assert stream.sent == b"GET /" and read(connection) == b"200 OK"


def test_refused_outside_is_refused_inside_and_unreachable_is_icmp() -> None:
    lan = Lan()
    guest = lan.add()
    errors: list[IcmpError] = []
    told = guest.host.ip.on_error
    assert told is not None

    def on_error(error: IcmpError, now: int) -> None:
        errors.append(error)
        told(error, now)

    guest.host.ip.on_error = on_error
    for failure, ends in (
        (Failure.REFUSED, Event.REFUSED),
        (Failure.UNREACHABLE, Event.UNREACHABLE),
    ):
        _, events = connect(lan, guest)
        stream = lan.outside.streams[-1]
        assert stream.on_connected is not None
        stream.on_connected(failure)
        lan.settle()
        assert events == [ends, Event.CLOSED] and stream.is_closed
    assert [(error.type, error.code, error.destination) for error in errors] == [(3, 1, WEB)]


def test_a_guest_that_gives_up_before_the_host_is_connected() -> None:
    lan = Lan()
    guest = lan.add()
    connection, _ = connect(lan, guest)
    connection.abort()
    lan.run(seconds=1)
    lan.network.gateway.close()
    assert lan.outside.streams[0].is_aborted


def test_each_half_closes_by_itself() -> None:
    lan = Lan()
    guest = lan.add()
    connection, stream = opened(lan, guest)
    connection.write(b"question")
    connection.close()
    lan.settle()
    assert stream.sent == b"question" and stream.is_shut and not stream.is_closed
    stream.arrive(b"answer", b"")
    lan.run(lambda: stream.is_closed)
    assert read(connection) == b"answer" and connection.remote_closed
    assert not stream.is_aborted and not lan.network.gateway.tcp.relays


def test_the_host_may_end_first() -> None:
    lan = Lan()
    guest = lan.add()
    connection, stream = opened(lan, guest)
    stream.arrive(b"banner", b"")
    lan.settle()
    assert read(connection) == b"banner" and connection.remote_closed and not stream.is_closed
    connection.write(b"late")
    connection.close()
    lan.run(lambda: stream.is_closed)
    assert stream.sent == b"late" and stream.is_shut and not stream.is_aborted


def test_resets_pass_both_ways() -> None:
    lan = Lan()
    guest = lan.add()
    connection, stream = opened(lan, guest)
    connection.abort()
    lan.settle()
    assert stream.is_aborted
    connection, stream = opened(lan, guest)
    stream.is_broken = True
    lan.settle()
    assert connection.error is Event.RESET and not lan.network.gateway.tcp.relays


def test_a_host_that_takes_nothing_holds_the_guest_back() -> None:
    lan = Lan()
    guest = lan.add()
    connection, stream = opened(lan, guest)
    stream.room = 1000
    data = random.Random(1).randbytes(8 << 20)
    sent = connection.write(data)

    def more() -> bool:
        nonlocal sent
        sent += connection.write(data[sent:])
        return False

    for _ in range(50):
        lan.settle()
        more()
    held = sent - 1000
    assert stream.sent == data[:1000] and stream.wanted == (True, True)
    assert held <= 2 * (1 << 20) + (256 << 10)  # the guest's send buffer and our receive buffer
    stream.room = None

    def everything() -> bool:
        more()
        return len(stream.sent) == len(data)

    lan.run(everything, seconds=60)
    assert stream.sent == data


def test_a_guest_that_reads_nothing_holds_the_host_back() -> None:
    lan = Lan()
    guest = lan.add()
    connection, stream = opened(lan, guest)
    data = random.Random(1).randbytes(8 << 20)
    stream.arrive(data)
    lan.run(seconds=2)
    left = sum(map(len, stream.to_read))
    assert left > 5 << 20 and not stream.wanted[0]
    got = bytearray()

    def everything() -> bool:
        got.extend(read(connection))
        return len(got) == len(data)

    lan.run(everything, seconds=60)
    assert got == data


def test_the_gateway_is_the_host_and_other_inner_addresses_are_nobody() -> None:
    lan = Lan()
    guest = lan.add()
    connect(lan, guest, GATEWAY, 8000)
    assert lan.outside.streams[-1].address == ip("127.0.0.1")
    for address in ("127.0.0.1", "224.0.0.1", "255.255.255.255", "0.1.2.3", "240.0.0.1"):
        before = len(lan.outside.streams)
        frame = syn(guest, ip(address))
        lan.network.receive(guest.port, [frame], lan.now)
        lan.settle()
        assert len(lan.outside.streams) == before, address
    closed = Lan(GatewayConfig(host_access=False))
    _, events = connect(closed, closed.add(), GATEWAY, 8000)
    assert closed.outside.streams == [] and events == [Event.REFUSED, Event.CLOSED]


def syn(guest: Guest, destination: bytes, source: bytes | None = None) -> Frame:
    """A SYN as bytes, to where a host of ours would not send one."""
    from kasou.net.wire.ipv4 import Ipv4Header

    header = Ipv4Header(source or guest.address, destination, 6)
    tcp = bytes.fromhex("9c40 0050 00000001 00000000 5002 ffff 0000 0000")
    link = mac("52:55:0a:00:02:02") + guest.interface.mac + b"\x08\x00"
    return Frame(link + header.emit(20) + tcp, trusted=True)


# ---------------------------------------------------------------------- forwards


def test_a_forward_leads_to_the_guest() -> None:
    lan = Lan()
    guest = lan.add()
    accepted: list[Connection] = []
    guest.host.tcp.listen(None, 22, accepted.append)
    opened_forward = lan.network.gateway.add_forward(Forward.parse("2222:22"), guest.port.station)
    (listener,) = lan.outside.listeners
    assert (listener.address, opened_forward.port) == (ip("127.0.0.1"), 2222)
    client = FakeStream()
    lan.outside.streams.append(client)
    listener.accept(client, ip("127.0.0.1"), 5555)
    client.arrive(b"SSH-2.0")
    lan.settle()
    (connection,) = accepted
    assert connection.remote.address == GATEWAY and read(connection) == b"SSH-2.0"
    lan.network.gateway.remove_forward(opened_forward)
    assert listener.is_closed and not client.is_closed


def test_a_forward_keeps_the_source_when_asked() -> None:
    lan = Lan()
    guest = lan.add()
    accepted: list[Connection] = []
    guest.host.tcp.listen(None, 80, accepted.append)
    lan.network.gateway.add_forward(Forward.parse("*:8080:80,source"), guest.port.station)
    client = FakeStream()
    lan.outside.listeners[0].accept(client, ip("192.168.7.9"), 5555)
    lan.settle()
    assert accepted[0].remote == Endpoint(ip("192.168.7.9"), 5555)


def test_a_forward_to_a_closed_port_resets_the_client() -> None:
    lan = Lan()
    guest = lan.add()
    lan.network.gateway.add_forward(Forward.parse("8080:80"), guest.port.station)
    client = FakeStream()
    lan.outside.listeners[0].accept(client, ip("127.0.0.1"), 5555)
    lan.settle()
    assert client.is_aborted


def test_a_port_in_use_is_an_error() -> None:
    lan = Lan()
    guest = lan.add()
    lan.outside.ports_in_use.add(8080)
    with pytest.raises(HostError, match="in use"):
        lan.network.gateway.add_forward(Forward.parse("8080:80"), guest.port.station)


def test_a_udp_forward_answers_each_client() -> None:
    lan = Lan()
    guest = lan.add()
    server = guest.host.udp.bind(None, 53)
    lan.network.gateway.add_forward(Forward.parse("5353:53/udp"), guest.port.station)
    (socket,) = lan.outside.sockets
    clients = [(ip("127.0.0.1"), 1000), (ip("10.9.9.9"), 2000)]
    for number, client in enumerate(clients):
        socket.arrive(b"q%d" % number, *client)
    lan.settle()
    for _ in clients:
        question = server.receive()
        assert question is not None and question.source == GATEWAY
        server.send(b"a" + question.payload[1:], question.source, question.source_port)
    lan.settle()
    assert socket.sent == [(b"a0", *clients[0]), (b"a1", *clients[1])]


# ---------------------------------------------------------------------- UDP and ping


def test_udp_goes_out_by_one_socket_and_only_the_asked_may_answer() -> None:
    lan = Lan()
    guest = lan.add()
    socket = guest.host.udp.bind(None, 4000)
    socket.send(b"one", WEB, 123)
    socket.send(b"two", ip("1.1.1.1"), 456)
    lan.settle()
    (outer,) = lan.outside.sockets
    assert outer.sent == [(b"one", WEB, 123), (b"two", ip("1.1.1.1"), 456)]
    outer.arrive(b"reply", WEB, 123)
    outer.arrive(b"stranger", ip("6.6.6.6"), 123)
    lan.settle()
    assert socket.receive() == Received(b"reply", WEB, 123, guest.address)
    assert socket.receive() is None
    lan.run(seconds=700)
    assert outer.is_closed


def test_a_refused_datagram_is_told() -> None:
    lan = Lan()
    guest = lan.add()
    socket = guest.host.udp.bind(None, 4000)
    socket.send(b"x", GATEWAY, 9)
    lan.settle()
    (outer,) = lan.outside.sockets
    assert outer.sent == [(b"x", ip("127.0.0.1"), 9)] and outer.on_failed is not None
    outer.on_failed(ip("127.0.0.1"), 9, Failure.REFUSED)
    lan.settle()
    assert socket.unreachable


def test_big_datagrams_are_fragmented_both_ways() -> None:
    lan = Lan()
    guest = lan.add()
    socket = guest.host.udp.bind(None, 4000)
    data = random.Random(2).randbytes(9000)
    socket.send(data, WEB, 1)
    lan.settle()
    (outer,) = lan.outside.sockets
    assert outer.sent == [(data, WEB, 1)]
    outer.arrive(data[::-1], WEB, 1)
    lan.settle()
    got = socket.receive()
    assert got is not None and got.payload == data[::-1]
    assert max(len(frame.data) for frame in guest.frames) <= 1514


def test_ping() -> None:
    lan = Lan()
    guest = lan.add()
    replies: list[Echo] = []
    guest.host.ping(GATEWAY, 7, 1, b"near", replies.append)
    guest.host.ping(WEB, 7, 2, b"far", replies.append)
    lan.settle()
    (outer,) = lan.outside.echo_sockets
    assert outer.sent == [(WEB, 2, b"far")] and outer.on_readable is not None
    outer.inbox.append(EchoReply(WEB, 2, b"far"))
    outer.on_readable()
    lan.settle()
    assert [(reply.source, reply.data) for reply in replies] == [(GATEWAY, b"near"), (WEB, b"far")]
    lan.run(seconds=40)
    assert outer.is_closed


def test_ping_where_the_host_allows_none() -> None:
    lan = Lan()
    guest = lan.add()
    lan.outside.ping_allowed = False
    errors: list[IcmpError] = []
    guest.host.ip.on_error = lambda error, now: errors.append(error)
    guest.host.ping(WEB, 7, 2, b"far", lambda echo: None)
    lan.settle()
    assert [(error.type, error.code) for error in errors] == [(3, 13)]


# ---------------------------------------------------------------------- egress and neighbors


def test_egress_none_reaches_nothing() -> None:
    lan = Lan()
    guest = lan.add(egress="none")
    _, events = connect(lan, guest)
    assert events == [Event.REFUSED, Event.CLOSED] and lan.outside.streams == []
    socket = guest.host.udp.bind(None, 4000)
    socket.send(b"x", WEB, 53)
    lan.settle()
    assert socket.unreachable and lan.outside.sockets == []
    guest.host.ping(WEB, 1, 1, b"", lambda echo: None)
    lan.settle()
    assert lan.outside.echo_sockets == []
    assert [(each.protocol, each.target) for each in lan.denied] == [
        ("tcp", "93.184.216.34:80"),
        ("udp", "93.184.216.34:53"),
        ("ping", "93.184.216.34"),
    ]


def test_egress_by_address_and_to_the_host() -> None:
    lan = Lan()
    guest = lan.add(egress="allow:93.184.0.0/16,host")
    connect(lan, guest)
    connect(lan, guest, GATEWAY, 8000)
    _, events = connect(lan, guest, ip("1.1.1.1"))
    assert [each.address for each in lan.outside.streams] == [WEB, ip("127.0.0.1")]
    assert events == [Event.REFUSED, Event.CLOSED]


def test_a_vm_cannot_borrow_the_address_of_another() -> None:
    lan = Lan()
    free, bound = lan.add(), lan.add("bound", "52:54:00:00:00:02", egress="none")
    connect(lan, free)
    before = len(lan.outside.streams)
    lan.network.receive(bound.port, [syn(bound, WEB, free.address)], lan.now)
    lan.network.receive(bound.port, [syn(bound, WEB, ip("8.8.8.8"))], lan.now)
    lan.settle()
    assert len(lan.outside.streams) == before and bound.port.station.spoofed == 2


def test_vms_reach_one_another_through_the_switch() -> None:
    lan = Lan()
    a, b = lan.add("a"), lan.add("b", "52:54:00:00:00:02", egress="none")
    assert (ip_text(a.address), ip_text(b.address)) == ("10.0.2.15", "10.0.2.16")
    accepted: list[Connection] = []
    b.host.tcp.listen(None, 80, accepted.append)
    connection, events = connect(lan, a, b.address)
    connection.write(bytes(100_000))
    lan.run(lambda: bool(accepted) and accepted[0].readable == 100_000)
    assert events == [Event.ESTABLISHED] and lan.outside.streams == []


def test_a_vm_that_leaves_takes_everything_along() -> None:
    lan = Lan()
    guest = lan.add()
    lan.network.gateway.add_forward(Forward.parse("8080:80"), guest.port.station)
    _, stream = opened(lan, guest)
    connect(lan, guest, ip("1.1.1.1"))
    guest.host.udp.bind(None, 4000).send(b"x", WEB, 1)
    lan.settle()
    del lan.guests["vm"]
    lan.network.remove_port(guest.port)
    lan.settle()
    assert all(each.is_aborted for each in lan.outside.streams) and stream.is_aborted
    assert lan.outside.listeners[0].is_closed and lan.outside.sockets[0].is_closed
    assert lan.network.gateway.owners.of(guest.address) is None
    again = lan.add("new", "52:54:00:12:34:56")
    assert again.address == guest.address


def test_names_and_macs_are_unique_and_addresses_end() -> None:
    lan = Lan(GatewayConfig(network4=Prefix.parse("10.7.7.0/29")))
    lan.add("a", "52:54:00:00:00:01")
    with pytest.raises(ConfigError, match="'a'"):
        lan.network.add_port("a", mac("52:54:00:00:00:02"))
    with pytest.raises(ConfigError, match="MAC"):
        lan.network.add_port("b", mac("52:54:00:00:00:01"))
    for number in range(2, 5):
        lan.network.add_port(f"vm{number}", mac(f"52:54:00:00:00:0{number}"))
    with pytest.raises(ConfigError, match="no address left"):
        lan.network.add_port("last", mac("52:54:00:00:00:09"))


# ---------------------------------------------------------------------- IPv6


def test_a_guest_configures_itself_by_router_advertisement_and_reaches_out() -> None:
    lan = Lan()
    guest = lan.add(configured=False)
    slaac = Slaac(guest.host.ip, guest.interface, random.Random(1), 0)
    configured: list[bytes] = []
    slaac.on_configured = configured.append
    for _ in range(10):
        due = slaac.deadline()
        if due is not None and len(configured) < 2:
            lan.now = max(lan.now, due)
            slaac.handle_timer(lan.now)
        lan.settle()
    assert [ip_text(each) for each in configured] == [
        "fe80::5054:ff:fe12:3456",
        "fd00::5054:ff:fe12:3456",
    ]
    assert [ip_text(each) for each in slaac.name_servers] == ["fd00::3"]
    assert slaac.search == ("kasou",)
    far = ip("2001:db8::1")
    connection, stream = opened(lan, guest, address=far, port=443)
    assert stream.address == far
    connection.write(b"six")
    lan.settle()
    assert stream.sent == b"six"
    connect(lan, guest, ip("fd00::2"), 8000)
    stream = lan.outside.streams[-1]
    assert stream.address == ip("::1") and stream.on_connected is not None
    stream.on_connected(Failure.REFUSED)
    assert lan.outside.streams[-1].address == ip("127.0.0.1") and stream.is_aborted
    replies: list[Echo] = []
    guest.host.ping(ip("fd00::2"), 1, 1, b"six", replies.append)
    lan.settle()
    assert replies[0].source == ip("fd00::2")


# ---------------------------------------------------------------------- hostile guests


frame_bytes = st.builds(
    lambda head, kind, body: head + kind + body,
    st.sampled_from([
        mac("52:55:0a:00:02:02") + mac("52:54:00:12:34:56"),
        b"\xff" * 6 + mac("52:54:00:12:34:56"),
        bytes.fromhex("333300000001") + mac("52:54:00:12:34:56"),
    ]),
    st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", b"\x12\x34"]),
    st.binary(max_size=120),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(frame_bytes, max_size=8), st.booleans())
def test_any_frames_at_all(frames: list[bytes], trusted: bool) -> None:
    lan = Lan()
    guest = lan.add(configured=False)
    lan.network.receive(guest.port, [Frame(data, trusted=trusted) for data in frames], 0)
    lan.network.to_send(0)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_valid_packets_with_bytes_changed(data: st.DataObject) -> None:
    """Frames of real traffic, mutated: nothing but a counter may move."""
    lan = Lan()
    guest = lan.add()
    frame = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        frame[data.draw(st.integers(12, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(frame[: data.draw(st.integers(14, len(frame)))])
    csum = data.draw(st.none() | st.tuples(st.integers(0, 80), st.integers(0, 40)))
    lan.network.receive(guest.port, [Frame(cut, csum, None, True)], 0)
    lan.settle()


def _seeds() -> list[bytes]:
    """One frame of each kind that a guest sends."""
    lan = Lan()
    guest = lan.add()
    sent: list[bytes] = []
    receive = lan.network.receive

    def note(port: NetworkPort, frames: Sequence[Frame], now: int) -> None:
        sent.extend(frame.data for frame in frames)
        receive(port, frames, now)

    lan.network.receive = note  # type: ignore[method-assign]
    connection, _ = opened(lan, guest)
    connection.write(b"hello")
    guest.host.ping(WEB, 1, 2, b"data", lambda echo: None)
    guest.host.udp.bind(None, 68).send(bytes(300), GATEWAY, 67)
    guest.host.udp.bind(None, 4001).send(bytes(3000), WEB, 67)
    query = bytes.fromhex("abcd01000001000000000000 03777777 0576 69 72 74 75 0000010001")
    guest.host.udp.bind(None, 4002).send(query, ip("10.0.2.3"), 53)
    slaac = Slaac(guest.host.ip, guest.interface, random.Random(1), 0)
    slaac.handle_timer(1_000_000_000)
    slaac.handle_timer(1_000_000_000)
    guest.host.udp.bind(None, 546).send(
        bytes.fromhex("01123456 0001000a 00030001525400123456 0003000c 00000001 00000000 00000000"),
        ip("ff02::1:2"),
        547,
        guest.interface.link_local,
    )
    lan.settle()
    return sent


SEEDS = _seeds()


def test_policies() -> None:
    policy = EgressPolicy.parse("allow:deb.debian.org,*.pypi.org,10.0.0.0/8,2001:db8::/32")
    assert policy.allows_name("deb.debian.org") and policy.allows_name("files.pypi.org")
    assert not policy.allows_name("pypi.org") and not policy.allows_name("xdeb.debian.org")
    for bad in ("", "some", "allow:", "none:x", "allow:a b", "allow:1.2.3.4/99", "allow:-,x"):
        with pytest.raises(ConfigError):
            EgressPolicy.parse(bad)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_arrive_through_the_gateway_from_a_lossy_guest(seed: int) -> None:
    """One frame in eight is lost each way between the guest and the switch."""
    rng = random.Random(seed)
    lan = Lan(seed=seed)
    guest = lan.add()
    receive, arrives = lan.network.receive, guest.host.receive

    def keep(frames: Sequence[Frame]) -> list[Frame]:
        return [frame for frame in frames if rng.random() > 0.125]

    lan.network.receive = lambda port, frames, now: receive(port, keep(frames), now)  # type: ignore[method-assign]
    guest.host.receive = lambda interface, frames, now: arrives(interface, keep(frames), now)  # type: ignore[method-assign]
    connection, events = connect(lan, guest)
    lan.run(lambda: bool(lan.outside.streams), seconds=60)
    (stream,) = lan.outside.streams
    assert stream.on_connected is not None
    stream.on_connected(None)
    lan.run(lambda: Event.ESTABLISHED in events, seconds=60)
    up, down = random.Random(seed).randbytes(1_500_000), random.Random(-seed).randbytes(1_500_000)
    stream.arrive(*(down[at : at + 100_000] for at in range(0, len(down), 100_000)), b"")
    sent, got = connection.write(up), bytearray()

    def done() -> bool:
        nonlocal sent
        got.extend(read(connection))
        if sent < len(up):
            sent += connection.write(up[sent:])
            if sent == len(up):
                connection.close()
        return stream.is_closed and connection.remote_closed

    lan.run(done, seconds=900)
    got.extend(read(connection))
    assert stream.sent == up and got == down and not stream.is_aborted
