"""Debian's own drivers on the virtio devices, on both transports and both layouts of rings."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guests.conftest import PROMPT, Session

from kasou.devices.virtio.balloon import Statistic
from kasou.devices.virtio.block import VirtioBlock
from kasou.devices.virtio.console import ConsolePort, VirtioConsole
from kasou.devices.virtio.device import VirtioDevice
from kasou.devices.virtio.net_header import NetFeature
from kasou.engine.memory import PhysicalMemory
from kasou.errors import HostError
from kasou.machine import machine as machine_module
from kasou.machine.machine import Nic, Peripherals
from kasou.machine.peripherals import Plugged
from kasou.net.loop import Cable, MonotonicClock, StackLoop
from kasou.net.stack import Host
from kasou.storage.raw import RawDisk

pytestmark = [pytest.mark.guest, pytest.mark.slow]

CARRIERS = [("mmio", False), ("pci", True)]
MIB = 1 << 20


@pytest.fixture(params=CARRIERS, ids=["mmio-split", "pci-packed"])
def carrier(request: pytest.FixtureRequest) -> dict[str, object]:
    """Transport and layout, as fields of `Peripherals`."""
    transport, packed = request.param
    return {"transport": transport, "packed_rings": packed}


def need(session: Session, *modules: str) -> None:
    """Load drivers, or skip."""
    for module in modules:
        answer = session.type(f"[ -d /sys/module/{module} ] || modprobe {module} && echo load''ed")
        if b"loaded" not in answer:
            session.finish("poweroff")
            pytest.skip(f"not run: this mirror's image has no driver {module}")


def until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


# ---------------------------------------------------------------------- network
class Neighbour(threading.Thread):
    """The host at the other end of the cable, 10.0.2.2: takes bytes at port 9, gives at port 19."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        host = Host(random.Random(1))
        clock = MonotonicClock()
        self.loop = StackLoop(host, clock)
        interface = host.add_interface("eth0", bytes.fromhex("525400000002"))
        host.add_address(interface, bytes((10, 0, 2, 2)), 24)
        self.cable = Cable(clock)
        self.loop.attach(interface, self.cable.b)
        self.taken = hashlib.md5()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(MIB):
            self.taken.update(data)
        writer.close()

    async def _give(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = int(await reader.readline())
        for at in range(0, left, 65536):
            writer.write(pattern(65536)[: left - at])
            await writer.drain()
        writer.close()

    async def _serve(self) -> None:
        await asyncio.start_server(self._take, "0.0.0.0", 9)
        await asyncio.start_server(self._give, "0.0.0.0", 19)

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve())
        self.loop.run_forever()


def pattern(n: int) -> bytes:
    return (bytes(range(251)) * (n // 251 + 1))[:n]


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    thread = Neighbour()
    thread.start()
    yield thread
    thread.loop.call_soon_threadsafe(thread.loop.stop)


@pytest.mark.parametrize("pairs", [1, 2])
def test_network(boot, neighbour: Neighbour, carrier, pairs: int) -> None:
    nic = Nic(neighbour.cable.a, bytes.fromhex("525400123456"), pairs)
    session = boot(harts=pairs, peripherals=Peripherals(nics=[nic], **carrier))
    need(session, "virtio_net")
    card = session.machine.plugged.nics[0]
    session.type("ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0")
    assert b"52:54:00:12:34:56" in session.type("ip link show eth0")
    assert b" 3 packets received" in session.type("ping -c 3 10.0.2.2")
    wanted = NetFeature.HOST_TSO4 | NetFeature.GUEST_TSO4 | NetFeature.MRG_RXBUF
    assert card.accepted & wanted == wanted
    assert card.active_pairs == pairs
    session.type("dd if=/proc/kcore of=/tmp/f bs=64k count=64 2>&-; nc 10.0.2.2 9 < /tmp/f")
    (digest, *_) = session.type("md5sum /tmp/f").split()
    assert neighbour.taken.hexdigest().encode() == digest
    n = 8 * MIB + 1
    (digest, *_) = session.type(f"echo {n} | nc 10.0.2.2 19 | md5sum").split()
    expected = hashlib.md5()
    for at in range(0, n, 65536):
        expected.update(pattern(65536)[: n - at])
    assert expected.hexdigest().encode() == digest
    assert card.received.bytes / card.received.packets > 1514, "large frames arrive whole"
    with session.machine.lock:
        card.set_link(False)
    until(lambda: session.type("cat /sys/class/net/eth0/carrier").split() == [b"0"], "carrier")
    assert session.finish("poweroff").kind == "poweroff"


# ---------------------------------------------------------------------- disks
class FullDisk(RawDisk):
    """A disk whose host has no space left while `full`."""

    full = False

    def writev(self, offset: int, views) -> None:
        if self.full:
            raise HostError("disk: no space left on device", errno.ENOSPC)
        super().writev(offset, views)


def plugging(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[PhysicalMemory], VirtioDevice]
) -> None:
    """Have the next machine carry one more device."""
    plug = machine_module.plug

    def plug_more(memory: PhysicalMemory, peripherals: Peripherals) -> Plugged:
        plugged = plug(memory, peripherals)
        plugged.shares.append(make(memory))
        return plugged

    monkeypatch.setattr(machine_module, "plug", plug_more)


def test_disk(boot, carrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(16 * MIB))
    disk = FullDisk(path)
    stops: list[HostError] = []
    blocks: list[VirtioBlock] = []

    def make(memory: PhysicalMemory) -> VirtioBlock:
        blocks.append(VirtioBlock(memory, disk, "twelve", num_queues=2, stopped=stops.append))
        return blocks[0]

    plugging(monkeypatch, make)
    session = boot(harts=2, peripherals=Peripherals(**carrier))
    need(session, "virtio_blk")
    block = blocks[0]

    def digest() -> bytes:
        return hashlib.md5(path.read_bytes()).hexdigest().encode()

    assert b"twelve" in session.type("cat /sys/block/vda/serial; echo")
    assert session.type("ls /sys/block/vda/mq").split() == [b"0", b"1"]
    assert session.type("cat /sys/block/vda/queue/discard_max_bytes").split() != [b"0"]
    assert digest() in session.type("md5sum /dev/vda")
    session.type("blkdiscard -o 1048576 -l 2097152 /dev/vda")
    assert block.counters.discarded_bytes == 2 * MIB
    session.type("dd if=/dev/urandom of=/dev/vda bs=64k seek=128 count=32 conv=notrunc,fsync")
    assert block.counters.flushes
    session.type("echo 3 > /proc/sys/vm/drop_caches")
    assert digest() in session.type("md5sum /dev/vda")

    disk.full = True
    start = len(session.output)
    session.machine.console_input(
        b"dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync && echo do''ne\n"
    )
    until(lambda: bool(stops), "the machine is asked to stop")
    disk.full = False
    assert path.read_bytes()[:4] == pattern(4)
    with session.machine.lock:
        block.retry()
    session.wait_for(PROMPT, start=session.wait_for(b"\ndone", start=start))
    assert path.read_bytes()[:4096] == bytes(4096)
    assert session.finish("poweroff").kind == "poweroff"


# ---------------------------------------------------------------------- console
def test_console_ports(boot, carrier, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, said = bytearray(), bytearray()
    opened: list[bool] = []
    agent = ConsolePort("org.kasou.test", said.extend, opened.append)
    consoles: list[VirtioConsole] = []

    def make(memory: PhysicalMemory) -> VirtioConsole:
        consoles.append(VirtioConsole(memory, printed.extend, 100, 30, ports=[agent]))
        return consoles[0]

    plugging(monkeypatch, make)
    session = boot(peripherals=Peripherals(**carrier))
    console = consoles[0]
    until(lambda: agent.ready, "the driver knows the port")
    assert session.type("cat /sys/class/virtio-ports/vport*p1/name").split() == [b"org.kasou.test"]
    session.type("P=/dev/$(basename /sys/class/virtio-ports/vport*p1); echo hello > $P")
    assert (bytes(said), opened) == (b"hello\n", [True, False])
    with session.machine.lock:
        agent.receive(b"a line\nand more")
    assert session.type("head -n 1 $P").split(b"\r")[0] == b"a line"
    session.type("echo to the console > /dev/hvc0")
    assert printed == b"to the console\r\n"
    assert session.type("stty -F /dev/hvc0 size").split() == [b"30", b"100"]
    with session.machine.lock:
        console.resize(132, 50)
    wanted = [b"50", b"132"]
    until(lambda: session.type("stty -F /dev/hvc0 size").split() == wanted, "the new size")
    assert session.finish("poweroff").kind == "poweroff"


# ---------------------------------------------------------------------- balloon
def test_balloon(boot, carrier) -> None:
    session = boot(memory=256 * MIB, peripherals=Peripherals(balloon=True, **carrier))
    need(session, "virtio_balloon")
    balloon, lock = session.machine.plugged.balloon, session.machine.lock
    until(lambda: balloon.reported_bytes > 64 * MIB, "free pages are reported")
    free = balloon.statistics[Statistic.FREE_MEMORY]
    with lock:
        balloon.set_target(64 * MIB)
    until(lambda: balloon.actual_bytes == 64 * MIB, "the balloon is full")
    balloon.statistics.clear()
    with lock:
        assert balloon.request_statistics()
    until(lambda: bool(balloon.statistics), "statistics")
    assert free - balloon.statistics[Statistic.FREE_MEMORY] > 48 * MIB
    with lock:
        balloon.set_target(0)
    until(lambda: balloon.actual_bytes == 0, "the balloon is empty")
    session.type("dd if=/dev/zero of=/tmp/big bs=1M count=64 && md5sum /tmp/big")
    assert session.finish("poweroff").kind == "poweroff"
