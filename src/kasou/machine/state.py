"""The machine at rest: what its harts and devices hold, without RAM and disks.

It is saved with all harts parked. Time: `mtime` is kept as the guest sees it and goes on from there
when restored, so that the time between is none; with `--clock icount` instruction counts go on too.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import kasou.devices.virtio.console
import kasou.devices.virtio.net  # noqa: F401  (their kinds of state are found by name)
from kasou.devices.register import check_version
from kasou.errors import ConfigError
from kasou.guest.sbi import HartStatus
from kasou.isa.state import SIZE
from kasou.machine.board import BoardState

if TYPE_CHECKING:
    from kasou.machine.core import Core
    from kasou.machine.machine import Machine

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreState:
    """A hart: its architectural cells in the order of `kasou.isa.state`, and its place in time.

    `time` is mtime in ticks, `time_offset` what with counted time was added to the count.
    """

    cells: bytes
    count: int
    time: int
    time_offset: int
    status: int
    asleep: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """Harts, devices, and the generator behind what is random in them."""

    version: int = VERSION
    cores: tuple[CoreState, ...]
    board: BoardState
    random: tuple[int, ...]


def save(machine: Machine) -> MachineState:
    """The machine at rest; its harts must be parked."""
    with machine.lock:
        board = machine.board.save()
    _, generator, _ = machine.rng.getstate()
    return MachineState(
        cores=tuple(_save_core(machine, core) for core in machine.cores),
        board=board,
        random=generator,
    )


def restore(machine: Machine, state: MachineState) -> None:
    """Make `machine` the one that was saved; before its first run, on RAM of the same moment.

    Raises `ConfigError` when it is built otherwise than that one was.
    """
    check_version("Machine", state.version, VERSION)
    if len(state.cores) != len(machine.cores):
        raise ConfigError(
            f"the snapshot has {len(state.cores)} harts, the machine {len(machine.cores)}"
        )
    for core, saved in zip(machine.cores, state.cores, strict=True):
        _restore_core(machine, core, saved)
    try:
        machine.rng.setstate((3, state.random, None))
    except (ValueError, TypeError, OverflowError):
        raise ConfigError("the snapshot's random generator is damaged") from None
    with machine.lock:
        machine.board.restore(state.board)
    for core in machine.cores:
        core.attend()


def _save_core(machine: Machine, core: Core) -> CoreState:
    assert not core.block.get("mmio_done"), "a parked hart has finished its device access"
    return CoreState(
        cells=ctypes.string_at(core.block.address, SIZE),
        count=core.count,
        time=core.time(),
        time_offset=core.block.get("time_offset"),
        status=machine.statuses[core.index],
        asleep=core.asleep,
    )


def _restore_core(machine: Machine, core: Core, saved: CoreState) -> None:
    if len(saved.cells) != SIZE:
        raise ConfigError(f"the snapshot's hart has {len(saved.cells)} bytes of state, not {SIZE}")
    ctypes.memmove(core.block.address, saved.cells, SIZE)
    try:
        machine.statuses[core.index] = HartStatus(saved.status)
    except ValueError:
        raise ConfigError(
            f"the snapshot's hart is in state {saved.status}, which is none"
        ) from None
    core.asleep = saved.asleep
    core.set_count(saved.count)
    offset = saved.time_offset if machine.icount else saved.time - machine.host_ticks()
    core.block.set("time_offset", offset)
    core.flush()
