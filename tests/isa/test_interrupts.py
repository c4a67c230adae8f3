import random

import pytest

from kasou.isa.interrupts import pending_interrupt, take_trap
from kasou.isa.word import Word

NAMES = {11: "MEI", 3: "MSI", 7: "MTI", 9: "SEI", 1: "SSI", 5: "STI"}


def expected_interrupt(pending, enabled, delegated, priv, mie, sie):
    """Priv. 3.1.9, read as prose."""
    for to_machine in (True, False):
        if to_machine and priv == 3 and not mie:
            continue
        if not to_machine and (priv == 3 or (priv == 1 and not sie)):
            continue
        for code in (11, 3, 7, 9, 1, 5):
            bit = 1 << code
            if pending & enabled & bit and bool(delegated & bit) != to_machine:
                return 1 << 63 | code
    return 0


def test_priority_delegation_and_enables(machine):
    rng = random.Random(1)
    hart = machine.hart
    for _ in range(3000):
        bits = {code: rng.random() < 0.4 for code in NAMES}
        hart.line_meip, hart.line_msip, hart.line_seip = bits[11], bits[3], bits[9]
        machine.now, hart.mtimecmp = 5, 5 if bits[7] else 6
        hart.mip = bits[1] << 1 | bits[5] << 5
        pending = sum(on << code for code, on in bits.items())
        enabled, delegated = rng.getrandbits(12) & 0xAAA, rng.getrandbits(12) & 0x222
        priv, mie, sie = rng.choice((0, 1, 3)), rng.getrandbits(1), rng.getrandbits(1)
        hart.mie, hart.mideleg, hart.priv = enabled, delegated, priv
        hart.mstatus = mie << 3 | sie << 1
        want = expected_interrupt(pending, enabled, delegated, priv, mie, sie)
        assert int(pending_interrupt(hart)) == want


@pytest.mark.parametrize("code", [*range(10), 11, 12, 13, 15])
@pytest.mark.parametrize("priv", [0, 1, 3])
@pytest.mark.parametrize("delegated", [False, True])
@pytest.mark.parametrize("mode", [0, 1])
def test_exceptions_go_where_they_are_delegated(machine, code, priv, delegated, mode):
    hart = machine.hart
    hart.priv, hart.medeleg, hart.mideleg = priv, delegated << code, 0xFFFF
    hart.mtvec, hart.stvec = 0x1000 | mode, 0x2000 | mode
    hart.mstatus = 0xA | 1 << 17
    take_trap(hart, Word(code), Word(0x77), Word(0x88))
    if delegated and priv != 3:
        assert (int(hart.scause), int(hart.stval), int(hart.sepc)) == (code, 0x77, 0x88)
        assert (int(hart.pc), int(hart.priv), int(hart.mcause)) == (0x2000, 1, 0)
        assert hart.mstatus == 8 | 1 << 5 | priv << 8 | 1 << 17
    else:
        assert (int(hart.mcause), int(hart.mtval), int(hart.mepc)) == (code, 0x77, 0x88)
        assert (int(hart.pc), int(hart.priv), int(hart.scause)) == (0x1000, 3, 0)
        assert hart.mstatus == 2 | 1 << 7 | priv << 11 | 1 << 17


@pytest.mark.parametrize("code", sorted(NAMES))
@pytest.mark.parametrize("mode", [0, 1])
def test_interrupts_may_be_vectored(machine, code, mode):
    hart = machine.hart
    hart.priv, hart.mideleg, hart.medeleg = 1, 0x222, 0xFFFF
    hart.mtvec, hart.stvec = 0x1000 | mode, 0x2000 | mode
    take_trap(hart, Word(1 << 63 | code), Word(0), Word(0x88))
    base = 0x2000 if 0x222 >> code & 1 else 0x1000
    assert hart.pc == base + 4 * code * mode
    cause = hart.scause if base == 0x2000 else hart.mcause
    assert cause == 1 << 63 | code


def test_an_interrupt_is_taken_before_the_next_instruction_and_counts_nothing(machine, insn):
    hart = machine.hart
    machine.put("mtvec", 0x8000_0100)
    machine.program(insn("addi", rd=1, rs1=1, imm=1), insn("addi", rd=1, rs1=1, imm=1))
    machine.program(insn("addi", rd=2, rs1=2, imm=7), at=0x8000_0100)
    hart.step()
    machine.put("mie", 1 << 7)
    machine.put("mstatus", 8)
    hart.mtimecmp = 10
    machine.now = 10
    hart.step()
    assert (int(hart.x[1]), int(hart.x[2]), int(hart.mepc)) == (1, 7, 0x8000_0004)
    assert hart.mcause == 1 << 63 | 7
    assert hart.instructions == 2
