"""The network with real sockets, all on 127.0.0.1."""

import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import dns.message
import pytest

from kasou.control.network import UserNetwork
from kasou.control.network.guest import StackGuest
from kasou.control.network.resolver import parse_resolv_conf
from kasou.errors import ConfigError, HostError
from kasou.net.transport.tcp import Event
from kasou.net.wire.address import ip
from kasou.net.wire.pcapng import parse_pcapng
from kasou.ports import Frame

MAC = "52:54:00:12:34:56"
DATA = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def network() -> Iterator[UserNetwork]:
    with UserNetwork(seed=1) as network:
        yield network


@pytest.fixture
def guest(network: UserNetwork) -> StackGuest:
    port = network.add_port("vm", MAC)
    return StackGuest(port, MAC, port.address)


def serve(handle: Callable[[socket.socket], None]) -> int:
    """A TCP server on 127.0.0.1, a thread a connection; its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(server.getsockname()[1])


def echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def test_a_guest_talks_to_a_server_of_the_host(guest: StackGuest) -> None:
    talk = guest.connect("10.0.2.2", serve(echo))
    talk.send(DATA, close=True)
    guest.run(lambda: talk.ended)
    assert talk.received == DATA and talk.connection.error is None


def test_many_at_once(guest: StackGuest) -> None:
    port = serve(echo)
    talks = [guest.connect("10.0.2.2", port) for _ in range(30)]
    for number, talk in enumerate(talks):
        talk.send(DATA[: 1000 * number], close=True)
    guest.run(lambda: all(talk.ended for talk in talks))
    assert [talk.received for talk in talks] == [DATA[: 1000 * n] for n in range(30)]


def test_a_slow_reader_on_the_host_holds_the_guest_back(guest: StackGuest) -> None:
    release = threading.Event()
    got = bytearray()

    def slow(connection: socket.socket) -> None:
        release.wait()
        while data := connection.recv(1 << 20):
            got.extend(data)
        connection.close()

    talk = guest.connect("10.0.2.2", serve(slow))
    big = DATA * 6
    talk.send(big, close=True)
    for _ in range(50):
        guest.turn(0.005)
    assert talk._outgoing  # not all could leave: kernel buffers and ours are full, and bounded
    release.set()
    guest.run(lambda: talk.ended, seconds=20)
    assert got == big


def test_nobody_listens(guest: StackGuest) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        talk = guest.connect("10.0.2.2", bound.getsockname()[1])
        guest.run(lambda: Event.CLOSED in talk.events)
    assert talk.events == [Event.REFUSED, Event.CLOSED]


def test_a_reset_by_the_server(guest: StackGuest) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    talk = guest.connect("10.0.2.2", serve(reset))
    talk.send(b"x")
    guest.run(lambda: talk.ended)
    assert talk.connection.error is Event.RESET


def test_forwards(network: UserNetwork, guest: StackGuest) -> None:
    talks = guest.accept(80)
    opened = network.add_forward(guest.port, "0:80")  # type: ignore[arg-type]
    with socket.create_connection(("127.0.0.1", opened.port)) as client:
        client.sendall(b"GET")
        guest.run(lambda: bool(talks) and talks[0].received == b"GET")
        talks[0].send(b"200 OK", close=True)
        guest.run(lambda: not talks[0]._outgoing)
        reply = b""
        client.settimeout(0.05)
        while True:
            try:
                data = client.recv(100)
            except TimeoutError:
                guest.turn()
                continue
            reply += data
            if not data:
                break
        assert reply == b"200 OK"
    network.remove_forward(guest.port, opened)  # type: ignore[arg-type]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", opened.port))


def test_a_forward_to_nothing_is_reset(network: UserNetwork, guest: StackGuest) -> None:
    opened = network.add_forward(guest.port, "0:81")  # type: ignore[arg-type]
    with socket.create_connection(("127.0.0.1", opened.port)) as client:
        client.settimeout(0.05)
        for _ in range(100):
            guest.turn(0.005)
            try:
                assert client.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        else:
            pytest.fail("the client was not told")


def test_a_port_in_use_names_it_and_adds_nothing(network: UserNetwork) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(
            HostError, match=f"127.0.0.1:{number} on the host: Address already in use"
        ):
            network.add_port("web", "52:54:00:00:00:02", forwards=["0:80", f"{number}:80"])
    assert "web" not in network.ports and network.add_port("web", "52:54:00:00:00:02")


def test_udp_both_ways(network: UserNetwork, guest: StackGuest) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        inner = guest.host.udp.bind(None, 4000)
        inner.send(b"ping", ip("10.0.2.2"), server.getsockname()[1])
        guest.run(lambda: bool(select.select([server], [], [], 0)[0]))
        data, address = server.recvfrom(100)
        server.sendto(data + b" pong", address)
        replies = []
        inner.on_readable = lambda socket: replies.append(socket.receive())
        guest.run(lambda: bool(replies))
        assert replies[0] is not None and replies[0].payload == b"ping pong"
        assert replies[0].source == ip("10.0.2.2")
    opened = network.add_forward(guest.port, "0:4000/udp")  # type: ignore[arg-type]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"hello", ("127.0.0.1", opened.port))
        guest.run(lambda: len(replies) == 2)
        assert replies[1] is not None and replies[1].payload == b"hello"
        inner.send(b"back", replies[1].source, replies[1].source_port)
        guest.run(lambda: bool(select.select([client], [], [], 0)[0]))
        assert client.recv(100) == b"back"


def test_udp_to_a_closed_port_is_told(guest: StackGuest) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        number = bound.getsockname()[1]
    inner = guest.host.udp.bind(None, 4000)
    inner.send(b"x", ip("10.0.2.2"), number)
    guest.run(lambda: inner.unreachable)


def test_names_of_other_vms_and_of_the_host(network: UserNetwork, guest: StackGuest) -> None:
    other = network.add_port("web", "52:54:00:00:00:02")
    answers: list[dns.message.Message] = []
    inner = guest.host.udp.bind(None, 0)

    def readable(socket: object) -> None:
        received = inner.receive()
        assert received is not None
        answers.append(dns.message.from_wire(received.payload))

    inner.on_readable = readable
    inner.send(dns.message.make_query("web", "A").to_wire(), ip("10.0.2.3"), 53)
    guest.run(lambda: bool(answers))
    assert [item.to_text() for item in answers[0].answer[0]] == [other.address]


def test_two_vms_talk(network: UserNetwork, guest: StackGuest) -> None:
    port = network.add_port("other", "52:54:00:00:00:02", egress="none")
    other = StackGuest(port, "52:54:00:00:00:02", port.address)
    talks = other.accept(80)
    talk = guest.connect(port.address, 80)
    talk.send(DATA, close=True)

    def done() -> bool:
        other.turn(0.001)
        return bool(talks) and talks[0].ended

    guest.run(done, seconds=20)
    assert talks[0].received == DATA


def test_a_capture_is_what_passed(network: UserNetwork, guest: StackGuest) -> None:
    file = bytearray()
    stop = network.capture("vm", file.extend)
    talk = guest.connect("10.0.2.2", serve(echo))
    talk.send(b"captured", close=True)
    guest.run(lambda: talk.ended)
    stop()
    length = len(file)
    packets = list(parse_pcapng(bytes(file)))
    assert any(b"captured" in packet.data for packet in packets)
    assert abs(packets[0].time - time.time_ns()) < 60 * 10**9
    guest.connect("10.0.2.2", 1)
    guest.turn()
    assert len(file) == length
    with pytest.raises(ConfigError, match="no VM named"):
        network.capture("nobody", file.extend)


def test_a_vm_leaves_while_it_talks(network: UserNetwork, guest: StackGuest) -> None:
    gone = threading.Event()

    def wait(connection: socket.socket) -> None:
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        gone.set()

    talk = guest.connect("10.0.2.2", serve(wait))
    talk.send(b"x")
    guest.run(lambda: Event.ESTABLISHED in talk.events)
    network.remove_port(guest.port)  # type: ignore[arg-type]
    assert gone.wait(5)
    guest.port.send([Frame(bytes(60))])  # too late, and harmless


def test_a_vm_that_went_back_finds_its_connections_gone_and_opens_new_ones(
    network: UserNetwork, guest: StackGuest
) -> None:
    number = serve(echo)
    old = guest.connect("10.0.2.2", number)
    old.send(b"x")
    guest.run(lambda: old.received == b"x")
    network.reset_connections(guest.port)  # type: ignore[arg-type]
    old.send(b"y")
    guest.run(lambda: Event.CLOSED in old.events)
    assert old.connection.error is Event.RESET
    new = guest.connect("10.0.2.2", number)
    new.send(b"z")
    guest.run(lambda: new.received == b"z")


def test_closing_ends_the_thread_and_the_forwards() -> None:
    network = UserNetwork()
    port = network.add_port("vm", MAC, forwards=["0:22"])
    number = port.forwards[0].port
    network.close()
    network.close()
    assert not any(thread.name == "kasou-network" for thread in threading.enumerate())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", number))
    with pytest.raises(ConfigError, match="closed"):
        network.add_port("late", "52:54:00:00:00:02")
    port.send([Frame(bytes(60))])


def test_without_a_thread_it_is_stepped() -> None:
    with UserNetwork(seed=1, thread=False) as network:
        port = network.add_port("vm", MAC)
        received: list[Frame] = []
        port.attach(received.extend)
        who_has = "0806 0001080006040001 525400123456 0a00020f 000000000000 0a000202"
        port.send([Frame(b"\xff" * 6 + bytes.fromhex("525400123456" + who_has))])
        network.step(5)
        operations = [frame.data[20:22] for frame in received if frame.data[12:14] == b"\x08\x06"]
        assert operations == [b"\0\2"]
        first_advertisement = next(frame for frame in received if frame.data[12:14] == b"\x86\xdd")
        assert first_advertisement.data[54] == 134
        assert 0 < (network.deadline() or 0) < 60 * 10**9
        assert network.statistics()["ports"]["vm"]["from_vm"] == 1


def test_resolv_conf() -> None:
    text = "# x\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\nnameserver bad\noptions ndots:5\nnameserver"
    assert parse_resolv_conf(text) == [ip("9.9.9.9"), ip("fe80::1")]
