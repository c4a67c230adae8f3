"""The interpreter's LLVM module: every handler, function and the predecoder, as IR text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kasou.isa.rv64  # noqa: F401  (fills the table)
from kasou.engine import mechanics  # noqa: F401  (fills the functions)
from kasou.engine.context import (
    ILLEGAL_TVAL,
    STATUS_OK,
    FunctionHart,
    Leave,
    Propagate,
)
from kasou.engine.decode_tree import base_of, handler_name, write_tree
from kasou.engine.handler import CC, HandlerHart
from kasou.engine.hart_state import (
    ALL_CELLS,
    DIST,
    ENTRY,
    FETCH_TABLE,
    ICOUNT_PER_TICK,
    META,
    RECORD,
    SLOTS,
    TICK_NS,
    TLB_ENTRIES,
    Exit,
)
from kasou.engine.host_float import HOST_OPERATIONS, constrained, emit_float
from kasou.engine.staging import DECLARATIONS, StagedWord, Tracer, operand
from kasou.isa.csr import minstret_after_trap
from kasou.isa.encoding import INSTRUCTIONS, Instruction
from kasou.isa.function import FUNCTIONS, arguments
from kasou.isa.translation import checked_translate
from kasou.isa.trap import Cause, Trap

HANDLER_ARGUMENTS = "ptr %op, ptr noalias %hart, i64 %cnt, ptr %tlb"


def write_function(name: str) -> str:
    """An LLVM function from a text with a function boundary."""
    tracer = Tracer(600)
    text = FUNCTIONS[name]
    names = [f"%a{i}" for i in range(arguments(name))]

    def path() -> None:
        hart = FunctionHart(tracer)
        run_path(hart, lambda: hart.finish(text(hart, *(hart.argument(n) for n in names))))

    tracer.run(path)
    passed = "".join(f", i64 {n}" for n in names)
    return (
        f"define internal {{i64, i64}} @fn_{name}(ptr %hart{passed}) #0 {{\n{tracer.body()}\n}}\n"
    )


def run_path(hart: Any, body: Callable[[], None]) -> None:
    """Run one path of a text and end it as the text ended."""
    try:
        body()
    except Trap as trap:
        hart.trap(trap)
    except Leave as leave:
        hart.leave(leave.reason)
    except Propagate as propagate:
        hart.propagate(propagate.status)


def write_handler(base: Instruction, length: int, variant: str) -> tuple[str, int]:
    """The handler of an instruction of `length` bytes, and how many paths its text has."""
    tracer = Tracer()

    def path() -> None:
        hart = HandlerHart(tracer, length, variant, base.operands, base.flow)

        def body() -> None:
            base.text(hart, *(hart.operand_value(o) for o in base.operands))
            hart.finish()

        run_path(hart, body)

    tracer.run(path)
    return define(handler_name(base, length, variant), tracer), tracer.paths


def define(name: str, tracer: Tracer) -> str:
    """A function with the handlers' signature."""
    return f"define hidden {CC} void @{name}({HANDLER_ARGUMENTS}) #0 align 16 {{\n{tracer.body()}\n}}\n"


def special(name: str, body: Callable[[HandlerHart], None]) -> str:
    """A handler that is no instruction."""
    tracer = Tracer()

    def path() -> None:
        hart = HandlerHart(tracer, 4, "", (), "")
        run_path(hart, lambda: body(hart))

    tracer.run(path)
    return define(name, tracer)


def _unpatch(hart: HandlerHart) -> None:
    patched = hart.patched_op

    def restore() -> None:
        hart.poke(patched, hart.patched_handler, 8)
        hart.store_now("patched_op", 0)

    hart.when(patched != 0, restore)


def _resume(hart: HandlerHart) -> None:
    """Continue at hart.pc with `remaining` instructions left: the one way into a page."""
    _unpatch(hart)
    due = (hart.attention != 0) | hart.remaining.lts(1)
    if due & (hart.mmio_done == 0) and plain_call(hart, "service") != 0:
        hart.tracer.raw("  ret void")
        return
    if hart.context_dirty != 0:
        plain_call(hart, "choose_bank")
    t = hart.tracer
    pair = t.emit("call {i64, i64} @fn_locate(ptr %hart)")
    if StagedWord(t, t.emit(f"extractvalue {{i64, i64}} {pair}, 1")) != STATUS_OK:
        hart.store_now("mmio_done", 0)
        hart.store_now("remaining", hart.remaining - 1)
        hart.store_now("minstret_base", minstret_after_trap(hart))
        plain_call(hart, "take_trap", hart.trap_cause, hart.trap_tval, hart.load_cell("pc"))
        hart.tail("resume")
        return
    ops = StagedWord(t, t.emit(f"extractvalue {{i64, i64}} {pair}, 0"))
    pc = hart.load_cell("pc")
    entry = hart.tlb_bank + FETCH_TABLE + ((pc >> 12) & (TLB_ENTRIES - 1)) * ENTRY
    if hart.peek(entry, 8) != pc & ~0xFFF:  # PMP splits the page: every fetch must be checked
        hart.store_now("mmio_done", 0)
        hart.store_now("exit_reason", int(Exit.REFERENCE))
        t.raw("  ret void")
        return
    slot = (pc >> 1) & (SLOTS - 1)
    hart.store_now("ops_base", ops)
    hart.store_now("bias", (pc & ~0xFFF) - (ops >> 3))
    count = hart.remaining - hart.peek(ops + DIST + (slot << 1), 2)
    op = ops + (slot << 4)
    if count.lts(0):
        if hart.exact == 0:  # nothing is due: another slice
            hart.store_now("attention", -1)
            hart.tail("resume")
            return
        plain_call(hart, "arm", op)
    tlb = hart.pointer(hart.tlb_bank)
    hart.dispatch(hart.pointer(op), count.name, tlb)


def plain_call(hart: HandlerHart, name: str, *args: Any) -> StagedWord:
    """Call a function from a handler that is not an instruction: nothing to synchronise."""
    t = hart.tracer
    passed = "".join(f", i64 {operand(a)}" for a in args)
    pair = t.emit(f"call {{i64, i64}} @fn_{name}(ptr %hart{passed})")
    return StagedWord(t, t.emit(f"extractvalue {{i64, i64}} {pair}, 0"))


def _stop(hart: HandlerHart) -> None:
    """The slice ends or something wants attention, before the record at op."""
    hart.store_now("pc", hart.pc)
    hart.store_now("remaining", hart.left())
    hart.tail("resume")


def _trap(hart: HandlerHart) -> None:
    """The record at op traps: trap_cause and trap_tval say how."""
    pc = hart.pc
    cause = hart.trap_cause
    hart.store_now("pc", pc)
    if (cause == int(Cause.BREAKPOINT)) & (hart.debug != 0):
        hart.store_now("remaining", hart.left())
        hart.store_now("exit_reason", int(Exit.DEBUG))
        hart.tracer.raw("  ret void")
        return
    hart.store_now("remaining", hart.left() - 1)
    hart.store_now("mmio_done", 0)
    hart.store_now("minstret_base", minstret_after_trap(hart))
    if cause.geu(ILLEGAL_TVAL):
        address = hart.peek(hart.ops_base + (META + 16), 8) + (pc & 0xFFF)
        low = hart.peek(address, 2)
        tval = low
        if low & 3 == 3:
            tval = low | hart.peek(address + 2, 2) << 16
        plain_call(hart, "take_trap", cause - ILLEGAL_TVAL, tval, pc)
    else:
        plain_call(hart, "take_trap", cause, hart.trap_tval, pc)
    hart.tail("resume")


def _leave(hart: HandlerHart) -> None:
    """A callee of the record at op trapped, or left to Python (exit_reason is set)."""
    if hart.exit_reason == 0:
        hart.tail("trap")
        return
    hart.store_now("pc", hart.pc)
    hart.store_now("remaining", hart.left())
    hart.tracer.raw("  ret void")


def _illegal(hart: HandlerHart) -> None:
    raise Trap(Cause.ILLEGAL_INSTRUCTION, None)


def _page_end(hart: HandlerHart) -> None:
    """Control fell off the page: continue on the next through the current translation."""
    hart.go_to(hart.pc, hart.word(1))


def _decode(hart: HandlerHart) -> None:
    """A record that was never run: fill it, then run it."""
    offset = hart.slot()
    address = hart.peek(hart.ops_base + (META + 16), 8) + (offset >> 3)
    bits = hart.peek(address, 2)
    if bits & 3 == 3:
        if offset == (SLOTS - 1) * RECORD:  # written since the page was prepared
            hart.tail("cross")
            return
        bits = bits | hart.peek(address + 2, 2) << 16
    _decode_record(hart, "%op", bits, offset >> 4, 0)
    hart.dispatch("%op")


def _decode_record(hart: HandlerHart, op: str, bits: Any, slot: Any, far: int) -> None:
    hart.tracer.raw(
        f"  call void @decode_record(ptr {op}, i64 {operand(bits)}, i64 {operand(slot)}, i64 {far})"
    )


def _cross(hart: HandlerHart) -> None:
    """An instruction that crosses its page's end: both halves through current translations."""
    pc = hart.pc
    page = pc & ~0xFFF
    second = page + 4096
    low = hart.peek(hart.peek(hart.ops_base + (META + 16), 8) + 4094, 2)
    pa = checked_translate(hart, second, hart.word(4), hart.word(2), hart.priv)
    if hart.is_ram(pa, 2):
        bits = low | hart.peek(hart.ram_address(pa), 2) << 16
        hart.store_now("cross_bits", bits)
        ops = hart.cross_ops
        op = hart.pointer(ops + (SLOTS - 1) * RECORD)
        _decode_record(hart, op, bits, hart.word(SLOTS - 1), 1)
        hart.store_now("ops_base", ops)
        hart.store_now("bias", page - (ops >> 3))
        hart.dispatch(op)
    else:
        raise Trap(Cause.INSTRUCTION_ACCESS, second)


SPECIALS = {
    "resume": _resume, "stop": _stop, "trap": _trap, "leave": _leave, "illegal": _illegal,
    "page_end": _page_end, "decode": _decode, "cross": _cross,
}  # fmt: skip


def _cell(name: str, register: str) -> str:
    return f"  {register} = getelementptr i8, ptr %hart, i64 {ALL_CELLS[name].offset}\n"


def _entry_points() -> str:
    """`run`, the clock, the host's floating-point state, and helpers that Python calls."""
    ldmxcsr = "  call void @llvm.x86.sse.ldmxcsr(ptr %p)\n"
    stmxcsr = "  call void @llvm.x86.sse.stmxcsr(ptr %p)\n"
    return f"""
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse.stmxcsr(ptr)
define void @run(ptr %hart) #0 {{
  %p = alloca i32
  %own = alloca i32
{stmxcsr}  %host = load i32, ptr %p
  store i32 %host, ptr %own
  store i32 8064, ptr %p
{ldmxcsr}{_cell("exit_reason", "%e")}  store i64 0, ptr %e
  call {CC} void @resume(ptr null, ptr %hart, i64 0, ptr null)
  call void @collect_flags(ptr %hart)
  call void @llvm.x86.sse.ldmxcsr(ptr %own)
  ret void
}}
define internal void @collect_flags(ptr %hart) #1 {{
  %p = alloca i32
{stmxcsr}  %m = load i32, ptr %p
  %any = and i32 %m, 61
  %none = icmp eq i32 %any, 0
  br i1 %none, label %done, label %some
some:
  %nv = and i32 %m, 1
  %nv4 = shl i32 %nv, 4
  %dz = and i32 %m, 4
  %dz3 = shl i32 %dz, 1
  %of = and i32 %m, 8
  %of2 = lshr i32 %of, 1
  %uf = and i32 %m, 16
  %uf1 = lshr i32 %uf, 3
  %nx = and i32 %m, 32
  %nx0 = lshr i32 %nx, 5
  %a = or i32 %nv4, %dz3
  %b = or i32 %of2, %uf1
  %c = or i32 %a, %b
  %d = or i32 %c, %nx0
  %w = zext i32 %d to i64
{_cell("fflags", "%fp")}  %old = load i64, ptr %fp
  %new = or i64 %old, %w
  store i64 %new, ptr %fp
  %clear = and i32 %m, -64
  store i32 %clear, ptr %p
{ldmxcsr}  br label %done
done:
  ret void
}}
define internal i64 @host_time(ptr %hart) #1 {{
{_cell("icount", "%ip")}{_cell("time_offset", "%op")}  %offset = load i64, ptr %op
  %icount = load i64, ptr %ip
  %counted = icmp ne i64 %icount, 0
  br i1 %counted, label %instructions, label %clock
instructions:
{_cell("limit", "%lp")}{_cell("remaining", "%rp")}  %l = load i64, ptr %lp
  %r = load i64, ptr %rp
  %n = sub i64 %l, %r
  %ticks = udiv i64 %n, {ICOUNT_PER_TICK}
  %t1 = add i64 %ticks, %offset
  ret i64 %t1
clock:
{_cell("clock_gettime", "%gp")}{_cell("timespec0", "%ts")}{_cell("timespec1", "%ts1")}  %get = load ptr, ptr %gp
  call i32 %get(i32 1, ptr %ts)
  %s = load i64, ptr %ts
  %ns = load i64, ptr %ts1
  %s10 = mul i64 %s, {1_000_000_000 // TICK_NS}
  %nst = udiv i64 %ns, {TICK_NS}
  %now = add i64 %s10, %nst
  %t2 = add i64 %now, %offset
  ret i64 %t2
}}
define i64 @call_flush(ptr %hart) {{
  %r = call {{i64, i64}} @fn_tlb_flush(ptr %hart)
  ret i64 0
}}
define i64 @call_drop_stale_code(ptr %hart) {{
  %r = call {{i64, i64}} @fn_drop_stale_code(ptr %hart)
  ret i64 0
}}
"""


def _float_functions() -> str:
    """Host arithmetic with another rounding mode: set, operate, put back, keep the flags."""
    out, declared = [], []
    converts = [("convert64to", 32), ("convert32to", 64)]
    operations = [(name, bits) for name in HOST_OPERATIONS for bits in (32, 64)]
    for name, bits in operations + converts:
        t = Tracer()
        arity = HOST_OPERATIONS.get(name, 1)
        t.raw("  %p = alloca i32")
        t.raw("  call void @llvm.x86.sse.stmxcsr(ptr %p)")
        # mode 1 RTZ, 2 RDN, 3 RUP -> MXCSR.RC 3, 1, 2
        rounding = t.emit("select i1 true, i64 0, i64 0")
        for mode, control in ((1, 3), (2, 1), (3, 2)):
            is_mode = t.emit(f"icmp eq i64 %mode, {mode}")
            rounding = t.emit(f"select i1 {is_mode}, i64 {control << 13}, i64 {rounding}")
        narrow = t.emit(f"trunc i64 {rounding} to i32")
        before = t.emit("load i32, ptr %p")
        changed = t.emit(f"or i32 {before}, {narrow}")
        t.raw(f"  store i32 {changed}, ptr %p")
        t.raw("  call void @llvm.x86.sse.ldmxcsr(ptr %p) strictfp")
        result = emit_float(t, name, bits, ["%a", "%b", "%c"][:arity], strict=True)
        t.raw("  call void @llvm.x86.sse.stmxcsr(ptr %p) strictfp")
        after = t.emit("load i32, ptr %p")
        restored = t.emit(f"and i32 {after}, -24577")
        t.raw(f"  store i32 {restored}, ptr %p")
        t.raw("  call void @llvm.x86.sse.ldmxcsr(ptr %p) strictfp")
        t.raw(f"  ret i64 {result}")
        out.append(
            f"define internal i64 @fp_{name}_{bits}(ptr %hart, i64 %a, i64 %b, i64 %c, i64 %mode)"
            f" #2 {{\n{t.body()}\n}}\n"
        )
        kind = {32: "float", 64: "double"}
        source = kind[int(name[7:9])] if name.startswith("convert") else kind[bits]
        modes = ", metadata" if name == "convert32to" else ", metadata, metadata"
        args = ", ".join([source] * arity)
        declared.append(f"declare {kind[bits]} @{constrained(name, bits)}({args}{modes})")
    for bits, kind_name in ((32, "float"), (64, "double")):
        declared.append(f"declare {kind_name} @llvm.sqrt.f{bits}({kind_name})")
        declared.append(
            f"declare {kind_name} @llvm.fma.f{bits}({kind_name}, {kind_name}, {kind_name})"
        )
    return "\n".join(declared + out)


METADATA = """
attributes #0 = { nounwind "no-jump-tables"="true" "no-builtins" "denormal-fp-math"="ieee,ieee" }
attributes #1 = { nounwind noinline "no-builtins" }
attributes #2 = { nounwind noinline strictfp "no-builtins" }
!0 = !{!"branch_weights", i32 1, i32 100000}
!1 = !{!"branch_weights", i32 100000, i32 1}
!2 = !{}
!10 = !{!"root"}
!11 = !{!"state", !10, i64 0}
!12 = !{!"tlb", !10, i64 0}
!13 = !{!"memory", !10, i64 0}
!3 = !{!11, !11, i64 0}
!4 = !{!12, !12, i64 0}
!5 = !{!13, !13, i64 0}
"""


def variants() -> list[tuple[Instruction, int, str]]:
    """Every handler: instruction, length, and near or far for branches."""
    wanted: dict[tuple[str, int], Instruction] = {}
    for one in INSTRUCTIONS.values():
        base = base_of(one)
        wanted[base.name, one.length] = base
    return [
        (base, length, variant)
        for (_, length), base in wanted.items()
        for variant in (("near", "far") if base.flow == "branch" else ("",))
    ]


def write_module(triple: str) -> tuple[str, dict[str, int]]:
    """The module's text, and the number of paths of every handler."""
    paths: dict[str, int] = {}
    parts = [f'target triple = "{triple}"', DECLARATIONS, _entry_points(), _float_functions()]
    parts += [write_function(name) for name in FUNCTIONS]
    for base, length, variant in variants():
        text, count = write_handler(base, length, variant)
        paths[handler_name(base, length, variant)] = count
        parts.append(text)
    parts += [special(name, body) for name, body in SPECIALS.items()]
    parts += [write_tree(), METADATA]
    return "\n".join(parts), paths
