"""The hart as staged code sees it: the context that turns texts into LLVM functions.

`StagedHart` is what every context shares: cells, host memory, control of emission. `FunctionHart` is
inside a function boundary (`kasou.isa.function` and the engine's own mechanics): `define {i64, i64}
@fn_NAME(ptr %hart, i64 ...)` returns a value and a status. `kasou.engine.handler` has the other one.

Writes of state are buffered and committed when a path ends normally, so an instruction that traps
leaves only the trap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kasou.engine.hart_state import ALL_CELLS, Exit
from kasou.engine.staging import StagedBool, StagedWord, Tracer, operand
from kasou.isa.function import MAY_TRAP
from kasou.isa.trap import Trap

STATUS_OK, STATUS_TRAP, STATUS_EXIT = 0, 1, 2
ILLEGAL_TVAL = 256
"""Added to trap_cause: tval is the instruction."""


class Leave(Exception):
    """A path that goes to Python for `reason`; the instruction has not happened."""

    def __init__(self, reason: Exit) -> None:
        super().__init__(reason)
        self.reason = reason


class Registers:
    """`hart.x` and `hart.f`: by a register's index, a value or an int."""

    def __init__(self, hart: StagedHart, cell: str) -> None:
        self._hart, self._cell = hart, cell

    def _pointer(self, index: Any) -> str:
        base = ALL_CELLS[self._cell].offset
        t: Tracer = self._hart.tracer
        if isinstance(index, int):
            return t.emit(f"getelementptr i8, ptr %hart, i64 {base + 8 * index}")
        at = t.emit(f"getelementptr i8, ptr %hart, i64 {base}") if base else "%hart"
        return t.emit(f"getelementptr i64, ptr {at}, i64 {index.name}")

    def __getitem__(self, index: Any) -> StagedWord:
        assert self._cell not in self._hart.registers_written, "register read after a write"
        if self._cell == "x" and isinstance(index, int) and index == 0:
            return self._hart.word(0)
        t = self._hart.tracer
        return StagedWord(t, t.emit(f"load i64, ptr {self._pointer(index)}, !tbaa !3"))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._hart.registers_written[self._cell] = (self._pointer(index), operand(value))


class StagedHart:
    """What function and handler contexts share: cells, host memory, control of emission."""

    staged = True
    tracer: Tracer

    def __init__(self, tracer: Tracer) -> None:
        own = self.__dict__
        own["tracer"] = tracer
        own["pending"] = {}
        own["registers_written"] = {}
        own["x"] = Registers(self, "x")
        own["f"] = Registers(self, "f")

    # ---- values and cells
    def word(self, value: int) -> StagedWord:
        """A constant."""
        return StagedWord(self.tracer, operand(value))

    def argument(self, name: str) -> StagedWord:
        """An argument of the LLVM function."""
        return StagedWord(self.tracer, name)

    def cell_pointer(self, name: str, index: int = 0) -> str:
        """The IR pointer to a cell."""
        offset = ALL_CELLS[name].offset + 8 * index
        return self.tracer.emit(f"getelementptr i8, ptr %hart, i64 {offset}")

    def load_cell(self, name: str, index: int = 0) -> StagedWord:
        """A cell's value, or what this path will write there."""
        if (name, index) in self.pending:
            return self.pending[name, index]  # type: ignore[no-any-return]
        if name == "fflags":
            self.tracer.raw("  call void @collect_flags(ptr %hart)")
        pointer = self.cell_pointer(name, index)
        return StagedWord(self.tracer, self.tracer.emit(f"load i64, ptr {pointer}, !tbaa !3"))

    def store_cell(self, name: str, value: Any, index: int = 0) -> None:
        """Write a cell when the path ends normally."""
        if name == "fflags":
            self.tracer.raw("  call void @collect_flags(ptr %hart)")
        held = value if isinstance(value, StagedWord) else self.word(int(value))
        self.pending[name, index] = held

    def store_now(self, name: str, value: Any) -> None:
        """Write an engine's cell at once."""
        pointer = self.cell_pointer(name)
        self.tracer.raw(f"  store i64 {operand(value)}, ptr {pointer}, !tbaa !3")

    def __getattr__(self, name: str) -> Any:
        cell = ALL_CELLS.get(name)
        if cell is None:
            raise AttributeError(name)
        return CellArray(self, name) if cell.count > 1 else self.load_cell(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ALL_CELLS:
            self.store_cell(name, value)
        else:
            self.__dict__[name] = value

    def commit(self) -> None:
        """Make the buffered writes real."""
        for (name, index), value in self.pending.items():
            pointer = self.cell_pointer(name, index)
            self.tracer.raw(f"  store i64 {value.name}, ptr {pointer}, !tbaa !3")
        for pointer, name in self.registers_written.values():
            self.tracer.raw(f"  store i64 {name}, ptr {pointer}, !tbaa !3")
        self.pending.clear()
        self.registers_written.clear()

    # ---- control
    def switch(
        self, value: Any, table: dict[int, Callable[[], Any]], default: Callable[[], Any]
    ) -> Any:
        """Call the arm for `value`: one path an arm."""

        def terminator(labels: dict[Any, str]) -> str:
            arms = " ".join(f"i64 {k}, label %{labels[k]}" for k in table)
            return f"  switch i64 {value.name}, label %{labels[None]} [{arms}]"

        taken = self.tracer.choose((*table, None), terminator)
        return default() if taken is None else table[taken]()

    def repeat(self, count: Any, body: Callable[[StagedWord], None]) -> None:
        """Run `body(i)` for i in 0 .. count-1; count is at least 1. It changes memory only."""
        t = self.tracer
        n = t.fresh()
        t.raw(f"  br label %pre{n}\npre{n}:\n  br label %loop{n}\nloop{n}:")
        t.raw(f"  %i{n} = phi i64 [ 0, %pre{n} ], [ %next{n}, %latch{n} ]")
        body(StagedWord(t, f"%i{n}"))
        t.raw(f"  br label %latch{n}\nlatch{n}:\n  %next{n} = add i64 %i{n}, 1")
        t.raw(f"  %more{n} = icmp ult i64 %next{n}, {operand(count)}")
        t.raw(f"  br i1 %more{n}, label %loop{n}, label %done{n}\ndone{n}:")

    def when(self, condition: Any, body: Callable[[], None]) -> None:
        """Run `body` if the condition holds, without forking the path. It changes memory only."""
        t = self.tracer
        n = t.fresh()
        t.raw(f"  br i1 {condition.name}, label %then{n}, label %after{n}\nthen{n}:")
        body()
        t.raw(f"  br label %after{n}\nafter{n}:")

    def call_function(self, name: str, args: tuple[Any, ...]) -> StagedWord:
        """Call function `name`; a trap or an exit in it ends this path."""
        if name in MAY_TRAP:
            assert not self.pending and not self.registers_written, f"{name} after a write"
        else:
            self.commit()
        self.before_call(name)
        t = self.tracer
        passed = "".join(f", i64 {operand(a)}" for a in args)
        result = t.emit(f"call {{i64, i64}} @fn_{name}(ptr %hart{passed})")
        if name in MAY_TRAP:
            status = StagedWord(t, t.emit(f"extractvalue {{i64, i64}} {result}, 1"))
            if status != STATUS_OK:
                raise Propagate(status)
        return StagedWord(t, t.emit(f"extractvalue {{i64, i64}} {result}, 0"))

    def before_call(self, name: str) -> None:
        """What must stand in memory before a function runs."""

    # ---- host memory
    def pointer(self, address: Any) -> str:
        """An IR pointer from a hva."""
        return self.tracer.emit(f"inttoptr i64 {operand(address)} to ptr")

    def peek(self, address: Any, size: int) -> StagedWord:
        """`size` bytes at a hva, any alignment, zero-extended."""
        t, pointer = self.tracer, self.pointer(address)
        if size == 8:
            return StagedWord(t, t.emit(f"load i64, ptr {pointer}, align 1"))
        narrow = t.emit(f"load i{8 * size}, ptr {pointer}, align 1")
        return StagedWord(t, t.emit(f"zext i{8 * size} {narrow} to i64"))

    def poke(self, address: Any, value: Any, size: int) -> None:
        """Store `size` bytes at a hva, any alignment, at once."""
        t, pointer, name = self.tracer, self.pointer(address), operand(value)
        if size < 8:
            name = t.emit(f"trunc i64 {name} to i{8 * size}")
        t.raw(f"  store i{8 * size} {name}, ptr {pointer}, align 1")

    def or_byte(self, address: Any, value: Any) -> None:
        """Atomically set bits of a byte at a hva."""
        t, pointer = self.tracer, self.pointer(address)
        narrow = t.emit(f"trunc i64 {operand(value)} to i8")
        t.emit(f"atomicrmw or ptr {pointer}, i8 {narrow} seq_cst")

    def exchange_byte(self, address: Any, value: int) -> StagedWord:
        """Atomically exchange a byte at a hva."""
        t, pointer = self.tracer, self.pointer(address)
        old = t.emit(f"atomicrmw xchg ptr {pointer}, i8 {value} seq_cst")
        return StagedWord(t, t.emit(f"zext i8 {old} to i64"))

    def add_u32(self, address: Any, value: int) -> None:
        """Atomically add to a 32-bit word at a hva."""
        self.tracer.emit(f"atomicrmw add ptr {self.pointer(address)}, i32 {value} seq_cst")

    def exchange(self, address: str, value: int) -> StagedWord:
        """Atomically exchange a 64-bit cell at an IR pointer."""
        t = self.tracer
        return StagedWord(t, t.emit(f"atomicrmw xchg ptr {address}, i64 {value} seq_cst"))

    def subtract(self, pointer: str, value: StagedWord) -> None:
        """Atomically subtract from a 64-bit cell at an IR pointer."""
        self.tracer.emit(f"atomicrmw sub ptr {pointer}, i64 {value.name} seq_cst")

    # ---- guest-physical memory
    def ram_address(self, pa: Any) -> StagedWord:
        """hva of a gpa that is RAM."""
        return pa - self.ram_base + self.ram_hva  # type: ignore[no-any-return]

    def is_ram(self, pa: Any, size: int) -> Any:
        """Whether gpa .. gpa+size-1 is RAM."""
        return (pa - self.ram_base).ltu(self.ram_size - (size - 1))

    def read_physical(self, pa: Any, size: int) -> StagedWord:
        """Aligned RAM, atomically."""
        t = self.tracer
        pointer = self.pointer(self.ram_address(pa))
        value = t.emit(f"load atomic i{8 * size}, ptr {pointer} monotonic, align {size}")
        return StagedWord(t, value if size == 8 else t.emit(f"zext i{8 * size} {value} to i64"))

    def compare_and_swap_physical(self, pa: Any, old: Any, new: Any) -> Any:
        """Replace 8 aligned bytes of RAM if they are `old`; whether they were."""
        t = self.tracer
        pointer = self.pointer(self.ram_address(pa))
        pair = t.emit(
            f"cmpxchg ptr {pointer}, i64 {operand(old)}, i64 {operand(new)} seq_cst seq_cst"
        )
        return StagedBool(t, t.emit(f"extractvalue {{i64, i1}} {pair}, 1"))

    # ---- time and notifications
    @property
    def time(self) -> StagedWord:
        """Mtime, in ticks."""
        self.sync()
        return StagedWord(self.tracer, self.tracer.emit("call i64 @host_time(ptr %hart)"))

    @property
    def instret(self) -> StagedWord:
        """Instructions run by this hart before the current one."""
        self.sync()
        return self.limit - self.remaining  # type: ignore[no-any-return]

    def sync(self) -> None:
        """Make `remaining` current."""

    def interrupts_changed(self) -> None:
        """An interrupt may have become pending: look at the next boundary."""
        self.store_cell("attention", -1)

    def translation_changed(self) -> None:
        """Mode or translation context changed: choose the TLB bank anew."""
        self.store_cell("context_dirty", 1)

    def flush_translations(self, va: Any, asid: Any) -> None:
        """`sfence.vma`: of an address, of an ASID, or of all (None)."""
        self.commit()
        if va is None:
            self.call_function("tlb_flush", ())
        else:
            self.call_function("tlb_flush_page", (va,))

    def fence(self) -> None:
        """Order memory accesses."""
        self.tracer.raw("  fence seq_cst")

    def end_block(self) -> None:
        """The instruction changes how the next one runs."""


class CellArray:
    """A cell with several words, by a static index."""

    def __init__(self, hart: StagedHart, name: str) -> None:
        self._hart, self._name = hart, name

    def __getitem__(self, index: int) -> StagedWord:
        return self._hart.load_cell(self._name, index)

    def __setitem__(self, index: int, value: Any) -> None:
        self._hart.store_cell(self._name, value, index)


class Propagate(Exception):
    """A called function trapped or left: the path ends with its status."""

    def __init__(self, status: StagedWord) -> None:
        super().__init__(status)
        self.status = status


class FunctionHart(StagedHart):
    """Inside a function boundary."""

    def finish(self, value: Any) -> None:
        """Return normally."""
        self.commit()
        self._return(operand(0 if value is None else value), STATUS_OK)

    def _return(self, value: str, status: Any) -> None:
        t = self.tracer
        pair = t.emit(f"insertvalue {{i64, i64}} poison, i64 {value}, 0")
        pair = t.emit(f"insertvalue {{i64, i64}} {pair}, i64 {operand(status)}, 1")
        t.raw(f"  ret {{i64, i64}} {pair}")

    def trap(self, trap: Trap) -> None:
        """Return with a trap."""
        record_trap(self, trap)
        self._return("0", STATUS_TRAP)

    def leave(self, reason: Exit) -> None:
        """Return with an exit to Python."""
        self.store_now("exit_reason", int(reason))
        self._return("0", STATUS_EXIT)

    def propagate(self, status: StagedWord) -> None:
        """Return with a callee's status."""
        self._return("0", status)


def record_trap(hart: StagedHart, trap: Trap) -> None:
    """Put a trap where `take_trap` will find it; the buffered writes are dropped."""
    hart.pending.clear()
    hart.registers_written.clear()
    hart.store_now("trap_cause", trap.cause + (ILLEGAL_TVAL if trap.tval is None else 0))
    hart.store_now("trap_tval", 0 if trap.tval is None else trap.tval)
