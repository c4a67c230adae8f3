"""The machine: board, harts and firmware put together, run to its end.

With the host's clock every hart has a thread of its own. With `--clock icount`, and on the reference
engine, all harts take turns in fixed slices on one thread: a run is then a pure function of the
image, the seed and the input. Harts never run on the main thread.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kasou.devices.test_finisher import Finish
from kasou.engine.hart_state import TICK_NS, Exit
from kasou.engine.memory import PhysicalMemory
from kasou.guest.sbi import HartStatus, Sbi
from kasou.machine.board import RAM_BASE, UART, Board
from kasou.machine.boot import Bios, BootPlan, plan
from kasou.machine.core import NEVER, Core, InterpreterCore, ReferenceCore
from kasou.machine.htif import Htif
from kasou.storage.raw import RawDisk

MIB = 1 << 20
ISA_EXTENSIONS = (
    "i", "m", "a", "f", "d", "c", "zicbom", "zicbop", "zicboz", "zicntr", "zicond", "zicsr",
    "zifencei", "zihintpause", "zihpm", "zawrs", "zba", "zbb", "zbs", "sstc", "svinval",
    "svnapot", "svpbmt", "svade",
)  # fmt: skip
TURN = 20_000
"""Instructions a hart runs before the next one's turn, with one thread for all."""
HTIF_SLICE = {"interpreter": 500_000, "reference": 2_000}
"""Instructions between looks at `tohost`: some milliseconds."""


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk image given by the user."""

    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """Everything that makes a machine. `bios`: None for the built-in SBI, "none", or a file."""

    memory: int = 512 * MIB
    harts: int = 1
    engine: str = "interpreter"
    clock: str = "host"
    seed: int | None = None
    bios: str | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    drives: tuple[Drive, ...] = ()
    reboot: bool = True
    max_instructions: int | None = None


CLEARED = (
    "mie", "mip", "mideleg", "medeleg", "mtvec", "mscratch", "mepc", "mcause", "mtval",
    "mcounteren", "menvcfg", "stvec", "sscratch", "sepc", "scause", "stval", "scounteren",
    "senvcfg", "satp", "fflags", "frm", "line_msip", "line_meip", "line_seip", "request_ssip",
    "mmio_done", "pmp_used", "mcountinhibit", "minstret_base", "mcycle_base",
)  # fmt: skip
"""Cells that are 0 when a hart starts."""

Kind = Literal["poweroff", "exit", "reset", "timeout", "budget", "stopped"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; `code` is the guest's, 0 for success."""

    kind: Kind
    code: int = 0


class Machine:
    """One computer. Raises `ConfigError` for what cannot be built or booted."""

    def __init__(self, config: MachineConfig, console_output: Callable[[bytes], None]) -> None:
        self.config = config
        self.icount = config.clock == "icount" or config.engine == "reference"
        self.one_thread = self.icount
        self.memory = PhysicalMemory(RAM_BASE, config.memory)
        self._console_output = console_output
        self._rng = random.Random(config.seed if config.seed is not None else 0)
        deterministic = self.icount or config.seed is not None
        self._entropy: Callable[[int], bytes] = self._rng.randbytes if deterministic else os.urandom
        self._start_ticks = time.monotonic_ns() // TICK_NS
        self._outcome: Outcome | None = None
        self._done = threading.Event()
        self._stopping = False
        self._problems: list[BaseException] = []
        self._seconds = 0.0
        self._resets = 0
        self.cores: list[Core] = []
        self.statuses: list[HartStatus] = []
        disks = [RawDisk(d.path, d.read_only) for d in config.drives]
        self.board = Board(
            config.harts, config.memory, self.memory, self,
            console_output=console_output, entropy=self._entropy, now_ns=self._now_ns,
            on_finish=self._on_finish, disks=disks,
        )  # fmt: skip
        self.lock = self.board.lock
        self.sbi = Sbi(self)
        self._make_cores()
        self._htif: Htif | None = None
        self._plan = self._boot_plan()
        self._load(self._plan)

    # ------------------------------------------------------------------ building
    def _make_cores(self) -> None:
        count = self.config.harts
        if self.config.engine == "reference":
            self.cores = [ReferenceCore(i, self, self.memory) for i in range(count)]
            return
        from kasou.engine.interpreter import SharedTables

        shared = SharedTables(self.memory, count)
        self.cores = [InterpreterCore(i, self, shared) for i in range(count)]

    def _boot_plan(self) -> BootPlan:
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
        if boot.tohost is not None:
            self._htif = Htif(self.memory, boot.tohost, boot.fromhost, self._console_output)
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
                self._supervisor(core)
            core.flush()
        first = HartStatus.STARTED
        others = HartStatus.STOPPED if monitor else HartStatus.STARTED
        self.statuses = [first] + [others] * (len(self.cores) - 1)

    def _time_offset(self) -> int:
        return 0 if self.icount else -self._start_ticks

    @staticmethod
    def _supervisor(core: Core) -> None:
        """What firmware leaves behind: S-mode with everything delegated. (SBI 2.0, 9; Priv. 3.1.8)"""
        block = core.block
        block.set("priv", 1)
        block.set("medeleg", 0xB1FF)
        block.set("mideleg", 0x222)
        block.set("mcounteren", 0xFFFFFFFF)
        block.set("menvcfg", 1 << 63 | 1 << 62 | 0xF0 | 1)

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
        return self._current.time()

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

    @property
    def _current(self) -> Core:
        return getattr(self._local, "core", self.cores[0])

    _local = threading.local()

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
            return 1_700_000_000_000_000_000 + (self._current.time() * TICK_NS if self.cores else 0)
        return time.time_ns()

    def environment_call(self, core: Core) -> None:
        """Serve the SBI call that stopped `core` at its ecall."""
        block = core.block
        registers = [block.get("x", 10 + i) for i in range(8)]
        block.set("pc", block.get("pc") + 4)
        result = self.sbi.call(core.index, registers)
        if result is not None:
            block.set("x", result[0], 10)
            block.set("x", result[1], 11)

    # ------------------------------------------------------------------ SbiHost
    @property
    def harts(self) -> int:
        """How many harts there are."""
        return self.config.harts

    def set_timer(self, hart: int, ticks: int) -> None:
        """The supervisor timer, by Sstc's comparator."""
        self.cores[hart].block.set("stimecmp", ticks)
        self.cores[hart].attend()

    def send_ipi(self, hart: int) -> None:
        """Make SSIP pending."""
        self.set_ssip(hart)

    def remote_fence_i(self, hart: int) -> None:
        """Have another hart drop stale code before its next instruction."""
        self._remote(hart)

    def remote_sfence(self, hart: int, start: int, size: int, asid: int | None) -> None:
        """Have another hart drop its translations before its next instruction."""
        self._remote(hart)

    def _remote(self, hart: int) -> None:
        core = self.cores[hart]
        if core is self._current:
            core.flush()
            return
        core.fence()
        # A hart in Python looks before it runs again; one in compiled code must have looked.
        while core.native and core.block.get("request_fence") and not self._stopping:
            time.sleep(0)

    def hart_start(self, hart: int, address: int, opaque: int) -> None:
        """Start a stopped hart."""
        core = self.cores[hart]
        block = core.block
        self._supervisor(core)
        block.set("mstatus", 0xA00000000)
        block.set("satp", 0)
        block.set("pc", address)
        block.set("x", hart, 10)
        block.set("x", opaque, 11)
        block.set("request_fence", 1)
        block.set("context_dirty", 1)
        self.statuses[hart] = HartStatus.STARTED
        core.attend()

    def hart_stop(self, hart: int) -> None:
        """Stop the calling hart."""
        self.statuses[hart] = HartStatus.STOPPED
        self._request_exit(self.cores[hart])

    def hart_suspend(self, hart: int) -> None:
        """Sleep until an interrupt is pending."""
        core = self.cores[hart]
        if not self.one_thread:
            self._sleep(core)

    def hart_status(self, hart: int) -> int:
        """The hart's state."""
        return self.statuses[hart]

    def system_reset(self, type: int, reason: int) -> None:
        """Power off (0) or reboot."""
        self._on_finish(Finish.PASS if type == 0 else Finish.RESET, 0)

    def console_write(self, data: bytes) -> None:
        """DBCN and legacy putchar."""
        self._console_output(data)

    def console_read(self) -> int:
        """One byte from the serial port's receiver, or -1."""
        with self.lock:
            if self.board.bus.read(UART.base + 5, 1) & 1:
                return self.board.bus.read(UART.base, 1)
        return -1

    def read_memory(self, gpa: int, n: int) -> bytes:
        """RAM for the firmware."""
        return self.memory.read(gpa, n)

    def write_memory(self, gpa: int, data: bytes) -> None:
        """RAM for the firmware."""
        self.memory.write(gpa, data)

    # ------------------------------------------------------------------ running
    def console_input(self, data: bytes) -> None:
        """Bytes typed at the console; from any thread."""
        with self.lock:
            self.board.uart.receive(data)

    @property
    def outcome(self) -> Outcome | None:
        """How the guest ended, once it has."""
        return self._outcome

    def stop(self) -> None:
        """End the run; from any thread."""
        self._finish(Outcome("stopped"))

    def _on_finish(self, finish: Finish, code: int) -> None:
        if finish is Finish.RESET:
            self._finish(Outcome("reset"))
        elif finish is Finish.PASS:
            self._finish(Outcome("poweroff"))
        else:
            self._finish(Outcome("exit", code))

    def _finish(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
        self._stopping = True
        for core in self.cores:
            self._request_exit(core)
        self._done.set()

    @staticmethod
    def _request_exit(core: Core) -> None:
        core.block.set("exit_request", 1)
        core.attend()

    def run(self, timeout: float | None = None) -> Outcome:
        """Run to the end, or for `timeout` seconds of the host. Not from a hart's thread."""
        started = time.monotonic()
        end = None if timeout is None else started + timeout
        while True:
            outcome = self._run_once(end)
            self._seconds = time.monotonic() - started
            if outcome.kind != "reset" or not self.config.reboot:
                return outcome
            self._reset()

    def _reset(self) -> None:
        self._resets += 1
        self.board.reset()
        for core in self.cores:
            core.block.set("exit_request", 0)
        self._load(self._plan)

    def _run_once(self, end: float | None) -> Outcome:
        if self._outcome is not None and self._outcome.kind == "stopped":
            return self._outcome
        self._outcome, self._stopping = None, False
        self._done.clear()
        for core in self.cores:
            core.block.set("exit_request", 0)
        if self.one_thread:
            threads = [threading.Thread(target=self._guard, args=(self._take_turns,), daemon=True)]
        else:
            threads = [
                threading.Thread(target=self._guard, args=(self._run_core, core), daemon=True)
                for core in self.cores
            ]
        for thread in threads:
            thread.start()
        remaining = None if end is None else max(0.0, end - time.monotonic())
        if not self._done.wait(remaining):
            self._finish(Outcome("timeout"))
        for thread in threads:
            thread.join()
        if self._problems:
            raise self._problems[0]
        assert self._outcome is not None
        return self._outcome

    def _guard(self, body: Callable[..., None], *args: Any) -> None:
        try:
            body(*args)
        except BaseException as problem:  # carried to the caller of run()
            self._problems.append(problem)
            self._finish(Outcome("stopped"))

    def _run_core(self, core: Core) -> None:
        """A hart's thread."""
        self._local.core = core
        limit = self.config.max_instructions or NEVER
        while not self._stopping:
            if self.statuses[core.index] != HartStatus.STARTED:
                core.wake.wait()
                core.wake.clear()
                continue
            until = (
                limit
                if self._htif is None
                else min(limit, core.count + HTIF_SLICE[self.config.engine])
            )
            reason = core.run(until)
            if reason == Exit.WFI:
                self._sleep(core)
            self._after_slice(core, limit)

    def _after_slice(self, core: Core, limit: int) -> None:
        if self._htif is not None:
            code = self._htif.poll()
            if code is not None:
                self._finish(Outcome("exit", code))
        if core.count >= limit and not self._stopping:
            self._finish(Outcome("budget"))

    def _sleep(self, core: Core) -> None:
        """`wfi`: until an interrupt is pending or a timer is due."""
        while not self._stopping:
            core.wake.clear()
            if core.sees_interrupt():
                break
            deadline = core.deadline()
            seconds = None if deadline is None else (deadline - core.time()) * TICK_NS / 1e9
            if seconds is None or seconds > 0:
                core.wake.wait(seconds if seconds is None else min(seconds, 3600.0))
        core.attend()

    def _take_turns(self) -> None:
        """All harts on this thread, in slices of fixed length."""
        limit = self.config.max_instructions or NEVER
        alone = len(self.cores) == 1
        while not self._stopping:
            idle = True
            for core in self.cores:
                if self.statuses[core.index] != HartStatus.STARTED or self._stopping:
                    continue
                self._local.core = core
                if core.asleep and not core.sees_interrupt():
                    continue
                core.asleep = False
                turn = HTIF_SLICE[self.config.engine] if alone else TURN
                core.block.set("attention", NEVER)
                reason = core.run(min(limit, core.count + turn))
                core.asleep = reason == Exit.WFI
                idle = idle and core.asleep
                self._after_slice(core, limit)
            if idle and not self._stopping:
                self._skip_to_deadline()

    def _skip_to_deadline(self) -> None:
        """Everyone sleeps: time jumps to the next timer, or input is waited for."""
        running = [c for c in self.cores if self.statuses[c.index] == HartStatus.STARTED]
        if any(c.sees_interrupt() for c in running):
            return
        waits = [d - c.time() for c in running if (d := c.deadline()) is not None]
        if waits:
            for core in self.cores:
                core.block.set("time_offset", core.block.get("time_offset") + max(0, min(waits)))
            return
        for core in running:
            core.wake.wait(0.05)
            core.wake.clear()

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
