"""Kill a process that works on a disk, look what is left, and again; run as a program.

    python kill.py DIRECTORY KILLS SEED

One process without threads forks each victim, so a life costs milliseconds. The victim tells how
far it is through shared memory: operations begun, and operations that an acknowledged flush
covers. The judge repeats the same seeded operations on a `History`.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

from storage.history import History
from storage.images import patterned, qemu_check
from storage.workload import operations, perform

from kasou.storage.create import create_qcow2, create_raw
from kasou.storage.disk import open_disk
from kasou.storage.inspect import check

SIZE = 1 << 20
_COUNTERS = struct.Struct("<QQ")  # begun, flushed


def victim(path: Path, seed: int, cache: str, counters: mmap.mmap) -> None:
    """Work until killed."""
    disk = open_disk(path, cache=cache)
    flushed = 0
    for number, op in enumerate(operations(seed, SIZE), 1):
        _COUNTERS.pack_into(counters, 0, number, flushed)
        perform(disk, op)
        if op == ("flush",) or cache == "writethrough":
            flushed = number
            _COUNTERS.pack_into(counters, 0, number, flushed)


def judge(history: History, seed: int, cache: str, begun: int, flushed: int) -> None:
    """Note what the victim did."""
    for number, op in enumerate(operations(seed, SIZE), 1):
        if number > begun:
            return
        history.apply(op)
        if number <= flushed and (op == ("flush",) or cache == "writethrough"):
            history.flushed()


def content(path: Path) -> bytes:
    with open_disk(path, read_only=True) as disk:
        return disk.read(0, SIZE)


def subjects(directory: Path) -> list[tuple[Path, str]]:
    """Images to be killed on, each with a cache mode."""
    base = directory / "base.raw"
    base.write_bytes(patterned(SIZE // 2, 1))
    create_qcow2(directory / "middle.qcow2", SIZE, backing="base.raw", backing_format="raw")
    with open_disk(directory / "middle.qcow2") as middle:
        middle.write(SIZE // 4, patterned(SIZE // 2, 2))
    made: list[tuple[Path, str]] = []
    for cluster_size, bits, cache in ((65536, 16, "writeback"), (4096, 1, "writeback"),
                                      (512, 64, "unsafe"), (4096, 16, "writethrough")):  # fmt: skip
        path = directory / f"overlay-{cluster_size}-{bits}-{cache}.qcow2"
        create_qcow2(path, SIZE, backing="middle.qcow2", backing_format="qcow2",
                     cluster_size=cluster_size, refcount_bits=bits)  # fmt: skip
        made.append((path, cache))
    create_raw(directory / "disk.raw", SIZE)
    return [*made, (directory / "disk.raw", "writeback")]


def main(directory: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    counters = mmap.mmap(-1, 4096)
    images = subjects(directory)
    histories = {path: History(content(path)) for path, _ in images}
    with_qemu = shutil.which("qemu-img") is not None
    flushes = operations_begun = 0
    for life in range(kills):
        path, cache = images[life % len(images)]
        life_seed = seed << 32 | life
        _COUNTERS.pack_into(counters, 0, 0, 0)
        pid = os.fork()
        if not pid:
            try:
                victim(path, life_seed, cache, counters)
            finally:
                os._exit(1)
        wanted = rng.choice((1, rng.randint(1, 20), rng.randint(10, 80)))
        give_up = time.monotonic() + 2
        while (begun := _COUNTERS.unpack_from(counters)[0]) < wanted:
            time.sleep(0.0003)
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise AssertionError(f"{path.name}: the victim died by itself")
            if begun and time.monotonic() > give_up:
                break  # a slow host; where it dies does not matter
        time.sleep(rng.choice((0.0, rng.uniform(0, 0.002))))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"{path.name}: the victim died by itself"
        begun, flushed = _COUNTERS.unpack_from(counters)
        operations_begun += begun
        flushes += flushed > 0
        report = check(path)
        assert not report.corruptions, f"life {life}, {path.name}: {report.messages}"
        if with_qemu and path.suffix == ".qcow2":
            qemu_check(path, leaks_are_fine=True)
        history = histories[path]
        judge(history, life_seed, cache, begun, flushed)
        try:
            history.check_dead(content(path))
        except AssertionError as error:
            raise AssertionError(f"life {life}, {path.name}, {begun} begun: {error}") from None
        if report.leaks and rng.random() < 0.2:
            assert check(path, repair=True).is_clean
            assert content(path) == history.certain
    print(f"kills={kills} operations={operations_begun} with_flush={flushes} qemu={with_qemu}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
