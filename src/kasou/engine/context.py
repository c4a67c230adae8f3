"""The hart as staged code sees it: the context that turns texts into LLVM functions.

`FunctionHart` is inside a function boundary (`kasou.isa.function` and the engine's own mechanics):
`define {i64, i64} @fn_NAME(ptr %hart, i64 ...)` returns a value and a status. `HandlerHart` is inside
an instruction's handler: `void @h_NAME(ptr %op, ptr %hart, i64 %cnt, ptr %tlb)`, which ends in a tail
call. Writes of state are buffered and committed when a path ends normally, so an instruction that
traps leaves only the trap.

Counting: with R instructions left before the record in slot s, `cnt` is R - dist[s]; falling through
leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kasou.engine.hart_state import (
    ALL_CELLS,
    DIST,
    ENTRY,
    FETCH_TABLE,
    META,
    SLOTS,
    TLB_ENTRIES,
    WRITE_TABLE,
    Exit,
)
from kasou.engine.staging import StagedBool, StagedWord, Tracer, operand
from kasou.isa.function import MAY_TRAP
from kasou.isa.trap import Trap
from kasou.isa.word import flag, select

CC = "preserve_nonecc"
STATUS_OK, STATUS_TRAP, STATUS_EXIT = 0, 1, 2
ILLEGAL_TVAL = 256
"""Added to trap_cause: tval is the instruction."""
UNLIKELY, LIKELY = "!prof !0", "!prof !1"


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


FIELD_AT = {
    "rd": 8, "fd": 8, "rs1": 9, "fs1": 9, "zimm": 9, "rs2": 10, "fs2": 10, "rm": 11,
    "imm": 12, "shamt": 12, "csr": 12, "fs3": 12,
}  # fmt: skip
"""Where a record keeps an operand. imm, shamt, csr, fs3 have 4 bytes; the others one.
A branch or jump keeps 2 bytes of offset there, and at 14 its change of count; a far jal has 4 bytes
of offset and its count at 9."""


class HandlerHart(StagedHart):
    """Inside the handler of one instruction of `length` bytes."""

    def __init__(
        self, tracer: Tracer, length: int, variant: str, operands: tuple[str, ...], flow: str
    ) -> None:
        super().__init__(tracer)
        own = self.__dict__
        own["length"], own["variant"], own["operands"], own["flow"] = (
            length,
            variant,
            operands,
            flow,
        )
        own["target"], own["ends"], own["branched"], own["waits"] = None, False, None, False
        own["fields"] = {}

    # ---- operands and pc
    def field(self, at: int, width: int, signed: bool) -> StagedWord:
        """A field of the record."""
        t = self.tracer
        pointer = t.emit(f"getelementptr i8, ptr %op, i64 {at}")
        raw = t.emit(f"load i{width}, ptr {pointer}, align 1, !invariant.load !2")
        return StagedWord(t, t.emit(f"{'sext' if signed else 'zext'} i{width} {raw} to i64"))

    def operand_value(self, name: str) -> StagedWord:
        """The value of an operand of the text."""
        at = FIELD_AT[name]
        if at < 12:
            return self.field(at, 8, False)
        if self.flow == "jump" or (self.flow == "branch" and "rs1" in self.operands):
            return self.field(12, 16, True)
        return self.field(12, 32, True)

    @property
    def pc(self) -> StagedWord:
        """Address of this instruction."""
        t = self.tracer
        at = t.emit("ptrtoint ptr %op to i64")
        return self.bias + StagedWord(t, t.emit(f"lshr i64 {at}, 3"))  # type: ignore[no-any-return]

    @property
    def next_pc(self) -> StagedWord:
        """Address of the next instruction in memory."""
        following: StagedWord = self.pc + self.length
        return following

    def slot(self) -> StagedWord:
        """This record's slot times 16."""
        t = self.tracer
        at = StagedWord(t, t.emit("ptrtoint ptr %op to i64"))
        return at - self.load_cell("ops_base")

    def left(self) -> StagedWord:
        """Instructions left before this one."""
        dist = self.peek(self.ops_base + DIST + (self.slot() >> 3), 2)
        return StagedWord(self.tracer, "%cnt") + dist

    def sync(self) -> None:
        self.store_now("remaining", self.left())

    def before_call(self, name: str) -> None:
        self.sync()

    # ---- what texts do
    def branch(self, offset: Any) -> None:
        """Continue at pc + offset."""
        self.__dict__["branched"] = offset

    def jump(self, target: Any) -> None:
        """Continue at an address."""
        self.__dict__["target"] = target

    def end_block(self) -> None:
        self.__dict__["ends"] = True

    def interrupts_changed(self) -> None:
        super().interrupts_changed()
        self.end_block()

    def translation_changed(self) -> None:
        super().translation_changed()
        self.end_block()

    def flush_translations(self, va: Any, asid: Any) -> None:
        super().flush_translations(va, asid)
        self.end_block()

    def fence_i(self) -> None:
        """Drop decoded pages that were written since."""
        self.call_function("drop_stale_code", ())
        self.end_block()

    def wait_for_interrupt(self) -> None:
        """Retire, then leave to Python, which sleeps."""
        self.__dict__["waits"] = True

    def wait_reserved(self) -> None:
        """Zawrs: waiting may end at once."""

    def environment_call(self) -> None:
        """Leave to the board's own SBI for an ecall from S-mode."""
        if (self.monitor == 1) & (self.priv == 1):
            raise Leave(Exit.ECALL)

    def _probe(self, va: StagedWord, size: int, write: bool) -> tuple[str, str]:
        """(i1 hit, pointer to the bytes if so); misaligned accesses miss."""
        t = self.tracer
        table = t.emit(f"getelementptr i8, ptr %tlb, i64 {WRITE_TABLE}") if write else "%tlb"
        index = (va >> 12) & (TLB_ENTRIES - 1)
        entry = t.emit(f"getelementptr [{ENTRY} x i8], ptr {table}, i64 {index.name}")
        tag = t.emit(f"load i64, ptr {entry}, !tbaa !4")
        page = va & (~0xFFF | (size - 1))
        hit = t.emit(f"icmp eq i64 {tag}, {page.name}")
        addend_at = t.emit(f"getelementptr i8, ptr {entry}, i64 8")
        addend = t.emit(f"load i64, ptr {addend_at}, !tbaa !4")
        host = t.emit(f"add i64 {addend}, {va.name}")
        return hit, t.emit(f"inttoptr i64 {host} to ptr")

    def load(self, va: StagedWord, size: int) -> StagedWord:
        """`size` bytes at a gva, zero-extended."""
        t = self.tracer
        hit, pointer = self._probe(va, size, False)
        n = t.fresh()
        t.raw(f"  br i1 {hit}, label %hit{n}, label %miss{n}, {LIKELY}\nmiss{n}:")
        pair = t.emit(f"call {{i64, i64}} @fn_load_slow_{size}(ptr %hart, i64 {va.name})")
        status = t.emit(f"extractvalue {{i64, i64}} {pair}, 1")
        slow = t.emit(f"extractvalue {{i64, i64}} {pair}, 0")
        bad = t.emit(f"icmp ne i64 {status}, 0")
        t.raw(f"  br i1 {bad}, label %bad{n}, label %slow{n}\nbad{n}:")
        t.raw(
            f"  musttail call {CC} void @leave(ptr %op, ptr %hart, i64 %cnt, ptr %tlb)\n  ret void"
        )
        t.raw(f"slow{n}:\n  br label %join{n}\nhit{n}:")
        fast = t.emit(f"load atomic i{8 * size}, ptr {pointer} monotonic, align {size}, !tbaa !5")
        if size < 8:
            fast = t.emit(f"zext i{8 * size} {fast} to i64")
        t.raw(f"  br label %join{n}\njoin{n}:")
        return StagedWord(t, t.emit(f"phi i64 [ {slow}, %slow{n} ], [ {fast}, %hit{n} ]"))

    def store(self, va: StagedWord, value: StagedWord, size: int) -> None:
        """Store the low `size` bytes at a gva."""
        t = self.tracer
        hit, pointer = self._probe(va, size, True)
        n = t.fresh()
        t.raw(f"  br i1 {hit}, label %hit{n}, label %miss{n}, {LIKELY}\nmiss{n}:")
        pair = t.emit(
            f"call {{i64, i64}} @fn_store_slow_{size}(ptr %hart, i64 {va.name}, i64 {operand(value)})"
        )
        status = t.emit(f"extractvalue {{i64, i64}} {pair}, 1")
        bad = t.emit(f"icmp ne i64 {status}, 0")
        t.raw(f"  br i1 {bad}, label %bad{n}, label %join{n}\nbad{n}:")
        t.raw(
            f"  musttail call {CC} void @leave(ptr %op, ptr %hart, i64 %cnt, ptr %tlb)\n  ret void"
        )
        t.raw(f"hit{n}:")
        name = operand(value)
        if size < 8:
            name = t.emit(f"trunc i64 {name} to i{8 * size}")
        t.raw(f"  store atomic i{8 * size} {name}, ptr {pointer} monotonic, align {size}, !tbaa !5")
        t.raw(f"  br label %join{n}\njoin{n}:")

    def _atomic_pointer(self, va: StagedWord, size: int, access: int) -> str:
        """Pointer to aligned RAM that may be accessed; a trap otherwise."""
        hva = self.call_function("atomic_address", (va, self.word(size), self.word(access)))
        return self.pointer(hva)

    def atomic(self, op: str, va: StagedWord, value: StagedWord, size: int) -> StagedWord:
        """AMO: the old value, zero-extended."""
        t = self.tracer
        pointer = self._atomic_pointer(va, size, 3)
        name = operand(value)
        if size < 8:
            name = t.emit(f"trunc i64 {name} to i{8 * size}")
        rmw = {"swap": "xchg", "minu": "umin", "maxu": "umax"}.get(op, op)
        old = t.emit(f"atomicrmw {rmw} ptr {pointer}, i{8 * size} {name} seq_cst")
        return StagedWord(t, old if size == 8 else t.emit(f"zext i{8 * size} {old} to i64"))

    def load_reserved(self, va: StagedWord, size: int) -> StagedWord:
        """LR: the value, and a reservation of its physical address."""
        t = self.tracer
        pointer = self._atomic_pointer(va, size, 1)
        value = t.emit(f"load atomic i{8 * size}, ptr {pointer} seq_cst, align {size}")
        wide = StagedWord(t, value if size == 8 else t.emit(f"zext i{8 * size} {value} to i64"))
        address = StagedWord(t, t.emit(f"ptrtoint ptr {pointer} to i64"))
        self.store_cell("reservation", address - self.ram_hva + self.ram_base)
        self.store_cell("reservation_value", wide)
        return wide

    def store_conditional(self, va: StagedWord, value: StagedWord, size: int) -> StagedWord:
        """SC: 0 if it stored. A compare-and-swap with what LR read (its ABA is documented)."""
        t = self.tracer
        pointer = self._atomic_pointer(va, size, 2)
        address = StagedWord(t, t.emit(f"ptrtoint ptr {pointer} to i64"))
        same = (address - self.ram_hva + self.ram_base) == self.reservation
        expected = self.reservation_value
        self.store_cell("reservation", -1)
        if negated(same):
            return self.word(1)
        old, new = expected.name, operand(value)
        if size < 8:
            old = t.emit(f"trunc i64 {old} to i{8 * size}")
            new = t.emit(f"trunc i64 {new} to i{8 * size}")
        pair = t.emit(
            f"cmpxchg ptr {pointer}, i{8 * size} {old}, i{8 * size} {new} seq_cst seq_cst"
        )
        stored = StagedBool(t, t.emit(f"extractvalue {{i{8 * size}, i1}} {pair}, 1"))
        return select(stored, self.word(0), self.word(1))  # type: ignore[no-any-return]

    def cache_block_zero(self, va: StagedWord) -> None:
        """Zero the 64-byte block that holds va."""
        hva = self.call_function("cache_block_address", (va,))
        for i in range(8):
            self.poke(hva + 8 * i, 0, 8)

    def cache_block_check(self, va: StagedWord) -> None:
        """Fault as an access to the block would: rare enough for the reference model."""
        raise Leave(Exit.REFERENCE)

    # ---- floating point
    def float_operation(
        self, name: str, bits: int, operands: tuple[Any, ...], mode: Any
    ) -> StagedWord:
        """Host arithmetic: exact under IEEE 754; odd modes and fused NaNs go to the reference."""
        t = self.tracer
        if mode != 0:
            if mode == 4:
                raise Leave(Exit.REFERENCE)
            filled = [operand(o) for o in operands] + ["0"] * (3 - len(operands))
            args = "".join(f", i64 {o}" for o in [*filled, operand(mode)])
            slow = t.emit(f"call i64 @fp_{name}_{bits}(ptr %hart{args})")
            return self._fused_nan(name, bits, StagedWord(t, slow))
        return self._fused_nan(
            name, bits, StagedWord(t, emit_float(t, name, bits, [operand(o) for o in operands]))
        )

    def _fused_nan(self, name: str, bits: int, result: StagedWord) -> StagedWord:
        if name == "fma" and result == CANONICAL_NAN[bits]:
            raise Leave(Exit.REFERENCE)
        return result

    def float_convert(self, from_bits: int, to_bits: int, value: Any, mode: Any) -> StagedWord:
        """binary32 <-> binary64."""
        t = self.tracer
        name = f"convert{from_bits}to"
        if mode != 0:
            if mode == 4:
                raise Leave(Exit.REFERENCE)
            args = f", i64 {operand(value)}, i64 0, i64 0, i64 {operand(mode)}"
            return StagedWord(t, t.emit(f"call i64 @fp_{name}_{to_bits}(ptr %hart{args})"))
        return StagedWord(t, emit_float(t, name, to_bits, [operand(value)]))

    # ---- how a path ends
    def dispatch(self, op: str, count: str = "%cnt", tlb: str = "%tlb") -> None:
        """Run the record at `op`."""
        t = self.tracer
        handler = t.emit(f"load ptr, ptr {op}")
        t.raw(
            f"  musttail call {CC} void {handler}(ptr {op}, ptr %hart, i64 {count}, ptr {tlb})\n  ret void"
        )

    def tail(self, name: str, op: str = "%op", count: str = "%cnt") -> None:
        """Continue in another handler."""
        self.tracer.raw(
            f"  musttail call {CC} void @{name}(ptr {op}, ptr %hart, i64 {count}, ptr %tlb)\n  ret void"
        )

    def _check_and_dispatch(self, op: str, count: StagedWord) -> None:
        t = self.tracer
        pointer = self.cell_pointer("attention")
        attention = t.emit(f"load atomic i64, ptr {pointer} monotonic, align 8")
        either = t.emit(f"or i64 {count.name}, {attention}")
        stop = t.emit(f"icmp slt i64 {either}, 0")
        n = t.fresh()
        t.raw(f"  br i1 {stop}, label %stop{n}, label %go{n}, {UNLIKELY}\nstop{n}:")
        self.tail("stop", op, count.name)
        t.raw(f"go{n}:")
        self.dispatch(op, count.name)

    def go_to(self, target: StagedWord, dist: StagedWord) -> None:
        """Continue at a gva; `dist` is this record's. The fetch TLB is looked up inline."""
        t = self.tracer
        left = StagedWord(t, "%cnt") + dist - 1
        index = (target >> 12) & (TLB_ENTRIES - 1)
        table = t.emit(f"getelementptr i8, ptr %tlb, i64 {FETCH_TABLE}")
        entry = t.emit(f"getelementptr [{ENTRY} x i8], ptr {table}, i64 {index.name}")
        tag = t.emit(f"load i64, ptr {entry}, !tbaa !4")
        page = target & ~0xFFF
        hit = t.emit(f"icmp eq i64 {tag}, {page.name}")
        n = t.fresh()
        t.raw(f"  br i1 {hit}, label %hit{n}, label %miss{n}, {LIKELY}\nmiss{n}:")
        self.store_now("pc", target)
        self.store_now("remaining", left)
        self.tail("resume")
        t.raw(f"hit{n}:")
        at = t.emit(f"getelementptr i8, ptr {entry}, i64 8")
        ops = StagedWord(t, t.emit(f"load i64, ptr {at}, !tbaa !4"))
        slot = (target >> 1) & (SLOTS - 1)
        self.store_now("ops_base", ops)
        self.store_now("bias", page - (ops >> 3))
        count = left - self.peek(ops + DIST + (slot << 1), 2)
        self._check_and_dispatch(self.pointer(ops + (slot << 4)), count)

    def finish(self) -> None:
        """End a path that completed its instruction."""
        t = self.tracer
        if self.ends or self.waits:
            following = self.next_pc if self.target is None else self.target
            left = self.left() - 1
            self.commit()
            self.store_now("pc", following)
            self.store_now("remaining", left)
            if self.waits:
                self.store_now("exit_reason", int(Exit.WFI))
                t.raw("  ret void")
            else:
                self.tail("resume")
        elif self.branched is not None:
            if self.variant == "near":
                offset = self.field(12, 16, True)
                change = self.field(14, 16, True)
                self.commit()
                op = t.emit(f"getelementptr [16 x i8], ptr %op, i64 {offset.name}")
                self._check_and_dispatch(op, StagedWord(t, "%cnt") - change)
            else:
                dist = self.field(14 if "rs1" in self.operands else 9, 16, False)
                target = self.pc + self.branched
                self.commit()
                self.go_to(target, dist)
        elif self.target is not None:
            dist = self.field(14, 16, False)
            self.commit()
            self.go_to(self.target, dist)
        else:
            self.commit()
            self.dispatch(t.emit(f"getelementptr i8, ptr %op, i64 {8 * self.length}"))

    def trap(self, trap: Trap) -> None:
        """End a path that traps."""
        record_trap(self, trap)
        self.tail("trap")

    def leave(self, reason: Exit) -> None:
        """End a path that goes to Python, which runs this instruction or serves its call."""
        self.pending.clear()
        self.registers_written.clear()
        self.store_now("pc", self.pc)
        self.store_now("remaining", self.left() - (1 if reason == Exit.ECALL else 0))
        self.store_now("exit_reason", int(reason))
        self.tracer.raw("  ret void")

    def propagate(self, status: StagedWord) -> None:
        """End a path whose callee trapped or left."""
        self.tail("leave")


def negated(condition: Any) -> Any:
    """Not, usable in `if`."""
    return condition.negate() if isinstance(condition, StagedBool) else not condition


CANONICAL_NAN = {32: 0x7FC00000, 64: 0x7FF8000000000000}
FLOAT_TYPES = {32: "float", 64: "double"}
HOST_OPERATIONS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}


def emit_float(t: Tracer, name: str, bits: int, operands: list[str], strict: bool = False) -> str:
    """Host arithmetic on raw bits, NaN made canonical; `strict` for a changed rounding mode."""
    source = int(name[7:9]) if name.startswith("convert") else bits
    values = []
    for one in operands:
        narrow = one if source == 64 else t.emit(f"trunc i64 {one} to i{source}")
        values.append(t.emit(f"bitcast i{source} {narrow} to {FLOAT_TYPES[source]}"))
    kind = FLOAT_TYPES[bits]
    args = ", ".join(f"{FLOAT_TYPES[source]} {v}" for v in values)
    if strict:
        modes = 'metadata !"round.dynamic", metadata !"fpexcept.strict"'
        if name.startswith("convert") and source < bits:
            modes = 'metadata !"fpexcept.strict"'
        what = constrained(name, bits)
        result = t.emit(f"call {kind} @{what}({args}, {modes}) strictfp")
    elif name.startswith("convert"):
        result = t.emit(f"{'fpext' if source < bits else 'fptrunc'} {args} to {kind}")
    elif name in ("sqrt", "fma"):
        result = t.emit(f"call {kind} @llvm.{name}.f{bits}({args})")
    else:
        result = t.emit(f"f{name} {kind} {', '.join(values)}")
    integer = t.emit(f"bitcast {kind} {result} to i{bits}")
    magnitude = t.emit(f"and i{bits} {integer}, {(1 << bits - 1) - 1}")
    infinity = {32: 0x7F800000, 64: 0x7FF0000000000000}[bits]
    nan = t.emit(f"icmp ugt i{bits} {magnitude}, {infinity}")
    result = t.emit(f"select i1 {nan}, i{bits} {CANONICAL_NAN[bits]}, i{bits} {integer}")
    return result if bits == 64 else t.emit(f"zext i{bits} {result} to i64")


def constrained(name: str, bits: int) -> str:
    """The constrained intrinsic of an operation."""
    if name.startswith("convert"):
        source = int(name[7:9])
        what = "fpext" if source < bits else "fptrunc"
        return f"llvm.experimental.constrained.{what}.f{bits}.f{source}"
    what = name if name in ("sqrt", "fma") else f"f{name}"
    return f"llvm.experimental.constrained.{what}.f{bits}"


__all__ = ["CC", "META", "FunctionHart", "HandlerHart", "Leave", "Propagate", "flag"]
