"""A hart of the machine on either engine: state, interrupt lines, and running a slice.

`Core.run(until)` runs on the caller's thread until something ends the slice; what needs the machine
(an SBI call, a halt) is answered through `CoreHost`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from kasou.engine.hart_state import ICOUNT_PER_TICK, Exit, HartBlock
from kasou.engine.memory import PhysicalMemory
from kasou.errors import BusError

if TYPE_CHECKING:
    from kasou.engine.interpreter import InterpreterHart, SharedTables
    from kasou.engine.reference import ReferenceHart

NEVER = (1 << 64) - 1
STCE = 1 << 63
SYSTEM, MISC_MEM = 0x73, 0x0F
"""Opcodes of what may change how later instructions run: CSRs, returns, fences."""


class CoreHost(Protocol):
    """What a core asks of its machine."""

    lock: Any
    icount: bool

    def bus_read(self, gpa: int, size: int) -> int:
        """Load from a device; raises BusError."""
        ...

    def bus_write(self, gpa: int, size: int, value: int) -> None:
        """Store to a device; raises BusError."""
        ...

    def host_ticks(self) -> int:
        """The host's clock in ticks, before any offset."""
        ...

    def environment_call(self, core: Core) -> None:
        """Serve the SBI call at pc."""
        ...


class _Bus:
    """The machine's bus as the reference model wants it."""

    def __init__(self, host: CoreHost) -> None:
        self.read, self.write = host.bus_read, host.bus_write


class Core:
    """One hart. `block` holds its state whatever the engine."""

    block: HartBlock

    def __init__(self, index: int, host: CoreHost) -> None:
        self.index = index
        self.host = host
        self.wake = threading.Event()
        self.native = False
        """Compiled code is running, or about to."""
        self.asleep = False
        """wfi, and nothing to do."""
        self.breakpoints: frozenset[int] = frozenset()
        """Addresses (gva) before which `run` ends with `Exit.DEBUG`; an ebreak stands there."""

    # ---- time
    def time(self, _hart: Any = None) -> int:
        """`mtime` as this hart sees it, in ticks."""
        base = self.count // ICOUNT_PER_TICK if self.host.icount else self.host.host_ticks()
        return (base + self.block.get("time_offset")) & NEVER

    def deadline(self) -> int | None:
        """The tick at which this hart's next timer fires; None for never."""
        compares = [self.block.get("mtimecmp")]
        if self.block.get("menvcfg") & STCE:
            compares.append(self.block.get("stimecmp"))
        nearest = min(compares)
        return None if nearest >= 1 << 62 else nearest

    # ---- lines, from any thread
    def attend(self) -> None:
        """Look at lines and requests at the next boundary, and wake up for it."""
        self.block.set("attention", NEVER)
        self.wake.set()

    def set_line(self, name: str, on: bool) -> None:
        """Drive line_msip, line_meip or line_seip."""
        if self.block.get(name) != int(on):
            self.block.set(name, int(on))
            self.attend()

    def request_exit(self) -> None:
        """Leave compiled code at the next boundary, and wake up for it."""
        self.block.set("exit_request", 1)
        self.attend()

    # ---- running
    @property
    def count(self) -> int:
        """Instructions attempted so far."""
        raise AssertionError("an engine gives this")

    def set_count(self, count: int) -> None:
        """Go on counting instructions from `count`."""
        raise AssertionError("an engine gives this")

    def run(self, until: int) -> Exit:
        """Run until instruction count `until`, `wfi`, or a request to leave."""
        raise AssertionError("an engine gives this")

    def flush(self) -> None:
        """Drop translations after Python changed what they depend on."""

    def fence(self) -> None:
        """`fence.i` and `sfence.vma`, asked for by another hart; at the next boundary."""

    @property
    def model(self) -> ReferenceHart:
        """The reference model on this hart's state."""
        raise AssertionError("an engine gives this")

    def translated(self, gva: int) -> int:
        """The gpa that a load at `gva` would reach; the hart must stand still. Raises `Trap`."""
        from kasou.isa.translation import checked_translate, data_privilege
        from kasou.isa.word import Word

        model = self.model
        load, one = Word(1), Word(1)
        return int(checked_translate(model, Word(gva), load, one, data_privilege(model)))

    def sees_interrupt(self) -> bool:
        """Whether `wfi` would not wait: something is pending that mie enables. (Priv. 3.3.3)"""
        get = self.block.get
        pending = (
            get("mip") | get("line_msip") << 3 | get("line_meip") << 11 | get("line_seip") << 9
        )
        pending |= get("request_ssip") << 1
        now = self.time()
        if now >= get("mtimecmp"):
            pending |= 1 << 7
        if get("menvcfg") & STCE:
            pending = pending | 1 << 5 if now >= get("stimecmp") else pending & ~(1 << 5)
        return bool(pending & get("mie"))


class InterpreterCore(Core):
    """A core on the threaded interpreter."""

    def __init__(self, index: int, host: CoreHost, shared: SharedTables) -> None:
        super().__init__(index, host)
        from kasou.engine.interpreter import InterpreterHart

        self.hart: InterpreterHart = InterpreterHart(index, shared, host.icount)
        self.block = self.hart.block
        self.memory = shared.memory
        self._reference: ReferenceHart | None = None

    @property
    def count(self) -> int:
        return self.hart.count

    def set_count(self, count: int) -> None:
        self.block.set("limit", count)
        self.block.set("remaining", 0)

    @property
    def model(self) -> ReferenceHart:
        if self._reference is None:
            from kasou.engine.reference import ReferenceHart

            self._reference = ReferenceHart(self.memory, _Bus(self.host), self, self.block.words)
        return self._reference

    def run(self, until: int) -> Exit:
        hart, host = self.hart, self.host
        while True:
            self.native = True
            reason = hart.execute(until)
            self.native = False
            if reason == Exit.MMIO:
                try:
                    hart.serve_mmio(host.bus_read, host.bus_write)
                except BusError:
                    self._access_fault()
            elif reason == Exit.ECALL:
                host.environment_call(self)
                if self.block.get("exit_request"):
                    return Exit.REQUEST
            elif reason == Exit.REFERENCE or (
                reason == Exit.DEBUG and self.block.get("pc") not in self.breakpoints
            ):
                if self._step_reference() == "wfi":
                    return Exit.WFI
                if self.block.get("exit_request"):
                    return Exit.REQUEST
            else:
                return reason

    def _access_fault(self) -> None:
        from kasou.isa.csr import minstret_after_trap
        from kasou.isa.interrupts import take_trap
        from kasou.isa.word import Word

        get = self.block.get
        cause = 7 if get("mmio_write") else 5
        take_trap(self.model, Word(cause), Word(get("mmio_va")), Word(get("pc")))
        self.block.set("context_dirty", 1)
        self.block.set("remaining", get("remaining") - 1)
        self.block.set("minstret_base", int(minstret_after_trap(self.model)))

    def _step_reference(self) -> str | None:
        """Run the instruction at pc by the reference model; what its step says."""
        reference = self.model
        reference.instructions = self.count
        said = reference.step(interrupts=False)  # they are taken at service points
        self.block.set("context_dirty", 1)
        self.block.set("remaining", self.block.get("remaining") - 1)
        opcode = reference.bits & 0x7F
        if opcode == SYSTEM or (opcode == MISC_MEM and reference.bits >> 12 & 7 == 1):
            self.flush()  # it may have been any fence or CSR; the model has nothing to forget
            self.block.set("attention", NEVER)
        if said == "ecall":
            self.host.environment_call(self)
        return said

    def flush(self) -> None:
        self.hart.flush_translations()
        self.hart.drop_stale_code()
        self.block.set("context_dirty", 1)

    def fence(self) -> None:
        self.block.set("request_fence", 1)
        self.attend()


class ReferenceCore(Core):
    """A core on the int model."""

    def __init__(self, index: int, host: CoreHost, memory: PhysicalMemory) -> None:
        super().__init__(index, host)
        from kasou.engine.reference import ReferenceHart

        self.block = HartBlock()
        self.hart = ReferenceHart(memory, _Bus(host), self, self.block.words, remember=True)
        self.hart.reset(0, index)
        self.block.set("mstatus", 0xA00000000)

    @property
    def count(self) -> int:
        return self.hart.instructions

    @property
    def model(self) -> ReferenceHart:
        return self.hart

    def set_count(self, count: int) -> None:
        self.hart.instructions = count

    def flush(self) -> None:
        self.hart.flush_translations()

    def run(self, until: int) -> Exit:
        hart, block = self.hart, self.block
        while hart.instructions < until:
            if block.get("attention"):
                block.set("attention", 0)
                if block.get("request_ssip"):
                    block.set("request_ssip", 0)
                    block.set("mip", block.get("mip") | 2)
                if block.get("exit_request"):
                    block.set("exit_request", 0)
                    return Exit.REQUEST
            if self.breakpoints and block.get("pc") in self.breakpoints:
                return Exit.DEBUG
            reason = hart.step()
            if reason == "ecall":
                self.host.environment_call(self)
            elif reason == "wfi":
                return Exit.WFI
        return Exit.BUDGET
