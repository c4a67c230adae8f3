"""Two harts at once: atomic counters, spin locks, message passing, and code one writes for the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from kasou.isa.asm import assemble
from kasou.machine.machine import Machine, MachineConfig

ROUNDS = 200_000
SHARED = 0x8010_0000
FINISH = """
# hart 0 waits for the others and ends the machine: 0x5555 is success, a number << 16 | 0x3333 a code
finish:
    li t0, {shared} + 0x800
    li t1, 1
    amoadd.w zero, t1, (t0)
    csrr t2, mhartid
    bnez t2, park
wait:
    lw t1, (t0)
    li t2, {harts}
    bne t1, t2, wait
    fence
    {check}
    li t0, 0x100000
    li t1, 0x5555
    beq a0, a1, 1f
    li t1, 0x13333
1:  sw t1, (t0)
park:
    j park
"""


def run(
    tmp_path: Path,
    body: str,
    check: str,
    harts: int = 2,
    clock: str = "host",
    engine: str = "interpreter",
) -> Machine:
    """Run a program on every hart to the end; it succeeded if a0 = a1 after `check`."""
    text = body + FINISH.format(shared=hex(SHARED), harts=harts, check=check)
    program = tmp_path / "program.bin"
    program.write_bytes(assemble(text, 0x8000_0000))
    config = MachineConfig(
        bios="none",
        kernel=program,
        memory=8 << 20,
        harts=harts,
        clock=clock,
        engine=engine,
        reboot=False,
    )
    machine = Machine(config, lambda _data: None)
    outcome = machine.run(timeout=120)
    shown = [hex(machine.memory.load_u64(SHARED + 8 * i)) for i in range(8)]
    assert (outcome.kind, outcome.code) == ("poweroff", 0), (outcome, shown)
    return machine


def total(harts: int, rounds: int = ROUNDS, load: str = "ld") -> str:
    return f"li t0, {SHARED:#x}\n{load} a0, (t0)\nli a1, {harts * rounds}"


INCREMENTS = {
    "amoadd.d": "amoadd.d zero, s2, (s0)",
    "amoadd.w": "amoadd.w zero, s2, (s0)",
    "lr.d": "1: lr.d t0, (s0)\naddi t0, t0, 1\nsc.d t1, t0, (s0)\nbnez t1, 1b",
    "lr.w": "1: lr.w t0, (s0)\naddi t0, t0, 1\nsc.w t1, t0, (s0)\nbnez t1, 1b",
    "swap lock": """
        1: amoswap.w.aq t0, s2, (s3)
        bnez t0, 1b
        ld t0, (s0)
        addi t0, t0, 1
        sd t0, (s0)
        amoswap.w.rl zero, zero, (s3)""",
    "lr lock": """
        1: lr.w.aq t0, (s3)
        bnez t0, 1b
        sc.w t0, s2, (s3)
        bnez t0, 1b
        ld t0, (s0)
        addi t0, t0, 1
        sd t0, (s0)
        fence rw, w
        sw zero, (s3)""",
    "amomaxu": """
        1: ld t0, (s0)
        addi t1, t0, 1
        lr.d t2, (s0)
        bne t2, t0, 1b
        sc.d t2, t1, (s0)
        bnez t2, 1b
        amomaxu.d zero, t1, (s3)""",
}


@pytest.mark.parametrize("how", INCREMENTS)
@pytest.mark.parametrize(("harts", "clock", "engine"), [
    (2, "host", "interpreter"), (4, "host", "interpreter"), (2, "icount", "interpreter"), (2, "icount", "reference"),
])  # fmt: skip
def test_counters_are_exact(tmp_path: Path, how: str, harts: int, clock: str, engine: str) -> None:
    rounds = 500 if engine == "reference" else ROUNDS
    body = f"li s0, {SHARED:#x}\nli s1, {rounds}\nli s2, 1\nli s3, {SHARED + 0x40:#x}\n2:\n{INCREMENTS[how]}\naddi s1, s1, -1\nbnez s1, 2b\n"
    load = "lw" if how.endswith(".w") else "ld"
    run(tmp_path, body, total(harts, rounds, load), harts, clock, engine)


def test_neighbouring_words_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Plain and misaligned stores of one hart beside AMOs of the other on the same cache line."""
    body = f"""
        li s0, {SHARED:#x}
        li s1, {ROUNDS}
        li s2, 1
        csrr t0, mhartid
        bnez t0, other
    1:  amoadd.w zero, s2, (s0)
        addi s1, s1, -1
        bnez s1, 1b
        j finish
    other:
    1:  sw s1, 4(s0)
        sb s1, 8(s0)
        sw s1, 13(s0)
        addi s1, s1, -1
        bnez s1, 1b
        j finish
    """
    run(tmp_path, body, f"li t0, {SHARED:#x}\nlw a0, (t0)\nli a1, {ROUNDS}")


def test_messages_arrive_in_order(tmp_path: Path) -> None:
    """Data, fence, flag; and back."""
    rounds = 20_000
    body = f"""
        li s0, {SHARED:#x}
        li s1, 1
        li s4, {rounds}
        csrr t0, mhartid
        bnez t0, receive
    send:
        slli t0, s1, 3
        sd t0, 0x40(s0)
        fence w, w
        sd s1, 0x100(s0)
    1:  ld t0, 0x180(s0)
        bne t0, s1, 1b
        addi s1, s1, 1
        ble s1, s4, send
        j finish
    receive:
    1:  ld t0, 0x100(s0)
        bne t0, s1, 1b
        fence r, r
        ld t0, 0x40(s0)
        srli t0, t0, 3
        beq t0, s1, 2f
        li t1, 1
        sd t1, (s0)
    2:  sd s1, 0x180(s0)
        addi s1, s1, 1
        ble s1, s4, receive
        j finish
    """
    run(tmp_path, body, f"li t0, {SHARED:#x}\nld a0, (t0)\nli a1, 0")


def test_store_buffers_are_fenced(tmp_path: Path) -> None:
    """Dekker: with a full fence at least one of two harts sees the other's store."""
    rounds = 20_000
    body = f"""
        li s0, {SHARED:#x}
        li s1, 1
        li s4, {rounds}
        csrr t0, mhartid
        slli t0, t0, 6
        addi s2, s0, 0x100
        addi s3, s0, 0x140
        beqz t0, 1f
        mv t1, s2
        mv s2, s3
        mv s3, t1
    1:  addi s5, s0, 0x200
        addi s6, s0, 0x240
    round:
        sd s1, (s2)
        fence rw, rw
        ld t3, (s3)
        # both report what they saw, then meet
        slt t4, t3, s1
        li t5, 1
        amoadd.d zero, t4, (s5)
        amoadd.d t6, t5, (s6)
        slli t0, s1, 1
    2:  ld t6, (s6)
        blt t6, t0, 2b
        ld t4, (s5)
        li t5, 2
        bne t4, t5, 3f
        sd t5, (s0)
    3:  addi s7, s0, 0x280
        li t5, 1
        amoadd.d t6, t5, (s7)
    4:  ld t6, (s7)
        blt t6, t0, 4b
        sd zero, (s5)
        addi s8, s0, 0x2c0
        amoadd.d t6, t5, (s8)
    5:  ld t6, (s8)
        blt t6, t0, 5b
        addi s1, s1, 1
        ble s1, s4, round
        j finish
    """
    run(tmp_path, body, f"li t0, {SHARED:#x}\nld a0, (t0)\nli a1, 0")


@pytest.mark.parametrize(("clock", "engine", "rounds"), [
    ("host", "interpreter", 1000), ("icount", "interpreter", 20), ("icount", "reference", 3),
])  # fmt: skip
def test_code_written_by_the_other_hart(
    tmp_path: Path, clock: str, engine: str, rounds: int
) -> None:
    """Hart 0 rewrites a function and interrupts hart 1, which does fence.i and calls it."""
    body = f"""
        li s0, {SHARED:#x}
        li s1, 1
        li s4, {rounds}
        li s5, 0x80110000       # the function: addi a0, zero, n; ret
        li s6, 0x2000000        # msip of hart 0; of hart 1 behind it
        csrr t0, mhartid
        bnez t0, callee
        li s7, 0x00000513
        li t0, 0x00008067
        sw t0, 4(s5)
    write:
        slli t0, s1, 20
        or t0, t0, s7
        sw t0, (s5)
        fence rw, rw
        li t0, 1
        sw t0, 4(s6)
    1:  ld t0, 0x100(s0)
        bne t0, s1, 1b
        addi s1, s1, 1
        ble s1, s4, write
        j finish
    callee:
        csrwi mie, 8
        li s8, 0x80000000
    2:  wfi
        csrr t0, mip
        andi t0, t0, 8
        beqz t0, 2b
        sw zero, 4(s6)
        fence rw, rw
        fence.i
        jalr s5
        beq a0, s1, 3f
        sd a0, (s0)
    3:  fence rw, rw
        sd s1, 0x100(s0)
        addi s1, s1, 1
        ble s1, s4, 2b
        j finish
    """
    run(tmp_path, body, f"li t0, {SHARED:#x}\nld a0, (t0)\nli a1, 0", clock=clock, engine=engine)


def test_both_harts_write_and_run_the_same_page(tmp_path: Path) -> None:
    """Each has a function of its own there: write permission and decoded code change hands."""
    body = f"""
        li s0, {SHARED:#x}
        li s1, 30000
        li s5, 0x80110000
        csrr t0, mhartid
        slli t0, t0, 8
        add s5, s5, t0
        li s7, 0x00000513
        li t0, 0x00008067
        sw t0, 4(s5)
    1:  andi t1, s1, 1023
        slli t0, t1, 20
        or t0, t0, s7
        sw t0, (s5)
        fence.i
        jalr s5
        beq a0, t1, 2f
        sd s1, (s0)
    2:  addi s1, s1, -1
        bnez s1, 1b
    """
    run(tmp_path, body, f"li t0, {SHARED:#x}\nld a0, (t0)\nli a1, 0")


def test_page_tables_are_marked_by_two_harts(tmp_path: Path) -> None:
    """Svadu: both set A and D of the same entries while a third counter in them must not be lost."""
    rounds = 300
    body = f"""
        li s0, {SHARED:#x}
        li s1, {rounds}
        li t0, 1
        slli t0, t0, 61
        csrw menvcfg, t0
        # root at 0x80200000, next at 0x80201000, last at 0x80202000, for gva 0x40000000
        li s2, 0x80200000
        li t0, 0x20080401
        sd t0, 8(s2)
        li t0, 0x20080801
        li t1, 0x80201000
        sd t0, (t1)
        li s3, 0x80202000
        li s5, 0x40000000
        li t0, 8
        slli t0, t0, 60
        li t1, 0x80200
        or s6, t0, t1
        li s7, 0x20040007       # 0x80100000, V R W
        csrr t0, mhartid
        slli t0, t0, 3
        add s9, s3, t0          # each hart has its entry; both are in one table
        slli t0, t0, 9
        add s5, s5, t0
        csrw satp, s6
        li s8, 0x20800          # MPRV, MPP = S
        li t2, 1
        slli t2, t2, 11
        # all memory is open to S
        li t0, -1
        srli t0, t0, 10
        csrw pmpaddr0, t0
        csrwi pmpcfg0, 0x1f
    1:  sd s7, (s9)
        sfence.vma
        csrs mstatus, s8
        amoadd.d zero, s4, (s5)
        sd s1, 0x40(s5)
        li t0, 0x20000
        csrc mstatus, t0
        ld t1, (s9)
        andi t1, t1, 0xc0
        li t0, 0xc0
        beq t0, t1, 2f
        sd s1, (s0)
    2:  addi s1, s1, -1
        bnez s1, 1b
    """
    run(tmp_path, body, f"li t0, {SHARED:#x}\nld a0, (t0)\nli a1, 0")
