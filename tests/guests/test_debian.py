"""An unmodified Debian kernel on the whole machine: to the prompt, commands, power off."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kasou.images import DefaultGuest
from kasou.images.store import load
from kasou.machine.lockstep import Lockstep
from kasou.machine.machine import Drive, Machine, MachineConfig

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.mark.parametrize("harts", [1, 2])
def test_boots_under_the_built_in_sbi(boot, harts: int) -> None:
    session = boot(harts=harts)
    assert b"riscv64" in session.type("uname -m")
    assert session.type("grep -c ^processor /proc/cpuinfo").split() == [str(harts).encode()]
    assert session.type("echo $((6 * 7))").split() == [b"42"]
    assert session.finish("poweroff").kind == "poweroff"


@pytest.mark.parametrize("firmware", ["fw_dynamic.bin", "fw_jump.bin", "fw_jump.elf"])
def test_boots_under_opensbi(boot, opensbi: Path, firmware: str) -> None:
    session = boot(harts=2, bios=str(opensbi / firmware))
    assert b"OpenSBI" in session.output
    assert session.type("grep -c ^processor /proc/cpuinfo").split() == [b"2"]
    assert session.finish("poweroff").kind == "poweroff"


def needs_disk_drivers() -> None:
    image = load("debian:trixie")
    if image is not None and image.missing:
        pytest.skip(f"not run: this mirror's image lacks {image.missing}")


def test_reads_and_writes_a_disk(boot, tmp_path: Path) -> None:
    needs_disk_drivers()
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"sixteen bytes in" + bytes((1 << 20) - 16))
    session = boot(drives=(Drive(disk),))
    assert b"sixteen bytes in" in session.type("head -c 16 /dev/vda; echo")
    session.type("printf kasou | dd of=/dev/vda bs=1 seek=4096 conv=notrunc; sync")
    assert session.finish("poweroff").kind == "poweroff"
    assert disk.read_bytes()[4096:4101] == b"kasou"


def test_a_read_only_disk_stays_as_it_is(boot, tmp_path: Path) -> None:
    needs_disk_drivers()
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    session = boot(drives=(Drive(disk, read_only=True),))
    assert session.type("cat /sys/block/vda/ro").split() == [b"1"]
    session.type("echo x > /dev/vda")
    session.finish("poweroff")
    assert disk.read_bytes() == bytes(1 << 20)


def test_reboots_and_can_be_kept_from_it(boot) -> None:
    session = boot(reboot=False)
    assert session.finish("reboot -f").kind == "reset"


def test_counted_time_repeats_a_run(debian: DefaultGuest) -> None:
    def run() -> tuple[bytes, str, list[int]]:
        output = bytearray()
        config = MachineConfig(
            kernel=debian.kernel, initrd=debian.initrd, append=debian.append,
            clock="icount", seed=7, harts=2, max_instructions=150_000_000,
        )  # fmt: skip
        machine = Machine(config, output.extend)
        assert machine.run(120).kind == "budget"
        memory = machine.memory
        digest = hashlib.blake2b(memory.view(memory.base, memory.size)).hexdigest()
        return bytes(output), digest, machine.statistics()["instructions_by_hart"]

    assert run() == run()


def test_first_two_million_instructions_in_lockstep(debian: DefaultGuest) -> None:
    config = MachineConfig(
        kernel=debian.kernel, initrd=debian.initrd, append=debian.append, max_instructions=2_000_000
    )
    both = Lockstep(config, lambda _data: None)
    both.run()
    assert both.difference is None, both.difference.report()
    assert both.steps == 2_000_000
