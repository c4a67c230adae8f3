import random

import pytest

from kasou.isa.interrupts import Status
from kasou.isa.translation import SCHEMES, checked_translate, translate, walk_sv39
from kasou.isa.word import Word

BASE = 0x8000_0000
V, R, W, X, U, G, A, D = (1 << i for i in range(8))
N, PBMTE, ADUE = 1 << 63, 1 << 62, 1 << 61
ALL = V | R | W | X | A | D
LEVELS = {"sv39": (8, 3), "sv48": (9, 4), "sv57": (10, 5)}


class Tables:
    """Page tables, built from the top down in RAM; knows nothing of the code under test."""

    def __init__(self, machine, name):
        self.machine, (self.mode, self.levels) = machine, LEVELS[name]
        self.next = BASE + (1 << 20)
        self.root = self.page()
        machine.put("satp", self.mode << 60 | self.root >> 12)

    def page(self):
        self.next += 4096
        return self.next - 4096

    def map(self, va, pte, level=0, pointer=V):
        """Put a leaf at `level`; returns the gpa of the entry."""
        table = self.root
        for depth in range(self.levels - 1, level, -1):
            at = table + 8 * (va >> (12 + 9 * depth) & 511)
            entry = self.machine.memory.load_u64(at)
            if not entry & V:
                entry = self.page() >> 12 << 10 | pointer
                self.machine.memory.store_u64(at, entry)
            table = (entry >> 10 & (1 << 44) - 1) << 12
        at = table + 8 * (va >> (12 + 9 * level) & 511)
        self.machine.memory.store_u64(at, pte)
        return at


def leaf(pa, flags):
    return pa >> 12 << 10 | flags


@pytest.fixture(params=sorted(LEVELS))
def tables(request, machine):
    machine.open_pmp()
    return Tables(machine, request.param)


def look(machine, trap, va, access=1, priv=1, function=translate):
    """The gpa, or the (cause, tval) of the trap."""
    result = []
    found = trap(
        lambda: result.append(int(function(machine.hart, Word(va), Word(access), Word(priv))))
    )
    return found or result[0]


def test_schemes():
    assert {s.name: (s.mode, s.levels) for s in SCHEMES} == LEVELS
    assert [s.va_bits for s in SCHEMES] == [39, 48, 57]


def test_pages_of_every_size(machine, trap, tables):
    for level in range(tables.levels):
        size = 4096 << 9 * level
        va = (5 + level) << (12 + 9 * (tables.levels - 1)) | (3 * size) % (1 << 9 * tables.levels)
        pa = 7 << 12 + 9 * (tables.levels - 1)
        tables.map(va, leaf(pa, ALL), level)
        for offset in (0, 8, size - 1, size // 2 + 5):
            assert look(machine, trap, va + offset) == pa + offset
            assert machine.hart.walk_size == size


def test_misaligned_superpages_fault(machine, trap, tables):
    for level in range(1, tables.levels):
        va = (9 + level) << (12 + 9 * (tables.levels - 1))
        for bit in (12, 12 + 9 * level - 1):
            tables.map(va, leaf(1 << 50 | 1 << bit, ALL), level)
            assert look(machine, trap, va) == (13, va)


def test_addresses_are_sign_extended(machine, trap, tables):
    bits = 12 + 9 * tables.levels
    high = (1 << 64) - (1 << bits - 1)
    tables.map(high, leaf(BASE, ALL))
    assert look(machine, trap, high + 4) == BASE + 4
    for va in (high - 4096, 1 << bits - 1, high & (1 << bits) - 1, 1 << 63):
        assert look(machine, trap, va) == (13, va)


@pytest.mark.parametrize(
    ("access", "page", "fault"), [(1, 13, 5), (2, 15, 7), (3, 15, 7), (4, 12, 1)]
)
def test_causes(machine, trap, tables, access, page, fault):
    assert look(machine, trap, 0x1234, access) == (page, 0x1234)
    machine.put("satp", tables.mode << 60 | 0x123)  # a root that is not RAM
    assert look(machine, trap, 0x1234, access) == (fault, 0x1234)


def test_faults_of_pointers(machine, trap, tables):
    va = 0x40_2000
    at = tables.map(va, leaf(BASE, ALL))
    parent = tables.root + 8 * (va >> (12 + 9 * (tables.levels - 1)) & 511)
    good = machine.memory.load_u64(parent)
    assert look(machine, trap, va) == BASE
    for bad in (A, D, U, W, N, 1 << 61, 1 << 62, 1 << 54, 1 << 60):
        machine.memory.store_u64(parent, good | bad)
        machine.put("menvcfg", PBMTE)
        assert look(machine, trap, va) == (13, va), hex(bad)
    for fine in (G, 3 << 8):
        machine.memory.store_u64(parent, good | fine)
        assert look(machine, trap, va) == BASE
    machine.memory.store_u64(parent, good & ~V)
    assert look(machine, trap, va) == (13, va)
    machine.memory.store_u64(parent, good)
    machine.memory.store_u64(at, leaf(BASE, V))  # a pointer on the last level
    assert look(machine, trap, va) == (13, va)


def allowed(flags, access, priv, status):
    """Priv. 12.3.1, as sentences."""
    if flags & (R | W) == W or not flags & V:
        return False
    if priv == 0 and not flags & U:
        return False
    if priv == 1 and flags & U and (access == 4 or not status & Status.SUM):
        return False
    if access == 4:
        return bool(flags & X)
    if access in (2, 3):
        return bool(flags & W)
    return bool(flags & R) or (bool(status & Status.MXR) and bool(flags & X))


def test_permissions(machine, trap, tables):
    """All of R W X U, SUM, MXR, mode, access; A and D set."""
    va = 0x1000
    for bits in range(32):
        flags = bits | A | D
        tables.map(va, leaf(BASE, flags))
        if not flags & (R | X):
            flags = 0  # no leaf at all
        for status in (0, Status.SUM, Status.MXR, Status.SUM | Status.MXR):
            machine.put("mstatus", int(status))
            for priv in (0, 1):
                for access in (1, 2, 3, 4):
                    want = BASE if allowed(flags, access, priv, status) else None
                    found = look(machine, trap, va, access, priv)
                    assert (found if isinstance(found, int) else None) == want


@pytest.mark.parametrize("adue", [0, ADUE])
@pytest.mark.parametrize("access", [1, 2, 3, 4])
@pytest.mark.parametrize("flags", [0, A, D, A | D])
def test_accessed_and_dirty(machine, trap, tables, adue, access, flags):
    va = 0x3000
    pte = leaf(BASE, V | R | W | X | flags)
    at = tables.map(va, pte)
    machine.put("menvcfg", adue)
    needed = A | D if access in (2, 3) else A
    enough = flags & needed == needed
    found = look(machine, trap, va, access)
    assert (found == BASE) == bool(enough or adue)
    after = pte | needed if adue else pte
    assert machine.memory.load_u64(at) == (pte if enough else after)


def test_a_fault_sets_neither_bit(machine, trap, tables):
    at = tables.map(0, leaf(BASE, V | R))
    machine.put("menvcfg", ADUE)
    assert look(machine, trap, 0, 2) == (15, 0)
    assert machine.memory.load_u64(at) == leaf(BASE, V | R)


def test_a_lost_race_walks_again(machine, trap, tables):
    """Another hart unmaps the page between the read of its entry and the update."""
    at = tables.map(0x5000, leaf(BASE, V | R))
    machine.put("menvcfg", ADUE)
    tried = []

    def lose(pa, old, new):
        tried.append(int(pa))
        machine.memory.store_u64(at, 0)
        return False

    machine.hart.compare_and_swap_physical = lose
    assert look(machine, trap, 0x5000) == (13, 0x5000)
    assert tried == [at]


def test_svpbmt(machine, trap, tables):
    for kind in range(4):
        tables.map(0, leaf(BASE, ALL) | kind << 61)
        for enabled in (0, PBMTE):
            machine.put("menvcfg", enabled)
            good = kind == 0 or (kind < 3 and enabled)
            assert (look(machine, trap, 0) == BASE) == bool(good)


def test_svnapot(machine, trap, tables):
    base = BASE + (2 << 16)
    for low in range(16):
        entry = leaf(base, ALL) | low << 10 | N
        for va in (0, 0x7ABC, 0xFFFF):
            tables.map(va, entry)
            want = base + va if low == 8 else (13, va)
            assert look(machine, trap, va) == want
            assert low != 8 or machine.hart.walk_size == 65536
    tables.map(1 << 30, leaf(BASE, ALL) | N, 1)
    assert look(machine, trap, 1 << 30) == (13, 1 << 30)


def test_reserved_bits_of_leaves(machine, trap, tables):
    for bit in range(54, 61):
        tables.map(0, leaf(BASE, ALL) | 1 << bit)
        assert look(machine, trap, 0) == (13, 0)
    tables.map(0, leaf(BASE, ALL) | 3 << 8 | G)
    assert look(machine, trap, 0) == BASE


def test_bare_and_machine_mode_translate_nothing(machine, trap):
    assert look(machine, trap, 0xFFFF_0000_1234_5678, priv=1) == 0xFFFF_0000_1234_5678
    machine.put("satp", 8 << 60 | 0x123)
    assert look(machine, trap, 0x1234, priv=3) == 0x1234
    assert machine.hart.walk_size == 4096


def test_pmp_guards_the_tables_and_the_page(machine, trap):
    tables = Tables(machine, "sv39")
    at = tables.map(0x6000, leaf(BASE, ALL & ~A))
    machine.put("menvcfg", ADUE)

    def entry(index, address, size, rights):
        machine.put(f"pmpaddr{index}", (address | (size >> 1) - 1) >> 2)
        shift = 8 * (index % 8)
        config = machine.get("pmpcfg0") & ~(0xFF << shift) | (0x18 | rights) << shift
        machine.put("pmpcfg0", config)

    def check(va, access):
        return checked_translate(machine.hart, va, access, Word(4), Word(1))

    def found(access):
        result = []
        caught = trap(lambda: result.append(int(check(Word(0x6000), Word(access)))))
        return caught or result[0]

    assert found(1) == (5, 0x6000)  # nothing is open
    machine.open_pmp()
    entry(1, at & ~4095, 4096, 0)
    assert found(1) == (5, 0x6000) and found(4) == (1, 0x6000)
    entry(1, at & ~4095, 4096, 1)
    assert found(2) == (7, 0x6000)  # A and D cannot be written
    assert machine.memory.load_u64(at) == leaf(BASE, ALL & ~A)
    entry(1, at & ~4095, 4096, 3)
    assert found(2) == BASE and machine.hart.walk_whole == 1
    assert machine.memory.load_u64(at) == leaf(BASE, ALL)
    entry(2, BASE, 4096, 1)
    assert found(1) == BASE and found(2) == (7, 0x6000) and found(4) == (1, 0x6000)
    entry(2, BASE, 8, 1)
    assert found(1) == BASE and machine.hart.walk_whole == 0


def test_random_entries_agree_with_a_reading_of_the_text(machine, trap):
    """One leaf with random bits on a random level, against a second spelling of the rules."""
    rng = random.Random(3)
    machine.open_pmp()
    for number in range(4000):
        name = rng.choice(sorted(LEVELS))
        machine.memory.write(BASE + (1 << 20), bytes(8 * 4096))
        table = Tables(machine, name)
        level = rng.randrange(table.levels)
        va = (rng.randrange(200) << 12 + 9 * (table.levels - 1)) | rng.getrandbits(12)
        flags = V | rng.getrandbits(8) | rng.choice((A, A | D, 0))
        ppn = rng.getrandbits(44) & ~((1 << 9 * level) - 1)
        if rng.random() < 0.2:
            ppn |= 1 << rng.randrange(9)
        pbmt, napot = rng.choice((0, 0, 0, 1, 2, 3)), rng.random() < 0.1
        if napot and rng.random() < 0.7:
            ppn = ppn & ~15 | 8
        pte = flags | rng.getrandbits(2) << 8 | ppn << 10 | pbmt << 61 | napot << 63
        if rng.random() < 0.05:
            pte |= 1 << rng.randrange(54, 61)
        at = table.map(va, pte, level)
        menvcfg = rng.choice((0, ADUE)) | rng.choice((0, PBMTE))
        status = rng.choice((0, 1 << 18)) | rng.choice((0, 1 << 19))
        machine.put("menvcfg", menvcfg)
        machine.put("mstatus", status)
        access, priv = rng.choice((1, 2, 3, 4)), rng.choice((0, 1))
        page = {1: 13, 2: 15, 3: 15, 4: 12}[access]
        needed = A | D if access in (2, 3) else A
        good = (
            bool(flags & (R | X))
            and allowed(flags, access, priv, status)
            and ppn % (1 << 9 * level) == 0
            and pte >> 54 & 0x7F == 0
            and (pbmt == 0 or (pbmt != 3 and bool(menvcfg & PBMTE)))
            and (not napot or (level == 0 and ppn & 15 == 8))
            and (flags & needed == needed or bool(menvcfg & ADUE))
        )
        if not flags & (R | X) and level:
            continue  # a pointer to anywhere
        if good:
            size = 65536 if napot else 4096 << 9 * level
            want = (ppn << 12) // size * size + va % size
        else:
            want = (page, va)
        assert look(machine, trap, va, access, priv) == want, (number, name, level, hex(pte))
        assert machine.memory.load_u64(at) == (pte | needed if good else pte)


def test_the_walks_are_functions(machine, trap):
    machine.open_pmp()
    tables = Tables(machine, "sv39")
    tables.map(0x1000, leaf(BASE, ALL))
    assert look(machine, trap, 0x1008, function=walk_sv39) == BASE + 8
