"""The reference model as a machine: programs, faults, devices. (Here, beside its fixtures.)"""

import struct

import pytest

from kasou.engine.reference import ATOMIC

BASE, DEVICE = 0x8000_0000, 0x1000_0000
V, R, W, X, U, A, D = (1 << i for i in (0, 1, 2, 3, 4, 6, 7))


def regs(machine, *numbers):
    return [int(machine.hart.x[n]) for n in numbers]


def paged(machine, pages):
    """Sv39 with 4 KiB pages at gva 0, 0x1000, ...: (gpa, flags) each; S-mode, traps to M."""
    machine.open_pmp()
    root, middle, last = (BASE + (1 << 20) + (i << 12) for i in range(3))
    machine.memory.store_u64(root, middle >> 2 | V)
    machine.memory.store_u64(middle, last >> 2 | V)
    for i, (pa, flags) in enumerate(pages):
        machine.memory.store_u64(last + 8 * i, pa >> 2 | flags)
    machine.put("satp", 8 << 60 | root >> 12)
    machine.put("mtvec", BASE + 0x8000)
    machine.hart.priv = 1


def test_a_loop_sums(machine, insn):
    machine.program(
        insn("addi", rd=1, imm=100),
        insn("add", rd=2, rs1=2, rs2=1),
        insn("addi", rd=1, rs1=1, imm=-1),
        insn("bne", rs1=1, rs2=0, imm=-8),
        insn("addi", rd=0, rs1=2, imm=5),
    )
    assert machine.hart.run(302) is None
    assert regs(machine, 0, 1, 2) == [0, 0, 5050]
    assert machine.hart.pc == BASE + 20
    assert machine.hart.instructions == 302


def test_a_system_call_and_back(machine, insn):
    """M-mode drops to U-mode, which calls; the handler returns behind the ecall."""
    machine.open_pmp()
    user, handler = BASE + 0x1000, BASE + 0x2000
    machine.put("mtvec", handler)
    machine.put("mepc", user)
    machine.program(insn("mret"))
    machine.program(insn("addi", rd=10, imm=42), insn("ecall"), insn("addi", rd=11, imm=7), at=user)
    machine.program(
        insn("csrrs", rd=5, csr="mepc"),
        insn("addi", rd=5, rs1=5, imm=4),
        insn("csrrw", rs1=5, csr="mepc"),
        insn("csrrs", rd=6, csr="mcause"),
        insn("mret"),
        at=handler,
    )
    machine.hart.run(9)
    assert regs(machine, 10, 11, 6) == [42, 7, 8]
    assert int(machine.hart.priv) == 0


def test_compressed_instructions_and_illegal_ones(machine, insn):
    machine.put("mtvec", BASE + 0x100)
    machine.memory.store(BASE, 2, 0x0085)  # c.addi x1, 1
    machine.memory.store(BASE + 2, 4, insn("addi", rd=1, rs1=1, imm=2))
    machine.memory.store(BASE + 6, 2, 0)
    machine.hart.run(3)
    assert regs(machine, 1) == [3]
    assert [machine.get(n) for n in ("mcause", "mtval", "mepc")] == [2, 0, BASE + 6]
    machine.hart.pc = BASE + 0x200
    machine.memory.store(BASE + 0x200, 4, 0xFFFF_FFFF)
    machine.hart.step()
    assert [machine.get(n) for n in ("mcause", "mtval")] == [2, 0xFFFF_FFFF]
    machine.hart.pc = BASE + 0x200
    machine.memory.store(BASE + 0x200, 2, 0x8000)
    machine.hart.step()
    assert [machine.get(n) for n in ("mcause", "mtval")] == [2, 0x8000]


def test_misaligned_accesses_work_in_ram(machine, insn):
    machine.hart.x[1] = BASE + 0x3FFD
    machine.hart.x[2] = 0x1122_3344_5566_7788
    machine.run(
        insn("sd", rs1=1, rs2=2, imm=0), insn("ld", rd=3, rs1=1), insn("lh", rd=4, rs1=1, imm=1)
    )
    assert regs(machine, 3, 4) == [0x1122_3344_5566_7788, 0x6677]


RW = V | R | W | X | A | D


@pytest.mark.parametrize("op", ["load", "store"])
def test_a_crossing_access_uses_both_pages_or_none(machine, insn, op):
    paged(machine, [(BASE, RW), (BASE + 0x5000, RW), (BASE + 0x7000, RW), (BASE + 0x6000, V)])
    machine.hart.pc = 0
    machine.hart.x[1], machine.hart.x[2] = 0x1FFE, 0x1122_3344
    machine.memory.write(BASE + 0x5FFE, b"ab")
    machine.memory.write(BASE + 0x7000, b"cd")
    if op == "load":
        machine.run(insn("lw", rd=3, rs1=1))
        assert regs(machine, 3) == [int.from_bytes(b"abcd", "little")]
    else:
        machine.run(insn("sw", rs1=1, rs2=2))
        assert machine.memory.read(BASE + 0x5FFE, 2) == b"\x44\x33"
        assert machine.memory.read(BASE + 0x7000, 2) == b"\x22\x11"
    machine.hart.x[1] = 0x2FFE
    machine.memory.write(BASE + 0x7FFE, b"xy")
    machine.run(insn("lw", rd=3, rs1=1) if op == "load" else insn("sw", rs1=1, rs2=2))
    assert [machine.get(n) for n in ("mcause", "mtval")] == [13 if op == "load" else 15, 0x3000]
    assert machine.memory.read(BASE + 0x7FFE, 2) == b"xy"


def test_an_instruction_across_a_page_end(machine, insn):
    paged(machine, [(BASE, RW), (BASE + 0x5000, RW), (BASE + 0x7000, V | R | A)])
    word = insn("addi", rd=1, imm=9)
    machine.memory.store(BASE + 0xFFE, 2, word & 0xFFFF)
    machine.memory.store(BASE + 0x5000, 2, word >> 16)
    machine.hart.pc = 0xFFE
    machine.hart.step()
    assert regs(machine, 1) == [9]
    machine.memory.store(BASE + 0x5FFE, 2, word & 0xFFFF)
    machine.hart.pc = 0x1FFE
    machine.hart.step()
    assert [machine.get(n) for n in ("mcause", "mtval", "mepc")] == [12, 0x2000, 0x1FFE]
    assert machine.hart.priv == 3


def test_fetching_outside_of_ram_is_an_access_fault(machine):
    machine.put("mtvec", BASE)
    machine.hart.pc = DEVICE
    machine.hart.step()
    assert [machine.get(n) for n in ("mcause", "mtval")] == [1, DEVICE]


def test_devices_are_accessed_once_and_aligned(machine, insn):
    machine.put("mtvec", BASE + 0x800)
    machine.hart.x[1], machine.hart.x[2] = DEVICE, 0xAABB_CCDD
    machine.run(insn("lw", rd=3, rs1=1, imm=4), insn("sh", rs1=1, rs2=2, imm=2))
    assert regs(machine, 3) == [0x4433_2211]
    assert machine.bus.log == [("r", 4, 4), ("w", 2, 2, 0xCCDD)]
    for word, cause, tval in (
        (insn("lw", rd=3, rs1=1, imm=1), 5, DEVICE + 1),
        (insn("sd", rs1=1, rs2=2, imm=4), 7, DEVICE + 4),
        (insn("lb", rd=3, rs1=1, imm=16), 5, DEVICE + 16),
        (insn("sb", rs1=0, rs2=2), 7, 0),
        (insn("lr.w", rd=3, rs1=1), 5, DEVICE),
        (insn("sc.w", rd=3, rs1=1, rs2=2), 7, DEVICE),
        (insn("amoadd.d", rd=3, rs1=1, rs2=2), 7, DEVICE),
    ):
        machine.run(word)
        assert [machine.get(n) for n in ("mcause", "mtval")] == [cause, tval]
    assert len(machine.bus.log) == 2


def test_mprv_makes_data_accesses_those_of_mpp(machine, insn):
    paged(machine, [(BASE, RW | U), (BASE + 0x5000, RW)])
    machine.hart.priv = 3
    machine.hart.x[1] = 0x1000
    machine.memory.store(BASE + 0x5000, 4, 77)
    machine.put("mstatus", 1 << 17 | 1 << 11)
    machine.run(insn("lw", rd=3, rs1=1))
    assert regs(machine, 3) == [77]
    machine.put("mstatus", 1 << 17)
    machine.run(insn("lw", rd=3, rs1=1))
    assert [machine.get(n) for n in ("mcause", "mtval")] == [13, 0x1000]


@pytest.mark.parametrize("width", [4, 8])
def test_atomics(machine, insn, width):
    letter, mask = {4: ("w", (1 << 32) - 1), 8: ("d", (1 << 64) - 1)}[width]

    def signed(value):
        return (value & mask) - (mask + 1 if value & mask > mask >> 1 else 0)

    results = {
        "swap": lambda a, b: b, "add": lambda a, b: a + b, "xor": lambda a, b: a ^ b,
        "and": lambda a, b: a & b, "or": lambda a, b: a | b,
        "min": lambda a, b: a if signed(a) < signed(b) else b,
        "max": lambda a, b: a if signed(a) > signed(b) else b,
        "minu": lambda a, b: min(a & mask, b & mask), "maxu": lambda a, b: max(a & mask, b & mask),
    }  # fmt: skip
    assert set(results) == set(ATOMIC)
    machine.hart.x[1] = BASE + 0x400
    for a, b in ((5, -3), (-3, 5), (1 << 31, 1 << 63), (0xFFFF_FFFF, 1), (-1, -1)):
        for op, result in results.items():
            machine.memory.store(BASE + 0x400, 8, a)
            machine.hart.x[2] = b
            machine.run(insn(f"amo{op}.{letter}", rd=3, rs1=1, rs2=2))
            assert regs(machine, 3) == [signed(a) & (1 << 64) - 1]
            assert machine.memory.load(BASE + 0x400, width) == result(a, b) & mask
    machine.put("mtvec", BASE + 0x800)
    machine.hart.x[1] = BASE + 0x402
    for name, cause in (("amoadd", 6), ("lr", 4), ("sc", 6)):
        machine.run(insn(f"{name}.{letter}", rd=3, rs1=1))
        assert [machine.get(n) for n in ("mcause", "mtval")] == [cause, BASE + 0x402]


def test_load_reserved_store_conditional(machine, insn):
    machine.hart.x[1], machine.hart.x[2] = BASE + 0x400, 5
    lr, sc = insn("lr.d", rd=3, rs1=1), insn("sc.d", rd=4, rs1=1, rs2=2)
    machine.run(sc)
    assert regs(machine, 4) == [1]
    machine.run(lr, sc)
    assert regs(machine, 4) == [0] and machine.memory.load_u64(BASE + 0x400) == 5
    machine.run(sc)
    assert regs(machine, 4) == [1]
    machine.run(lr)
    machine.memory.store_u64(BASE + 0x400, 6)
    machine.run(sc)
    assert regs(machine, 4) == [1]
    machine.run(lr, insn("addi", rd=1, rs1=1, imm=8), sc)
    assert regs(machine, 4) == [1]


def test_cache_blocks(machine, insn):
    machine.put("mtvec", BASE + 0x800)
    machine.memory.write(BASE + 0x400, b"x" * 256)
    machine.hart.x[1] = BASE + 0x477
    machine.run(insn("cbo.zero", rs1=1))
    assert machine.memory.read(BASE + 0x400, 256) == b"x" * 64 + bytes(64) + b"x" * 128
    machine.run(insn("cbo.clean", rs1=1), insn("cbo.flush", rs1=1))
    assert machine.hart.mcause == 0
    machine.hart.x[1] = 0x123
    machine.run(insn("cbo.zero", rs1=1))
    assert [machine.get(n) for n in ("mcause", "mtval")] == [7, 0x123]


def test_cache_block_management_needs_a_load_or_a_store(machine, insn):
    paged(machine, [(BASE, RW), (BASE + 0x5000, V | R | A), (BASE + 0x5000, V | X | A)])
    machine.put("menvcfg", 0xF0)
    machine.hart.x[1] = 0x1077
    machine.hart.pc = 0
    machine.run(insn("cbo.flush", rs1=1))
    assert machine.hart.priv == 1
    machine.hart.x[1] = 0x2077
    machine.run(insn("cbo.flush", rs1=1))
    assert [machine.get(n) for n in ("mcause", "mtval")] == [15, 0x2077]


def test_floating_point_accrues(machine, insn):
    def double(value):
        return struct.unpack("<Q", struct.pack("<d", value))[0]

    machine.put("mstatus", 1 << 13)
    machine.hart.f[1], machine.hart.f[2] = double(1.0), double(3.0)
    machine.run(insn("fdiv.d", fd=3, fs1=1, fs2=2, rm=0))
    assert machine.hart.f[3] == double(1 / 3)
    assert machine.get("fflags") == 1
    assert machine.get("mstatus") >> 63 == 1
    machine.run(insn("fcvt.s.d", fd=4, fs1=3, rm=0))
    assert machine.hart.f[4] == 0xFFFF_FFFF_3EAA_AAAB


def test_a_trapping_instruction_changes_nothing_else(machine, insn):
    """Every instruction that can fault leaves the registers as they were."""
    machine.put("mtvec", BASE + 0x800)
    before = list(range(1, 32))
    for name in ("lb", "lw", "ld", "sd", "amoadd.w", "lr.d", "sc.d"):
        for n in before:
            machine.hart.x[n] = n
        machine.run(insn(name, rs1=8, rs2=9) if name == "sd" else insn(name, rd=5, rs1=8))
        assert machine.hart.mcause in (5, 7)
        assert regs(machine, *before) == before
