"""The predecoder: a decision tree over the encodings, as one LLVM function made from the table.

`decode_record(op, bits, slot, far)` fills the record at `op`: its handler and operands. Leaves whose
operands are laid out alike share the code that extracts them.
"""

from __future__ import annotations

from typing import Any

from kasou.engine.handler import FIELD_AT
from kasou.engine.hart_state import DIST, SLOTS
from kasou.engine.staging import StagedWord, Tracer, operand
from kasou.isa.encoding import INSTRUCTIONS, Field, Instruction


def handler_name(base: Instruction, length: int, variant: str = "") -> str:
    """The symbol of an instruction's handler."""
    suffix = f"_{variant}" if variant else ""
    return f"h_{base.name.replace('.', '_')}_{length}{suffix}"


def base_of(one: Instruction) -> Instruction:
    """What a compressed instruction expands to, or the instruction itself."""
    return INSTRUCTIONS[one.expands[0]] if one.expands else one


def layout(one: Instruction) -> tuple[Any, ...]:
    """What extraction depends on: equal layouts share their code."""
    base = base_of(one)
    sources: list[tuple[str, Field | int]] = []
    for name in base.operands:
        if one.expands is None:
            sources.append((name, one.fields[name]))
        else:
            source = one.expands[1].get(name, 0)
            sources.append((name, one.fields[source] if isinstance(source, str) else source))
    excluded = tuple(f for f in one.fields.values() if f.excluded)
    return one.length, base.flow, "rs1" in base.operands, tuple(sources), excluded


class TreeWriter:
    """Writes the tree as linear IR text."""

    def __init__(self) -> None:
        self.t = Tracer()
        self.labels = 0
        self.formats: dict[tuple[Any, ...], tuple[str, list[tuple[str, Instruction]]]] = {}

    def label(self, kind: str) -> str:
        """A fresh label."""
        self.labels += 1
        return f"{kind}{self.labels}"

    def value(self, right: str) -> StagedWord:
        """A value in the linear text."""
        return StagedWord(self.t, self.t.emit(right))

    def tree(self, candidates: list[Instruction], label: str, decided: int) -> None:
        """The subtree that separates `candidates`; the bits in `decided` are known."""
        self.t.raw(f"{label}:")
        if not candidates:
            self.t.raw("  br label %illegal")
            return
        common = ~decided & 0xFFFFFFFF
        for one in candidates:
            common &= one.mask
        groups: dict[int, list[Instruction]] = {}
        for one in candidates:
            groups.setdefault(one.match & common, []).append(one)
        if common and len(candidates) > 1:
            key = self.t.emit(f"and i64 %bits, {common}")
            arms = {match: self.label("t") for match in groups}
            listed = " ".join(f"i64 {m}, label %{at}" for m, at in arms.items())
            self.t.raw(f"  switch i64 {key}, label %illegal [{listed}]")
            for match, group in groups.items():
                self.tree(group, arms[match], decided | common)
            return
        best = max(candidates, key=lambda one: one.mask.bit_count())
        rest = [one for one in candidates if one is not best]
        leaf, other = self.label("leaf"), self.label("t") if rest else "illegal"
        missing = best.mask & ~decided
        if missing or any(f.excluded for f in best.fields.values()):
            key = self.t.emit(f"and i64 %bits, {best.mask}")
            good = self.t.emit(f"icmp eq i64 {key}, {best.match}")
            for f in best.fields.values():
                for value in f.excluded:
                    held = f.extract(StagedWord(self.t, "%bits"))
                    differs = self.t.emit(f"icmp ne i64 {held.name}, {operand(value)}")
                    good = self.t.emit(f"and i1 {good}, {differs}")
            self.t.raw(f"  br i1 {good}, label %{leaf}, label %{other}")
        else:
            self.t.raw(f"  br label %{leaf}")
        name, members = self.formats.setdefault(layout(best), (self.label("f"), []))
        members.append((leaf, best))
        self.t.raw(f"{leaf}:\n  br label %{name}")
        if rest:
            self.tree(rest, other, decided)

    def store(self, at: int, value: Any, width: int) -> None:
        """Put an operand into the record."""
        pointer = self.t.emit(f"getelementptr i8, ptr %op, i64 {at}")
        narrow = self.t.emit(f"trunc i64 {operand(value)} to i{width}")
        self.t.raw(f"  store i{width} {narrow}, ptr {pointer}, align 1")

    def dist(self, slot: StagedWord) -> StagedWord:
        """dist[slot] of the page that holds the record."""
        base = self.value("ptrtoint ptr %op to i64") - StagedWord(self.t, "%slot") * 16
        pointer = self.t.emit(f"inttoptr i64 {(base + DIST + slot * 2).name} to ptr")
        return self.value(f"zext i16 {self.t.emit(f'load i16, ptr {pointer}, align 1')} to i64")

    def format(
        self, key: tuple[Any, ...], label: str, members: list[tuple[str, Instruction]]
    ) -> None:
        """The extraction shared by all leaves of one layout."""
        length, flow, conditional, sources, _excluded = key
        self.t.raw(f"{label}:")

        def handler(variant: str) -> str:
            listed = ", ".join(
                f"[ @{handler_name(base_of(one), length, variant)}, %{leaf} ]"
                for leaf, one in members
            )
            return self.t.emit(f"phi ptr {listed}")

        near = handler("near") if flow == "branch" else ""
        plain = handler("far" if flow == "branch" else "")
        slot = StagedWord(self.t, "%slot")
        for name, source in sources:
            value: Any = (
                source if isinstance(source, int) else source.extract(StagedWord(self.t, "%bits"))
            )
            if name == "rd":
                if isinstance(value, int):
                    value = value or 32
                else:
                    zero = self.t.emit(f"icmp eq i64 {value.name}, 0")
                    value = self.value(f"select i1 {zero}, i64 32, i64 {value.name}")
            at = FIELD_AT[name]
            if at < 12:
                self.store(at, value, 8)
            elif name != "imm" or not flow:
                self.store(at, value, 32)
            elif flow == "jump":
                self.store(12, value, 16)
                self.store(14, self.dist(slot), 16)
            else:
                target = slot + value.sra(1)
                inside = self.t.emit(f"icmp ult i64 {target.name}, {SLOTS}")
                inside = self.t.emit(f"and i1 {inside}, {self.t.emit('icmp eq i64 %far, 0')}")
                yes, no, done = self.label("near"), self.label("far"), self.label("end")
                self.t.raw(f"  br i1 {inside}, label %{yes}, label %{no}\n{yes}:")
                self.store(12, value.sra(1), 16)
                self.store(14, self.dist(target) - self.dist(slot) + 1, 16)
                self.t.raw(f"  store ptr {near}, ptr %op\n  br label %{done}\n{no}:")
                if conditional:
                    self.store(12, value, 16)
                    self.store(14, self.dist(slot), 16)
                else:
                    self.store(12, value, 32)
                    self.store(9, self.dist(slot), 16)
                self.t.raw(f"  store ptr {plain}, ptr %op\n  br label %{done}\n{done}:")
        if flow != "branch":
            self.t.raw(f"  store ptr {plain}, ptr %op")
        self.t.raw("  ret void")


def write_tree() -> str:
    """`decode_record` as IR text."""
    writer = TreeWriter()
    narrow = writer.t.emit("and i64 %bits, 3")
    long = writer.t.emit(f"icmp eq i64 {narrow}, 3")
    writer.t.raw(f"  br i1 {long}, label %long, label %short")
    for label, length in (("long", 4), ("short", 2)):
        writer.tree([one for one in INSTRUCTIONS.values() if one.length == length], label, 0)
    for key, (label, members) in writer.formats.items():
        writer.format(key, label, members)
    writer.t.raw("illegal:\n  store ptr @illegal, ptr %op\n  ret void")
    return (
        "define internal void @decode_record(ptr %op, i64 %bits, i64 %slot, i64 %far) #0 {\n"
        + writer.t.body()
        + "\n}\n"
    )
