"""The value protocol on LLVM values: the same texts, staged to IR text.

A `Tracer` runs a text once per control path. Every run replays the prefix that it shares with an
earlier run from the node's list of values and emits only what is new; an `if` on a `StagedBool` asks
the tracer, which explores both ways. Paths make a tree of blocks, so every value dominates its uses
and no phi is needed; merge points are function boundaries.

IR is emitted as text: llvmlite's own objects cost 30 times the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MASK = (1 << 64) - 1


class Node:
    """A block of the path tree: its lines, the values they made, and its successors."""

    __slots__ = ("kids", "label", "lines", "values")

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines: list[str] = []
        self.values: list[str] = []
        self.kids: dict[Any, Node] = {}


class Tracer:
    """Emits one LLVM function from a text by running it once per path.

    `limit` bounds the paths: a text above it should be cut into functions.
    """

    def __init__(self, limit: int = 256) -> None:
        self.limit = limit
        self.count = 0
        self.nodes: list[Node] = []
        self.root = self._node()
        self.paths = 0
        self._todo: list[list[Any]] = []
        self.path: list[Any] = []
        self.step = 0
        self.enter(self.root)

    def _node(self) -> Node:
        node = Node(f"b{len(self.nodes)}")
        self.nodes.append(node)
        return node

    def emit(self, right: str) -> str:
        """A value defined by the instruction `right`."""
        node = self.node
        if self.at < len(node.values):
            name = node.values[self.at]
        else:
            self.count += 1
            name = f"%v{self.count}"
            node.lines.append(f"  {name} = {right}")
            node.values.append(name)
        self.at += 1
        return name

    def raw(self, line: str) -> None:
        """A line that defines no value."""
        node = self.node
        if self.at >= len(node.values):
            node.lines.append(line)
            node.values.append("")
        self.at += 1

    def fresh(self) -> str:
        """A number for labels, the same in every replay."""
        node = self.node
        if self.at >= len(node.values):
            self.count += 1
            node.values.append(str(self.count))
        self.at += 1
        return node.values[self.at - 1]

    def choose(self, options: Sequence[Any], make: Callable[[dict[Any, str]], str]) -> Any:
        """Fork into one path an option; `make` gives the terminator from the options' labels."""
        node = self.node
        if not node.kids:
            node.kids = {option: self._node() for option in options}
            node.lines.append(make({option: kid.label for option, kid in node.kids.items()}))
        if self.step < len(self.path):
            taken = self.path[self.step]
        else:
            taken = options[0]
            self._todo += [[*self.path, option] for option in options[1:]]
            self.path = [*self.path, taken]
        self.step += 1
        self.enter(node.kids[taken])
        return taken

    def enter(self, node: Node) -> None:
        """Emit into `node`, from its start."""
        self.node, self.at = node, 0

    def run(self, path: Callable[[], None]) -> None:
        """Run `path` once per control path; it ends every path with a terminator."""
        self._todo = [[]]
        while self._todo:
            self.path, self.step = self._todo.pop(), 0
            self.enter(self.root)
            self.paths += 1
            assert self.paths <= self.limit, f"more than {self.limit} paths: cut the text"
            path()

    def body(self) -> str:
        """The function's blocks as text."""
        return "\n".join(f"{n.label}:\n" + "\n".join(n.lines) for n in self.nodes)


class StagedBool:
    """A comparison of LLVM values; `if` on it forks the path."""

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("name", "tracer")

    def __init__(self, tracer: Tracer, name: str) -> None:
        self.tracer, self.name = tracer, name

    def __bool__(self) -> bool:
        name = self.name

        def terminator(labels: dict[Any, str]) -> str:
            return f"  br i1 {name}, label %{labels[True]}, label %{labels[False]}"

        return bool(self.tracer.choose((True, False), terminator))

    def _combine(self, op: str, other: Any) -> StagedBool:
        right = other.name if isinstance(other, StagedBool) else str(bool(other)).lower()
        return StagedBool(self.tracer, self.tracer.emit(f"{op} i1 {self.name}, {right}"))

    def __and__(self, other: Any) -> StagedBool:
        return self._combine("and", other)

    def __or__(self, other: Any) -> StagedBool:
        return self._combine("or", other)

    __rand__, __ror__ = __and__, __or__

    def negate(self) -> StagedBool:
        """Not."""
        return self._combine("xor", True)

    def flag(self) -> StagedWord:
        """1 or 0."""
        return StagedWord(self.tracer, self.tracer.emit(f"zext i1 {self.name} to i64"))

    def select(self, if_true: Any, if_false: Any) -> Any:
        """LLVM's select, of values or of comparisons."""
        if isinstance(if_true, (StagedBool, bool)):
            a, b = (
                v.name if isinstance(v, StagedBool) else str(v).lower() for v in (if_true, if_false)
            )
            emitted = self.tracer.emit(f"select i1 {self.name}, i1 {a}, i1 {b}")
            return StagedBool(self.tracer, emitted)
        a, b = operand(if_true), operand(if_false)
        return StagedWord(self.tracer, self.tracer.emit(f"select i1 {self.name}, i64 {a}, i64 {b}"))


def operand(value: Any) -> str:
    """A value's IR name, or an int's constant."""
    if isinstance(value, StagedWord):
        return value.name
    number = int(value) & MASK
    return str(number - (1 << 64) if number >> 63 else number)


class StagedWord:
    """A 64-bit LLVM value; the methods are those of `kasou.isa.word.Word`."""

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("name", "tracer")

    def __init__(self, tracer: Tracer, name: str) -> None:
        self.tracer, self.name = tracer, name

    def __bool__(self) -> bool:
        raise TypeError("a value is not a truth value: compare with 0")

    def _emit(self, right: str) -> StagedWord:
        return StagedWord(self.tracer, self.tracer.emit(right))

    def _binary(self, op: str, other: Any) -> StagedWord:
        return self._emit(f"{op} i64 {self.name}, {operand(other)}")

    def _compare(self, predicate: str, other: Any) -> StagedBool:
        right = f"icmp {predicate} i64 {self.name}, {operand(other)}"
        return StagedBool(self.tracer, self.tracer.emit(right))

    def _call(self, intrinsic: str, extra: str = "") -> StagedWord:
        return self._emit(f"call i64 @llvm.{intrinsic}.i64(i64 {self.name}{extra})")

    def _high(self, other: Any, mine: str, its: str) -> StagedWord:
        wide = operand(other)
        a = self.tracer.emit(f"{mine} i64 {self.name} to i128")
        b = self.tracer.emit(f"{its} i64 {wide} to i128")
        product = self.tracer.emit(f"mul i128 {a}, {b}")
        shifted = self.tracer.emit(f"lshr i128 {product}, 64")
        return self._emit(f"trunc i128 {shifted} to i64")

    # fmt: off
    def __add__(self, other: Any) -> StagedWord: return self._binary("add", other)
    def __sub__(self, other: Any) -> StagedWord: return self._binary("sub", other)
    def __mul__(self, other: Any) -> StagedWord: return self._binary("mul", other)
    def __and__(self, other: Any) -> StagedWord: return self._binary("and", other)
    def __or__(self, other: Any) -> StagedWord: return self._binary("or", other)
    def __xor__(self, other: Any) -> StagedWord: return self._binary("xor", other)
    __radd__, __rmul__, __rand__, __ror__, __rxor__ = __add__, __mul__, __and__, __or__, __xor__
    def __rsub__(self, other: Any) -> StagedWord: return self._emit(f"sub i64 {operand(other)}, {self.name}")
    def __invert__(self) -> StagedWord: return self._binary("xor", -1)
    def __lshift__(self, other: Any) -> StagedWord: return self._binary("shl", other)
    def __rlshift__(self, other: Any) -> StagedWord: return self._emit(f"shl i64 {operand(other)}, {self.name}")
    def __rshift__(self, other: Any) -> StagedWord: return self._binary("lshr", other)
    def sra(self, other: Any) -> StagedWord: return self._binary("ashr", other)
    def udiv(self, other: Any) -> StagedWord: return self._binary("udiv", other)
    def urem(self, other: Any) -> StagedWord: return self._binary("urem", other)
    def sdiv(self, other: Any) -> StagedWord: return self._binary("sdiv", other)
    def srem(self, other: Any) -> StagedWord: return self._binary("srem", other)
    def mulhu(self, other: Any) -> StagedWord: return self._high(other, "zext", "zext")
    def mulhs(self, other: Any) -> StagedWord: return self._high(other, "sext", "sext")
    def mulhsu(self, other: Any) -> StagedWord: return self._high(other, "sext", "zext")
    def __eq__(self, other: object) -> Any: return self._compare("eq", other)
    def __ne__(self, other: object) -> Any: return self._compare("ne", other)
    def ltu(self, other: Any) -> StagedBool: return self._compare("ult", other)
    def geu(self, other: Any) -> StagedBool: return self._compare("uge", other)
    def lts(self, other: Any) -> StagedBool: return self._compare("slt", other)
    def ges(self, other: Any) -> StagedBool: return self._compare("sge", other)
    def clz(self) -> StagedWord: return self._call("ctlz", ", i1 false")
    def ctz(self) -> StagedWord: return self._call("cttz", ", i1 false")
    def cpop(self) -> StagedWord: return self._call("ctpop")
    def bswap(self) -> StagedWord: return self._call("bswap")
    # fmt: on

    def sext(self, bits: int) -> StagedWord:
        """The low bits, sign-extended."""
        if bits == 64:
            return self
        low = self.tracer.emit(f"shl i64 {self.name}, {64 - bits}")
        return self._emit(f"ashr i64 {low}, {64 - bits}")

    def zext(self, bits: int) -> StagedWord:
        """The low bits, zero-extended."""
        return self if bits == 64 else self._binary("and", (1 << bits) - 1)


DECLARATIONS = "\n".join(
    f"declare i64 @llvm.{name}.i64(i64{extra})"
    for name, extra in (("ctlz", ", i1"), ("cttz", ", i1"), ("ctpop", ""), ("bswap", ""))
)
