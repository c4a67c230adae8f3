import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kasou.errors import ConfigError, HostError
from kasou.guest.kernels import assembled
from kasou.machine.machine import Machine, MachineConfig
from kasou.machine.state import restore, save
from kasou.vmm.snapshot import Description, SnapshotFile, write

CONFIG = MachineConfig(memory=16 << 20, clock="icount", seed=5, max_instructions=1500)


def described(machine: Machine) -> Description:
    return Description(
        memory_bytes=machine.memory.size, harts=len(machine.cores), clock="icount",
        created="2026-01-01T00:00:00Z", kasou="0", comment="before the storm", settings={"a": [1]},
    )  # fmt: skip


@pytest.fixture
def machine() -> Machine:
    machine = Machine(replace(CONFIG, kernel=assembled("tiny")), lambda _: None)
    machine.run(60)
    return machine


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"boot sector" + random.Random(1).randbytes(5000))
        file.seek(3 << 20)
        file.write(b"the end, not on a page")
    return path


@pytest.fixture
def snapshot(machine: Machine, disk: Path, tmp_path: Path) -> Path:
    path = tmp_path / "new" / "state.kasou"
    seen: list[tuple[int, int]] = []
    write(
        path, machine.memory.freeze(), save(machine), described(machine), {"vda": disk},
        lambda *done: seen.append(done),
    )  # fmt: skip
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    assert [p.name for p in path.parent.iterdir()] == ["state.kasou"]
    return path


def test_moved_elsewhere_it_is_the_same_machine(
    machine: Machine, snapshot: Path, disk: Path, tmp_path: Path
) -> None:
    """Copied without its holes, as scp does."""
    moved = tmp_path / "moved"
    moved.write_bytes(snapshot.read_bytes())
    shutil.rmtree(snapshot.parent)
    file = SnapshotFile(moved)
    file.verify()
    assert file.description == described(machine)
    other = Machine(replace(CONFIG, kernel=assembled("tiny")), lambda _: None, ram=file.memory())
    restore(other, file.state)
    os.unlink(moved)
    assert other.memory.read(other.memory.base, 16 << 20) == machine.memory.read(
        machine.memory.base, 16 << 20
    )
    assert save(other) == save(machine)
    file.extract("vda", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
    with pytest.raises(ConfigError, match="has no vdb"):
        file.extract("vdb", tmp_path / "other")
    with pytest.raises(HostError, match="File exists"):
        file.extract("vda", tmp_path / "copy")


def test_zeros_take_no_room(snapshot: Path) -> None:
    assert snapshot.stat().st_size > 19 << 20
    assert snapshot.stat().st_blocks * 512 < 8 << 20


def test_no_damage_goes_unnoticed(snapshot: Path, tmp_path: Path) -> None:
    """A byte changed anywhere that counts, or the file cut anywhere: refused, saying so."""
    whole = snapshot.read_bytes()
    manifest = SnapshotFile(snapshot).manifest
    rng = random.Random(3)
    places = list(range(72))
    for section in (manifest.memory, *manifest.attachments):
        for start, end in section.runs:
            places += [section.offset + rng.randrange(start, end) for _ in range(10)]
    end_of_sections = manifest.attachments[-1].offset + (3 << 20) + 4096
    places += [rng.randrange(end_of_sections, len(whole)) for _ in range(50)]
    broken = tmp_path / "broken"
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        broken.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"broken: (damaged|format|not a snapshot)"):
            SnapshotFile(broken).verify()
    for length in [0, 10, 71, 4096, *(rng.randrange(len(whole)) for _ in range(20))]:
        broken.write_bytes(whole[:length])
        with pytest.raises(ConfigError):
            SnapshotFile(broken).verify()


def test_a_failed_write_leaves_the_old_one(
    machine: Machine, snapshot: Path, tmp_path: Path
) -> None:
    before = snapshot.read_bytes()
    with pytest.raises(HostError, match="cannot be written"):
        write(
            snapshot, machine.memory.freeze(), save(machine), described(machine),
            {"vda": tmp_path / "absent"},
        )  # fmt: skip
    assert snapshot.read_bytes() == before
    assert [p.name for p in snapshot.parent.iterdir()] == ["state.kasou"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello" * 100)
    with pytest.raises(ConfigError, match="not a snapshot of kasou's"):
        SnapshotFile(text)
    with pytest.raises(ConfigError, match="No such file"):
        SnapshotFile(tmp_path / "absent")
