"""The hart inside an instruction's handler of the threaded interpreter.

A handler is `void @h_NAME(ptr %op, ptr %hart, i64 %cnt, ptr %tlb)` and ends in a tail call: to the next
record's handler, to the branch's target, or to one of the handlers that are no instruction.

Counting: with R instructions left before the record in slot s, `cnt` is R - dist[s]; falling through
leaves it as it is.
"""

from __future__ import annotations

from typing import Any

from kasou.engine.context import Leave, StagedHart, record_trap
from kasou.engine.hart_state import (
    DIST,
    ENTRY,
    FETCH_TABLE,
    SLOTS,
    TLB_ENTRIES,
    WRITE_TABLE,
    Exit,
)
from kasou.engine.host_float import CANONICAL_NAN, emit_float
from kasou.engine.staging import StagedBool, StagedWord, Tracer, operand
from kasou.isa.trap import Trap
from kasou.isa.word import negate, select

CC = "preserve_nonecc"
UNLIKELY, LIKELY = "!prof !0", "!prof !1"

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
        if negate(same):
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
