"""Programs that check themselves, on each engine: code that changes, atomics, fences, traps."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance.bare import run

ENGINES = ["interpreter", "reference"]

# `patch` holds `li a0, 1`; it is overwritten with `li a0, 2`.
SELF_MODIFYING = """
    la s0, patch
    li s1, 0x00200513
    jal ra, patch
    li gp, 1
    li t0, 1
    bne a0, t0, fail
    sw s1, 0(s0)
    fence.i
    jal ra, patch
    li gp, 2
    li t0, 2
    bne a0, t0, fail
    # and back, many times: every fence.i is seen
    li s2, 200
again:
    andi t1, s2, 1
    addi t1, t1, 1
    slli t2, t1, 20
    li t3, 0x513
    or t2, t2, t3
    sw t2, 0(s0)
    fence.i
    jal ra, patch
    li gp, 3
    bne a0, t1, fail
    addi s2, s2, -1
    bnez s2, again
    j pass
.align 2
patch:
    li a0, 1
    ret
"""

# Without fence.i either version may run, but nothing else may happen.
UNFENCED = """
    la s0, patch
    li s1, 0x00200513
    jal ra, patch
    sw s1, 0(s0)
    jal ra, patch
    li gp, 1
    addi a0, a0, -1
    sltiu t0, a0, 2
    beqz t0, fail
    j pass
.align 2
patch:
    li a0, 1
    ret
"""

# An instruction whose halves are in two pages; then its second page is not executable.
PAGE_CROSSING = """
    la t0, handler
    csrw mtvec, t0
    li t0, 0x80001ffe
    li t1, 0x00500513       # li a0, 5
    sh t1, 0(t0)
    srli t1, t1, 16
    sh t1, 2(t0)
    li t1, 0x8082           # ret
    sh t1, 4(t0)
    fence.i
    jalr ra, 0(t0)
    li gp, 1
    li t1, 5
    bne a0, t1, fail
    # S-mode may execute below 0x80002000 only
    li t1, 0x20000800
    csrw pmpaddr0, t1
    li t1, 0x0f
    csrw pmpcfg0, t1
    csrw mepc, t0
    li t1, 0x1800
    csrc mstatus, t1
    li t1, 0x800
    csrs mstatus, t1
    mret
.align 2
handler:
    csrr t2, mcause
    li gp, 2
    li t3, 1
    bne t2, t3, fail
    csrr t2, mepc
    li gp, 3
    bne t2, t0, fail
    csrr t2, mtval
    li gp, 4
    addi t3, t0, 2
    bne t2, t3, fail
    j pass
"""

RESERVATION = """
    la s0, word
    lr.d a0, (s0)
    addi a0, a0, 1
    sc.d a1, a0, (s0)
    li gp, 1
    bnez a1, fail
    sc.d a1, a0, (s0)       # the reservation is gone
    li gp, 2
    beqz a1, fail
    la t0, handler
    csrw mtvec, t0
    addi s1, s0, 4
    li gp, 3
    amoadd.d a0, a0, (s1)   # misaligned
    j fail
.align 2
handler:
    csrr t0, mcause
    li t1, 6
    li gp, 4
    bne t0, t1, fail
    csrr t0, mtval
    li gp, 5
    bne t0, s1, fail
    j pass
.align 3
word: .dword 41, 0
"""

TIMER = """
    la t0, handler
    csrw mtvec, t0
    li t0, 0x80
    csrw mie, t0
    li t1, 0x200bff8
    ld t2, 0(t1)
    addi t2, t2, 500
    li t1, 0x2004000
    sd t2, 0(t1)
    csrsi mstatus, 8
    li gp, 1
1:  wfi
    j 1b
.align 2
handler:
    csrr t0, mcause
    li t1, 0x8000000000000007
    li gp, 2
    bne t0, t1, fail
    csrr t0, time
    li gp, 3
    bltu t0, t2, fail
    j pass
"""

NOTHING_THERE = """
    la t0, handler
    csrw mtvec, t0
    li s0, 0x18000000
    ld a0, 0(s0)
    li gp, 1
    j fail
.align 2
handler:
    csrr t0, mcause
    li t1, 5
    li gp, 2
    bne t0, t1, fail
    csrr t0, mtval
    li gp, 3
    bne t0, s0, fail
    j pass
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clock", ["host", "icount"])
@pytest.mark.parametrize(
    "text",
    [SELF_MODIFYING, UNFENCED, PAGE_CROSSING, RESERVATION, TIMER, NOTHING_THERE],
    ids=["self-modifying", "unfenced", "page-crossing", "reservation", "timer", "nothing-there"],
)
def test_program(tmp_path: Path, engine: str, clock: str, text: str) -> None:
    assert run(tmp_path, text, engine=engine, clock=clock) == 0


def test_a_failure_is_seen(tmp_path: Path) -> None:
    assert run(tmp_path, "    li gp, 7\n    j fail\n") == 7


# ------------------------------------------------------------------ two harts
COUNT = 20_000
TWO_HARTS = """
    la s0, added
    la s3, reserved
    la s4, lock
    la s5, guarded
    la s6, finished
    li s1, {count}
    li s2, 1
loop:
    amoadd.d zero, s2, (s0)
1:  lr.d t0, (s3)
    addi t0, t0, 1
    sc.d t1, t0, (s3)
    bnez t1, 1b
2:  amoswap.w.aq t0, s2, (s4)
    bnez t0, 2b
    ld t0, 0(s5)
    addi t0, t0, 1
    sd t0, 0(s5)
    amoswap.w.rl zero, zero, (s4)
    addi s1, s1, -1
    bnez s1, loop
    amoadd.d t0, s2, (s6)
    csrr t1, mhartid
    bnez t1, sleep
3:  ld t0, 0(s6)
    li t1, 2
    bne t0, t1, 3b
    fence
    li t1, {total}
    li gp, 1
    ld t0, 0(s0)
    bne t0, t1, fail
    li gp, 2
    ld t0, 0(s3)
    bne t0, t1, fail
    li gp, 3
    ld t0, 0(s5)
    bne t0, t1, fail
    j pass
sleep:
    wfi
    j sleep
.align 3
added: .dword 0
reserved: .dword 0
lock: .dword 0
guarded: .dword 0
finished: .dword 0
"""

# Hart 0 rewrites a function that hart 1 calls, and tells it by a flag; hart 1 does fence.i.
REMOTE_CODE = """
    la s0, patch
    la s1, round
    la s2, answer
    li s3, 300
    csrr t0, mhartid
    bnez t0, other
    li s4, 1
1:  slli t2, s4, 20
    li t3, 0x513
    or t2, t2, t3
    sw t2, 0(s0)
    fence
    sd s4, 0(s1)
2:  ld t0, 0(s2)
    srli t1, t0, 32
    bne t1, s4, 2b
    slli t0, t0, 32
    srli t0, t0, 32
    li gp, 1
    bne t0, s4, fail
    addi s4, s4, 1
    bne s4, s3, 1b
    j pass
other:
    li s4, 1
3:  ld t0, 0(s1)
    bne t0, s4, 3b
    fence
    fence.i
    jal ra, patch
    slli t0, s4, 32
    or a0, a0, t0
    sd a0, 0(s2)
    addi s4, s4, 1
    j 3b
.align 3
round: .dword 0
answer: .dword 0
.align 12
patch:
    li a0, 0
    ret
"""


def test_atomics_of_two_harts(tmp_path: Path) -> None:
    text = TWO_HARTS.format(count=COUNT, total=2 * COUNT)
    assert run(tmp_path, text, harts=2) == 0


def test_atomics_of_two_harts_in_turns(tmp_path: Path) -> None:
    text = TWO_HARTS.format(count=COUNT, total=2 * COUNT)
    assert run(tmp_path, text, harts=2, clock="icount") == 0


def test_code_written_by_another_hart(tmp_path: Path) -> None:
    assert run(tmp_path, REMOTE_CODE, harts=2) == 0
