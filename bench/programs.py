"""Bare-metal programs for both: assembled here, ended through the test finisher."""

from __future__ import annotations

from dataclasses import dataclass

END = """
    li t0, 0x100000
    li t1, 0x5555
    sw t1, 0(t0)
stop: j stop
"""

INTEGER = """
    li a1, {n}
    li a0, 0x12345
loop:
    slli a2, a0, 13
    xor a0, a0, a2
    srli a2, a0, 7
    xor a0, a0, a2
    slli a2, a0, 17
    xor a0, a0, a2
    addi a1, a1, -1
    bnez a1, loop
"""

COPY = """
    li a1, {n}
pass:
    li a2, 0x80100000
    li a3, 0x80200000
    li a4, 0x80120000
copy:
    ld t0, 0(a2)
    ld t1, 8(a2)
    ld t2, 16(a2)
    ld t3, 24(a2)
    sd t0, 0(a3)
    sd t1, 8(a3)
    sd t2, 16(a3)
    sd t3, 24(a3)
    addi a2, a2, 32
    addi a3, a3, 32
    bltu a2, a4, copy
    addi a1, a1, -1
    bnez a1, pass
"""

FLOAT = """
    li t0, 0x6000
    csrs mstatus, t0
    li a1, {n}
    li t0, 3
    fcvt.d.w f1, t0
    li t0, 7
    fcvt.d.w f2, t0
    fdiv.d f3, f1, f2
    fcvt.d.w f4, zero
loop:
    fmul.d f5, f3, f3
    fadd.d f4, f4, f5
    fmadd.d f4, f3, f5, f4
    fsub.d f4, f4, f3
    addi a1, a1, -1
    bnez a1, loop
"""

SYSCALL = """
    la t0, handler
    csrw mtvec, t0
    li t0, -1
    csrw pmpaddr0, t0
    li t0, 0x1f
    csrw pmpcfg0, t0
    la t0, user
    csrw mepc, t0
    li t0, 0x1800
    csrc mstatus, t0
    li a1, {n}
    mret
user:
    ecall
    addi a1, a1, -1
    bnez a1, user
    li a7, 1
    ecall
.align 2
handler:
    bnez a7, over
    csrr t1, mepc
    addi t1, t1, 4
    csrw mepc, t1
    mret
over:
"""

SWITCH = """
    li t0, -1
    csrw pmpaddr0, t0
    li t0, 0x1f
    csrw pmpcfg0, t0
    # two roots with one gigapage each: 0x80000000 mapped to itself
    li t0, 0x80100000
    li t1, 0x80200000
    li t2, 0x200000cf
    sd t2, 16(t0)
    sd t2, 16(t1)
    li s0, 0x8000000000080100
    li s1, 0x8000000000080200
    la t0, supervisor
    csrw mepc, t0
    la t0, over
    csrw mtvec, t0
    li t0, 0x1800
    csrc mstatus, t0
    li t0, 0x800
    csrs mstatus, t0
    li a1, {n}
    mret
supervisor:
    csrw satp, s0
    sfence.vma
    ld t0, 0(s2)
    csrw satp, s1
    sfence.vma
    ld t0, 0(s2)
    addi a1, a1, -1
    bnez a1, supervisor
    ecall
.align 2
over:
"""
SWITCH = SWITCH.replace("    li s0,", "    li s2, 0x80001000\n    li s0,", 1)

# Both harts do the work; the last to finish ends the run.
TWO_HARTS = (
    """
    csrr s0, mhartid
"""
    + INTEGER
    + """
    la t0, done
    li t1, 1
    amoadd.d t2, t1, (t0)
    li t3, {others}
    beq t2, t3, over
wait: j wait
.align 3
done: .dword 0
over:
"""
)


@dataclass(frozen=True, slots=True)
class Program:
    """A loop: its text, and how often it goes round."""

    name: str
    what: str
    text: str
    count: int
    harts: int = 1

    def source(self, quick: bool) -> str:
        """The assembly, ending the machine when it is done."""
        n = self.count // (8 if quick else 1)
        return self.text.format(n=n, others=self.harts - 1) + END


# fmt: off
PROGRAMS = (
    Program("integer",  "xorshift, 8 instructions a round",     INTEGER, 60_000_000),
    Program("copy",     "128 KiB copied, 8 bytes at a time",    COPY,    8_000),
    Program("float",    "double multiply, add, multiply-add",   FLOAT,   40_000_000),
    Program("syscall",  "ecall from U to M and back",           SYSCALL, 4_000_000),
    Program("switch",   "satp written, sfence.vma, a load; twice", SWITCH, 400_000),
)
ONE_HART = Program("one hart",  "the integer loop", TWO_HARTS, 60_000_000, 1)
BOTH_HARTS = Program("two harts", "the integer loop on each of two harts", TWO_HARTS, 60_000_000, 2)
# fmt: on
