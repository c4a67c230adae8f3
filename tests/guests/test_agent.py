"""The agent in a real guest, over Linux's own vsock driver."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests.conftest import Session

from kasou.errors import HostError
from kasou.guest.agent.client import (
    Answer,
    Client,
    Event,
    ExecClient,
    Exit,
    Failed,
    GetClient,
    ProcessClient,
    PutClient,
    Started,
    Stderr,
    Stdout,
)
from kasou.guest.agent.protocol import PORT
from kasou.guest.agent.tree import Unpacker, pack
from kasou.images import ensure
from kasou.machine.machine import Machine, MachineConfig, Peripherals
from kasou.storage.create import create_qcow2
from kasou.storage.disk import open_disk

pytestmark = [pytest.mark.guest, pytest.mark.slow]


class Conversation:
    """A client on a vsock stream; callbacks come from the harts' threads, with the board's lock."""

    def __init__(self, machine: Machine, client: Client) -> None:
        self.machine, self.client = machine, client
        self.events: list[Event] = []
        self.closed: str | None = None
        self._woken = threading.Event()
        self._data: list[bytes] = []
        self._rest = b""
        assert machine.plugged.vsock is not None
        with machine.lock:
            self.stream = machine.plugged.vsock.connect_to(PORT)
            self.stream.on_data = self._on_data
            self.stream.on_closed = self._on_closed
            self.stream.on_connected = self.stream.on_writable = self._woken.set

    def _on_data(self, data: bytes) -> None:
        self._data.append(data)
        self._woken.set()

    def _on_closed(self, reason: str) -> None:
        self.closed = reason
        self._woken.set()

    def step(self) -> None:
        with self.machine.lock:
            self._rest += self.client.to_send()
            self._rest = self._rest[self.stream.write(self._rest) :]
            data, self._data = b"".join(self._data), []
            if self.closed is None:
                self.stream.consume(len(data))
        if data:
            self.events += self.client.receive(data)
        elif self.closed is not None:
            self.events += self.client.receive_eof(self.closed)
        else:
            self._woken.wait(0.2)
            self._woken.clear()

    def finish(self, stdin: bytes = b"", seconds: float = 60) -> Event:
        client, sent, end = self.client, 0, time.monotonic() + seconds
        while not client.done:
            assert time.monotonic() < end, self.events
            if isinstance(client, ProcessClient):
                sent += client.write_stdin(stdin[sent : sent + (1 << 18)])
                if sent == len(stdin):
                    client.close_stdin()
            self.step()
        with self.machine.lock:
            self.stream.reset()
        return self.events[-1]

    @property
    def out(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, Stdout))

    @property
    def err(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, Stderr))


class Guest:
    def __init__(self, session: Session) -> None:
        self.machine = session.machine
        end = time.monotonic() + 240
        while not isinstance(self.ask(Client("ping")).events[-1], Answer):
            assert time.monotonic() < end, bytes(session.output[-600:])
            time.sleep(0.2)

    def ask(self, client: Client, stdin: bytes = b"") -> Conversation:
        conversation = Conversation(self.machine, client)
        conversation.finish(stdin)
        return conversation

    def sh(self, script: str, stdin: bytes = b"") -> Conversation:
        return self.ask(ExecClient(["sh", "-c", script]), stdin)

    def open(self, client: Client) -> Conversation:
        conversation = Conversation(self.machine, client)
        while not conversation.events:
            conversation.step()
        return conversation


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    try:
        image = ensure("debian")
    except HostError as problem:
        pytest.skip(f"not run: the Debian guest cannot be had: {problem}")
    if not image.agent:
        pytest.skip("not run: this mirror's image has no agent")
    disks = []
    if image.disk is not None:
        overlay = tmp_path_factory.mktemp("agent") / "disk.qcow2"
        base = open_disk(image.disk, read_only=True)
        create_qcow2(overlay, base.size_bytes, backing=image.disk)
        base.close()
        disks.append(open_disk(overlay))
    config = MachineConfig(kernel=image.kernel, initrd=image.initrd, append=image.append)
    session = Session(config, Peripherals(disks=disks, vsock_cid=3))
    session.start()
    yield Guest(session)
    session.machine.stop()


def test_commands(guest: Guest) -> None:
    talk = guest.sh("uname -m; echo err >&2; exit 7")
    assert (talk.out, talk.err, talk.events[-1]) == (b"riscv64\n", b"err\n", Exit(7, 0))
    assert guest.ask(ExecClient(["no-such"])).events[-1] == Exit(127, 0)
    assert guest.sh("kill -9 $$").events[-1] == Exit(137, 9)
    assert guest.ask(ExecClient(["true"], cwd="/no/such")).events[-1] == Failed(
        "directory /no/such: No such file or directory", "ENOENT"
    )
    talk = guest.ask(ExecClient(["sh", "-c", "stty size; tty"], tty=(100, 30)))
    assert talk.out.startswith(b"30 100\r\n/dev/pts/")
    assert guest.ask(ExecClient(["id", "-un"], user="nobody")).out == b"nobody\n"


def test_much_data_both_ways(guest: Guest) -> None:
    data = os.urandom(5_000_000)
    assert guest.sh("md5sum", data).out[:32].decode() == hashlib.md5(data).hexdigest()
    assert guest.sh("cat", data).out == data


def test_a_round_trip_costs_little(guest: Guest) -> None:
    """A few million instructions, 20 ms at 200 MIPS, when nothing else of the guest runs meanwhile."""

    def count() -> int:
        return int(guest.machine.statistics()["instructions"])

    guest.ask(ExecClient(["/bin/true"]))
    costs = []
    for _ in range(20):
        before = count()
        assert guest.ask(ExecClient(["/bin/true"])).events[-1] == Exit(0, 0)
        costs.append(count() - before)
    assert min(costs) < 5_000_000


def test_files_go_in_and_come_out(guest: Guest, tmp_path: Path) -> None:
    source, back = tmp_path / "site", tmp_path / "back"
    source.mkdir()
    back.mkdir()
    (source / "index").write_bytes(os.urandom(300_000))
    (source / "link").symlink_to("index")
    client = PutClient("/tmp/new/place", source.name)
    stream = b"".join(pack(source, "place"))
    assert guest.ask(client, stream).events[-1] == Exit(0, 0)
    talk = guest.ask(GetClient("/tmp/new/place"))
    assert isinstance(talk.events[0], Started) and talk.events[0].info["root"] == "place"
    unpacker = Unpacker(back, "place", "copy")
    unpacker.feed(talk.out)
    unpacker.close()
    assert (back / "copy/index").read_bytes() == (source / "index").read_bytes()
    assert os.readlink(back / "copy/link") == "index"


def test_who_hangs_up_ends_the_process(guest: Guest) -> None:
    talk = guest.open(ExecClient(["sleep", "707"]))
    assert guest.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").out.count(b"sleep 707") == 1
    with guest.machine.lock:
        talk.stream.reset()
    time.sleep(0.5)
    assert b"sleep 707" not in guest.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").out


def test_processes_outlive_a_restore_terminals_do_not(guest: Guest) -> None:
    guest.open(ExecClient(["sh", "-c", "while :; do echo tick; sleep 0.1; : 808; done"]))
    talk = guest.open(ExecClient(["sleep", "909"], tty=(80, 24)))
    with guest.machine.lock:
        assert guest.machine.plugged.vsock is not None
        guest.machine.plugged.vsock.transport_reset()
    assert talk.closed == "the machine was restored"
    time.sleep(1)
    running = guest.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").out
    assert b": 808" in running and b"sleep 909" not in running
    guest.sh("kill $(grep -l ': 808' /proc/[0-9]*/cmdline | cut -d/ -f3 | grep -v $$)")


def test_renewal(guest: Guest) -> None:
    fields = {
        "clock_ns": 1_900_000_000 * 10**9,
        "entropy": os.urandom(64).hex(),
        "machine_id": "0123456789abcdef" * 2,
        "hostname": "twin",
    }
    talk = guest.ask(Client("renew", fields))
    assert talk.events[-1] == Answer({"done": list(fields), "failed": {}})
    talk = guest.sh("date +%Y; hostname; cat /etc/machine-id")
    assert talk.out.split() == [b"2030", b"twin", b"0123456789abcdef" * 2]
    load = guest.ask(Client("load")).events[-1]
    assert isinstance(load, Answer) and load.value["cpus"] == 1
