"""One hart run by the threaded interpreter.

`execute` enters compiled code, which runs without the GIL until something needs Python: a device
access, an `ecall` to the board's SBI, `wfi`, an instruction left to the reference model, or the end
of the budget.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from kasou.engine import object_cache
from kasou.engine.hart_state import DIST, META, OPS_SIZE, RECORD, SLOTS, Exit, HartBlock
from kasou.engine.memory import PhysicalMemory

NEVER = (1 << 64) - 1
ARENA_BYTES = 160 << 20
"""Decoded pages of a hart; the host backs only what is used."""


def _address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class SharedTables:
    """What the harts of a board share: page generations, writers, code marks, and their blocks."""

    def __init__(self, memory: PhysicalMemory, harts: int) -> None:
        pages = memory.size >> 12
        self.memory = memory
        self._generation = mmap.mmap(-1, 4 * pages + 4096)
        self._writers = mmap.mmap(-1, pages + 4096)
        self._has_code = mmap.mmap(-1, pages + 4096)
        self._harts = mmap.mmap(-1, 4096)
        self.harts = harts
        self.generation_address = _address(self._generation)
        self.writers_address = _address(self._writers)
        self.has_code_address = _address(self._has_code)
        self.harts_address = _address(self._harts)
        self._generations = memoryview(self._generation).cast("I")
        self._blocks = memoryview(self._harts).cast("Q")
        memory.write_hook.append(self.wrote)

    def register(self, index: int, block: HartBlock) -> None:
        """Make a hart's block known to the others."""
        self._blocks[index] = block.address

    def wrote(self, gpa: int, size: int) -> None:
        """Python wrote RAM: decoded copies of these pages are stale at the next `fence.i`."""
        first = (gpa - self.memory.base) >> 12
        last = (gpa - self.memory.base + max(size, 1) - 1) >> 12
        code, generations = self._has_code, self._generations
        for page in range(first, last + 1):
            if code[page]:
                # Not atomic: harts add 1 meanwhile. A stride keeps clear of what they reach.
                generations[page] = (generations[page] + 0x10001) & 0xFFFFFFFF


class InterpreterHart:
    """A hart: its block, its decoded pages, and the way into compiled code."""

    def __init__(self, index: int, shared: SharedTables, icount: bool) -> None:
        self.index = index
        self.block = block = HartBlock()
        self._code = object_cache.load()
        memory = shared.memory
        pages = memory.size >> 12
        self._ops_of = mmap.mmap(-1, 8 * pages)
        self._arena = mmap.mmap(-1, ARENA_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._cross = mmap.mmap(-1, (OPS_SIZE + 4095) & ~4095)
        libc = ctypes.CDLL(None)
        clock = ctypes.cast(libc.clock_gettime, ctypes.c_void_p).value
        arena, cross = _address(self._arena), _address(self._cross)
        for name, value in {
            "hartid": index, "ram_base": memory.base, "ram_size": memory.size,
            "ram_hva": memory.address, "ops_of": _address(self._ops_of),
            "generation_of": shared.generation_address, "writers_of": shared.writers_address,
            "has_code": shared.has_code_address, "arena_start": arena, "arena_next": arena,
            "arena_end": arena + ARENA_BYTES, "cross_ops": cross, "icount": int(icount),
            "clock_gettime": clock or 0, "hart_bit": 1 << index, "harts": shared.harts_address,
            "hart_count": shared.harts, "slice": 32768, "odd_key": NEVER, "context_dirty": 1,
            "stimecmp": NEVER, "mtimecmp": NEVER, "reservation": NEVER, "priv": 3,
            "hard_limit": NEVER, "mstatus": 0xA00000000,
        }.items():  # fmt: skip
            block.set(name, value)
        self._prepare_cross(cross)
        shared.register(index, block)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._run = prototype(self._code.symbols["run"])
        self._flush = prototype(self._code.symbols["call_flush"])
        self._drop = prototype(self._code.symbols["call_drop_stale_code"])

    def _prepare_cross(self, cross: int) -> None:
        """The page whose last record stands for an instruction in two pages."""
        words = (ctypes.c_uint64 * (OPS_SIZE // 8)).from_buffer(self._cross)
        for slot in (SLOTS, SLOTS + 1):
            words[slot * RECORD // 8] = self._code.symbols["page_end"]
        halves = (ctypes.c_uint16 * (OPS_SIZE // 2)).from_buffer(self._cross)
        halves[DIST // 2 + SLOTS - 1] = 1
        from kasou.engine.hart_state import ALL_CELLS

        bits = self.block.address + ALL_CELLS["cross_bits"].offset
        words[META // 8 + 2] = (bits - 2 * (SLOTS - 1)) & NEVER

    @property
    def count(self) -> int:
        """Instructions run so far, trapping ones included."""
        return (self.block.get("limit") - self.block.get("remaining")) & NEVER

    def execute(self, until: int = NEVER) -> Exit:
        """Run until instruction count `until` or until Python is needed."""
        block = self.block
        block.set("hard_limit", until)
        if not block.get("mmio_done"):
            block.set("limit", self.count)
            block.set("remaining", 0)
        self._run(block.address)
        return Exit(block.get("exit_reason"))

    def serve_mmio(
        self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Do the device access that the hart left for; it completes when next executed.

        What `read` and `write` raise passes through: the hart then takes an access fault.
        """
        get = self.block.get
        if get("mmio_write"):
            size = get("mmio_size")
            write(get("mmio_pa"), size, get("mmio_value") & ((1 << 8 * size) - 1))
        else:
            self.block.set("mmio_value", read(get("mmio_pa"), get("mmio_size")))
        count = self.count
        self.block.set("mmio_done", 1)
        self.block.set("exact", 1)
        self.block.set("limit", count + 1)
        self.block.set("remaining", 1)

    def attend(self) -> None:
        """Make the hart look at its interrupt lines and requests; from any thread."""
        self.block.set("attention", NEVER)

    def request_exit(self) -> None:
        """Make the hart leave to Python; from any thread."""
        self.block.set("exit_request", 1)
        self.attend()

    def flush_translations(self) -> None:
        """Drop the whole TLB; on the hart's own thread."""
        self._flush(self.block.address)

    def drop_stale_code(self) -> None:
        """What `fence.i` does; on the hart's own thread."""
        self._drop(self.block.address)
