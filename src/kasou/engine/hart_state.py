"""The hart block: the memory that compiled code and Python share, one a hart.

First the architectural cells (`kasou.isa.state`), then the engine's own, then the TLB banks. A bank
holds tables of read, write and fetch entries of 16 bytes (tag; addend, or hva of the ops page), and
the page sizes of the first two. A tag is the page's gva; all ones never matches. Reads and writes
have entries of their own, or a copy between two pages of one index would miss at every access.

The ops page of a code page: 2048 records of 16 bytes, one a halfword, then two records that leave
the page, then `dist` (u16: records from a slot to the end of the page), then three words: the
page's generation when it was decoded, its page number, and its hva.
"""

from __future__ import annotations

import ctypes
import mmap
from enum import IntEnum

from kasou.isa.state import CELLS, SIZE, Cell

# fmt: off
_ENGINE = (
    ("bias", "pc = bias + (op >> 3)"), ("ops_base", "hva of the current ops page"),
    ("limit", "instruction count at which the current slice ends"),
    ("remaining", "instructions left in the slice, valid outside of handlers"),
    ("exact", "1: the slice ends at a deadline or at hard_limit, to the instruction"),
    ("hard_limit", "count at which to leave to Python"), ("slice", "instructions between services"),
    ("attention", "negative: leave the block at the next taken branch"),
    ("exit_request", "nonzero: Python asks the hart to leave"),
    ("debug", "1: ebreak leaves to Python, for a debugger"),
    ("exit_reason", "`Exit`"), ("mmio_pa", ""), ("mmio_size", ""), ("mmio_write", ""),
    ("mmio_value", ""), ("mmio_done", "1: the access has happened, its value is in mmio_value"),
    ("mmio_va", "for the fault if nothing answers"),
    ("slow_value", "what a slow path read"), ("tlb_bank", "hva of the current bank"), ("bank_bit", "1 << its number"),
    ("banks_used", "banks with entries made since they were last emptied"),
    ("walk_size", "bytes of the page that the last walk found"),
    ("walk_whole", "1: protection is the same for its whole 4 KiB page"),
    ("patched_op", "hva of the record that holds `stop`, or 0"), ("patched_handler", ""),
    ("ram_base", "gpa"), ("ram_size", "bytes"), ("ram_hva", ""),
    ("ops_of", "hva: ops page by RAM page number"), ("generation_of", "hva: u32 by page, shared"),
    ("writers_of", "hva: byte by page, harts that may have a write entry; shared"),
    ("has_code", "hva: byte by page, shared"),
    ("arena_start", ""), ("arena_next", ""), ("arena_end", ""),
    ("cross_ops", "hva: ops page for an instruction that crosses its page's end"),
    ("cross_bits", "that instruction"),
    ("context_dirty", "the TLB bank must be chosen anew"), ("odd_key", "what the odd bank holds"),
    ("icount", "1: time is instructions"), ("time_offset", "ticks"),
    ("clock_gettime", "hva of the C library's function"), ("timespec0", ""), ("timespec1", ""),
    ("request_ssip", "another hart or device sets SSIP"), ("request_flush", "count of requests to drop write entries of code pages"),
    ("request_fence", "1: another hart asked for fence.i and a full flush"),
    ("hart_bit", "1 << index"), ("harts", "hva of a table of hart blocks"), ("hart_count", ""),
    ("mxcsr", ""), ("fills", "TLB fills, for statistics"), ("decoded_pages", ""), ("services", ""),
)
# fmt: on


class Exit(IntEnum):
    """Why compiled code returned to Python."""

    BUDGET = 1
    MMIO = 2
    REFERENCE = 3
    ECALL = 4
    WFI = 5
    REQUEST = 6
    DEBUG = 7


ENGINE_CELLS = {
    name: Cell(name, 1, SIZE + 8 * i, meaning) for i, (name, meaning) in enumerate(_ENGINE)
}
ALL_CELLS = {**CELLS, **ENGINE_CELLS}
TLB_ENTRIES = 256
ENTRY = 16
"""Bytes of a TLB entry: tag, and addend (data) or ops page (fetch)."""
READ_TABLE, WRITE_TABLE, FETCH_TABLE = (i * TLB_ENTRIES * ENTRY for i in range(3))
PAGE_SIZES = 3 * TLB_ENTRIES * ENTRY
"""Two tables of 8-byte page sizes, for the read and the write entries."""
BANK_SIZE = PAGE_SIZES + 2 * TLB_ENTRIES * 8
BANKS = 5
BANK_U, BANK_S, BANK_SUM, BANK_M, BANK_ODD = range(BANKS)
BANKS_OFFSET = (SIZE + 8 * len(_ENGINE) + 4095) & ~4095
BLOCK_SIZE = BANKS_OFFSET + BANKS * BANK_SIZE

SLOTS = 2048
RECORD = 16
DIST = (SLOTS + 2) * RECORD
META = (DIST + 2 * (SLOTS + 2) + 15) & ~15
OPS_SIZE = (META + 24 + 63) & ~63
ICOUNT_PER_TICK = 100
"""With --clock icount an instruction takes 1 ns and a tick of mtime is 100 ns (10 MHz)."""
TICK_NS = 100
"""Nanoseconds a tick of mtime."""


class HartBlock:
    """One hart's block; cells are read and written by name."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, BLOCK_SIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.words = (ctypes.c_uint64 * (BLOCK_SIZE // 8)).from_buffer(self._map)
        self._map[BANKS_OFFSET:] = b"\xff" * (BLOCK_SIZE - BANKS_OFFSET)

    def get(self, name: str, index: int = 0) -> int:
        """A cell's value."""
        return self.words[ALL_CELLS[name].offset // 8 + index]

    def set(self, name: str, value: int, index: int = 0) -> None:
        """Set a cell; one aligned 64-bit store."""
        self.words[ALL_CELLS[name].offset // 8 + index] = value & ((1 << 64) - 1)
