from kasou.devices.plic import Plic


class Bench:
    def __init__(self, contexts: int = 4) -> None:
        self.external = [False] * contexts
        self.plic = Plic(contexts, self.external.__setitem__)

    def enable(self, context: int, *sources: int) -> None:
        for word in range(3):
            bits = sum(1 << s % 32 for s in sources if s // 32 == word)
            self.plic.write(0x2000 + 0x80 * context + 4 * word, 4, bits)

    def priority(self, source: int, value: int) -> None:
        self.plic.write(4 * source, 4, value)

    def threshold(self, context: int, value: int) -> None:
        self.plic.write(0x200000 + 0x1000 * context, 4, value)

    def claim(self, context: int) -> int:
        return self.plic.read(0x200004 + 0x1000 * context, 4)

    def complete(self, context: int, source: int) -> None:
        self.plic.write(0x200004 + 0x1000 * context, 4, source)


def test_claim_and_complete_of_a_level() -> None:
    b = Bench()
    line = b.plic.line(10)
    b.priority(10, 1)
    b.enable(1, 10)
    line(True)
    assert b.external == [False, True, False, False]
    assert b.plic.read(0x1000, 4) == 1 << 10
    assert b.claim(1) == 10
    assert not b.external[1]
    assert b.claim(1) == 0
    line(False)
    line(True)
    assert not b.external[1], "nothing is forwarded before the completion"
    b.complete(1, 10)
    assert b.external[1], "the line is still up"
    assert b.claim(1) == 10
    line(False)
    b.complete(1, 10)
    assert not b.external[1]


def test_priorities_ties_and_threshold() -> None:
    b = Bench()
    b.enable(1, 3, 5, 40, 95)
    for source, priority in ((3, 2), (5, 7), (40, 7), (95, 0)):
        b.priority(source, priority)
        b.plic.set_line(source, True)
    b.threshold(1, 7)
    assert not b.external[1]
    assert b.claim(1) == 5, "a claim does not look at the threshold"
    b.threshold(1, 1)
    assert b.external[1]
    assert (b.claim(1), b.claim(1), b.claim(1)) == (40, 3, 0)


def test_completion_by_a_context_that_did_not_enable_is_ignored() -> None:
    b = Bench()
    b.priority(1, 1)
    b.enable(1, 1)
    b.plic.set_line(1, True)
    assert b.claim(1) == 1
    b.complete(3, 1)
    b.complete(1, 200)
    assert b.claim(1) == 0
    b.complete(1, 1)
    assert b.claim(1) == 1


def test_registers_hold_only_what_exists() -> None:
    b = Bench()
    b.priority(7, 0xFF)
    assert b.plic.read(28, 4) == 7
    b.priority(0, 3)
    assert b.plic.read(0, 4) == 0
    for word in range(4):
        b.plic.write(0x2000 + 4 * word, 4, 0xFFFF_FFFF)
    assert [b.plic.read(0x2000 + 4 * w, 4) for w in range(4)] == [
        0xFFFF_FFFE,
        0xFFFF_FFFF,
        0xFFFF_FFFF,
        0,
    ]
    assert b.plic.read(0x1080, 4) == 0


def test_state_and_reset() -> None:
    b = Bench()
    b.priority(10, 3)
    b.enable(3, 10)
    b.plic.set_line(10, True)
    c = Bench()
    c.plic.restore(b.plic.save())
    assert c.external == [False, False, False, True]
    assert c.claim(3) == 10
    b.plic.reset()
    assert not any(b.external)
