"""Control and status registers: each declared once, with what a read gives and a write does.

`check_csr_access` decides whether the number may be touched at all (privilege, read-only numbers,
TVM, counter enables, FS), `read_csr` and `write_csr` do it. Fields are WARL: an illegal value is
replaced by a legal one and never traps. Counters count the engine's instructions (`hart.instret`);
mcountinhibit turns a base that is subtracted into a value that stands still, and takes effect after
the instruction that writes it. Registers that read as zero and ignore writes stand in `ZEROS`.
(Priv. 2 'Control and Status Registers', 3.1 'Machine-Level CSRs', 12.1 'Supervisor CSRs')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kasou.isa.function import function
from kasou.isa.interrupts import STCE, SUPERVISOR, Interrupt, Status, mip_value
from kasou.isa.pmp import ENTRIES, legal_pmpcfg, pmp_update, write_pmpaddr
from kasou.isa.trap import illegal
from kasou.isa.word import flag, select

ALL = (1 << 64) - 1
MISA = 2 << 62 | sum(1 << (ord(letter) - ord("A")) for letter in "ABCDFIMSU")
MSTATUS_FIXED = 2 << 32 | 2 << 34
MSTATUS_WRITABLE = int(
    Status.SIE | Status.MIE | Status.SPIE | Status.MPIE | Status.SPP | Status.MPP | Status.FS
    | Status.MPRV | Status.SUM | Status.MXR | Status.TVM | Status.TW | Status.TSR
)  # fmt: skip
SSTATUS_WRITABLE = int(Status.SIE | Status.SPIE | Status.SPP | Status.FS | Status.SUM | Status.MXR)
SSTATUS = SSTATUS_WRITABLE | int(Status.SD | Status.UXL)
ENVCFG = 1 << 0 | 3 << 4 | 1 << 6 | 1 << 7
"""FIOM, CBIE, CBCFE, CBZE of senvcfg and menvcfg."""
MENVCFG = ENVCFG | 1 << 61 | 1 << 62 | STCE
"""menvcfg has ADUE, PBMTE and STCE too."""
EXCEPTIONS = 0xB3FF
"""Exceptions that may be delegated: all but those of modes that are not here, and ecall from M."""
INTERRUPTS = SUPERVISOR | 1 << Interrupt.MSI | 1 << Interrupt.MTI | 1 << Interrupt.MEI
MIP = 0x344

Read = Callable[[Any], Any]
Write = Callable[[Any, Any], None]


@dataclass(frozen=True, slots=True)
class Csr:
    """One register. `write` is None if the number is in a read-only range."""

    number: int
    name: str
    meaning: str
    read: Read
    write: Write | None

    @property
    def privilege(self) -> int:
        """The lowest privilege mode that may touch it. (Priv. 2.1)"""
        return self.number >> 8 & 3


@dataclass(frozen=True, slots=True)
class Zeros:
    """`count` registers that read as zero, `step` apart, called `name` + index from `start`."""

    first: int
    count: int
    name: str
    start: int
    step: int = 1

    def holds(self, number: Any) -> Any:
        """1 if `number` is one of them, else 0."""
        distance = number - self.first
        inside = distance.ltu(self.count * self.step)
        return flag(inside & ((distance & (self.step - 1)) == 0))


# What a write touches besides the cell --------------------------------------------------------


def interrupts(hart: Any) -> None:
    """Pending, enabled or delegated interrupts changed."""
    hart.interrupts_changed()


def context(hart: Any) -> None:
    """Interrupt enables and the way addresses are checked changed; translations stay true."""
    hart.translation_changed()
    hart.interrupts_changed()


def nothing(hart: Any) -> None:
    """Only the cell."""


# Kinds of registers ---------------------------------------------------------------------------


def cell(number: int, name: str, meaning: str, mask: int = ALL, after: Any = nothing) -> Csr:
    """A register that is a cell of its own name; bits outside `mask` stay zero."""

    def read(hart: Any) -> Any:
        return getattr(hart, name)

    def write(hart: Any, value: Any) -> None:
        setattr(hart, name, value & mask)
        after(hart)

    return Csr(number, name, meaning, read, write)


def constant(number: int, name: str, meaning: str, value: int) -> Csr:
    """A register with a fixed value; a write, where the number allows one, is ignored."""
    write = None if number >> 10 == 3 else (lambda hart, value: None)
    return Csr(number, name, meaning, lambda hart: hart.word(value), write)


def counter(number: int, name: str, base: str, bit: int) -> Csr:
    """An instruction counter; mcountinhibit's `bit` stops it. (Priv. 3.1.10, 3.1.12)

    "Any CSR write takes effect after the writing instruction has otherwise completed": the next
    instruction reads what was written.
    """

    def read(hart: Any) -> Any:
        stands = (hart.mcountinhibit & (1 << bit)) != 0
        start = getattr(hart, base)
        return select(stands, start, start + hart.instret)

    def write(hart: Any, value: Any) -> None:
        stands = (hart.mcountinhibit & (1 << bit)) != 0
        setattr(hart, base, select(stands, value, value - hart.instret - 1))

    shadow = number >> 10 == 3
    meaning = "clock cycles: one an instruction" if bit == 0 else "instructions run"
    return Csr(number, name, meaning, read, None if shadow else write)


def minstret_after_trap(hart: Any) -> Any:
    """minstret_base once the current instruction has trapped: it does not retire. (Priv. 3.1.10)

    A base that stands still was not going to count it anyway.
    """
    return hart.minstret_base - (((hart.mcountinhibit >> 2) & 1) ^ 1)


# Special reads and writes ---------------------------------------------------------------------


def read_mstatus(hart: Any) -> Any:
    """Mstatus with UXL, SXL and SD. (Priv. 3.1.6)"""
    status = hart.mstatus & MSTATUS_WRITABLE
    dirty = flag((status & Status.FS) == Status.FS)
    return status | MSTATUS_FIXED | (dirty << 63)


def write_mstatus(hart: Any, value: Any) -> None:
    """Mstatus; MPP holds 0, 1 or 3 and keeps its value when 2 is written. (Priv. 3.1.6)"""
    old = hart.mstatus
    reserved = (value & Status.MPP) == 2 << 11
    kept = select(reserved, old, value) & Status.MPP
    hart.mstatus = (value & (MSTATUS_WRITABLE & ~int(Status.MPP))) | kept
    context(hart)


def write_sstatus(hart: Any, value: Any) -> None:
    """The supervisor's view of mstatus. (Priv. 12.1.1)"""
    hart.mstatus = (hart.mstatus & ~SSTATUS_WRITABLE) | (value & SSTATUS_WRITABLE)
    context(hart)


def write_mip(hart: Any, value: Any) -> None:
    """SSIP, SEIP and, unless stimecmp drives it, STIP. (Priv. 3.1.9, 'Sstc')"""
    timer = hart.word(SUPERVISOR & ~(1 << Interrupt.STI))
    mask = select((hart.menvcfg & STCE) != 0, timer, hart.word(SUPERVISOR))
    hart.mip = (hart.mip & ~mask) | (value & mask)
    hart.interrupts_changed()


def write_sip(hart: Any, value: Any) -> None:
    """SSIP if it is delegated; the other bits are read-only. (Priv. 12.1.3)"""
    mask = hart.mideleg & (1 << Interrupt.SSI)
    hart.mip = (hart.mip & ~mask) | (value & mask)
    hart.interrupts_changed()


def write_sie(hart: Any, value: Any) -> None:
    """The delegated bits of mie. (Priv. 12.1.3)"""
    mask = hart.mideleg & SUPERVISOR
    hart.mie = (hart.mie & ~mask) | (value & mask)
    hart.interrupts_changed()


def legal_envcfg(old: Any, value: Any, mask: int) -> Any:
    """CBIE has no value 2: it keeps the old one. (Priv. 3.1.18, 'Zicbom')"""
    reserved = (value & 3 << 4) == 2 << 4
    return (value & (mask & ~(3 << 4))) | (select(reserved, old, value) & 3 << 4)


def write_menvcfg(hart: Any, value: Any) -> None:
    """Menvcfg; PBMTE and ADUE change what page tables mean. (Priv. 3.1.18)"""
    old = hart.menvcfg
    new = legal_envcfg(old, value, MENVCFG)
    hart.menvcfg = new
    context(hart)
    if old != new:
        hart.flush_translations(None, None)


def write_senvcfg(hart: Any, value: Any) -> None:
    """Senvcfg. (Priv. 12.1.10)"""
    hart.senvcfg = legal_envcfg(hart.senvcfg, value, ENVCFG)


def write_mcountinhibit(hart: Any, value: Any) -> None:
    """CY and IR. A counter that stops keeps its value in its base. (Priv. 3.1.12)"""
    elapsed = hart.instret + 1
    old = hart.mcountinhibit
    for bit, base in ((0, "mcycle_base"), (2, "minstret_base")):
        change = ((value >> bit) & 1) - ((old >> bit) & 1)  # 1 stops it, -1 starts it
        setattr(hart, base, getattr(hart, base) + change * elapsed)
    hart.mcountinhibit = value & 5


def write_satp(hart: Any, value: Any) -> None:
    """Satp; a mode that is not here leaves the whole register as it was. (Priv. 12.1.11)"""
    old, mode = hart.satp, value >> 60
    known = (mode == 0) | ((mode - 8).ltu(3))
    new = select(known, value, old)
    hart.satp = new
    hart.translation_changed()
    if old != new:
        hart.flush_translations(None, None)


def write_float(hart: Any, fflags: Any, frm: Any) -> None:
    """Fflags and frm; the floating-point state becomes dirty. (Unpriv. 'F', Priv. 3.1.6.6)"""
    hart.fflags = fflags & 31
    hart.frm = frm & 7
    hart.mstatus = hart.mstatus | int(Status.FS)


def pmpcfg(first: int) -> Csr:
    """Eight configuration bytes. (Priv. 3.7.1)"""

    def read(hart: Any) -> Any:
        value = hart.word(0)
        for i in range(8):
            value = value | (hart.pmpcfg[first + i] << (8 * i))
        return value

    def write(hart: Any, value: Any) -> None:
        for i in range(8):
            old = hart.pmpcfg[first + i]
            hart.pmpcfg[first + i] = legal_pmpcfg(old, (value >> (8 * i)) & 0xFF)
        protection_changed(hart)

    meaning = f"entries {first} to {first + 7}"
    return Csr(0x3A0 + first // 4, f"pmpcfg{first // 4}", meaning, read, write)


def pmpaddr(index: int) -> Csr:
    """Bits 55:2 of an address. (Priv. 3.7.1)"""

    def write(hart: Any, value: Any) -> None:
        write_pmpaddr(hart, index, value)
        protection_changed(hart)

    name = f"pmpaddr{index}"
    return Csr(0x3B0 + index, name, "bits 55:2", lambda hart: hart.pmpaddr[index], write)


def protection_changed(hart: Any) -> None:
    """Derive the ranges and forget what was checked by the old ones."""
    pmp_update(hart)
    hart.translation_changed()
    hart.flush_translations(None, None)


def read_sstatus(hart: Any) -> Any:
    """The supervisor's view of mstatus. (Priv. 12.1.1)"""
    return read_mstatus(hart) & SSTATUS


# fmt: off
REGISTERS: tuple[Csr, ...] = (
    Csr(0x001, "fflags", "accrued exceptions", lambda h: h.fflags,
        lambda h, v: write_float(h, v, h.frm)),
    Csr(0x002, "frm", "dynamic rounding mode", lambda h: h.frm,
        lambda h, v: write_float(h, h.fflags, v)),
    Csr(0x003, "fcsr", "frm and fflags", lambda h: (h.frm << 5) | h.fflags,
        lambda h, v: write_float(h, v, v >> 5)),
    counter(0xC00, "cycle", "mcycle_base", 0),
    Csr(0xC01, "time", "ticks of mtime", lambda h: h.time, None),
    counter(0xC02, "instret", "minstret_base", 2),

    Csr(0x100, "sstatus", "status, as S-mode sees it", read_sstatus, write_sstatus),
    Csr(0x104, "sie", "delegated interrupt enables", lambda h: h.mie & h.mideleg, write_sie),
    cell(0x105, "stvec", "trap handler base, bit 0 vectored", ~2),
    cell(0x106, "scounteren", "counters that U-mode may read", 0xFFFFFFFF),
    Csr(0x10A, "senvcfg", "environment of U-mode", lambda h: h.senvcfg, write_senvcfg),
    cell(0x140, "sscratch", "for the handler's use"),
    cell(0x141, "sepc", "pc of the trap", ~1),
    cell(0x142, "scause", "cause of the trap"),
    cell(0x143, "stval", "address or instruction of the trap"),
    Csr(0x144, "sip", "delegated pending interrupts", lambda h: mip_value(h) & h.mideleg,
        write_sip),
    cell(0x14D, "stimecmp", "when STIP becomes pending", after=interrupts),
    Csr(0x180, "satp", "root page table, ASID, mode", lambda h: h.satp, write_satp),

    Csr(0x300, "mstatus", "status", read_mstatus, write_mstatus),
    constant(0x301, "misa", "RV64IMAFDCB, S and U; fixed", MISA),
    cell(0x302, "medeleg", "exceptions for S-mode", EXCEPTIONS),
    cell(0x303, "mideleg", "interrupts for S-mode", SUPERVISOR, interrupts),
    cell(0x304, "mie", "interrupt enables", INTERRUPTS, interrupts),
    cell(0x305, "mtvec", "trap handler base, bit 0 vectored", ~2),
    cell(0x306, "mcounteren", "counters that S-mode may read", 0xFFFFFFFF),
    Csr(0x30A, "menvcfg", "environment of S-mode", lambda h: h.menvcfg, write_menvcfg),
    Csr(0x320, "mcountinhibit", "counters that stand still", lambda h: h.mcountinhibit,
        write_mcountinhibit),
    cell(0x340, "mscratch", "for the handler's use"),
    cell(0x341, "mepc", "pc of the trap", ~1),
    cell(0x342, "mcause", "cause of the trap"),
    cell(0x343, "mtval", "address or instruction of the trap"),
    Csr(MIP, "mip", "pending interrupts", mip_value, write_mip),
    pmpcfg(0), pmpcfg(8),
    *(pmpaddr(i) for i in range(ENTRIES)),
    counter(0xB00, "mcycle", "mcycle_base", 0),
    counter(0xB02, "minstret", "minstret_base", 2),
    constant(0xF11, "mvendorid", "no vendor", 0),
    constant(0xF12, "marchid", "no registered architecture", 0),
    constant(0xF13, "mimpid", "no version", 0),
    Csr(0xF14, "mhartid", "number of the hart", lambda h: h.hartid, None),
    constant(0xF15, "mconfigptr", "no configuration structure", 0),
    constant(0x7A0, "tselect", "debug trigger: none is there, as tdata1 = 0 tells (Sdtrig 5.7)", 0),
    constant(0x7A1, "tdata1", "type 0: no trigger", 0),
    constant(0x7A2, "tdata2", "", 0),
    constant(0x7A3, "tdata3", "", 0),
)
ZEROS = (
    Zeros(0xC03, 29, "hpmcounter", 3),
    Zeros(0xB03, 29, "mhpmcounter", 3),
    Zeros(0x323, 29, "mhpmevent", 3),
    Zeros(0x3A4, 6, "pmpcfg", 4, step=2),
    Zeros(0x3C0, 48, "pmpaddr", 16),
)
# fmt: on

BY_NAME: dict[str, int] = {one.name: one.number for one in REGISTERS} | {
    f"{zeros.name}{zeros.start + i * zeros.step}": zeros.first + i * zeros.step
    for zeros in ZEROS
    for i in range(zeros.count)
}
"""The number of every register by name."""


def zero_or_absent(hart: Any, number: Any) -> Any:
    """Zero for a register of `ZEROS`; raises an illegal-instruction trap for any other number."""
    known = hart.word(0)
    for zeros in ZEROS:
        known = known | zeros.holds(number)
    if known == 0:
        raise illegal()
    return hart.word(0)


def ignored(hart: Any, number: Any) -> None:
    """A write to a register of `ZEROS` does nothing; to any other number it is illegal."""
    zero_or_absent(hart, number)


@function(traps=True)
def check_csr_access(hart: Any, number: Any, writes: Any) -> None:
    """Raise an illegal-instruction trap if this hart may not touch the register now.

    `writes` is 1 if the instruction writes. The number itself tells the lowest privilege (bits
    9:8) and read-only registers (bits 11:10 are 3). Besides: satp under TVM (Priv. 3.1.6.5),
    counters (3.1.11), stimecmp ('Sstc'), floating point with FS off (3.1.6.6).
    """
    supervisor, user = hart.priv == 1, hart.priv == 0
    refused = flag(hart.priv.ltu((number >> 8) & 3))
    refused = refused | flag(((number >> 10) == 3) & (writes != 0))
    trapped = supervisor & ((hart.mstatus & Status.TVM) != 0)
    refused = refused | flag((number == 0x180) & trapped)
    enabled = select(user, hart.mcounteren & hart.scounteren, hart.mcounteren) >> (number & 31)
    hidden = (hart.priv != 3) & ((enabled & 1) == 0)
    refused = refused | flag(((number >> 5) == 0xC00 >> 5) & hidden)
    timer = (hart.menvcfg >> 63) & (hart.mcounteren >> 1) & 1
    refused = refused | flag((number == 0x14D) & (hart.priv != 3) & (timer == 0))
    floating = (number - 1).ltu(3)
    refused = refused | flag(floating & ((hart.mstatus & Status.FS) == 0))
    if refused != 0:
        raise illegal()


@function(traps=True)
def read_csr(hart: Any, number: Any) -> Any:
    """The register's value; raises an illegal-instruction trap if there is none."""
    arms = {one.number: partial(one.read, hart) for one in REGISTERS}
    return hart.switch(number, arms, partial(zero_or_absent, hart, number))


@function(traps=True)
def write_csr(hart: Any, number: Any, value: Any) -> None:
    """Write the register; raises an illegal-instruction trap if there is none to write."""
    arms = {one.number: partial(one.write, hart, value) for one in REGISTERS if one.write}
    hart.switch(number, arms, partial(ignored, hart, number))


def modified(hart: Any, number: Any, value: Any) -> Any:
    """What csrrs and csrrc start from, given what they read.

    For mip.SEIP that is the software-written bit, not the one ored with the interrupt controller's
    line. (Priv. 3.1.9)
    """
    external = 1 << Interrupt.SEI
    return select(number == MIP, (value & ~external) | (hart.mip & external), value)
