"""Modes, traps, interrupts, CSRs and counters, as instructions meet them. (Priv. 3 and 12)"""

from __future__ import annotations

import pytest
from conformance.computer import (
    BASE,
    CODE,
    DATA,
    M_HANDLER,
    M_MODE,
    NEVER,
    S_HANDLER,
    S_MODE,
    U_MODE,
    Computer,
)

from kasou.engine.hart_state import Exit

SIE, MIE, SPIE, MPIE, SPP = 1 << 1, 1 << 3, 1 << 5, 1 << 7, 1 << 8
TVM, TW, TSR = 1 << 20, 1 << 21, 1 << 22
EXCEPTIONS = {
    0: None, 1: "jalr a1", 2: ".word 0", 3: "ebreak", 4: "lr.w a0, (a2)", 5: "ld a0, (a3)",
    6: "amoadd.w a0, a0, (a2)", 7: "sd a0, (a3)", "ecall": "ecall",
}  # fmt: skip


# ---------------------------------------------------------------- traps
@pytest.mark.parametrize("priv", [U_MODE, S_MODE, M_MODE])
@pytest.mark.parametrize("delegated", [False, True])
def test_delegation(computer: Computer, priv: int, delegated: bool) -> None:
    """Every cause goes to S-mode if it is delegated and comes from below M-mode."""
    computer.put("medeleg", NEVER if delegated else 0)
    nowhere, odd = 0x4000_0000, DATA + 2
    cases = {
        1: ("nop", nowhere), 2: (".word 0xffffffff", 0xFFFFFFFF), 3: ("ebreak", CODE),
        4: ("lr.w a0, (a2)", odd), 5: ("ld a0, (a3)", nowhere), 6: ("amoadd.w a0, a0, (a2)", odd),
        7: ("sd a0, (a3)", nowhere), 8 + priv: ("ecall", 0),
    }  # fmt: skip
    for cause, (text, tval) in cases.items():
        computer["x12"], computer["x13"] = odd, nowhere
        for name in ("mepc", "mcause", "mtval", "sepc", "scause", "stval"):
            computer[name] = 0x55
        pc = nowhere if cause == 1 else CODE
        trap = computer.attempt(text, priv, pc=pc)
        assert trap == (cause, tval, pc)
        to_s = delegated and priv != M_MODE
        assert computer["pc"] == (S_HANDLER if to_s else M_HANDLER)
        assert computer["priv"] == (S_MODE if to_s else M_MODE)
        assert computer["mcause" if to_s else "scause"] == 0x55
        status = computer.csr("mstatus")
        assert (status >> 8 & 1 if to_s else status >> 11 & 3) == priv


def test_delegation_registers_hold_what_exists(computer: Computer) -> None:
    computer.put("medeleg", NEVER)
    computer.put("mideleg", NEVER)
    assert computer.csr("medeleg") == 0xB3FF
    assert computer.csr("mideleg") == 0x222


@pytest.mark.parametrize("mode", ["m", "s"])
def test_the_stack_of_enables(computer: Computer, mode: str) -> None:
    ie, pie, priv = (MIE, MPIE, M_MODE) if mode == "m" else (SIE, SPIE, S_MODE)
    computer.put("medeleg", 0 if mode == "m" else NEVER)
    for enabled in (0, ie):
        computer["mstatus"] = computer["mstatus"] & ~(MIE | MPIE | SIE | SPIE) | enabled
        assert computer.attempt("ebreak", priv if mode == "s" else M_MODE)
        status = computer.csr("mstatus")
        assert status & ie == 0
        assert bool(status & pie) == bool(enabled)
        computer[f"{mode}epc"] = CODE + 32
        computer.program(f"{mode}ret", M_HANDLER if mode == "m" else S_HANDLER)
        computer.run(1)
        status = computer.csr("mstatus")
        assert computer["pc"] == CODE + 32
        assert bool(status & ie) == bool(enabled)
        assert status & pie
        computer.program("1: j 1b", M_HANDLER if mode == "m" else S_HANDLER)


def test_mret_leaves_the_least_mode_behind_and_clears_mprv(computer: Computer) -> None:
    for mpp in (U_MODE, S_MODE, M_MODE):
        computer["mstatus"] = 1 << 17 | mpp << 11
        computer["mepc"] = DATA
        assert computer.attempt("mret") is None
        assert (computer["priv"], computer["pc"]) == (mpp, DATA)
        assert computer.csr("mstatus") >> 11 & 3 == U_MODE
        assert computer.csr("mstatus") >> 17 & 1 == (mpp == M_MODE)


def test_returns_from_too_low(computer: Computer) -> None:
    for text, lowest in (("mret", M_MODE), ("sret", S_MODE), ("wfi", S_MODE), ("sfence.vma", S_MODE),
                         ("csrr a0, sstatus", S_MODE), ("csrr a0, mstatus", M_MODE),
                         ("sinval.vma zero, zero", S_MODE), ("sfence.w.inval", S_MODE)):  # fmt: skip
        for priv in (U_MODE, S_MODE, M_MODE):
            trap = computer.attempt(text, priv)
            assert (trap is not None and trap[0] == 2) == (priv < lowest), (text, priv)


@pytest.mark.parametrize(
    ("text", "bit"),
    [("sret", TSR), ("wfi", TW), ("sfence.vma", TVM), ("csrr a0, satp", TVM), ("csrw satp, zero", TVM),
     ("sinval.vma zero, zero", TVM), ("sfence.w.inval", 0), ("sfence.inval.ir", 0)],
)  # fmt: skip
def test_what_mstatus_traps_from_supervisors(computer: Computer, text: str, bit: int) -> None:
    for bits in (0, TSR, TW, TVM, TSR | TW | TVM):
        for priv in (S_MODE, M_MODE):
            computer["mstatus"] = bits | SPP
            trap = computer.attempt(text, priv)
            assert (trap is not None) == (priv == S_MODE and bool(bits & bit))
            assert trap is None or trap[0] == 2


def test_vectored_handlers(computer: Computer) -> None:
    computer.put("mtvec", M_HANDLER | 1)
    computer.attempt("ebreak")
    assert computer["pc"] == M_HANDLER  # exceptions go to the base
    computer.put("mie", 1 << 3)
    computer["line_msip"] = 1
    computer["priv"], computer["pc"] = U_MODE, CODE
    computer.program("nop")
    computer.program("nop\n" * 16, M_HANDLER)
    computer.run(1)
    assert computer["pc"] == M_HANDLER + 4 * 3 + 4


# ---------------------------------------------------------------- interrupts
LINES = {"meip": 11, "msip": 3, "mtip": 7, "seip": 9, "ssip": 1, "stip": 5}
ORDER = [11, 3, 7, 9, 1, 5]


def drive(computer: Computer, pending: int) -> None:
    """Make interrupts pending, each by what drives it."""
    computer["line_meip"], computer["line_msip"] = pending >> 11 & 1, pending >> 3 & 1
    computer["line_seip"] = pending >> 9 & 1
    computer["mtimecmp"] = 0 if pending >> 7 & 1 else NEVER
    computer["mip"] = pending & 0x22


@pytest.mark.parametrize("priv", [U_MODE, S_MODE, M_MODE])
def test_interrupt_priorities(computer: Computer, priv: int) -> None:
    """All 64 sets of pending interrupts, with several delegations and enables."""
    computer.program("nop\nnop")
    for subset in range(64):
        pending = sum(1 << code for i, code in enumerate(ORDER) if subset >> i & 1)
        drive(computer, pending)
        for mideleg in (0, 0x222, 0x020, 0x202):
            for mie in (0xAAA, 0x222, 0x888, 0):
                for enables in (0, SIE, MIE, SIE | MIE):
                    block = computer.core.block
                    for name, value in (("mideleg", mideleg), ("mie", mie), ("priv", priv), ("pc", CODE),
                                        ("mstatus", enables), ("mcause", 0), ("scause", 0),
                                        ("attention", NEVER), ("context_dirty", 1)):  # fmt: skip
                        block.set(name, value)
                    to_m, to_s = pending & mie & ~mideleg, pending & mie & mideleg
                    m_on = priv < M_MODE or bool(enables & MIE)
                    s_on = priv < S_MODE or (priv == S_MODE and bool(enables & SIE))
                    taken = to_m if m_on and to_m else to_s if s_on else 0
                    want = next((code for code in ORDER if taken >> code & 1), None)
                    computer.run(1)
                    if want is None:
                        assert computer["pc"] == CODE + 4
                        continue
                    machine = taken is to_m and bool(to_m) and m_on
                    assert computer["mcause" if machine else "scause"] == 1 << 63 | want
                    assert computer["mepc" if machine else "sepc"] == CODE
                    assert computer["pc"] == (M_HANDLER if machine else S_HANDLER)


def test_a_written_enable_takes_effect_at_once(computer: Computer) -> None:
    computer.put("mie", 1 << 3)
    computer["line_msip"] = 1
    for text in ("csrsi mstatus, 8", "csrs mstatus, a0"):
        computer["mstatus"], computer["x10"], computer["mepc"] = 0, 8, 0
        computer.program(f"{text}\nnop\nnop\nnop")
        computer["priv"], computer["pc"] = M_MODE, CODE
        computer.run(2)
        assert computer["mepc"] == CODE + 4
        assert computer["mcause"] == 1 << 63 | 3


def test_wfi_waits_or_not(computer: Computer) -> None:
    computer.program("wfi\nnop\n1: j 1b")
    computer["pc"] = CODE
    assert computer.run(5) == Exit.WFI
    assert computer["pc"] == CODE + 4
    assert not computer.core.sees_interrupt()
    computer["mie"], computer["line_msip"] = 1 << 3, 1  # pending, enabled in mie, masked by MIE
    assert computer.core.sees_interrupt()
    assert computer.run(3) == Exit.BUDGET
    assert computer.trapped() is None


def test_sip_and_sie_are_windows(computer: Computer) -> None:
    computer.put("mideleg", 0x202)
    computer.program(
        "csrw sie, a0\ncsrr a1, sie\ncsrr a2, mie\ncsrw sip, a0\ncsrr a3, sip\ncsrr a4, mip"
    )
    computer["x10"], computer["pc"] = NEVER, CODE
    computer.run(6)
    assert [computer[f"x{i}"] for i in (11, 12, 13, 14)] == [0x202, 0x202, 2, 2]


def test_seip_is_the_or_of_line_and_bit(computer: Computer) -> None:
    """Csrrs reads the or, and writes back only the bit. (Priv. 3.1.9)"""
    computer["line_seip"] = 1
    computer.program("csrr a0, mip\ncsrrs a1, mip, a2\nnop")
    computer["x12"], computer["pc"] = 2, CODE
    computer.run(2)
    assert (computer["x10"], computer["x11"]) == (0x200, 0x200)
    computer["line_seip"] = 0
    assert computer.csr("mip") == 2


def test_stimecmp(computer: Computer) -> None:
    computer.put("menvcfg", 1 << 63)
    computer.put("mideleg", 0x222)
    computer.put("mcounteren", 2)
    computer.put("mie", 0x20)
    start = computer.core.count
    computer.program("csrr a0, time\naddi a0, a0, 3\ncsrw stimecmp, a0\n1: j 1b")
    computer["mstatus"] = SIE
    computer["priv"], computer["pc"] = S_MODE, CODE
    computer.run(2000)
    assert computer["scause"] == 1 << 63 | 5
    assert computer["pc"] == S_HANDLER
    assert computer["sepc"] == CODE + 12
    assert computer.csr("mip") & 0x20
    assert computer["x10"] == start // 100 + 3
    computer.put("stimecmp", NEVER)
    assert not computer.csr("mip") & 0x20
    for menvcfg, mcounteren, legal in ((0, 2, False), (1 << 63, 0, False), (1 << 63, 2, True)):
        computer["menvcfg"], computer["mcounteren"] = menvcfg, mcounteren
        assert (computer.attempt("csrr a0, stimecmp", S_MODE) is None) == legal
        assert computer.attempt("csrr a0, stimecmp", M_MODE) is None


def test_timer_interrupts_come_at_the_exact_instruction(computer: Computer) -> None:
    computer.put("mie", 1 << 7)
    computer.program("1: addi a0, a0, 1\nj 1b")
    for ticks in (3, 4, 11):
        computer["mtimecmp"] = due = computer.core.count // 100 + ticks
        before = computer.core.count
        computer["x10"], computer["priv"], computer["pc"] = 0, U_MODE, CODE
        computer.run(3000)
        assert computer["mcause"] == 1 << 63 | 7
        assert computer["x10"] == (100 * due - before + 1) // 2
        computer["mtimecmp"] = NEVER


# ---------------------------------------------------------------- CSRs
WARL = {
    "mstatus": (0, 0x80000000_00000000 | 0xA00000000 | 0x7E79AA, 0),
    "mtvec": (0, NEVER & ~2, 0), "stvec": (0, NEVER & ~2, 0), "mepc": (0, NEVER & ~1, 0),
    "sepc": (0, NEVER & ~1, 0), "medeleg": (0, 0xB3FF, 0), "mideleg": (0, 0x222, 0),
    "mie": (0, 0xAAA, 0), "mcounteren": (0, 0xFFFFFFFF, 0), "scounteren": (0, 0xFFFFFFFF, 0),
    "mscratch": (0, NEVER, 0), "sscratch": (0, NEVER, 0), "mcause": (0, NEVER, 0), "mtval": (0, NEVER, 0),
    "menvcfg": (0, 0xE0000000_000000F1, 0), "senvcfg": (0, 0xF1, 0), "stimecmp": (0, NEVER, 0),
    "mcountinhibit": (0, 5, 0), "misa": (None, 0x800000000014112F, 0),
    "mhartid": (None, 0, 0), "pmpaddr0": (0, (1 << 54) - 1, 0), "mhpmcounter3": (0, 0, 0),
    "mhpmevent31": (0, 0, 0), "pmpcfg4": (0, 0, 0), "pmpaddr63": (0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in WARL if n not in ("mhartid", "misa")])
def test_fields_hold_only_legal_values(computer: Computer, name: str) -> None:
    _, ones, fixed = WARL[name]
    computer.program(f"csrw {name}, a0\ncsrr a1, {name}\ncsrw {name}, zero\ncsrr a2, {name}")
    computer["x10"], computer["pc"] = NEVER, CODE
    computer.run(4)
    low = 0xA00000000 if name == "mstatus" else fixed
    assert (hex(computer["x11"]), hex(computer["x12"])) == (hex(ones), hex(low))


def test_sstatus_is_a_window_of_mstatus(computer: Computer) -> None:
    computer.program("csrw mstatus, zero\ncsrw sstatus, a0\ncsrr a1, sstatus\ncsrr a2, mstatus")
    computer["x10"], computer["pc"] = NEVER, CODE
    computer.run(4)
    assert computer["x11"] == 0x80000002_000C6122
    assert computer["x12"] == 0x8000000A_000C6122


def test_mpp_never_holds_two(computer: Computer) -> None:
    for old in (0, 1, 3):
        computer["mstatus"], computer["x10"] = old << 11, 2 << 11
        assert computer.attempt("csrw mstatus, a0") is None
        assert computer.csr("mstatus") >> 11 & 3 in (0, 1, 3)


def test_satp_ignores_modes_that_are_not_here(computer: Computer) -> None:
    for mode in range(16):
        computer["satp"], computer["x10"] = 0, mode << 60 | 0x1234
        computer.attempt("csrw satp, a0")
        assert computer.csr("satp") == (mode << 60 | 0x1234 if mode in (0, 8, 9, 10) else 0)


def test_absent_and_read_only_registers(computer: Computer) -> None:
    for text in ("csrr a0, 0x7c0", "csrw 0x7c0, zero", "csrr a0, 0x200", "csrr a0, 0x5a8",
                 "csrw cycle, zero", "csrrs a0, mhartid, a1", "csrrc a0, mvendorid, a1", "csrwi time, 0",
                 "csrr a0, 0x3a1", "csrr a0, 0x600"):  # fmt: skip
        computer["x11"] = 0
        trap = computer.attempt(text)
        assert trap is not None and trap[0] == 2, text
        assert trap[1] == int.from_bytes(computer.memory.read(CODE, 4), "little")
    for text in (
        "csrrs a0, mhartid, zero",
        "csrrsi a0, mvendorid, 0",
        "csrr a0, hpmcounter5",
        "csrr a0, pmpcfg4",
    ):
        assert computer.attempt(text) is None, text


def test_counters(computer: Computer) -> None:
    computer.program(
        "csrw minstret, zero\ncsrr a0, minstret\nnop\ncsrr a1, minstret\ncsrr a2, instret"
    )
    computer["pc"] = CODE
    computer.run(5)
    assert [computer[f"x{i}"] for i in (10, 11, 12)] == [0, 2, 3]
    computer.program("csrwi mcountinhibit, 5\ncsrw minstret, a3\ncsrw mcycle, a3\nnop\ncsrr a0, minstret\ncsrr a1, mcycle"
                     "\ncsrwi mcountinhibit, 0\ncsrr a2, minstret\ncsrr a4, mcycle")  # fmt: skip
    computer["x13"], computer["pc"] = 1000, CODE
    computer.run(9)
    assert [computer[f"x{i}"] for i in (10, 11, 12, 14)] == [1000, 1000, 1000, 1001]


def test_what_traps_does_not_retire(computer: Computer) -> None:
    for inhibit in (0, 4):
        computer.put("mcountinhibit", inhibit)
        computer.put("minstret", 500)
        for text in ("ebreak", "ecall", ".word 0", "ld a0, (zero)", "lr.w a0, (a1)"):
            computer["x11"] = DATA + 1
            before = computer.csr("minstret")
            assert computer.attempt(text) is not None
            assert computer.csr("minstret") == before, (text, inhibit)
        before = computer.csr("minstret")
        computer.step(M_MODE, 0x1000)  # a fetch from nowhere
        assert computer.csr("minstret") == before
        assert computer.attempt("nop") is None
        assert computer.csr("minstret") == before + (inhibit == 0)


def test_counters_are_shown_by_permission(computer: Computer) -> None:
    for bit, name in (
        (0, "cycle"),
        (1, "time"),
        (2, "instret"),
        (3, "hpmcounter3"),
        (31, "hpmcounter31"),
    ):
        for m in (0, 1 << bit, NEVER & ~(1 << bit)):
            for s in (0, 1 << bit):
                computer.put("mcounteren", m)
                computer.put("scounteren", s)
                for priv, legal in (
                    (U_MODE, m & s & 1 << bit),
                    (S_MODE, m & 1 << bit),
                    (M_MODE, 1),
                ):
                    assert (computer.attempt(f"csrr a0, {name}", priv) is None) == bool(legal)


def test_floating_point_off(computer: Computer) -> None:
    for text in (
        "fadd.d ft0, ft0, ft0",
        "flw ft0, (a0)",
        "fsd ft0, (a0)",
        "csrr a1, fcsr",
        "csrwi frm, 0",
        "c.fld fa0, 0(a0)",
    ):
        computer["x10"] = DATA
        computer["mstatus"] = 0
        trap = computer.attempt(text)
        assert trap is not None and trap[0] == 2
        computer["mstatus"] = 1 << 13
        assert computer.attempt(text) is None


# ---------------------------------------------------------------- reservations
def test_reservations(computer: Computer) -> None:
    def result(text: str) -> int:
        computer.memory.store_u64(DATA, 5)
        computer.memory.store_u64(DATA + 64, 5)
        computer["x10"], computer["x11"], computer["x12"], computer["x13"] = DATA, 99, 7, DATA + 64
        steps = computer.program(text) // 4
        computer["pc"] = CODE
        computer.run(steps)
        assert computer.trapped() is None
        return computer["x11"]

    assert result("lr.d a1, (a0)\nsc.d a1, a2, (a0)") == 0
    assert computer.memory.load_u64(DATA) == 7
    assert result("sc.d a1, a2, (a0)") == 1  # none any more
    assert computer.memory.load_u64(DATA) == 5
    assert result("lr.d a1, (a0)\nsc.d a1, a2, (a0)\nsc.d a1, a2, (a0)") == 1
    assert result("lr.d a1, (a0)\nsc.d a1, a2, (a3)") == 1  # elsewhere
    assert result("lr.d a1, (a0)\nsc.d a4, a2, (a3)\nsc.d a1, a2, (a0)") == 1
    assert result("lr.d a1, (a0)\nsd a2, (a0)\nsc.d a1, zero, (a0)") == 1  # written between
    assert computer.memory.load_u64(DATA) == 7
    assert result("lr.w a1, (a0)\nsc.w a1, a2, (a0)") == 0


def test_atomics_on_the_last_word_of_ram(computer: Computer) -> None:
    end = BASE + computer.memory.size
    for text in (
        "lr.w a1, (a0)",
        "amoadd.w a1, a2, (a0)",
        "sc.w a1, a2, (a0)",
        "lw a1, (a0)",
        "sw a1, (a0)",
    ):
        computer["x10"] = end - 4
        assert computer.attempt(text) is None
        computer["x10"] = end
        assert computer.attempt(text) is not None
