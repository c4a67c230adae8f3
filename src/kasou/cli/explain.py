"""`kasou explain NAME`: an instruction as the tables and its text have it."""

from __future__ import annotations

import difflib
import inspect
import json as json_text
import textwrap
from collections.abc import Callable
from pathlib import Path

from kasou.cli.options import UsageError
from kasou.isa import rv64  # noqa: F401  (fills INSTRUCTIONS)
from kasou.isa.encoding import INSTRUCTIONS, WIDTHS, Instruction


def explain(name: str, json: bool) -> int:
    """Print the instruction called `name`. Raises `UsageError` for an unknown one."""
    wanted = name.strip().lower()
    one = INSTRUCTIONS.get(wanted)
    if one is None:
        near = difflib.get_close_matches(wanted, INSTRUCTIONS, n=4, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UsageError(f"explain {name}: no such instruction{hint}")
    print(as_json(one) if json else as_text(one))
    return 0


def tokens(one: Instruction) -> list[tuple[str, int, int]]:
    """(token, highest bit, lowest bit) of the encoding string, most significant first."""
    found = []
    high = 8 * one.length - 1
    for token in one.encoding.split():
        name = token.partition("!=")[0]
        if set(token) <= {"0", "1"}:
            width = len(token)
        elif "[" in name:
            slices = name[name.index("[") + 1 : name.index("]")].split("|")
            width = sum(
                int(first) - int(last or first) + 1
                for first, _, last in (part.partition(":") for part in slices)
            )
        else:
            width = WIDTHS[name]
        found.append((token, high, high - width + 1))
        high -= width
    return found


def diagram(one: Instruction) -> str:
    """The encoding as the manual draws it: bit numbers above boxes."""
    numbers, border, boxes = "", "+", "|"
    for token, high, low in tokens(one):
        ends = f"{high}" if high == low else f"{high} {low}"
        inside = max(len(token), len(ends))
        left, right = (f"{high}", "") if high == low else (f"{high}", f"{low}")
        numbers += f"  {left}{right:>{inside - len(left)}} "
        border += "-" * (inside + 2) + "+"
        boxes += f" {token:^{inside}} |"
    return "\n".join((numbers.rstrip(), border, boxes, border))


def meaning(one: Instruction) -> str:
    """The docstring, without the section it names at its end."""
    text = inspect.getdoc(one.text) or ""
    return text.removesuffix(f"({one.source})").strip() if one.source else text


def assembly(one: Instruction) -> str:
    """The assembly text with the operands' names."""
    return f"{one.name} {one.asm.replace('{', '').replace('}', '')}".strip()


def place(one: Instruction) -> str:
    """File and line of the text that is the meaning."""
    code = one.text.__code__
    file = Path(code.co_filename)
    parts = file.parts
    shown = "/".join(parts[parts.index("kasou") :]) if "kasou" in parts[:-1] else file.name
    return f"{shown}:{code.co_firstlineno}"


def expansion(one: Instruction) -> str:
    """For a compressed instruction, the base instruction it stands for."""
    if one.expands is None:
        return ""
    base, operands = one.expands
    return f"{base} {', '.join(f'{name}={value}' for name, value in operands.items())}".strip()


def as_text(one: Instruction) -> str:
    """The whole explanation, for a person."""
    rows = [("assembly", assembly(one)), ("meaning", meaning(one)), ("section", one.source)]
    if one.expands is not None:
        rows.insert(1, ("stands for", expansion(one)))
    rows += [
        ("extension", one.extension),
        ("match/mask", f"{one.match:#0{2 * one.length + 2}x} / {one.mask:#0{2 * one.length + 2}x}"),
        ("written in", place(one)),
    ]
    lines = [diagram(one), ""]
    for label, text in rows:
        lines += [f"{label if not i else '':<11} {line}" for i, line in enumerate(text.split("\n"))]
    return "\n".join([*lines, "", *(f"    {line}".rstrip() for line in source(one))])


def source(one: Instruction) -> list[str]:
    """The lines of the text that is the meaning, and of the functions it was made with."""
    texts: list[Callable[..., object]] = [one.text]
    texts += filter(inspect.isfunction, inspect.getclosurevars(one.text).nonlocals.values())
    lines: list[str] = []
    for function in texts:
        try:
            lines += textwrap.dedent(inspect.getsource(function)).rstrip().split("\n")
        except (OSError, TypeError):
            continue
    return lines


def as_json(one: Instruction) -> str:
    """The whole explanation, for a program."""
    return json_text.dumps(
        {
            "name": one.name,
            "extension": one.extension,
            "encoding": one.encoding,
            "bits": [{"field": t, "high": high, "low": low} for t, high, low in tokens(one)],
            "assembly": assembly(one),
            "meaning": meaning(one),
            "section": one.source,
            "expands": expansion(one) or None,
            "mask": one.mask,
            "match": one.match,
            "written_in": place(one),
        },
        indent=2,
    )
