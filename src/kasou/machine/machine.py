"""The machine: board, harts and firmware put together, run to its end.

Reading order of the package's middle: `config` (what it is made from), this file (how it is put
together and wired), `firmware` (what the SBI asks of it), `runner` (its threads and the safe point),
`state` (the machine at rest). With `--clock icount` a run is a pure function of the image, the seed
and the input.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kasou.devices.test_finisher import Finish
from kasou.engine.frozen_memory import FrozenMemory
from kasou.engine.hart_state import TICK_NS
from kasou.engine.memory import PhysicalMemory
from kasou.errors import HostError
from kasou.guest.sbi import HartStatus, Sbi
from kasou.machine.board import RAM_BASE, Board
from kasou.machine.boot import Bios, BootPlan, plan
from kasou.machine.config import Drive, MachineConfig, Nic, Outcome, Peripherals, Share
from kasou.machine.core import NEVER, Core, InterpreterCore, ReferenceCore
from kasou.machine.firmware import Firmware, enter_supervisor
from kasou.machine.htif import Htif
from kasou.machine.peripherals import plug
from kasou.machine.runner import Runner
from kasou.ports import Frame
from kasou.storage.raw import RawDisk

if TYPE_CHECKING:
    from kasou.devices.virtio.net import VirtioNet

__all__ = ["Drive", "Machine", "MachineConfig", "Nic", "Outcome", "Peripherals", "Share"]

ISA_EXTENSIONS = (
    "i", "m", "a", "f", "d", "c", "zicbom", "zicbop", "zicboz", "zicntr", "zicond", "zicsr",
    "zifencei", "zihintpause", "zihpm", "zawrs", "zba", "zbb", "zbs", "sstc", "svinval",
    "svnapot", "svpbmt", "svade",
)  # fmt: skip

CLEARED = (
    "mie", "mip", "mideleg", "medeleg", "mtvec", "mscratch", "mepc", "mcause", "mtval",
    "mcounteren", "menvcfg", "stvec", "sscratch", "sepc", "scause", "stval", "scounteren",
    "senvcfg", "satp", "fflags", "frm", "line_msip", "line_meip", "line_seip", "request_ssip",
    "mmio_done", "pmp_used", "mcountinhibit", "minstret_base", "mcycle_base",
)  # fmt: skip
"""Cells that are 0 when a hart starts."""


class Machine:
    """One computer, powered on, or with `ram` as it was frozen; `restore` then gives it its state.

    Raises `ConfigError` for what cannot be built or booted.
    """

    def __init__(
        self,
        config: MachineConfig,
        console_output: Callable[[bytes], None],
        peripherals: Peripherals | None = None,
        ram: FrozenMemory | None = None,
    ) -> None:
        self.config = config
        self.icount = config.clock == "icount" or config.engine == "reference"
        self.one_thread = self.icount
        self.memory = PhysicalMemory(RAM_BASE, config.memory, ram)
        self.console_output = console_output
        self.rng = random.Random(config.seed if config.seed is not None else 0)
        deterministic = self.icount or config.seed is not None
        self._entropy: Callable[[int], bytes] = self.rng.randbytes if deterministic else os.urandom
        self._start_ticks = time.monotonic_ns() // TICK_NS
        self._seconds = 0.0
        self._resets = 0
        self._paused_since: int | None = None
        self.disk_error: HostError | None = None
        """Why a disk paused the machine."""
        self.on_paused: Callable[[], None] | None = None
        """Called when that happens, on a hart's thread, with the board's lock held."""
        self.cores: list[Core] = []
        self.statuses: list[HartStatus] = []
        self.runner = Runner(self)
        self.peripherals = peripherals or Peripherals()
        self.plugged = plug(self.memory, self.peripherals)
        disks = [*self.peripherals.disks]
        disks += [RawDisk(d.path, d.read_only) for d in config.drives]
        self.board = Board(
            config.harts, config.memory, self.memory, self,
            console_output=console_output, entropy=self._entropy, now_ns=self._now_ns,
            on_finish=self.guest_finished, on_alarm=self.runner.armed,
            on_disk_error=self._disk_failed, disk_errors=self.peripherals.disk_errors,
            disks=disks, devices=self.plugged.devices,
            transport=self.peripherals.transport, packed_rings=self.peripherals.packed_rings,
        )  # fmt: skip
        self.lock = self.board.lock
        self.runner.companions.append(self.board)
        for nic, device in zip(self.peripherals.nics, self.plugged.nics, strict=True):
            nic.port.attach(partial(self._deliver, device))
        self._firmware = Firmware(self)
        self.sbi = Sbi(self._firmware)
        self._make_cores()
        self.htif: Htif | None = None
        if ram is None:
            self._load(self._plan)
        else:
            self.statuses = [HartStatus.STOPPED] * config.harts
            if config.bios == "none":
                self._connect_htif(self._plan)

    # ------------------------------------------------------------------ building
    def _make_cores(self) -> None:
        count = self.config.harts
        if self.config.engine == "reference":
            self.cores = [ReferenceCore(i, self, self.memory) for i in range(count)]
            return
        from kasou.engine.interpreter import SharedTables

        shared = SharedTables(self.memory, count)
        self.cores = [InterpreterCore(i, self, shared) for i in range(count)]

    @cached_property
    def _plan(self) -> BootPlan:
        config = self.config
        append = config.append

        def device_tree(initrd_range: tuple[int, int] | None) -> bytes:
            return self.board.device_tree(
                bootargs=append,
                initrd_range=initrd_range,
                isa_extensions=ISA_EXTENSIONS,
                rng_seed=self._entropy(32),
            )

        bios: Bios | Path = Bios.BUILTIN
        if config.bios is not None:
            bios = Bios.NONE if config.bios == "none" else Path(config.bios)
        return plan(
            bios=bios, kernel=config.kernel, initrd=config.initrd,
            ram_base=RAM_BASE, ram_bytes=config.memory, device_tree=device_tree,
        )  # fmt: skip

    def _load(self, boot: BootPlan) -> None:
        for gpa, size in boot.zeroes:
            self.memory.write(gpa, bytes(size))
        for gpa, data in boot.loads:
            self.memory.write(gpa, data)
        self._connect_htif(boot)
        monitor = boot.mode == "S"
        for core in self.cores:
            block = core.block
            for i in range(32):
                block.set("x", 0, i)
                block.set("f", 0, i)
            for name in CLEARED:
                block.set(name, 0)
            for i in range(16):
                for name in ("pmpcfg", "pmpaddr", "pmp_low", "pmp_high"):
                    block.set(name, 0, i)
            for name in ("stimecmp", "mtimecmp", "reservation"):
                block.set(name, NEVER)
            block.set("mstatus", 0xA00000000)
            block.set("monitor", int(monitor))
            block.set("priv", 3)
            block.set("pc", boot.entry)
            for register, value in boot.registers(core.index).items():
                block.set("x", value, register)
            block.set("time_offset", self._time_offset())
            if monitor:
                enter_supervisor(core)
            core.flush()
        first = HartStatus.STARTED
        others = HartStatus.STOPPED if monitor else HartStatus.STARTED
        self.statuses = [first] + [others] * (len(self.cores) - 1)

    def _connect_htif(self, boot: BootPlan) -> None:
        if boot.tohost is not None:
            self.htif = Htif(self.memory, boot.tohost, boot.fromhost, self.console_output)

    def _time_offset(self) -> int:
        return 0 if self.icount else -self._start_ticks

    # ------------------------------------------------------------------ HartLines
    def set_msip(self, hart: int, on: bool) -> None:
        """Drive a machine software interrupt."""
        self.cores[hart].set_line("line_msip", on)

    def set_ssip(self, hart: int) -> None:
        """Set a supervisor software interrupt."""
        core = self.cores[hart]
        core.block.set("request_ssip", 1)
        core.attend()

    def set_external(self, hart: int, mode: Literal["M", "S"], on: bool) -> None:
        """Drive an external interrupt line."""
        if self.cores:
            self.cores[hart].set_line("line_meip" if mode == "M" else "line_seip", on)

    def mtime(self) -> int:
        """The time now, in ticks."""
        return self.runner.current.time()

    def set_mtime(self, value: int) -> None:
        """Set the time."""
        change = value - self.mtime()
        for core in self.cores:
            core.block.set("time_offset", core.block.get("time_offset") + change)
            core.attend()

    def mtimecmp(self, hart: int) -> int:
        """When the machine timer of a hart fires."""
        return self.cores[hart].block.get("mtimecmp")

    def set_mtimecmp(self, hart: int, value: int) -> None:
        """Set when the machine timer of a hart fires."""
        self.cores[hart].block.set("mtimecmp", value)
        self.cores[hart].attend()

    def _deliver(self, device: VirtioNet, frames: Sequence[Frame]) -> None:
        """Frames for a network card, from the network's thread."""
        with self.lock:
            device.receive(frames)

    # ------------------------------------------------------------------ CoreHost
    def bus_read(self, gpa: int, size: int) -> int:
        """Load from a device."""
        with self.lock:
            return self.board.bus.read(gpa, size)

    def bus_write(self, gpa: int, size: int, value: int) -> None:
        """Store to a device."""
        with self.lock:
            self.board.bus.write(gpa, size, value)

    def host_ticks(self) -> int:
        """The host's monotonic clock in ticks."""
        return time.monotonic_ns() // TICK_NS

    def _now_ns(self) -> int:
        """Wall-clock time for the RTC; with icount, a fixed origin and counted time."""
        if self.icount:
            return 1_700_000_000_000_000_000 + (
                self.runner.current.time() * TICK_NS if self.cores else 0
            )
        return time.time_ns()

    def environment_call(self, core: Core) -> None:
        """Serve the SBI call that stopped `core` at its ecall."""
        self._firmware.serve(core)

    # ------------------------------------------------------------------ running
    def console_input(self, data: bytes) -> None:
        """Bytes typed at the console; from any thread."""
        with self.lock:
            self.board.uart.receive(data)

    @property
    def outcome(self) -> Outcome | None:
        """How the guest ended, once it has."""
        return self.runner.outcome

    def stop(self) -> None:
        """End the run; from any thread."""
        self.runner.finish(Outcome("stopped"))

    def guest_finished(self, finish: Finish, code: int) -> None:
        """The guest powered off, reset, or gave an exit code."""
        if finish is Finish.RESET:
            self.runner.finish(Outcome("reset"))
        elif finish is Finish.PASS:
            self.runner.finish(Outcome("poweroff"))
        else:
            self.runner.finish(Outcome("exit", code))

    def run(self, timeout: float | None = None) -> Outcome:
        """Run to the end, or for `timeout` seconds of the host. Not from a hart's thread."""
        started = time.monotonic()
        end = None if timeout is None else started + timeout
        while True:
            outcome = self.runner.run(end)
            self._seconds = time.monotonic() - started
            if outcome.kind != "reset" or not self.config.reboot:
                return outcome
            self._resets += 1
            self.board.reset()
            self._load(self._plan)

    def parked(self) -> AbstractContextManager[None]:
        """All harts stand still at an instruction boundary inside this context."""
        return self.runner.park()

    @property
    def entry(self) -> int:
        """Where the first hart starts after power-on, gpa."""
        return self._plan.entry

    def _disk_failed(self, error: HostError) -> None:
        """A disk keeps a request that the host could not do: pause; on a hart's thread, in the lock."""
        self.disk_error = error
        if self._paused_since is None:
            self.runner.hold(wait=False)
            self._paused_since = self.host_ticks()
        if self.on_paused is not None:
            self.on_paused()

    @property
    def is_paused(self) -> bool:
        """Whether `pause` holds the harts."""
        return self._paused_since is not None

    def pause(self) -> None:
        """Stop the harts and their clock until `resume`; nothing happens if they are stopped."""
        if self._paused_since is None:
            self.runner.hold()
            self._paused_since = self.host_ticks()

    def resume(self) -> None:
        """Go on after `pause`: for the guest no time has passed."""
        if self._paused_since is None:
            return
        if not self.icount:
            missed = self.host_ticks() - self._paused_since
            for core in self.cores:
                core.block.set("time_offset", core.block.get("time_offset") - missed)
        self._paused_since, self.disk_error = None, None
        self.runner.release()
        with self.lock:
            for disk in self.board.disks:
                disk.retry()

    # ------------------------------------------------------------------ looking
    def statistics(self) -> dict[str, Any]:
        """Instructions by hart, seconds of the host, and their ratio."""
        counts = [core.count for core in self.cores]
        total = sum(counts)
        return {
            "instructions": total,
            "instructions_by_hart": counts,
            "seconds": self._seconds,
            "mips": total / self._seconds / 1e6 if self._seconds else 0.0,
            "resets": self._resets,
            "engine": self.config.engine,
            "clock": "icount" if self.icount else "host",
        }
