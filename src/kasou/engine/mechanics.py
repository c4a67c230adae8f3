"""The engine's own texts: what the interpreter does besides instructions.

They are staged like the texts of `kasou.isa`, and only staged: slow paths of memory access, TLB fill
and flush, decoded pages and their invalidation, and the service point where interrupts are taken and
slices end.

Code pages and writers. A page with decoded code has `has_code` set and no write entry anywhere. The
first write installs the entry, clears `has_code` and raises the page's generation, so that every hart
drops its decoded copy at its next `fence.i`. A hart that decodes a page which others may be writing
asks them to drop their entries and holds its copy as stale, good until its own next `fence.i`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kasou.engine.context import FunctionHart, Leave
from kasou.engine.hart_state import (
    ALL_CELLS,
    BANK_M,
    BANK_ODD,
    BANK_S,
    BANK_SIZE,
    BANK_SUM,
    BANK_U,
    BANKS,
    BANKS_OFFSET,
    DIST,
    ENTRY,
    FETCH_TABLE,
    ICOUNT_PER_TICK,
    META,
    OPS_SIZE,
    PAGE_SIZES,
    READ_TABLE,
    RECORD,
    SLOTS,
    TLB_ENTRIES,
    WRITE_TABLE,
    Exit,
)
from kasou.isa.function import function
from kasou.isa.interrupts import pending_interrupt, take_trap
from kasou.isa.pmp import pmp_check
from kasou.isa.translation import checked_translate, data_privilege
from kasou.isa.trap import Cause, Trap
from kasou.isa.word import flag, negate, select

LOAD, STORE, FETCH = 1, 2, 4
NEVER = -1
ARM_AHEAD = 48
"""Records to look ahead when arming a stop."""
H = FunctionHart


def bank_address(hart: Any, bank: int) -> Any:
    """hva of a TLB bank."""
    return block_address(hart) + (BANKS_OFFSET + bank * BANK_SIZE)


def block_address(hart: Any) -> Any:
    """hva of this hart's block."""
    return hart.argument(hart.tracer.emit("ptrtoint ptr %hart to i64"))


def symbol(hart: Any, name: str) -> Any:
    """Address of a handler."""
    return hart.argument(hart.tracer.emit(f"ptrtoint ptr @{name} to i64"))


# ---------------------------------------------------------------- data access
@function()
def fill(hart: H, va: Any, pa: Any, write: Any) -> None:
    """Install a TLB entry for a whole RAM page in the current bank."""
    index = (va >> 12) & (TLB_ENTRIES - 1)
    entry = hart.tlb_bank + index * ENTRY
    size_at = hart.tlb_bank + PAGE_SIZES + (index << 3)
    page, host = va & ~0xFFF, hart.ram_address(pa & ~0xFFF)
    number = (pa - hart.ram_base) >> 12
    hart.fills = hart.fills + 1
    hart.banks_used = hart.banks_used | hart.bank_bit
    if write != 0:
        hart.or_byte(hart.writers_of + number, hart.hart_bit)
        code = hart.has_code + number

        def now_stale() -> None:
            hart.add_u32(hart.generation_of + number * 4, 1)
            hart.poke(code, 0, 1)

        hart.when(hart.peek(code, 1) != 0, now_stale)
        entry = entry + WRITE_TABLE
        size_at = size_at + TLB_ENTRIES * 8
    hart.poke(size_at, hart.walk_size, 8)
    hart.poke(entry + 8, host - page, 8)
    hart.poke(entry, page, 8)


def _define_access(size: int) -> None:
    def split(hart: H, va: Any, access: int) -> tuple[Any, Any, Any]:
        """Both pages of an access that crosses from one to the next, checked before either is used."""
        priv = data_privilege(hart)
        first = 4096 - (va & 0xFFF)
        second = va + first
        kind = hart.word(access)
        pa1 = checked_translate(hart, va, kind, first, priv)
        pa2 = checked_translate(hart, second, kind, size - first, priv)
        near = hart.is_ram(pa1, 1)
        if negate(near & hart.is_ram(pa2, 1)):
            cause = Cause.LOAD_ACCESS if access == LOAD else Cause.STORE_ACCESS
            raise Trap(cause, select(near, second, va))
        return first, pa1, pa2

    def load_crossing(hart: H, va: Any) -> Any:
        first, pa1, pa2 = split(hart, va, LOAD)
        value = hart.word(0)
        for i in range(size):
            at = select(first.geu(i + 1), pa1 + i, pa2 + i - first)
            value = value | hart.peek(hart.ram_address(at), 1) << (8 * i)
        return value

    def store_crossing(hart: H, va: Any, value: Any) -> None:
        first, pa1, pa2 = split(hart, va, STORE)
        for i in range(size):
            at = select(first.geu(i + 1), pa1 + i, pa2 + i - first)
            hart.poke(hart.ram_address(at), value >> (8 * i), 1)
        for pa in (pa1, pa2):  # after the bytes: a copy decoded between would pass for fresh
            hart.add_u32(hart.generation_of + ((pa - hart.ram_base) >> 12) * 4, 1)

    load_crossing = function(traps=True, name=f"load_crossing_{size}")(load_crossing)
    store_crossing = function(traps=True, name=f"store_crossing_{size}")(store_crossing)

    def to_bus(hart: H, va: Any, pa: Any, write: int, value: Any, cause: Cause) -> None:
        """Leave to Python for a device access; misaligned ones fault."""
        if va & (size - 1) != 0:
            raise Trap(cause, va)
        for name, held in (
            ("pa", pa),
            ("va", va),
            ("size", size),
            ("write", write),
            ("value", value),
        ):
            hart.store_now(f"mmio_{name}", held)
        raise Leave(Exit.MMIO)

    def load_slow(hart: H, va: Any) -> Any:
        if hart.mmio_done != 0:
            hart.mmio_done = 0
            return hart.mmio_value
        if (va & 0xFFF).geu(4097 - size):
            return load_crossing(hart, va)
        entry = hart.tlb_bank + READ_TABLE + ((va >> 12) & (TLB_ENTRIES - 1)) * ENTRY
        if hart.peek(entry, 8) == va & ~0xFFF:  # a misaligned access to a mapped page
            return hart.peek(hart.peek(entry + 8, 8) + va, size)
        pa = checked_translate(hart, va, hart.word(LOAD), hart.word(size), data_privilege(hart))
        if negate(hart.is_ram(pa, size)):
            to_bus(hart, va, pa, 0, 0, Cause.LOAD_ACCESS)
        value = hart.peek(hart.ram_address(pa), size)
        if hart.walk_whole != 0:
            fill(hart, va, pa, hart.word(0))
        return value

    def store_slow(hart: H, va: Any, value: Any) -> None:
        if hart.mmio_done != 0:
            hart.mmio_done = 0
            return
        if (va & 0xFFF).geu(4097 - size):
            store_crossing(hart, va, value)
            return
        entry = hart.tlb_bank + WRITE_TABLE + ((va >> 12) & (TLB_ENTRIES - 1)) * ENTRY
        if hart.peek(entry, 8) == va & ~0xFFF:  # a misaligned access to a mapped page
            hart.poke(hart.peek(entry + 8, 8) + va, value, size)
            return
        pa = checked_translate(hart, va, hart.word(STORE), hart.word(size), data_privilege(hart))
        if negate(hart.is_ram(pa, size)):
            to_bus(hart, va, pa, 1, value, Cause.STORE_ACCESS)
        if hart.walk_whole != 0:
            fill(hart, va, pa, hart.word(1))
            hart.poke(hart.ram_address(pa), value, size)
        else:
            hart.poke(hart.ram_address(pa), value, size)
            hart.add_u32(hart.generation_of + ((pa - hart.ram_base) >> 12) * 4, 1)

    function(traps=True, name=f"load_slow_{size}")(load_slow)
    function(traps=True, name=f"store_slow_{size}")(store_slow)


for _size in (1, 2, 4, 8):
    _define_access(_size)


@function(traps=True)
def atomic_address(hart: H, va: Any, size: Any, access: Any) -> Any:
    """hva of naturally aligned RAM for an atomic access: 1 LR, 2 SC, 3 AMO.

    Misaligned: an access-misaligned trap. Devices take no atomics: an access fault.
    (Unpriv. 13.2, 13.4)
    """
    is_load = access == 1
    if va & (size - 1) != 0:
        raise Trap(select(is_load, hart.word(4), hart.word(6)), va)
    priv = data_privilege(hart)
    write = select(is_load, hart.word(LOAD), hart.word(STORE))
    table = select(is_load, hart.word(READ_TABLE), hart.word(WRITE_TABLE))
    entry = hart.tlb_bank + table + ((va >> 12) & (TLB_ENTRIES - 1)) * ENTRY
    if hart.peek(entry, 8) == va & ~0xFFF:
        return hart.peek(entry + 8, 8) + va
    pa = checked_translate(hart, va, write, size, priv)
    if negate(hart.is_ram(pa, 1)):
        raise Trap(select(is_load, hart.word(5), hart.word(7)), va)
    if hart.walk_whole != 0:
        fill(hart, va, pa, flag(negate(is_load)))
    elif negate(is_load):
        hart.add_u32(hart.generation_of + ((pa - hart.ram_base) >> 12) * 4, 1)
    return hart.ram_address(pa)


@function(traps=True)
def cache_block_address(hart: H, va: Any) -> Any:
    """hva of the 64-byte block of RAM that holds va, to be stored to. ('CMO' 2.5)"""
    block = va & ~63
    entry = hart.tlb_bank + WRITE_TABLE + ((va >> 12) & (TLB_ENTRIES - 1)) * ENTRY
    if hart.peek(entry, 8) == va & ~0xFFF:
        return hart.peek(entry + 8, 8) + block
    priv = data_privilege(hart)
    pa = checked_translate(hart, va, hart.word(STORE), hart.word(1), priv) & ~63
    if negate(hart.is_ram(pa, 64)):
        raise Trap(Cause.STORE_ACCESS, va)
    if hart.walk_whole != 0:
        fill(hart, va, pa, hart.word(1))
    else:
        if pmp_check(hart, pa, hart.word(64), hart.word(STORE), priv) == 0:
            raise Trap(Cause.STORE_ACCESS, va)
        hart.add_u32(hart.generation_of + ((pa - hart.ram_base) >> 12) * 4, 1)
    return hart.ram_address(pa)


# ---------------------------------------------------------------- TLB
def _forget_fetches(hart: Any) -> None:
    for bank in range(BANKS):
        table = bank_address(hart, bank) + FETCH_TABLE
        hart.repeat(TLB_ENTRIES, lambda i, t=table: hart.poke(t + i * ENTRY, NEVER, 8))


def _forget_bank(hart: Any, bank: Any) -> None:
    hart.repeat(3 * TLB_ENTRIES, lambda i: hart.poke(bank + i * ENTRY, NEVER, 8))


@function()
def tlb_flush(hart: H) -> None:
    """Drop every entry of every bank."""
    for bank in range(BANKS):
        base = bank_address(hart, bank)
        used = hart.banks_used & (1 << bank) != 0
        hart.when(used, partial(_forget_bank, hart, base))
    hart.banks_used = 0


@function()
def tlb_flush_page(hart: H, va: Any) -> None:
    """Drop every 4 KiB piece of the page, of whatever size, that holds va; and the fetch entries."""
    for bank in range(BANKS):
        base = bank_address(hart, bank)

        def drop(i: Any, base: Any = base) -> None:
            # the read and the write table are one behind the other, and so are their sizes
            entry = base + i * ENTRY
            mask = 0 - hart.peek(base + PAGE_SIZES + (i << 3), 8)
            hart.when((hart.peek(entry, 8) ^ va) & mask == 0, lambda: hart.poke(entry, NEVER, 8))

        used = hart.banks_used & (1 << bank) != 0
        hart.when(used, partial(hart.repeat, 2 * TLB_ENTRIES, drop))
    _forget_fetches(hart)


@function()
def choose_bank(hart: H) -> None:
    """The bank for (effective privilege, SUM, MXR). What fits none of the four shares the odd one."""
    status, priv = hart.mstatus, hart.priv
    moved = (status >> 17 & 1 == 1) & (priv == 3) & (status >> 11 & 3 != 3)
    odd = moved | (status >> 19 & 1 == 1)
    supervisor = select(status >> 18 & 1 == 1, hart.word(BANK_SUM), hart.word(BANK_S))
    plain = select(priv == 3, hart.word(BANK_M), select(priv == 1, supervisor, hart.word(BANK_U)))
    bank = select(odd, hart.word(BANK_ODD), plain)
    key = select(odd, status & 0xE1800 | priv << 32, hart.odd_key)
    address = bank_address(hart, 0) + bank * BANK_SIZE
    hart.tlb_bank = address
    hart.bank_bit = 1 << bank
    hart.context_dirty = 0
    if key != hart.odd_key:
        hart.odd_key = key
        _forget_bank(hart, address)


# ---------------------------------------------------------------- decoded pages
def _each_write_entry(hart: Any, body: Callable[[Any, Any, Any], None]) -> None:
    """`body(entry, tag, hva of the page)` for the write entries of every bank."""
    for bank in range(BANKS):
        table = bank_address(hart, bank) + WRITE_TABLE

        def visit(i: Any, table: Any = table) -> None:
            entry = table + i * ENTRY
            tag = hart.peek(entry, 8)
            body(entry, tag, tag + hart.peek(entry + 8, 8))

        hart.repeat(TLB_ENTRIES, visit)


@function()
def revoke_writes(hart: H, host: Any) -> None:
    """Drop this hart's write entries of the RAM page at hva `host`."""

    def drop(entry: Any, _tag: Any, reaches: Any) -> None:
        hart.when(reaches == host, lambda: hart.poke(entry, NEVER, 8))

    _each_write_entry(hart, drop)


@function()
def give_up_code_writes(hart: H) -> None:
    """Another hart decodes a page: drop write entries of code pages, counting them as written."""

    def check(entry: Any, tag: Any, reaches: Any) -> None:
        number = (reaches - hart.ram_hva) >> 12

        def look() -> None:
            # Who asked took this hart's mark away. An entry that stays is marked before has_code
            # is looked at, so that whoever decodes the page later asks again.
            hart.or_byte(hart.writers_of + number, hart.hart_bit)

            def give_up() -> None:
                hart.poke(entry, NEVER, 8)
                hart.add_u32(hart.generation_of + number * 4, 1)

            hart.when(hart.peek(hart.has_code + number, 1) != 0, give_up)

        hart.when(tag != NEVER, look)

    _each_write_entry(hart, check)


@function()
def reset_arena(hart: H) -> None:
    """Forget every decoded page."""
    table, pages = hart.ops_of, hart.ram_size >> 12
    hart.repeat(pages, lambda i: hart.poke(table + (i << 3), 0, 8))
    _forget_fetches(hart)
    hart.arena_next = hart.arena_start


@function()
def make_ops_page(hart: H, number: Any) -> Any:
    """A fresh ops page for RAM page `number`: every slot decodes itself when first run."""
    if hart.arena_end.ltu(hart.arena_next + OPS_SIZE):
        reset_arena(hart)
    ops = hart.arena_next
    host = hart.ram_hva + (number << 12)
    # Read before has_code is set: a writer that sees has_code raises it after this.
    generation = hart.peek(hart.generation_of + number * 4, 4)
    hart.or_byte(hart.has_code + number, hart.word(1))
    # Whoever marks itself from here on sees has_code; whoever did before is asked to give up.
    writers = hart.exchange_byte(hart.writers_of + number, 0)
    others = writers & ~hart.hart_bit
    revoke_writes(hart, host)
    hart.store_now("slow_value", 0)

    def ask_others() -> None:
        def ask(i: Any) -> None:
            block = hart.peek(hart.harts + (i << 3), 8)

            def request() -> None:
                hart.add_u32(block + ALL_CELLS["request_flush"].offset, 1)
                hart.poke(block + ALL_CELLS["attention"].offset, NEVER, 8)

            hart.when(block != block_address(hart), request)

        hart.repeat(hart.hart_count, ask)

    hart.when(others != 0, ask_others)

    def outstanding(i: Any) -> None:
        block = hart.peek(hart.harts + (i << 3), 8)
        asked = hart.peek(block + ALL_CELLS["request_flush"].offset, 8)
        hart.store_now("slow_value", hart.slow_value | asked)

    hart.repeat(hart.hart_count, outstanding)
    stale = select(hart.slow_value != 0, generation - 1, generation)
    hart.poke(ops + META, stale & 0xFFFFFFFF, 8)
    hart.poke(ops + (META + 8), number, 8)
    hart.poke(ops + (META + 16), host, 8)
    decode, leave_page = symbol(hart, "decode"), symbol(hart, "page_end")
    for slot in (SLOTS, SLOTS + 1):
        hart.poke(ops + slot * RECORD, leave_page, 8)
        hart.poke(ops + (DIST + 2 * slot), 0, 2)

    def prepare(i: Any) -> None:
        slot = SLOTS - 1 - i
        long = flag(hart.peek(host + (slot << 1), 1) & 3 == 3)
        after = hart.peek(ops + DIST + ((slot + 1 + long) << 1), 2)
        hart.poke(ops + DIST + (slot << 1), after + 1, 2)
        hart.poke(ops + (slot << 4), decode, 8)

    hart.repeat(SLOTS, prepare)
    last = hart.peek(host + 4094, 1) & 3 == 3
    crossing = select(last, symbol(hart, "cross"), decode)
    hart.poke(ops + (SLOTS - 1) * RECORD, crossing, 8)
    hart.poke(hart.ops_of + (number << 3), ops, 8)
    hart.arena_next = ops + OPS_SIZE
    hart.decoded_pages = hart.decoded_pages + 1
    return ops


@function()
def drop_stale_code(hart: H) -> None:
    """`fence.i`: drop this hart's decoded pages that were written since they were decoded."""
    count = (hart.arena_next - hart.arena_start).udiv(OPS_SIZE)
    start = hart.arena_start
    if count != 0:

        def check(i: Any) -> None:
            ops = start + i * OPS_SIZE
            number = hart.peek(ops + (META + 8), 8)
            entry = hart.ops_of + (number << 3)
            generation = hart.peek(hart.generation_of + number * 4, 4)
            stale = (generation != hart.peek(ops + META, 8)) & (hart.peek(entry, 8) == ops)
            hart.when(stale, lambda: hart.poke(entry, 0, 8))

        hart.repeat(count, check)
        _forget_fetches(hart)


@function(traps=True)
def locate(hart: H) -> Any:
    """hva of the ops page for pc, which it decodes or fetches through the current translation."""
    pc = hart.pc
    entry = hart.tlb_bank + FETCH_TABLE + ((pc >> 12) & (TLB_ENTRIES - 1)) * ENTRY
    if hart.peek(entry, 8) == pc & ~0xFFF:
        return hart.peek(entry + 8, 8)
    pa = checked_translate(hart, pc, hart.word(FETCH), hart.word(2), hart.priv)
    if negate(hart.is_ram(pa, 2)):
        raise Trap(Cause.INSTRUCTION_ACCESS, pc)
    ops = ops_of_page(hart, (pa - hart.ram_base) >> 12)
    keep = hart.walk_whole != 0
    hart.banks_used = hart.banks_used | hart.bank_bit
    hart.poke(entry, select(keep, pc & ~0xFFF, hart.word(NEVER)), 8)
    hart.poke(entry + 8, ops, 8)
    return ops


@function()
def ops_of_page(hart: H, number: Any) -> Any:
    """The ops page of a RAM page, made if there is none."""
    ops = hart.peek(hart.ops_of + (number << 3), 8)
    if ops == 0:
        return make_ops_page(hart, number)
    return ops


# ---------------------------------------------------------------- service
@function()
def arm(hart: H, op: Any) -> None:
    """Fewer instructions are left than to the page's end: stop after `remaining`, or sooner.

    Most paths branch away long before: a stop that comes too soon costs another service point.
    """
    hart.store_now("slow_value", op)
    ahead = select(hart.remaining.ltu(ARM_AHEAD), hart.remaining, hart.word(ARM_AHEAD))

    def step(i: Any) -> None:
        at = hart.slow_value
        slot = (at - hart.ops_base) >> 4
        first = hart.peek(hart.ops_base + (META + 16), 8)
        long = flag(hart.peek(first + (slot << 1), 1) & 3 == 3)
        hart.store_now("slow_value", at + RECORD + (long << 4))

    hart.repeat(ahead, step)
    target = hart.slow_value
    hart.patched_op = target
    hart.patched_handler = hart.peek(target, 8)
    hart.poke(target, symbol(hart, "stop"), 8)


@function()
def next_deadline(hart: H) -> Any:
    """With --clock icount: the count at which the next timer fires, or a far one."""
    enabled = hart.menvcfg >> 63 == 1
    far = hart.word(1 << 62)
    offset = hart.time_offset
    supervisor = select(enabled, hart.stimecmp, hart.word(-1))
    counts = []
    for compare in (hart.mtimecmp, supervisor):
        ticks = compare - offset
        sane = ticks.ltu(1 << 50) & compare.ltu(1 << 62)
        counts.append(select(sane, ticks * ICOUNT_PER_TICK, far))
    a, b = counts
    now = hart.limit - hart.remaining
    a = select(now.ltu(a), a, far)
    b = select(now.ltu(b), b, far)
    return select(a.ltu(b), a, b)


@function()
def serve_requests(hart: H) -> None:
    """What other threads asked for while this hart ran."""
    ssip = hart.exchange(hart.cell_pointer("request_ssip"), 0)
    hart.mip = hart.mip | ssip << 1
    flush = hart.request_flush
    fence = hart.exchange(hart.cell_pointer("request_fence"), 0)
    if flush != 0:
        give_up_code_writes(hart)
        hart.subtract(hart.cell_pointer("request_flush"), flush)  # answered, and not before
    if fence != 0:
        drop_stale_code(hart)
        tlb_flush(hart)


@function()
def take_interrupt(hart: H) -> None:
    """Enter the handler of the pending, enabled interrupt of highest priority, if any."""
    cause = pending_interrupt(hart)
    if cause != 0:
        take_trap(hart, cause, hart.word(0), hart.pc)


@function()
def service(hart: H) -> Any:
    """The boundary where interrupts are taken and slices end; 1 to leave to Python."""
    hart.exchange(hart.cell_pointer("attention"), 0)
    serve_requests(hart)
    if hart.exit_request != 0:
        hart.exit_request = 0
        hart.exit_reason = int(Exit.REQUEST)
        return hart.word(1)
    now = hart.limit - hart.remaining
    if now.geu(hart.hard_limit):
        hart.exit_reason = int(Exit.BUDGET)
        return hart.word(1)
    hart.services = hart.services + 1
    take_interrupt(hart)
    end = now + hart.slice
    end = select(hart.hard_limit.ltu(end), hart.hard_limit, end)
    deadline = next_deadline(hart)
    due = (hart.icount == 1) & deadline.ltu(end)
    end = select(due, deadline, end)
    hart.exact = flag(due | (end == hart.hard_limit))
    hart.limit = end
    hart.remaining = end - now
    return hart.word(0)
