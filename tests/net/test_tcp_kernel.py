"""Our TCP against Linux's, through a TUN device in a network namespace of its own."""

import contextlib
import fcntl
import hashlib
import os
import random
import select
import struct
import subprocess
import sys
import time

import pytest

from kasou.net.transport.tcp import Endpoint, Event, State, Tcp, TcpConfig
from kasou.net.wire.address import ip
from kasou.net.wire.error import ParseError
from kasou.net.wire.ipv4 import Ipv4Header, Protocol, parse_ipv4

OURS, KERNELS = ip("10.77.0.1"), ip("10.77.0.2")
SIZE = 1_500_000
DATA = random.Random(1).randbytes(SIZE)

KERNEL = """
import hashlib, random, socket, sys, threading
mode, port = sys.argv[1], int(sys.argv[2])
if mode == "serve":
    listener = socket.create_server(("10.77.0.2", port))
    print("ready", flush=True)
    s, _ = listener.accept()
else:
    print("ready", flush=True)
    s = socket.create_connection(("10.77.0.1", port), timeout=30)
s.settimeout(60)
data = random.Random(1).randbytes(int(sys.argv[3]))
def send():
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)
sender = threading.Thread(target=send)
sender.start()
digest, n = hashlib.sha256(), 0
while piece := s.recv(65536):
    digest.update(piece)
    n += len(piece)
sender.join()
print(n, digest.hexdigest(), flush=True)
"""


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tun():
    """(descriptor, namespace): what is written to the descriptor the namespace's kernel receives."""
    name, space = f"kt{os.getpid() % 100000}", f"kasou-tcp-{os.getpid()}"
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH", name.encode(), 0x1001))  # TUN, no header
        run("ip", "netns", "add", space)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a TUN device and `ip netns`: {error}")
    try:
        run("ip", "link", "set", name, "netns", space)
        inside = ("ip", "-n", space)
        run(*inside, "addr", "add", "10.77.0.2/24", "dev", name)
        run(*inside, "link", "set", name, "up", "mtu", "1500")
        yield fd, space
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot configure a network namespace: {error.stderr.decode().strip()}")
    finally:
        os.close(fd)
        subprocess.run(["ip", "netns", "del", space], check=False)


class Peer:
    """Our end: a `Tcp` whose packets go through the TUN device, some of them lost."""

    def __init__(self, fd, seed, loss, config):
        self.fd, self.loss = fd, loss
        self.rng = random.Random(seed)
        self.tcp = Tcp(random.Random(seed), config=config)
        self.digest, self.received, self.written = hashlib.sha256(), 0, 0
        self.events = []
        self.held = []

    def attach(self, connection):
        self.connection = connection
        connection.on_event = self.on_event
        if connection.state is not State.SYN_SENT:
            self.push()

    def on_event(self, c, event):
        self.events.append(event)
        if event in (Event.ESTABLISHED, Event.WRITABLE):
            self.push()
        while piece := c.read():
            self.digest.update(piece)
            self.received += len(piece)

    def push(self):
        while self.written < SIZE:
            piece = memoryview(DATA)[self.written : self.written + 65536]
            taken = self.connection.write(piece)
            self.written += taken
            if taken < len(piece):
                return
        self.connection.close()

    def lost(self):
        return self.rng.random() < self.loss

    def turn(self, now):
        tcp = self.tcp
        tcp.handle_timer(now)
        tcp.deliver_events()
        for unit in tcp.to_send(now):
            for piece in unit.cut():
                header = Ipv4Header(OURS, piece.destination, Protocol.TCP, 64, 0, True)
                packet = header.emit(piece.length) + piece.checksummed()
                if self.lost():
                    continue
                if self.loss and self.rng.random() < 0.02:  # overtaken by the next
                    self.held.append(packet)
                    continue
                for each in (packet, *self.held):
                    with contextlib.suppress(BlockingIOError):
                        os.write(self.fd, each)
                self.held.clear()
        due = tcp.deadline()
        wait = 0.05 if due is None else min(max(0, (due - now) / 1e9), 0.05)
        select.select([self.fd], [], [], wait)
        for _ in range(64):
            try:
                packet = os.read(self.fd, 65536)
            except BlockingIOError:
                break
            try:
                header, payload = parse_ipv4(packet)
            except ParseError:
                continue  # the kernel's IPv6 neighbor discovery
            if header.protocol == Protocol.TCP and header.destination == OURS and not self.lost():
                tcp.receive(header.source, OURS, payload, time.monotonic_ns())
        tcp.deliver_events()


@pytest.mark.parametrize("opener", ["kernel", "we"])
@pytest.mark.parametrize("loss", [0, 0.03])
@pytest.mark.parametrize("sack", [True, False])
def test_both_ways_at_once(tun, opener, loss, sack):
    fd, space = tun
    port = random.Random(f"{opener}{loss}{sack}").randrange(2000, 30000)
    peer = Peer(fd, port, loss, TcpConfig(sack=sack))
    mode = "connect" if opener == "kernel" else "serve"
    if opener == "kernel":
        peer.tcp.listen(None, port, peer.attach)
    other = subprocess.Popen(
        ["ip", "netns", "exec", space, sys.executable, "-c", KERNEL, mode, str(port), str(SIZE)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "ready\n"
        if opener == "we":
            peer.attach(
                peer.tcp.connect(Endpoint(OURS, 0), Endpoint(KERNELS, port), time.monotonic_ns())
            )
        end = time.monotonic() + 60
        while Event.CLOSED not in peer.events and time.monotonic() < end:
            peer.turn(time.monotonic_ns())
        for _ in range(20):  # the last ACK may have been lost
            if other.poll() is not None:
                break
            peer.turn(time.monotonic_ns())
        assert Event.CLOSED in peer.events and peer.connection.error is None, peer.events
        n, digest = other.stdout.readline().split()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    expected = hashlib.sha256(DATA).hexdigest()
    assert (int(n), digest) == (SIZE, expected)
    assert (peer.received, peer.digest.hexdigest()) == (SIZE, expected)
    assert peer.tcp.statistics.bad_checksum == peer.tcp.statistics.malformed == 0
    if loss:
        assert peer.tcp.statistics.retransmitted > 0
