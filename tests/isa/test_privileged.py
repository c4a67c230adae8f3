import pytest

BASE = 0x8000_0000
MIE, MPIE, SIE, SPIE, SPP, MPRV = 8, 1 << 7, 2, 1 << 5, 1 << 8, 1 << 17
TVM, TW, TSR = 1 << 20, 1 << 21, 1 << 22
LEGAL = {
    # name: (modes that may, bit of mstatus that forbids it to S-mode)
    "mret": ({3}, 0),
    "sret": ({1, 3}, TSR),
    "wfi": ({1, 3}, TW),
    "sfence.vma": ({1, 3}, TVM),
    "sinval.vma": ({1, 3}, TVM),
    "sfence.w.inval": ({1, 3}, 0),
    "sfence.inval.ir": ({1, 3}, 0),
}


@pytest.mark.parametrize("name", LEGAL)
@pytest.mark.parametrize("priv", [0, 1, 3])
@pytest.mark.parametrize("forbidden", [0, TVM, TW, TSR])
def test_who_may(machine, insn, name, priv, forbidden):
    machine.open_pmp()
    machine.put("mtvec", BASE + 0x100)
    machine.put("mstatus", forbidden)
    machine.hart.priv = priv
    machine.run(insn(name))
    modes, bit = LEGAL[name]
    legal = priv in modes and not (priv == 1 and forbidden == bit and bit)
    assert (machine.hart.mcause == 2) == (not legal)
    if not legal:
        assert machine.hart.mtval == insn(name)
        assert machine.hart.instructions == 1


@pytest.mark.parametrize("mpp", [0, 1, 3])
@pytest.mark.parametrize("mpie", [0, MPIE])
@pytest.mark.parametrize("mprv", [0, MPRV])
def test_mret(machine, insn, mpp, mpie, mprv):
    machine.put("mstatus", mpp << 11 | mpie | mprv | SPIE)
    machine.put("mepc", BASE + 0x202)
    machine.run(insn("mret"))
    hart = machine.hart
    assert (int(hart.pc), int(hart.priv)) == (BASE + 0x202, mpp)
    kept = mprv if mpp == 3 else 0
    assert hart.mstatus == (MIE if mpie else 0) | MPIE | kept | SPIE


@pytest.mark.parametrize("spp", [0, SPP])
@pytest.mark.parametrize("spie", [0, SPIE])
def test_sret(machine, insn, spp, spie):
    machine.put("mstatus", spp | spie | MPRV | 3 << 11)
    machine.put("sepc", BASE + 0x300)
    machine.run(insn("sret"))
    hart = machine.hart
    assert (int(hart.pc), int(hart.priv)) == (BASE + 0x300, int(bool(spp)))
    assert hart.mstatus == (SIE if spie else 0) | SPIE | 3 << 11


def test_wfi_retires_and_says_so(machine, insn):
    assert machine.run(insn("wfi")) == "wfi"
    assert machine.hart.pc == BASE + 4
    assert machine.hart.instructions == 1


@pytest.mark.parametrize(("priv", "cause"), [(0, 8), (1, 9), (3, 11)])
def test_ecall(machine, insn, priv, cause):
    machine.open_pmp()
    machine.hart.priv = priv
    assert machine.run(insn("ecall")) is None
    assert (int(machine.hart.mcause), int(machine.hart.mepc)) == (cause, BASE)


def test_ecall_from_s_mode_goes_to_the_monitor(machine, insn):
    machine.hart.monitor, machine.hart.priv = 1, 1
    assert machine.run(insn("ecall")) == "ecall"
    assert (int(machine.hart.pc), int(machine.hart.mcause)) == (BASE, 0)
    assert machine.hart.instructions == 1
    machine.hart.priv = 0
    assert machine.run(insn("ecall")) is None
    assert machine.hart.mcause == 8
