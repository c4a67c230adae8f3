import random

from kasou.isa.pmp import decide, pmp_check
from kasou.isa.word import Word

BASE = 0x8000_0000


def ranges(entries):
    """(first, last + 1) of every entry, by the specification's table; None if it is off."""
    found = []
    for i, (config, address) in enumerate(entries):
        mode = config >> 3 & 3
        if mode == 0:
            found.append(None)
        elif mode == 1:
            below = entries[i - 1][1] if i else 0
            found.append((below << 2, address << 2))
        elif mode == 2:
            found.append((address << 2, (address << 2) + 4))
        else:
            ones = len(bin(address)) - len(bin(address).rstrip("1"))
            size = 8 << ones
            found.append(((address << 2) // size * size, (address << 2) // size * size + size))
    return found


def expected(entries, spans, pa, size, access, priv):
    """Byte by byte: the lowest entry that matches any byte must match all."""
    touched = range(pa, pa + size)
    for (config, _), span in zip(entries, spans, strict=True):
        if span is None:
            continue
        matched = [span[0] <= byte < span[1] for byte in touched]
        if any(matched):
            if not all(matched):
                return False
            return config & access == access or (priv == 3 and not config & 0x80)
    return priv == 3


def test_against_a_bytewise_reading(machine):
    rng = random.Random(2)
    for _ in range(120):
        entries = []
        for _ in range(16):
            span = rng.choice((4, 6, 10, 14))
            address = (BASE >> 2) + rng.randrange(0, 1 << span) & ~((1 << rng.randrange(4)) - 1)
            address |= (1 << rng.randrange(12)) - 1
            config = rng.choice((0, 0, 0, 1, 2, 3)) << 3 | rng.choice((0, 1, 3, 4, 5, 7))
            entries.append((config | rng.choice((0, 0x80)), address))
        for i in range(16):
            machine.hart.pmpcfg[i] = 0  # unlock
        for i, (_, address) in enumerate(entries):
            machine.put(f"pmpaddr{i}", address)
        for half in (0, 8):
            packed = sum(config << 8 * i for i, (config, _) in enumerate(entries[half : half + 8]))
            machine.put(f"pmpcfg{half // 4}", packed)
        spans = ranges(entries)
        for _ in range(20):
            pa = BASE + rng.randrange(0, 3 * 4096)
            size, priv = rng.choice((1, 2, 4, 8)), rng.choice((0, 1, 3))
            access = rng.choice((1, 2, 3, 4))
            args = (Word(pa), Word(size), Word(access), Word(priv))
            answer = int(pmp_check(machine.hart, *args))
            assert bool(answer) == expected(entries, spans, pa, size, access, priv)
            assert answer == int(decide(machine.hart, 16, *args))
            if answer == 3:
                page = pa & ~4095
                assert all(
                    expected(entries, spans, at, 4, access, priv)
                    for at in range(page, page + 4096, 4)
                )


def test_few_entries_decide_as_sixteen_do(machine):
    hart = machine.hart
    for index in (None, 0, 3, 4, 7, 8, 15):
        for i in range(16):
            hart.pmpcfg[i] = 0
        if index is not None:
            hart.pmpcfg[index] = 0x1D
            machine.put(f"pmpaddr{index}", BASE >> 2 | 0x3FF)
        machine.put("pmpcfg4", 0)
        machine.put("mscratch", 0)
        for pa in (BASE, BASE + 8192):
            for priv in (0, 1, 3):
                for access in (1, 2, 4):
                    args = (Word(pa), Word(4), Word(access), Word(priv))
                    assert int(pmp_check(hart, *args)) == int(decide(hart, 16, *args))


def test_without_entries_only_m_mode_may(machine):
    hart = machine.hart
    for priv in (0, 1, 3):
        args = (Word(BASE), Word(8), Word(1), Word(priv))
        hart.monitor = 0
        assert pmp_check(hart, *args) == (3 if priv == 3 else 0)
        hart.monitor = 1
        assert pmp_check(hart, *args) == 3


def test_xv6_opens_everything_with_one_tor_entry(machine):
    machine.put("pmpaddr0", 0x3F_FFFF_FFFF_FFFF)
    machine.put("pmpcfg0", 0xF)
    assert pmp_check(machine.hart, Word(BASE), Word(8), Word(3), Word(0)) == 3


def test_napot_of_all_ones_is_everything(machine):
    machine.open_pmp()
    assert pmp_check(machine.hart, Word(0), Word(8), Word(7), Word(0)) == 3
    assert pmp_check(machine.hart, Word((1 << 56) - 8), Word(8), Word(7), Word(0)) == 3
