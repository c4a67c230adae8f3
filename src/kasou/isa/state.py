"""The architectural state of a hart as one table: name, count, and what it holds.

Every cell is 64 bits. The engines lay them out in one block of memory in this order, so the
reference model and compiled code can look at the same hart. `x` has a 33rd cell: compiled code
sends writes of x0 there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """A named group of 64-bit cells of the hart block, at byte `offset`."""

    name: str
    count: int
    offset: int
    meaning: str


# fmt: off
_TABLE = (
    ("x", 33, "integer registers, then the sink for writes of x0"),
    ("f", 32, "floating-point registers, NaN-boxed"),
    ("pc", 1, "program counter"),
    ("priv", 1, "privilege mode: 0 U, 1 S, 3 M"),
    ("hartid", 1, "mhartid"),
    ("mstatus", 1, "without SD, which is derived from FS"),
    ("mie", 1, ""), ("mip", 1, "the software-writable bits: SSIP, STIP, SEIP"),
    ("mideleg", 1, ""), ("medeleg", 1, ""), ("mtvec", 1, ""), ("mscratch", 1, ""),
    ("mepc", 1, ""), ("mcause", 1, ""), ("mtval", 1, ""), ("mcounteren", 1, ""),
    ("mcountinhibit", 1, ""), ("menvcfg", 1, ""), ("stvec", 1, ""), ("sscratch", 1, ""),
    ("sepc", 1, ""), ("scause", 1, ""), ("stval", 1, ""), ("scounteren", 1, ""),
    ("senvcfg", 1, ""), ("satp", 1, ""), ("stimecmp", 1, "all ones: never"),
    ("fflags", 1, "accrued exceptions, besides those still in the host's registers"),
    ("frm", 1, "dynamic rounding mode"),
    ("pmpcfg", 16, "one configuration byte an entry"), ("pmpaddr", 16, "as written"),
    ("pmp_low", 16, "derived: first gpa of the entry's range"),
    ("pmp_high", 16, "derived: last gpa of the range plus 1; 0 when the entry is off"),
    ("pmp_used", 1, "derived: how many entries there are to look at: 0, 4, 8 or 16"),
    ("minstret_base", 1, "minstret minus instructions run"),
    ("mcycle_base", 1, "mcycle minus instructions run"),
    ("line_msip", 1, "interrupt lines, 0 or 1, written by their device only"),
    ("line_meip", 1, ""), ("line_seip", 1, ""),
    ("mtimecmp", 1, "all ones: never"),
    ("reservation", 1, "physical address of the LR, or all ones"),
    ("reservation_value", 1, "what the LR read"),
    ("monitor", 1, "1: ecalls from S-mode go to the board's own SBI, not to mtvec"),
    ("trap_cause", 1, "set by a function that traps; +256: tval is the instruction"),
    ("trap_tval", 1, ""),
)
# fmt: on


def _lay_out() -> dict[str, Cell]:
    cells, offset = {}, 0
    for name, count, meaning in _TABLE:
        cells[name] = Cell(name, count, offset, meaning)
        offset += 8 * count
    return cells


CELLS = _lay_out()
SIZE = max(c.offset + 8 * c.count for c in CELLS.values())
