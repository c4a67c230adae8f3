"""Lock-step: the interpreter and the reference model on two equal machines, step by step.

Both run with `--clock icount` and the same seed, so they are the same function of the image; the
first difference in any architectural cell ends the run with a report and a ready-made test.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from kasou.engine.hart_state import Exit
from kasou.errors import ConfigError
from kasou.isa.state import CELLS
from kasou.machine.core import NEVER, Core
from kasou.machine.machine import Machine, MachineConfig, Outcome

IGNORED = frozenset(("trap_cause", "trap_tval"))
"""Cells that only functions of one engine use."""
DIGEST_EVERY = 250_000
"""Steps between comparisons of all RAM."""
CHUNK = 10_000
"""Steps between looks at the clock."""
_COMPARED = [c for c in CELLS.values() if c.name not in IGNORED]
_WORDS = [
    (c.name, i, c.offset // 8 + i)
    for c in _COMPARED
    for i in range(32 if c.name == "x" else c.count)
]
_SINK = CELLS["x"].offset // 8 + 32


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the engines part: after `step` instructions, the one at `pc`."""

    step: int
    pc: int
    instruction: int
    before: dict[str, int]
    cells: tuple[tuple[str, int, int], ...]
    """(cell, interpreter's value, reference's value)"""

    def report(self) -> str:
        """For a person: what ran, what differs, and a test that shows it."""
        from kasou.isa.asm import disassemble

        lines = [
            f"first difference after {self.step} instructions, at pc {self.pc:#x}:",
            f"    {self.instruction:#010x}    {disassemble(self.instruction, self.pc)}",
            *(
                f"    {name:<18} interpreter {a:#018x}   reference {b:#018x}"
                for name, a, b in self.cells
            ),
            "",
            "def test_lockstep_difference(run_on_both):",
            f"    state = {self.before!r}",
            f"    run_on_both(state, instruction={self.instruction:#x}, pc={self.pc:#x})",
        ]
        return "\n".join(lines)


class Lockstep:
    """Two machines from one configuration, run together."""

    def __init__(self, config: MachineConfig, console_output: Callable[[bytes], None]) -> None:
        if config.harts != 1:
            raise ConfigError(f"--lockstep compares one hart, not {config.harts}: --smp 1")
        same = replace(
            config, clock="icount", reboot=False, seed=config.seed or 0, max_instructions=None
        )
        self.fast = Machine(replace(same, engine="interpreter"), console_output)
        self.slow = Machine(replace(same, engine="reference"), lambda _data: None)
        self.steps = 0
        self.limit = config.max_instructions or NEVER
        self.difference: Difference | None = None

    def console_input(self, data: bytes) -> None:
        """Bytes typed, to both."""
        self.fast.console_input(data)
        self.slow.console_input(data)

    def stop(self) -> None:
        """End the run; from any thread."""
        self.fast.stop()

    def statistics(self) -> dict[str, object]:
        """Steps so far, and whether the engines still agree."""
        return {"steps": self.steps, "agree": self.difference is None}

    def run(self, timeout: float | None = None) -> Outcome:
        """Run until they differ (`difference` says how), the guest ends, or `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            outcome = self.run_steps(min(self.limit, self.steps + CHUNK))
            if outcome.kind != "budget" or self.steps >= self.limit:
                return outcome
            if end is not None and time.monotonic() > end:
                return Outcome("timeout")

    def run_steps(self, limit: int) -> Outcome:
        """Run until step `limit`; "budget" when it is reached."""
        fast, slow = self.fast.cores[0], self.slow.cores[0]
        a, b = fast.block.words, slow.block.words
        size = max(at for _, _, at in _WORDS) + 1
        while self.steps < limit:
            pc = slow.block.get("pc")
            before = list(b[:size])
            target = self.steps + 1
            for core in (fast, slow):
                _step(core, target)
            self.steps = target
            after = list(b[:size])
            mine = list(a[:size])
            mine[_SINK] = after[_SINK]
            if mine != after and self._differs(mine, after, before, pc):
                return Outcome("exit", 1)
            if self.steps % DIGEST_EVERY == 0 and self._digest(self.fast) != self._digest(
                self.slow
            ):
                self.difference = Difference(self.steps, pc, self._bits(), {}, (("RAM", 0, 0),))
                return Outcome("exit", 1)
            if self.fast.outcome is not None:
                return self.fast.outcome
        return Outcome("budget")

    def _differs(self, mine: list[int], its: list[int], before: list[int], pc: int) -> bool:
        def name(cell: str, index: int) -> str:
            return f"{cell}[{index}]" if CELLS[cell].count > 1 else cell

        cells = tuple(
            (name(cell, i), mine[at], its[at]) for cell, i, at in _WORDS if mine[at] != its[at]
        )
        if not cells:
            return False
        state = {name(cell, i): before[at] for cell, i, at in _WORDS if before[at]}
        self.difference = Difference(self.steps, pc, self._bits(), state, cells)
        return True

    def _bits(self) -> int:
        return int(getattr(self.slow.cores[0], "hart").bits)  # noqa: B009

    @staticmethod
    def _digest(machine: Machine) -> bytes:
        view = machine.memory.view(machine.memory.base, machine.memory.size)
        return hashlib.blake2b(view, digest_size=16).digest()


def _step(core: Core, target: int) -> None:
    """One instruction; a core in `wfi` that nothing wakes jumps to its next deadline."""
    block = core.block
    block.set("attention", (1 << 64) - 1)
    reason = core.run(target)
    if reason == Exit.WFI and not core.sees_interrupt():
        deadline = core.deadline()
        if deadline is not None:
            change = max(0, deadline - core.time())
            block.set("time_offset", block.get("time_offset") + change)
