"""Machines as people use them: commands, snapshots, forks, a shared folder, the disk, the network.

What moves data is one Python program, run in a guest of kasou through its agent and in a guest of
QEMU, of the same kernel, initrd and disk, through its serial console. Both guests keep time by the
host's clock, and each times itself. Ratios are of times: below 1 kasou is the faster.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kasou
from bench.network import SINK, SOURCE, peer
from kasou.images import ensure

IMAGE, MEMORY = "debian:trixie", "256M"
SHARE, SHARED_MIB, DISK_MIB, STREAM_MIB, READS = "/mnt/share", 32, 128, 64, 2000
FORKS = (1, 10, 50)
PROMPT, BOOT_SECONDS, PROGRAM_SECONDS = b"root@kasou:~# ", 240.0, 240.0

TRANSFER = """
import json, os, socket, time
def dropped():
    os.sync(); open("/proc/sys/vm/drop_caches", "w").write("3")
def timed(work):
    at = time.monotonic(); work(); return time.monotonic() - at
def write(path, mib):
    block = os.urandom(131072); f = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for _ in range(8 * mib): os.write(f, block)
    os.fsync(f); os.close(f)
def read(path):
    f = os.open(path, os.O_RDONLY)
    while os.read(f, 131072): pass
    os.close(f)
def pick(path, mib, count):
    f = os.open(path, os.O_RDONLY); at = 1; os.posix_fadvise(f, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(count):
        at = (at * 1103515245 + 12345) & 0x7FFFFFFF; os.pread(f, 4096, (at >> 4) % (mib * 256) * 4096)
    os.close(f)
def send(port, mib):
    s = socket.create_connection(("10.0.2.2", port)); block = bytes(1 << 17)
    for _ in range(8 * mib): s.sendall(block)
    s.shutdown(socket.SHUT_WR); s.recv(1); s.close()
def receive(port):
    s = socket.create_connection(("10.0.2.2", port)); b = bytearray(1 << 17)
    while s.recv_into(b): pass
    s.close()
"""
"""What every program in the guest begins with. Times in seconds."""

Row = dict[str, object]
Program = Callable[[str], dict[str, float]]
"""Run a program behind `TRANSFER` in a guest; the times that it put into `out`, in seconds."""


def line(name: str, what: str, ours: float, theirs: float | None = None) -> Row:
    """A row of the bench's table; times in seconds."""
    return {
        "name": name, "what": what, "kasou_s": ours, "mips": None, "instructions": None,
        "kasou_peak_mib": None, "qemu_s": theirs, "qemu_peak_mib": None,
        "ratio": ours / theirs if theirs else None,
    }  # fmt: skip


def clock(work: Callable[[], object]) -> float:
    """How many seconds `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def resident(pid: int | None) -> float:
    """A process's proportional share of its memory, in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Pss:\s+(\d+)", text, re.M)) / 1024


# ---------------------------------------------------------------------- what only kasou does
def warm_start() -> Row:
    """A VM from nothing to the answer of its first command; the warm snapshot exists."""

    def work() -> None:
        with kasou.VM(IMAGE, memory=MEMORY) as vm:
            vm.run(["true"], check=True)
            took.append(time.perf_counter() - begun)

    took: list[float] = []
    for _ in range(4):
        begun = time.perf_counter()
        work()
    return line("warm start", "to the first answer", statistics.median(took[1:]))


def round_trip(vm: kasou.VM) -> Row:
    """`true` in the guest."""
    times = [clock(lambda: vm.run(["true"], check=True)) for _ in range(20)]
    return line("exec", "a command's round trip", statistics.median(times))


def snapshots(vm: kasou.VM, rounds: int) -> Iterator[Row]:
    """Save, and restore to running."""
    kept = [vm.snapshot()]
    saves = [clock(lambda: kept.append(vm.snapshot())) for _ in range(3)]
    yield line("save", "a snapshot, the VM running on", statistics.median(saves))
    back, answers = [], []
    for _ in range(rounds):
        back.append(clock(lambda: vm.restore(kept[0])))
        answers.append(back[-1] + clock(lambda: vm.run(["true"], check=True)))
    yield line("restore", "to running", statistics.median(back))
    yield line("restore, answer", "to the first answer", statistics.median(answers))


def forks(vm: kasou.VM, count: int) -> Row:
    """Live copies: the time each took, and their share of memory when all of them have answered."""
    begun = time.perf_counter()
    copies = vm.fork_many(count)
    took = time.perf_counter() - begun
    try:
        for copy in copies:
            copy.run(["true"], check=True)
        shares = [resident(copy.info().pid) for copy in copies]
    finally:
        for copy in copies:
            copy.close()
    what = f"each of {count}; {took:.2f} s and PSS {sum(shares):.0f} MiB in all"
    row = line(f"fork {count}", what, took / count)
    row["kasou_peak_mib"] = sum(shares) / count
    return row


# ---------------------------------------------------------------------- what QEMU does too
def in_kasou(vm: kasou.VM) -> Program:
    """Programs run by the VM's agent."""

    def run(program: str) -> dict[str, float]:
        whole = f"{TRANSFER}\nout = {{}}\n{program}\nprint(json.dumps(out))"
        result = vm.run(["python3", "-c", whole], check=True, timeout=PROGRAM_SECONDS)
        return dict(json.loads(result.stdout))

    return run


class Serial:
    """A QEMU's serial console on its standard input and output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._seen = b""

    def expect(self, mark: bytes, seconds: float) -> bytes:
        """What came up to and with `mark`. Raises `TimeoutError`, or `EOFError` when QEMU ended."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while mark not in self._seen:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(f"no {mark!r}; last {self._seen[-200:]!r}")
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                raise EOFError(f"QEMU ended; last {self._seen[-200:]!r}")
            self._seen += more
        before, _, self._seen = self._seen.partition(mark)
        return before + mark

    def send(self, text: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def run(self, program: str) -> dict[str, float]:
        """A `Program`: typed in base64, in lines that a terminal takes."""
        whole = f"{TRANSFER}\nout = {{}}\n{program}\nprint('<' + json.dumps(out) + '>')"
        text = base64.b64encode(whole.encode()).decode()
        self.send("rm -f /tmp/p")
        self.expect(PROMPT, 20)
        for at in range(0, len(text), 512):
            self.send(f"echo {text[at : at + 512]} >> /tmp/p")
            self.expect(PROMPT, 20)
        self.send("base64 -d /tmp/p > /tmp/p.py; python3 /tmp/p.py; echo en''ded")
        said = self.expect(b"ended", PROGRAM_SECONDS)
        self.expect(PROMPT, 20)
        found = re.search(rb"<(\{.*?\})>", said)
        if found is None:
            raise EOFError(f"the program failed in QEMU's guest: {said[-400:]!r}")
        return dict(json.loads(found[1]))


@contextlib.contextmanager
def in_qemu(folder: Path) -> Iterator[Program]:
    """Programs run in a QEMU of the same guest."""
    guest = ensure(IMAGE)
    disk = folder / "peer.qcow2"
    base = ["-b", str(guest.disk), "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk)], check=True)
    command = [
        "qemu-system-riscv64", "-M", "virt", "-m", MEMORY, "-nographic", "-monitor", "none",
        "-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.append,
        "-drive", f"file={disk},if=none,format=qcow2,id=d", "-device", "virtio-blk-device,drive=d",
        "-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n",
        "-device", "virtio-rng-device",
        "-fsdev", f"local,id=f,path={folder},security_model=none",
        "-device", "virtio-9p-device,fsdev=f,mount_tag=peer",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        console = Serial(process)
        console.expect(PROMPT, BOOT_SECONDS)
        console.send(
            f"mkdir -p {SHARE}; mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 peer {SHARE}"
        )
        console.expect(PROMPT, 30)
        yield console.run
    finally:
        process.kill()
        process.wait()


def transfers(run: Program) -> dict[str, float]:
    """The times of all that moves data, in seconds."""
    times: dict[str, float] = {}
    for name, path, mib in (("9p", f"{SHARE}/file", SHARED_MIB), ("disk", "/root/file", DISK_MIB)):
        program = (
            f"out['{name} write'] = timed(lambda: write('{path}', {mib})); dropped()\n"
            f"out['{name} read'] = timed(lambda: read('{path}')); dropped()\n"
        )
        if name == "disk":
            program += f"out['disk random'] = timed(lambda: pick('{path}', {mib}, {READS}))\n"
        times |= run(program + f"os.unlink('{path}')")
    with peer(SINK) as (_, port):
        times |= run(f"out['net out'] = timed(lambda: send({port}, {STREAM_MIB}))")
    with peer(SOURCE, str(STREAM_MIB << 20)) as (_, port):
        times |= run(f"out['net in'] = timed(lambda: receive({port}))")
    return times


def compared(ours: dict[str, float], theirs: dict[str, float]) -> Iterator[Row]:
    """The rows of `transfers`."""
    sizes = {
        "9p write": SHARED_MIB, "9p read": SHARED_MIB, "disk write": DISK_MIB,
        "disk read": DISK_MIB, "net out": STREAM_MIB, "net in": STREAM_MIB,
    }  # fmt: skip
    for name, took in ours.items():
        if name in sizes:
            what = f"{sizes[name]} MiB: {sizes[name] / took:.1f} MiB/s"
        else:
            what = f"{READS} reads of 4 KiB: {READS / took:.0f} a second"
        yield line(name, what, took, theirs.get(name))


def measure(quick: bool, with_qemu: bool) -> Iterator[Row]:
    """All rows, as they are made."""
    yield warm_start()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with kasou.VM(IMAGE, memory=MEMORY, mounts=[f"{folder}:{SHARE}"]) as vm:
            vm.run(["true"], check=True)
            ours = transfers(in_kasou(vm))
        theirs: dict[str, float] = {}
        if with_qemu:
            with in_qemu(folder) as run:
                theirs = transfers(run)
        yield from compared(ours, theirs)
    with kasou.VM(IMAGE, memory=MEMORY) as vm:
        yield round_trip(vm)
        yield from snapshots(vm, 2 if quick else 5)
        for count in FORKS[:2] if quick else FORKS:
            yield forks(vm, count)
