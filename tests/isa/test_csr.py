import pytest

from kasou.isa.csr import (
    BY_NAME,
    MISA,
    REGISTERS,
    ZEROS,
    check_csr_access,
    read_csr,
    write_csr,
)
from kasou.isa.word import Word

ONES = (1 << 64) - 1
XL = 0xA << 32
SD = 1 << 63


def test_every_register_is_declared_once():
    numbers = [one.number for one in REGISTERS]
    assert len(set(numbers)) == len(numbers)
    assert len(BY_NAME) == len(REGISTERS) + sum(z.count for z in ZEROS)
    assert len(set(BY_NAME.values())) == len(BY_NAME)
    for one in REGISTERS:
        assert (one.write is None) == (one.number >> 10 == 3), one.name


def test_numbers_of_the_specification():
    expected = {
        "fflags": 1, "fcsr": 3, "sstatus": 0x100, "stvec": 0x105, "scounteren": 0x106,
        "senvcfg": 0x10A, "stimecmp": 0x14D, "satp": 0x180, "mstatus": 0x300, "misa": 0x301,
        "menvcfg": 0x30A, "mcountinhibit": 0x320, "mhpmevent3": 0x323, "mhpmevent31": 0x33F,
        "mip": 0x344, "pmpcfg0": 0x3A0, "pmpcfg2": 0x3A2, "pmpcfg14": 0x3AE, "pmpaddr0": 0x3B0,
        "pmpaddr63": 0x3EF, "mcycle": 0xB00, "minstret": 0xB02, "mhpmcounter31": 0xB1F,
        "time": 0xC01, "hpmcounter31": 0xC1F, "mvendorid": 0xF11, "mhartid": 0xF14,
        "mconfigptr": 0xF15,
    }  # fmt: skip
    assert {name: BY_NAME[name] for name in expected} == expected


def test_absent_numbers_are_illegal(machine, trap):
    known = set(BY_NAME.values())
    for number in set(range(4096)) - known:
        assert trap(read_csr, machine.hart, Word(number)) == (2, None), hex(number)
        assert trap(write_csr, machine.hart, Word(number), Word(0)) == (2, None), hex(number)
    for number in known:
        assert trap(read_csr, machine.hart, Word(number)) is None
    for absent in (0x3A1, 0x3A3, 0x3AF, 0x7A4, 0x747, 0x600, 0xB01, 0xC20):
        assert absent not in known


def test_zeros_stay_zero(machine):
    for name in ("mhpmcounter3", "mhpmevent31", "pmpcfg4", "pmpaddr16", "pmpaddr63"):
        machine.put(name, ONES)
        assert machine.get(name) == 0


# fmt: off
WARL = [
    ("mstatus",    ONES, SD | XL | 0x7E79AA),
    ("mstatus",    0,    XL),
    ("mstatus",    1 << 13, XL | 1 << 13),           # FS Initial: no SD
    ("mstatus",    3 << 13, SD | XL | 3 << 13),
    ("mstatus",    3 << 9,  XL),                     # VS is not here
    ("misa",       0,    MISA),
    ("medeleg",    ONES, 0xB3FF),                    # never ecall from M
    ("mideleg",    ONES, 0x222),
    ("mie",        ONES, 0xAAA),
    ("mtvec",      0x8000_0003, 0x8000_0001),
    ("stvec",      0x8000_0002, 0x8000_0000),
    ("mepc",       0x8000_0003, 0x8000_0002),
    ("sepc",       ONES, ONES - 1),
    ("mcounteren", ONES, 0xFFFF_FFFF),
    ("menvcfg",    ONES, 7 << 61 | 0xF1),
    ("menvcfg",    2 << 4, 0),                       # CBIE = 2 is reserved
    ("senvcfg",    ONES, 0xF1),
    ("mcountinhibit", ONES, 5),
    ("satp",       8 << 60 | 0xABCD << 44 | 0x12345, 8 << 60 | 0xABCD << 44 | 0x12345),
    ("satp",       10 << 60 | ONES >> 20, 10 << 60 | ONES >> 20),
    ("satp",       1 << 60 | 5, 0), ("satp", 11 << 60 | 5, 0), ("satp", 15 << 60, 0),
    ("frm",        ONES, 7), ("fflags", ONES, 31), ("fcsr", ONES, 0xFF),
    ("pmpaddr0",   ONES, (1 << 54) - 1),
    ("pmpcfg0",    0x7F, 0x1F),                      # bits 6:5 are zero
    ("pmpcfg0",    0x0A, 0),                         # W without R
    ("mscratch",   0x0123_4567_89AB_CDEF, 0x0123_4567_89AB_CDEF),
]
# fmt: on


@pytest.mark.parametrize(("name", "written", "read"), WARL)
def test_warl(machine, name, written, read):
    machine.put(name, written)
    assert machine.get(name) == read


def test_mpp_keeps_its_value_when_2_is_written(machine):
    for mode in (0, 1, 3):
        machine.put("mstatus", mode << 11)
        machine.put("mstatus", 2 << 11 | 8)
        assert machine.get("mstatus") & ~XL == mode << 11 | 8


def test_sstatus_shows_and_changes_its_own_fields_only(machine):
    machine.put("mstatus", ONES)
    assert machine.get("sstatus") == SD | 2 << 32 | 0xC6122
    machine.put("sstatus", 0)
    assert machine.get("mstatus") == XL | 0x7E79AA & ~0xC6122
    machine.put("mstatus", 0)
    machine.put("sstatus", ONES)
    assert machine.get("mstatus") == SD | XL | 0xC6122


def test_a_write_of_float_state_makes_it_dirty(machine):
    machine.put("mstatus", 1 << 13)
    machine.put("fflags", 1)
    machine.put("frm", 3)
    assert machine.get("fcsr") == 3 << 5 | 1
    assert machine.get("mstatus") == SD | XL | 3 << 13


def test_sie_and_sip_show_what_is_delegated(machine):
    machine.put("mie", 0xAAA)
    machine.put("mideleg", 0x202)
    machine.put("mip", 0x222)
    assert machine.get("sie") == 0x202
    assert machine.get("sip") == 0x202
    machine.put("sie", 0)
    assert machine.get("mie") == 0xAAA & ~0x202
    machine.put("sip", 0)  # only SSIP is writable here
    assert machine.get("mip") & 0x222 == 0x220
    machine.put("mideleg", 0)
    machine.put("sip", ONES)
    assert machine.get("mip") & 0x222 == 0x220


def test_mip_is_written_bits_lines_and_timers(machine):
    hart = machine.hart
    machine.now = 100
    assert machine.get("mip") == 0
    hart.mtimecmp = 101
    hart.line_msip, hart.line_meip, hart.line_seip = 1, 1, 1
    assert machine.get("mip") == 1 << 3 | 1 << 11 | 1 << 9
    hart.mtimecmp = 100
    assert machine.get("mip") >> 7 & 1 == 1
    machine.put("mip", 0x20)
    assert machine.get("mip") >> 5 & 1 == 1
    machine.put("menvcfg", 1 << 63)  # now stimecmp drives STIP
    assert machine.get("mip") >> 5 & 1 == 0
    machine.put("stimecmp", 100)
    assert machine.get("mip") >> 5 & 1 == 1
    machine.put("mip", 0)
    assert machine.get("mip") >> 5 & 1 == 1
    machine.put("stimecmp", 101)
    assert machine.get("mip") >> 5 & 1 == 0


def test_setting_bits_of_mip_does_not_latch_the_external_line(machine, insn):
    machine.hart.line_seip = 1
    machine.hart.x[1] = 2
    machine.run(insn("csrrs", rd=2, rs1=1, csr="mip"))
    assert machine.hart.x[2] == 0x200
    machine.hart.line_seip = 0
    assert machine.get("mip") == 2
    machine.hart.x[1] = 0x200
    machine.run(insn("csrrs", rd=2, rs1=1, csr="mip"))
    assert machine.get("mip") == 0x202


def test_counters_count_instructions(machine, insn):
    hart = machine.hart
    counted = insn("csrrs", rd=1, csr="minstret"), insn("csrrs", rd=2, csr="instret")
    machine.run(insn("addi"), *counted)
    assert (int(hart.x[1]), int(hart.x[2])) == (1, 2)
    hart.x[3] = 1000
    machine.run(insn("csrrw", rs1=3, csr="minstret"), insn("csrrs", rd=1, csr="minstret"))
    assert hart.x[1] == 1000
    machine.run(insn("csrrs", rd=1, csr="cycle"))
    assert hart.x[1] == 5


def test_mcountinhibit_stops_a_counter(machine, insn):
    hart = machine.hart
    hart.x[3] = 4
    read = insn("csrrs", rd=1, csr="minstret")
    machine.run(insn("csrrw", rs1=3, csr="mcountinhibit"), read)
    assert hart.x[1] == 1
    machine.run(insn("addi"), insn("addi"), read)
    assert hart.x[1] == 1
    hart.x[4] = 77
    machine.run(insn("csrrw", rs1=4, csr="minstret"), read)
    assert hart.x[1] == 77
    machine.run(insn("csrrw", rs1=0, csr="mcountinhibit"), read)
    assert hart.x[1] == 77
    machine.run(insn("addi"), read)
    assert hart.x[1] == 79
    machine.run(insn("csrrs", rd=1, csr="mcycle"))
    assert hart.x[1] == int(hart.instret) - 1


def test_time_is_the_clock(machine):
    machine.now = 12345
    assert machine.get("time") == 12345
    assert machine.get("mhartid") == 3


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize("priv", [0, 1, 3])
@pytest.mark.parametrize("writes", [0, 1])
def test_privilege_is_in_the_number(machine, trap, name, priv, writes):
    """With everything enabled, only the number decides."""
    machine.put("mcounteren", ONES)
    machine.put("scounteren", ONES)
    machine.put("menvcfg", ONES)
    machine.put("mstatus", 1 << 13)
    machine.hart.priv = priv
    number = BY_NAME[name]
    refused = priv < (number >> 8 & 3) or (number >> 10 == 3 and writes)
    found = trap(check_csr_access, machine.hart, Word(number), Word(writes))
    assert found == ((2, None) if refused else None)


@pytest.mark.parametrize("counter", ["cycle", "time", "instret", "hpmcounter3", "hpmcounter31"])
def test_counter_enables(machine, trap, counter):
    number = BY_NAME[counter]
    bit = 1 << (number & 31)
    for m, s, priv in ((m, s, p) for m in (0, bit) for s in (0, bit) for p in (0, 1, 3)):
        machine.put("mcounteren", m)
        machine.put("scounteren", s)
        machine.hart.priv = priv
        allowed = priv == 3 or (m and (priv == 1 or s))
        found = trap(check_csr_access, machine.hart, Word(number), Word(0))
        assert (found is None) == bool(allowed)


def test_stimecmp_needs_stce_and_tm(machine, trap):
    for stce, tm, priv in ((a, b, p) for a in (0, 1) for b in (0, 1) for p in (1, 3)):
        machine.put("menvcfg", stce << 63)
        machine.put("mcounteren", tm << 1)
        machine.hart.priv = priv
        found = trap(check_csr_access, machine.hart, Word(BY_NAME["stimecmp"]), Word(1))
        assert (found is None) == (priv == 3 or bool(stce and tm))


def test_tvm_traps_satp_in_s_mode(machine, trap):
    machine.put("mstatus", 1 << 20)
    for priv, refused in ((1, True), (3, False)):
        machine.hart.priv = priv
        found = trap(check_csr_access, machine.hart, Word(BY_NAME["satp"]), Word(0))
        assert (found is not None) == refused


def test_float_registers_need_fs(machine, trap):
    for name in ("fflags", "frm", "fcsr"):
        machine.put("mstatus", 0)
        assert trap(check_csr_access, machine.hart, Word(BY_NAME[name]), Word(0)) == (2, None)
        machine.put("mstatus", 1 << 13)
        assert trap(check_csr_access, machine.hart, Word(BY_NAME[name]), Word(0)) is None


def test_locked_pmp_entries_ignore_writes(machine):
    machine.put("pmpaddr0", 0x1000)
    machine.put("pmpaddr1", 0x2000)
    machine.put("pmpcfg0", (0x80 | 1 << 3 | 1) << 8)  # entry 1: locked TOR
    machine.put("pmpaddr1", 0)
    machine.put("pmpaddr0", 0)  # the base of a locked TOR entry
    assert (machine.get("pmpaddr0"), machine.get("pmpaddr1")) == (0x1000, 0x2000)
    machine.put("pmpcfg0", 0x1F1F)
    assert machine.get("pmpcfg0") == 0x891F
    machine.put("pmpcfg2", ONES << 8)
    assert machine.get("pmpcfg2") == 0x9F9F_9F9F_9F9F_9F00


@pytest.mark.parametrize("name", ["csrrs", "csrrc", "csrrsi", "csrrci"])
def test_setting_nothing_does_not_write(machine, insn, name):
    machine.run(insn(name, rd=1, csr="mhartid"))
    assert machine.hart.x[1] == 3
    assert machine.hart.mcause == 0
    machine.hart.x[1] = 0  # a register that holds zero still writes
    machine.put("mtvec", 0x8000_1000)
    fields = {"zimm": 1} if name.endswith("i") else {"rs1": 1}
    machine.run(insn(name, rd=1, csr="mhartid", **fields))
    assert machine.hart.mcause == 2


def test_instructions_exchange_set_and_clear(machine, insn):
    hart = machine.hart
    hart.x[1] = 0xF0
    for rd in (2, 1):
        machine.run(insn("csrrw", rd=rd, rs1=1, csr="mscratch"))
    assert (int(hart.x[2]), int(hart.x[1])) == (0, 0xF0)
    machine.run(insn("csrrsi", rd=3, zimm=0x11, csr="mscratch"))
    assert (int(hart.x[3]), machine.get("mscratch")) == (0xF0, 0xF1)
    hart.x[4] = 0x30
    machine.run(insn("csrrc", rd=3, rs1=4, csr="mscratch"), insn("csrrci", zimm=1, csr="mscratch"))
    assert (int(hart.x[3]), machine.get("mscratch")) == (0xF1, 0xC0)
    machine.run(insn("csrrwi", rd=0, zimm=31, csr="mscratch"))
    assert machine.get("mscratch") == 31
