"""A named network: the codec, members in this process, and a process of its own."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.control import socket_path
from kasou.control.network import UserNetwork, named
from kasou.control.network.client import JoinedPort, NetworkClient
from kasou.control.network.frame_socket import Decoder, encode
from kasou.control.network.guest import StackGuest
from kasou.control.network.server import NetworkServer
from kasou.errors import ConfigError, HostError, RemoteError
from kasou.net.wire.pcapng import parse_pcapng
from kasou.ports import Frame, Gso

MACS = ["52:54:00:00:00:01", "52:54:00:00:00:02"]
u16 = st.integers(0, 65535)
frames = st.builds(
    Frame, st.binary(max_size=2000), st.none() | st.tuples(u16, u16),
    st.none() | st.builds(Gso, st.sampled_from(["tcp4", "tcp6", "udp"]), u16, u16), st.booleans(),
)  # fmt: skip
objects = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3)


@given(st.lists(frames | objects, max_size=8), st.integers(1, 400))
def test_items_pass_in_pieces_of_any_size(
    items: list[Frame | dict[str, object]], size: int
) -> None:
    wire = b"".join(part for item in items for part in encode(item))
    decoder = Decoder()
    got = [each for at in range(0, len(wire), size) for each in decoder.feed(wire[at : at + size])]
    assert got == items


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes_are_items_or_an_error(pieces: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for piece in pieces:
            list(decoder.feed(piece))
    except RemoteError:
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lab.sock"


@pytest.fixture
def server(path: Path) -> Iterator[NetworkServer]:
    server = NetworkServer(socket_path.bound(path), UserNetwork(seed=1))
    yield server
    server.close()


@pytest.fixture
def clients(path: Path) -> Iterator[list[NetworkClient]]:
    clients = [NetworkClient(lambda: socket_path.connected(path)) for _ in range(2)]
    yield clients
    for client in clients:
        client.close()


def guest(port: JoinedPort, mac: str) -> StackGuest:
    return StackGuest(port, mac, port.address)


def eventually(holds: object, seconds: float = 5) -> None:
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_members_reach_one_another_and_the_host(
    server: NetworkServer, clients: list[NetworkClient]
) -> None:
    ports = [client.add_port(f"vm{n}", MACS[n]) for n, client in enumerate(clients)]
    assert [port.address for port in ports] == ["10.0.2.15", "10.0.2.16"]
    assert server.members == ["vm0", "vm1"]
    a, b = guest(ports[0], MACS[0]), guest(ports[1], MACS[1])
    talks = b.accept(80)
    data = bytes(range(256)) * 8000
    file = bytearray()
    stop = clients[0].capture("vm0", file.extend)
    talk = a.connect(ports[1].address, 80)
    talk.send(data, close=True)

    def done() -> bool:
        b.turn(0.001)
        return bool(talks) and talks[0].ended

    a.run(done, seconds=20)
    stop()
    assert talks[0].received == data
    assert len(list(parse_pcapng(bytes(file)))) > 10
    ports[0].reset_connections()
    assert clients[0].statistics()["ports"]["vm1"]["address"] == "10.0.2.16"


def test_forwards_through_a_named_network(
    server: NetworkServer, clients: list[NetworkClient]
) -> None:
    port = clients[0].add_port("vm", MACS[0], ["0:80"])
    (first,) = port.forwards
    vm = guest(port, MACS[0])
    talks = vm.accept(80)
    with socket.create_connection(("127.0.0.1", first.port)) as host:
        host.sendall(b"hello")
        vm.run(lambda: bool(talks) and talks[0].received == b"hello")
    second = clients[0].add_forward(port, "0:81/udp")
    assert second.port and len(port.forwards) == 2
    clients[0].remove_forward(port, first)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"{number} on the host: Address already in use"):
            clients[0].add_forward(port, f"{number}:80")
    assert port.forwards == [second]


def test_names_are_unique_and_a_member_that_leaves_is_gone(
    server: NetworkServer, clients: list[NetworkClient]
) -> None:
    clients[0].add_port("vm", MACS[0])
    with pytest.raises(ConfigError, match="'vm'"):
        clients[1].add_port("vm", MACS[1])
    clients[0].close()
    eventually(lambda: server.members == [])


def test_a_member_that_talks_nonsense_is_shown_out(server: NetworkServer, path: Path) -> None:
    for nonsense in (b"\xff" * 40, encode({"id": 1})[0] + b"\xff\xff", encode({"x": [1]})[1] * 9):
        with socket_path.connected(path) as sock:
            sock.sendall(nonsense)
            sock.settimeout(5)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1000):
                pass
    for request in ({"join": 5}, {"join": {"name": 1}}, {"add_forward": "0:1"}, {"what": 1}):
        with socket_path.connected(path) as sock:
            sock.sendall(b"".join(encode({"id": 1, **request})))
            sock.settimeout(5)
            (answer,) = Decoder().feed(sock.recv(1000))
            assert isinstance(answer, dict) and answer["error"][0] == "ConfigError"
    eventually(lambda: server.members == [])


def test_a_network_that_ends_and_comes_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kasou.control.network.client.RETRY_S", 0.05)
    client = NetworkClient(lambda: socket_path.connected(path))
    first = NetworkServer(socket_path.bound(path), UserNetwork(seed=1))
    port = client.add_port("vm", MACS[0], ["0:80"])
    number = port.forwards[0].port
    first.close()
    eventually(lambda: client._frames is None)
    with pytest.raises(HostError, match="ended"):
        client.statistics()
    port.send([Frame(bytes(60))])
    second = NetworkServer(socket_path.bound(path), UserNetwork(seed=1))
    try:
        eventually(lambda: second.members == ["vm"])
        eventually(lambda: client.statistics()["ports"]["vm"]["forwards"] != [])
        assert port.forwards[0].port == number
    finally:
        client.close()
        second.close()


def test_without_a_network_joining_is_an_error(path: Path) -> None:
    client = NetworkClient(lambda: socket_path.connected(path))
    with pytest.raises(HostError, match="cannot be joined"):
        client.add_port("vm", MACS[0])
    client.close()


def test_a_process_is_started_for_the_first_and_ends_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KASOU_HOME", str(tmp_path))
    assert named.networks() == []
    named.start("lab", linger_s=0.5)
    client = named.join("lab")
    try:
        assert client.add_port("vm", MACS[0]).address == "10.0.2.15"
        assert named.networks() == ["lab"]
        with pytest.raises(HostError, match="runs already"):
            named.serve("lab")
    finally:
        client.close()
    eventually(lambda: not named.is_running("lab"), seconds=20)
    with pytest.raises(ConfigError, match="name"):
        named.join("../lab").add_port("vm", MACS[0])


def test_a_network_ends_when_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KASOU_HOME", str(tmp_path))
    process = os.fork()
    if process == 0:
        try:
            named.serve("lab", None)
        except SystemExit:
            os._exit(0)
        finally:
            os._exit(1)
    eventually(lambda: named.is_running("lab"))
    named.stop("lab")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert not named.socket_of("lab").exists()
    with pytest.raises(ConfigError, match="does not run"):
        named.stop("lab")
