"""Counted time: a run is a function of image and seed, networks and disks included."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from kasou.images import DefaultGuest
from kasou.machine.machine import Machine, MachineConfig

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.mark.parametrize("harts", [1, 2])
def test_two_runs_are_the_same_run(debian: DefaultGuest, harts: int) -> None:
    def run(seed: int) -> tuple[int, str]:
        config = MachineConfig(
            memory=256 << 20, harts=harts, clock="icount", seed=seed, kernel=debian.kernel,
            initrd=debian.initrd, append=f"{debian.append} rdinit=/usr/sbin/poweroff",
        )  # fmt: skip
        output: list[bytes] = []
        append: Callable[[bytes], None] = output.append
        machine = Machine(config, append)
        outcome = machine.run(240)
        assert outcome.kind == "poweroff", b"".join(output)[-2000:]
        ram = machine.memory.read(machine.memory.base, machine.memory.size)
        return machine.statistics()["instructions"], hashlib.sha256(ram).hexdigest()

    first = run(3)
    assert run(3) == first
    assert run(4) != first
