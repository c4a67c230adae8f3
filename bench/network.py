"""The gateway alone: a driver in the guest's place, real sockets on the other side.

The driver is no TCP of ours: it makes the frames that a Linux guest with TSO would (64 KiB units,
timestamps) and acknowledges what it gets, with as little work as it can, so that what is measured is
the gateway. Driver and gateway share one thread and so one core; the peer behind the host's socket
is a process of its own.
"""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kasou.control.network import UserNetwork
from kasou.net.wire.address import ip, mac
from kasou.net.wire.checksum import pseudo_header
from kasou.net.wire.ipv4 import Ipv4Header, Protocol
from kasou.net.wire.udp import UdpDatagram
from kasou.ports import Frame, Gso

GUEST, GATEWAY = ip("10.0.2.15"), ip("10.0.2.2")
GUEST_MAC, GATEWAY_MAC = mac("52:54:00:12:34:56"), mac("52:55:0a:00:02:02")
ETHERNET = GATEWAY_MAC + GUEST_MAC + b"\x08\x00"
MSS, UNIT = 1448, 45 * 1448
_FIN, _SYN, _PSH, _ACK = 1, 2, 8, 16

SINK = """
import socket, sys
s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True)
c, _ = s.accept(); b = bytearray(1 << 20); n = 0
while k := c.recv_into(b): n += k
print(n, flush=True)
"""
SOURCE = """
import socket, sys
s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True)
c, _ = s.accept(); b = bytes(1 << 20); n = int(sys.argv[1])
while n > 0: n -= c.send(b[:n] if n < len(b) else b)
c.close(); print("done", flush=True)
"""
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("127.0.0.1", 0))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
print(s.getsockname()[1], flush=True)
b = bytearray(2048)
while True:
    k, a = s.recvfrom_into(b); s.sendto(b[:k], a)
"""


@contextlib.contextmanager
def peer(script: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a socket; it says its port."""
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass(frozen=True, slots=True)
class Result:
    """What passed, in how much wall time and processor time of this process (one thread).

    On a machine that others use, wall time says more about them; a core of one's own gives `cpu_s`.
    """

    amount: int
    wall_s: float
    cpu_s: float

    def rate(self, unit: float = 1.0) -> tuple[float, float]:
        """Amounts of `unit` a second, by the clock on the wall and by a core of its own."""
        return self.amount / self.wall_s / unit, self.amount / self.cpu_s / unit


class Watch:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def result(self, amount: int) -> Result:
        """The time that `amount` took."""
        return Result(amount, time.perf_counter() - self._wall, time.thread_time() - self._cpu)


class Driver:
    """A guest's end of one TCP connection, in order and without loss."""

    def __init__(self, network: UserNetwork, port: int) -> None:
        self.network, self.remote = network, port
        self.port = network.add_port("bench", GUEST_MAC)
        self.port.attach(self._take)
        self.incoming: list[Frame] = []
        self.next, self.unacked, self.window, self.expected = 1000, 1000, 0, 0
        self.received = 0
        self.finished = False
        self._scale = 0
        self._echo = 0

    def _take(self, frames: Sequence[Frame]) -> None:
        self.incoming += frames

    def segment(self, flags: int, payload: bytes = b"", options: bytes = b"") -> Frame:
        """A frame of the connection, its checksum left to the other side."""
        if not options:
            stamp = time.monotonic_ns() // 1_000_000 & 0xFFFFFFFF
            options = struct.pack(">BBBBII", 1, 1, 8, 10, stamp, self._echo)
        length = 20 + len(options) + len(payload)
        header = struct.pack(
            ">HHIIBBHHH", 40000, self.remote, self.next & 0xFFFFFFFF, self.expected,
            (20 + len(options)) << 2, flags, 0xFFFF, pseudo_header(GUEST, GATEWAY, 6, length), 0,
        )  # fmt: skip
        network = Ipv4Header(GUEST, GATEWAY, Protocol.TCP, dont_fragment=True).emit(length)
        data = b"".join((ETHERNET, network, header, options, payload))
        gso = Gso("tcp4", MSS, 34 + 20 + len(options)) if len(payload) > MSS else None
        return Frame(data, (34, 16), gso)

    def step(self) -> None:
        """Let the gateway work, and take what it sent."""
        self.network.step(time.monotonic_ns())

    def absorb(self) -> int:
        """Look at the frames that came; how many carried data."""
        data_frames = 0
        for frame in self.incoming:
            data = frame.data
            if data[12:14] != b"\x08\x00" or data[23] != 6:
                continue
            sequence, acknowledged, offset, flags, window = struct.unpack_from(">IIBBH", data, 38)
            header = 34 + (offset >> 2)
            if flags & _SYN:
                self.expected = sequence + 1
                options = data[54:header]
                at = 0
                while at < len(options) and options[at]:
                    if options[at] == 3:
                        self._scale = options[at + 2]
                    at += 1 if options[at] == 1 else options[at + 1]
            size = len(data) - header
            if size:
                assert sequence == self.expected, "the driver knows no loss"
                self.expected = sequence + size & 0xFFFFFFFF
                self.received += size
                data_frames += 1
            if offset >> 2 >= 32 and data[54:58] == b"\1\1\x08\x0a":
                self._echo = struct.unpack_from(">I", data, 58)[0]
            if flags & _FIN:
                self.expected = self.expected + 1 & 0xFFFFFFFF
                self.finished = True
            self.unacked = acknowledged
            self.window = window << (0 if flags & _SYN else self._scale)
        self.incoming.clear()
        return data_frames

    def open(self) -> None:
        """The handshake."""
        stamp = struct.pack(">BBII", 8, 10, 1, 0)
        options = struct.pack(">BBHBB", 2, 4, 1460, 4, 2) + stamp + b"\1" + bytes((3, 3, 7))
        self.port.send([self.segment(_SYN, options=options)])
        self.next += 1
        end = time.monotonic() + 5
        while not self.expected:
            self.step()
            self.answer_arp()
            self.absorb()
            assert time.monotonic() < end, "the gateway did not answer"
        self.port.send([self.segment(_ACK)])
        self.step()

    def answer_arp(self) -> None:
        """The gateway asks who we are."""
        for frame in self.incoming:
            if frame.data[12:14] == b"\x08\x06" and frame.data[20:22] == b"\0\1":
                reply = frame.data[14:20] + b"\0\2" + GUEST_MAC + GUEST + GATEWAY_MAC + GATEWAY
                self.port.send([Frame(GATEWAY_MAC + GUEST_MAC + b"\x08\x06" + reply)])


def network() -> UserNetwork:
    """A network that is stepped by who measures it."""
    return UserNetwork(seed=1, thread=False)


def guest_to_host(total: int) -> Result:
    """One connection of a guest, sending."""
    payload = random.Random(1).randbytes(UNIT)
    with peer(SINK) as (process, port), network() as net:
        driver = Driver(net, port)
        driver.open()
        sent = 0
        watch = Watch()
        while sent < total:
            driver.absorb()
            frames = []
            while (
                sent < total and (driver.next - driver.unacked & 0xFFFFFFFF) + UNIT <= driver.window
            ):
                frames.append(driver.segment(_ACK | _PSH, payload))
                driver.next = driver.next + UNIT & 0xFFFFFFFF
                sent += UNIT
                if len(frames) == 8:
                    break
            if frames:
                driver.port.send(frames)
            driver.step()
        driver.port.send([driver.segment(_ACK | _FIN)])
        while driver.unacked != driver.next:
            driver.step()
            driver.absorb()
            if driver.unacked == driver.next:
                break
            if process.poll() is not None:
                break
        assert process.stdout is not None
        arrived = int(process.stdout.readline())
        assert arrived == sent, f"{arrived} of {sent} bytes arrived"
        return watch.result(sent)


def host_to_guest(total: int) -> Result:
    """One connection of a guest, receiving."""
    with peer(SOURCE, str(total)) as (_, port), network() as net:
        driver = Driver(net, port)
        driver.open()
        watch = Watch()
        while not driver.finished:
            if driver.absorb():
                driver.port.send([driver.segment(_ACK)])
            driver.step()
        assert driver.received == total, f"{driver.received} of {total} bytes arrived"
        return watch.result(total)


def datagrams(total: int) -> Result:
    """64-byte datagrams to an echo and back; `amount` counts both ways."""
    with peer(ECHO) as (_, port), network() as net:
        plug = net.add_port("bench", GUEST_MAC)
        returned = 0

        def take(frames: Sequence[Frame]) -> None:
            nonlocal returned
            for frame in frames:
                if frame.data[12:14] == b"\x08\x06":
                    reply = frame.data[14:20] + b"\0\2" + GUEST_MAC + GUEST + GATEWAY_MAC + GATEWAY
                    plug.send([Frame(GATEWAY_MAC + GUEST_MAC + b"\x08\x06" + reply)])
                elif frame.data[23:24] == b"\x11":
                    returned += 1

        plug.attach(take)
        body = UdpDatagram(5000, port, bytes(64)).emit(GUEST, GATEWAY)
        network_header = Ipv4Header(GUEST, GATEWAY, Protocol.UDP).emit(len(body))
        batch = [Frame(ETHERNET + network_header + body)] * 32
        sent = quiet = 0
        watch = Watch()
        while returned < total and quiet < 20_000:
            if sent - returned < 256 and sent < total:
                plug.send(batch)
                sent += len(batch)
            before = returned
            net.step(time.monotonic_ns())
            quiet = 0 if returned > before else quiet + 1
        return watch.result(sent + returned)


def measure(name: str, quick: bool) -> tuple[str, Result, tuple[float, float], str]:
    """What is measured, the result, its rates by the wall and by the core, and their unit."""
    total = (512 if quick else 2048) << 20
    if name == "udp":
        result = datagrams(20_000 if quick else 100_000)
        return "64-byte datagrams through the gateway", result, result.rate(), "1/s"
    result = guest_to_host(total) if name == "tcp out" else host_to_guest(total)
    what = "guest to host" if name == "tcp out" else "host to guest"
    return f"{what} through the gateway", result, result.rate(1e9 / 8), "Gbit/s"


if __name__ == "__main__":
    for name in ("tcp out", "tcp in", "udp"):
        what, _, (wall, core), unit = measure(name, "--quick" in sys.argv)
        print(f"{name:8} {what:40} {core:10.2f} {unit} a core, {wall:.2f} by the clock")
