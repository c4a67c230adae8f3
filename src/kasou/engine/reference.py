"""The reference model, judge of every engine: the semantic texts on ints, one instruction a step.

`ReferenceHart` is the hart as the texts know it, over a block of 64-bit cells laid out by
`kasou.isa.state`, which compiled code can share. Nothing is cached but decoded encodings: every
fetch, load and store walks the page tables and checks PMP anew, so all that tells an engine to
forget something (`fence_i`, `flush_translations`, `translation_changed`) does nothing here.

Rules
    * A step takes a pending interrupt, which counts nothing, and then runs one instruction, which
      counts one in `instructions` whether it retires or traps.
    * An access that crosses a page checks both pages before it happens. The fault's address is that
      of the part that faulted.
    * LR, SC and AMO are aligned, checked for that first, and reach RAM only. Code runs from RAM
      only. A device is accessed aligned, once, after every possible trap; else an access fault.
    * SC compares: it stores if the physical address is that of the LR and the bytes are still what
      the LR read, so an A-B-A change goes unnoticed.
    * Its read-modify-writes are atomic among harts in Python only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from kasou.engine.memory import PhysicalMemory
from kasou.errors import BusError
from kasou.isa import rv64  # noqa: F401  (fills the decoder)
from kasou.isa.csr import minstret_after_trap
from kasou.isa.encoding import Decoded, decode, length_of
from kasou.isa.interrupts import pending_interrupt, take_trap
from kasou.isa.pmp import pmp_check
from kasou.isa.state import CELLS, SIZE, Cell
from kasou.isa.translation import access_fault, checked_translate, data_privilege, translate
from kasou.isa.trap import Cause, Trap, illegal
from kasou.isa.word import MASK, Word

NEVER = MASK
PAGE = 4096
LOAD, STORE, AMO, FETCH = 1, 2, 3, 4


class Clock(Protocol):
    """Where `mtime` comes from."""

    def time(self, hart: Any) -> int:
        """Ticks of mtime, as this hart sees them now."""
        ...


class DeviceBus(Protocol):
    """What answers outside of RAM; both raise `BusError` if nothing does."""

    def read(self, gpa: int, size: int) -> int:
        """Load 1, 2, 4 or 8 bytes."""
        ...

    def write(self, gpa: int, size: int, value: int) -> None:
        """Store 1, 2, 4 or 8 bytes."""
        ...


class Leave(Exception):
    """An instruction is left to whoever called `step`: `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CellView:
    """A group of cells as a list of values; register x0 reads 0 and ignores writes."""

    __slots__ = ("_first", "_sink", "_words")

    def __init__(self, words: Any, cell: Cell) -> None:
        self._words, self._first = words, cell.offset // 8
        self._sink = 0 if cell.name == "x" else -1

    def __getitem__(self, index: Any) -> Word:
        i = int(index)
        return Word(0 if i == self._sink else self._words[self._first + i])

    def __setitem__(self, index: Any, value: Any) -> None:
        i = int(index)
        if i != self._sink:
            self._words[self._first + i] = int(value) & MASK


def _cell_property(cell: Cell) -> property:
    at = cell.offset // 8

    def get(hart: ReferenceHart) -> Word:
        return Word(hart.words[at])

    def put(hart: ReferenceHart, value: Any) -> None:
        hart.words[at] = int(value) & MASK

    return property(get, put, doc=cell.meaning)


def _signed(value: int, size: int) -> int:
    bits = 8 * size
    return value - (1 << bits) if value >> (bits - 1) else value


ATOMIC: dict[str, Callable[[int, int, int], int]] = {
    "swap": lambda a, b, n: b,
    "add": lambda a, b, n: a + b,
    "xor": lambda a, b, n: a ^ b,
    "and": lambda a, b, n: a & b,
    "or": lambda a, b, n: a | b,
    "min": lambda a, b, n: min(a, b, key=lambda v: _signed(v, n)),
    "max": lambda a, b, n: max(a, b, key=lambda v: _signed(v, n)),
    "minu": lambda a, b, n: min(a, b),
    "maxu": lambda a, b, n: max(a, b),
}
"""What an AMO stores: (memory, register, bytes), both unsigned, to a number cut by the store."""
_DECODED: dict[int, Decoded | None] = {}


class ReferenceHart:
    """One hart. `block` is an array of SIZE // 8 or more 64-bit cells; by default its own.

    By default every access walks the page tables. With `remember` a translation is walked once
    until a fence or a change of mode, as the architecture allows: whole machines need the speed.
    """

    staged = False

    def __init__(
        self,
        memory: PhysicalMemory,
        bus: DeviceBus,
        clock: Clock,
        block: Any = None,
        remember: bool = False,
    ) -> None:
        self.words: Any = [0] * (SIZE // 8) if block is None else block
        self.memory, self.bus, self.clock = memory, bus, clock
        self.instructions = 0
        """Instructions attempted so far; what `instret` gives to the counters."""
        self.bits = 0
        """The instruction being run."""
        self.walk_size, self.walk_whole = Word(PAGE), Word(0)
        self._next = self._length = 0
        self._waits = False
        self._remembered: dict[tuple[int, int, int], int] | None = {} if remember else None
        for cell in CELLS.values():
            if cell.count > 1:
                setattr(self, cell.name, CellView(self.words, cell))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The cells, as properties."""

        pc: Any
        hartid: Any
        mie: Any
        priv: Any
        mtimecmp: Any
        stimecmp: Any
        reservation: Any
        reservation_value: Any
        fflags: Any
        minstret_base: Any

    def reset(self, pc: int, hartid: int = 0) -> None:
        """The state after reset: M-mode at `pc`, no timer set. (Priv. 3.4)"""
        for i in range(SIZE // 8):
            self.words[i] = 0
        self.pc, self.hartid, self.priv = pc, hartid, 3
        self.mtimecmp = self.stimecmp = self.reservation = NEVER

    # ---- running
    def step(self, interrupts: bool = True) -> str | None:
        """Take an interrupt if one is due and `interrupts` is set, then run one instruction.

        "wfi": the hart may sleep now (the instruction is done). "ecall": the monitor is to serve
        the ecall at pc, which has been counted. Else None.
        """
        if interrupts and self.mie != 0:  # else nothing can be pending and enabled
            cause = pending_interrupt(self)
            if cause != 0:
                take_trap(self, cause, Word(0), self.pc)
        self._waits = False
        pc = self.pc
        try:
            decoded = self.fetch(pc)
            self._length = length_of(self.bits)
            self._next = pc + self._length
            if decoded is None:
                raise illegal()
            decoded.base.text(self, **decoded.operands)
        except Trap as trap:
            tval = self.bits if trap.tval is None else int(trap.tval)
            take_trap(self, Word(int(trap.cause)), Word(tval), pc)
            self.minstret_base = minstret_after_trap(self)
        except Leave as leave:
            self.instructions += 1
            return leave.reason
        else:
            self.pc = self._next
        self.instructions += 1
        return "wfi" if self._waits else None

    def run(self, steps: int) -> str | None:
        """Run `steps` instructions, or until a step returns a reason, which is returned."""
        for _ in range(steps):
            if reason := self.step():
                return reason
        return None

    def fetch(self, pc: Word) -> Decoded | None:
        """Fetch and decode; `bits` becomes the instruction. Raises `Trap`. (Priv. 3.1.16)"""
        self.bits = self._fetch_half(pc)
        if length_of(self.bits) == 4:
            at = pc + 2
            if self.walk_whole == 1 and (at & (PAGE - 1)) != 0:
                pa = int(self._pc_pa) + 2
                self.bits |= self.memory.load(pa, 2) << 16
            else:
                self.bits |= self._fetch_half(at) << 16
        bits = self.bits
        if bits not in _DECODED:
            _DECODED[bits] = decode(bits)
        return _DECODED[bits]

    def _fetch_half(self, va: Word) -> int:
        pa = self._translate(va, FETCH, 2, self.priv)
        if not self.memory.holds(int(pa), 2):
            raise access_fault(self, Word(FETCH), va)
        self._pc_pa = pa
        return self.memory.load(int(pa), 2)

    # ---- values and control, as texts ask for them
    def word(self, value: int) -> Word:
        """A constant."""
        return Word(value)

    def switch(self, value: Any, table: dict[int, Callable[[], Any]], default: Any) -> Any:
        """Call the arm for `value`."""
        return table.get(int(value), default)()

    @property
    def instruction(self) -> Word:
        """The bits of the instruction being run."""
        return Word(self.bits)

    @property
    def next_pc(self) -> Word:
        """Address of the next instruction in memory."""
        return self.pc + self._length  # type: ignore[no-any-return]

    def branch(self, offset: Any) -> None:
        """Continue at pc + offset."""
        self._next = self.pc + offset

    def jump(self, target: Any) -> None:
        """Continue at an address."""
        self._next = target

    @property
    def time(self) -> Word:
        """Mtime, in ticks."""
        return Word(self.clock.time(self))

    @property
    def instret(self) -> Word:
        """Instructions run by this hart before the current one."""
        return Word(self.instructions)

    def environment_call(self) -> None:
        """Leave to the board's own SBI for an ecall from S-mode."""
        if self.monitor == 1 and self.priv == 1:
            raise Leave("ecall")

    def wait_for_interrupt(self) -> None:
        """Retire, then say so."""
        self._waits = True

    def nothing(self, *_: Any) -> None:
        """Nothing is delayed or reordered here."""

    wait_reserved = fence = fence_i = end_block = nothing
    interrupts_changed = nothing

    # ---- physical memory, for the walk
    def is_ram(self, pa: Any, size: int) -> bool:
        """Whether all the bytes are RAM."""
        return self.memory.holds(int(pa), size)

    def read_physical(self, pa: Any, size: int) -> Word:
        """Bytes that are RAM."""
        return Word(self.memory.load(int(pa), size))

    def compare_and_swap_physical(self, pa: Any, old: Any, new: Any) -> bool:
        """Replace 8 bytes of RAM if they are `old`; whether they were."""
        return self.memory.compare_and_swap(int(pa), 8, int(old), int(new))

    # ---- virtual memory
    def _translate(self, va: Word, access: int, size: int, priv: Word) -> Word:
        """`checked_translate`, or what it said before where translations are remembered."""
        if self._remembered is None:
            return checked_translate(self, va, Word(access), Word(size), priv)  # type: ignore[no-any-return]
        key = (va.value >> 12, access, priv.value)
        page = self._remembered.get(key)
        if page is not None:
            self.walk_whole = Word(1)
            return Word(page | va.value & (PAGE - 1))
        pa = checked_translate(self, va, Word(access), Word(size), priv)
        if self.walk_whole == 1:
            self._remembered[key] = pa.value & ~(PAGE - 1)
        return pa  # type: ignore[no-any-return]

    def _forget(self, *_: Any) -> None:
        """A fence, or another mode or address space: translations are walked anew."""
        if self._remembered is not None:
            self._remembered.clear()

    translation_changed = flush_translations = _forget

    def _reach(self, va: Any, size: int, access: int) -> list[tuple[int, int]]:
        """The (gpa, bytes) of an access, one or two, after all checks but the device's own."""
        va, kind, priv = Word(int(va)), Word(access), data_privilege(self)
        first = min(size, PAGE - (int(va) & (PAGE - 1)))
        parts = []
        for at, n in ((va, first), (va + first, size - first)):
            if n:
                parts.append((int(self._translate(at, access, n, priv)), n))
        for (pa, n), at in zip(parts, (va, va + first), strict=False):
            if not self.memory.holds(pa, n) and (n < size or pa % size):
                raise access_fault(self, kind, at)
        return parts

    def load(self, va: Any, size: int) -> Word:
        """`size` bytes at a gva, zero-extended. Raises `Trap`."""
        parts = self._reach(va, size, LOAD)
        if not self.memory.holds(*parts[0]):
            try:
                return Word(self.bus.read(parts[0][0], size))
            except BusError:
                raise access_fault(self, Word(LOAD), va) from None
        data = b"".join(self.memory.read(*part) for part in parts)
        return Word(int.from_bytes(data, "little"))

    def store(self, va: Any, value: Any, size: int) -> None:
        """Store the low `size` bytes at a gva. Raises `Trap`, with nothing stored."""
        parts = self._reach(va, size, STORE)
        low = int(value) & ((1 << 8 * size) - 1)
        if not self.memory.holds(*parts[0]):
            try:
                self.bus.write(parts[0][0], size, low)
            except BusError:
                raise access_fault(self, Word(STORE), va) from None
            return
        if len(parts) == 1:
            self.memory.store(parts[0][0], size, low)
            return
        data = low.to_bytes(size, "little")
        (first, n), (second, _) = parts
        self.memory.write(first, data[:n])
        self.memory.write(second, data[n:])

    def _atomic_address(self, va: Any, size: int, access: int) -> int:
        """The gpa of an aligned word of RAM. (Unpriv. 'A': misaligned raises an exception)"""
        misaligned = Cause.LOAD_MISALIGNED if access == LOAD else Cause.STORE_MISALIGNED
        if (va & (size - 1)) != 0:
            raise Trap(misaligned, va)
        pa, _ = self._reach(va, size, access)[0]
        if not self.memory.holds(pa, size):
            raise access_fault(self, Word(access), va)
        return pa

    def atomic(self, op: str, va: Any, value: Any, size: int) -> Word:
        """AMO: the old value, zero-extended. Raises `Trap`."""
        pa = self._atomic_address(va, size, AMO)
        with self.memory.lock:
            old = self.memory.load(pa, size)
            operand = int(value) & ((1 << 8 * size) - 1)
            self.memory.store(pa, size, ATOMIC[op](old, operand, size))
        return Word(old)

    def load_reserved(self, va: Any, size: int) -> Word:
        """LR: the value, zero-extended, and a reservation of its physical address."""
        pa = self._atomic_address(va, size, LOAD)
        value = self.memory.load(pa, size)
        self.reservation, self.reservation_value = pa, value
        return Word(value)

    def store_conditional(self, va: Any, value: Any, size: int) -> Word:
        """SC: 0 if it stored, else 1. It ends the reservation either way."""
        pa = self._atomic_address(va, size, STORE)
        reserved = self.reservation == pa
        self.reservation = NEVER
        if not reserved:
            return Word(1)
        old = int(self.reservation_value)
        return Word(not self.memory.compare_and_swap(pa, size, old, int(value)))

    def cache_block_zero(self, va: Any) -> None:
        """Zero the 64-byte block that holds va; a fault carries va itself. (Unpriv. 'CMO' 2.5)"""
        pa = self._block_address(va, STORE)
        if not self.memory.holds(pa, 64):
            raise access_fault(self, Word(STORE), va)
        self.memory.write(pa, bytes(64))

    def cache_block_check(self, va: Any) -> None:
        """Fault as a store, unless a load or a store of the block may happen. ('CMO' 2.5.2)"""
        try:
            self._block_address(va, LOAD)
        except Trap:
            self._block_address(va, STORE)

    def _block_address(self, va: Any, access: int) -> int:
        kind, priv = Word(access), data_privilege(self)
        pa = translate(self, va, kind, priv) & ~63
        if pmp_check(self, pa, Word(64), kind, priv) == 0:
            raise access_fault(self, kind, va)
        return int(pa)

    # ---- floating point
    def float_operation(self, name: str, bits: int, operands: Sequence[Any], mode: Any) -> Word:
        """IEEE 754 arithmetic on bits; exceptions accrue in fflags."""
        from kasou.isa import softfloat

        fmt = softfloat.BINARY32 if bits == 32 else softfloat.BINARY64
        mask = (1 << bits) - 1
        values = tuple(int(one) & mask for one in operands)
        result, flags = softfloat.operate(name, fmt, values, int(mode))
        self.fflags |= flags
        return Word(result)

    def float_convert(self, from_bits: int, to_bits: int, value: Any, mode: Any) -> Word:
        """Between binary32 and binary64; exceptions accrue in fflags."""
        from kasou.isa import softfloat

        formats = {32: softfloat.BINARY32, 64: softfloat.BINARY64}
        source = int(value) & ((1 << from_bits) - 1)
        result, flags = softfloat.convert(formats[from_bits], formats[to_bits], source, int(mode))
        self.fflags |= flags
        return Word(result)


for _cell in CELLS.values():
    if _cell.count == 1:
        setattr(ReferenceHart, _cell.name, _cell_property(_cell))
