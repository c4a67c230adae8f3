"""The platform-level interrupt controller: device interrupts to harts, by priority.

    0x000000  PRIORITY[source]                  4 bytes each, source 0 does not exist
    0x001000  PENDING, a bit a source           read-only
    0x002000  ENABLE[context], a bit a source   0x80 bytes a context
    0x200000  THRESHOLD[context]                0x1000 bytes a context
    0x200004  CLAIM[context]                    read: claim; write: complete

Contexts are, as on SiFive's parts, M then S of hart 0, M then S of hart 1, and so on.

A source's gateway forwards one request at a time: a raised line sets the pending bit; a claim
clears it; nothing more is forwarded until the completion, which forwards again if the line is still
up. A forwarded request is not retracted when the line falls before the claim.
(RISC-V Platform-Level Interrupt Controller Specification 1.0.0, "Interrupt Gateways", "Interrupt
Claim Process".)
"""

from collections.abc import Callable
from dataclasses import dataclass

from kasou.devices.register import DeviceState, Register, RegisterDevice
from kasou.ports import IrqLine

SOURCES = 95
MAX_PRIORITY = 7
_WORDS = (SOURCES + 32) // 32  # source 0 has a bit too
_VALID = ((1 << SOURCES + 1) - 1) & ~1
_ENABLE_WORDS = 32  # of address space a context
_U32 = 0xFFFF_FFFF

SetExternal = Callable[[int, bool], None]
"""Called with a context's number and the new level of its external interrupt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlicState(DeviceState):
    """Bit masks have bit n for source n; sequences are indexed by source or context."""

    level: int
    pending: int
    in_service: int
    priority: tuple[int, ...]
    enable: tuple[int, ...]
    threshold: tuple[int, ...]


def _layout(contexts: int) -> tuple[Register, ...]:
    # fmt: off
    return (
        Register("PRIORITY",  0x000000, count=SOURCES + 1),
        Register("PENDING",   0x001000, count=_WORDS, access="r"),
        Register("ENABLE",    0x002000, count=contexts * _ENABLE_WORDS),
        Register("THRESHOLD", 0x200000, count=contexts, stride=0x1000),
        Register("CLAIM",     0x200004, count=contexts, stride=0x1000),
    )
    # fmt: on


class Plic(RegisterDevice[PlicState]):
    """`sifive,plic-1.0.0` with 95 sources and `contexts` (at least 2) contexts."""

    lax = True

    def __init__(self, contexts: int, set_external: SetExternal) -> None:
        super().__init__(_layout(contexts))
        self._contexts = range(contexts)
        self._set_external = set_external
        self._output = [False] * contexts
        self._level = self._pending = self._in_service = 0
        self._clear()

    # ------------------------------------------------------------------ device side
    def line(self, source: int) -> IrqLine:
        """The wire of `source` (1 to 95)."""
        assert 1 <= source <= SOURCES, f"PLIC source {source}"
        return lambda on: self.set_line(source, on)

    def set_line(self, source: int, on: bool) -> None:
        """Drive the wire of `source`."""
        bit = 1 << source
        if on:
            self._level |= bit
            if not (self._in_service | self._pending) & bit:
                self._pending |= bit
                self._update()
        else:
            self._level &= ~bit

    # ------------------------------------------------------------------ guest side
    def read_priority(self, source: int) -> int:
        """0 means never interrupt."""
        return self._priority[source]

    def write_priority(self, source: int, value: int) -> None:
        """Keep the three bits that exist."""
        if source:
            self._priority[source] = value & MAX_PRIORITY
            self._update()

    def read_pending(self, word: int) -> int:
        """32 pending bits."""
        return self._pending >> 32 * word & _U32

    def read_enable(self, index: int) -> int:
        """32 enable bits of a context."""
        context, word = divmod(index, _ENABLE_WORDS)
        return self._enable[context] >> 32 * word & _U32

    def write_enable(self, index: int, value: int) -> None:
        """Source 0 and sources that do not exist cannot be enabled."""
        context, word = divmod(index, _ENABLE_WORDS)
        rest = self._enable[context] & ~(_U32 << 32 * word)
        self._enable[context] = (rest | value << 32 * word) & _VALID
        self._update()

    def read_threshold(self, context: int) -> int:
        """Priorities up to this one do not interrupt."""
        return self._threshold[context]

    def write_threshold(self, context: int, value: int) -> None:
        """Keep the three bits that exist."""
        self._threshold[context] = value & MAX_PRIORITY
        self._update()

    def read_claim(self, context: int) -> int:
        """Take the most urgent pending source, 0 if there is none.

        "The claim operation is not affected by the setting of the priority threshold register."
        """
        source, _ = self._most_urgent(context)
        if source:
            bit = 1 << source
            self._pending &= ~bit
            self._in_service |= bit
            self._update()
        return source

    def write_claim(self, context: int, source: int) -> None:
        """Complete `source`.

        "If the completion ID does not match an interrupt source that is currently enabled for the
        target, the completion is silently ignored."
        """
        if source > SOURCES or not self._enable[context] >> source & 1:
            return
        bit = 1 << source
        self._in_service &= ~bit
        if self._level & bit:
            self._pending |= bit
        self._update()

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """Nothing enabled, nothing pending; wires keep the level that devices give them."""
        super().reset()
        self._clear()
        self._pending = self._level
        self._update()

    def save(self) -> PlicState:
        """Wires, gateways, and what the guest configured."""
        return PlicState(
            registers={},
            level=self._level,
            pending=self._pending,
            in_service=self._in_service,
            priority=tuple(self._priority),
            enable=tuple(self._enable),
            threshold=tuple(self._threshold),
        )

    def restore(self, state: PlicState) -> None:
        """Take over `state` and drive every context's output, changed or not."""
        self._restore_values(state)
        self._level, self._pending = state.level, state.pending
        self._in_service = state.in_service
        self._priority = list(state.priority)
        self._enable = list(state.enable)
        self._threshold = list(state.threshold)
        for context in self._contexts:
            self._output[context] = self._wanted(context)
            self._set_external(context, self._output[context])

    def _clear(self) -> None:
        self._pending = self._in_service = 0
        self._priority = [0] * (SOURCES + 1)
        self._enable = [0 for _ in self._contexts]
        self._threshold = [0 for _ in self._contexts]

    def _most_urgent(self, context: int) -> tuple[int, int]:
        """Source and priority; ties go to the lowest number, (0, 0) is none."""
        candidates = self._pending & self._enable[context]
        best, highest = 0, 0
        while candidates:
            lowest = candidates & -candidates
            source = lowest.bit_length() - 1
            if self._priority[source] > highest:
                best, highest = source, self._priority[source]
            candidates ^= lowest
        return best, highest

    def _wanted(self, context: int) -> bool:
        return self._most_urgent(context)[1] > self._threshold[context]

    def _update(self) -> None:
        for context in self._contexts:
            wanted = self._wanted(context)
            if wanted != self._output[context]:
                self._output[context] = wanted
                self._set_external(context, wanted)
