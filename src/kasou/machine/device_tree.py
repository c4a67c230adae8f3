"""The device tree: nodes that say what they are, and the blob that firmware and kernels read.

A property's value is written as what it means: a string, a list of strings, a number or a sequence
of cells (32 bits each; `u64` splits a number in two), raw bytes, True for "present". A node stands
for its phandle: put the node itself where the specification wants a <phandle>; whoever is referred
to gets a number when the tree is written. (Devicetree Specification 0.4, chapters 2 and 5)
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Union

from kasou.errors import ConfigError

Cell = Union[int, "Node"]
Value = Union[bool, int, str, bytes, "Node", Sequence[str], Sequence[Cell]]

_MAGIC = 0xD00DFEED
_VERSION, _COMPATIBLE_VERSION = 17, 16
_BEGIN_NODE, _END_NODE, _PROP, _END = (struct.pack(">I", token) for token in (1, 2, 3, 9))
_HEADER = struct.Struct(">10I")


@dataclass(eq=False)
class Node:
    """A node; `name` includes the unit address (`serial@10000000`), the root's is empty."""

    name: str
    properties: dict[str, Value] = field(default_factory=dict)
    children: list["Node"] = field(default_factory=list)

    def add(self, name: str, properties: dict[str, Value] | None = None) -> "Node":
        """Append a child and return it."""
        child = Node(name, properties or {})
        self.children.append(child)
        return child

    def walk(self) -> Iterator["Node"]:
        """The node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def child(self, path: str) -> "Node":
        """The node at `path` below this one (`soc/serial@10000000`). Raises `KeyError`."""
        node = self
        for part in path.split("/"):
            found = [c for c in node.children if c.name == part]
            if not found:
                raise KeyError(f"{part} (of {path}) is not in {node.name or '/'}")
            node = found[0]
        return node


def u64(value: int) -> tuple[int, int]:
    """A 64-bit number as two cells."""
    return value >> 32, value & 0xFFFF_FFFF


def region(base: int, size: int) -> tuple[int, int, int, int]:
    """A `reg` entry with two address and two size cells."""
    return (*u64(base), *u64(size))


def blob(root: Node, reserved: Sequence[tuple[int, int]] = (), room: int = 0) -> bytes:
    """The flattened tree. `reserved` are (address, size) pairs that the kernel must not touch.

    `room` is how many bytes are left free at its end, for whoever adds to it where it lies. Raises
    `ConfigError` for a property that cannot be encoded.
    """
    phandles = _phandles(root)
    strings = bytearray()
    offsets: dict[str, int] = {}
    structure = bytearray()

    def name_offset(name: str) -> int:
        if name not in offsets:
            offsets[name] = len(strings)
            strings.extend(name.encode() + b"\0")
        return offsets[name]

    def emit(node: Node) -> None:
        structure.extend(_BEGIN_NODE + _padded(node.name.encode() + b"\0"))
        properties = dict(node.properties)
        if node in phandles:
            properties["phandle"] = phandles[node]
        for name, value in properties.items():
            if value is False:
                continue
            data = _encode(f"{node.name or '/'}: {name}", value, phandles)
            structure.extend(_PROP + struct.pack(">II", len(data), name_offset(name)))
            structure.extend(_padded(data))
        for child in node.children:
            emit(child)
        structure.extend(_END_NODE)

    emit(root)
    structure.extend(_END)
    reservations = b"".join(struct.pack(">QQ", *entry) for entry in (*reserved, (0, 0)))
    at_structure = _HEADER.size + len(reservations)
    at_strings = at_structure + len(structure)
    total = -(-(at_strings + len(strings) + room) // 8) * 8
    header = _HEADER.pack(
        _MAGIC,
        total,
        at_structure,
        at_strings,
        _HEADER.size,
        _VERSION,
        _COMPATIBLE_VERSION,
        0,  # boot hart
        len(strings),
        len(structure),
    )
    return (header + reservations + bytes(structure) + bytes(strings)).ljust(total, b"\0")


def _phandles(root: Node) -> dict[Node, int]:
    """A number for every node that some property refers to, in the order of the tree."""
    referred: set[Node] = set()
    for node in root.walk():
        for value in node.properties.values():
            cells = value if isinstance(value, (list, tuple)) else (value,)
            referred.update(cell for cell in cells if isinstance(cell, Node))
    inside = [node for node in root.walk() if node in referred]
    for missing in referred.difference(inside):
        raise ConfigError(f"device tree: {missing.name} is referred to but not in the tree")
    return {node: number for number, node in enumerate(inside, start=1)}


def _encode(where: str, value: Value, phandles: dict[Node, int]) -> bytes:
    if value is True:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode() + b"\0"
    if isinstance(value, (int, Node)):
        value = (value,)
    data = bytearray()
    for item in value:
        if isinstance(item, str):
            data += item.encode() + b"\0"
            continue
        cell = phandles[item] if isinstance(item, Node) else item
        if not 0 <= cell < 1 << 32:
            raise ConfigError(f"device tree: {where}: {cell:#x} does not fit a cell, use u64()")
        data += struct.pack(">I", cell)
    return bytes(data)


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 4) * 4, b"\0")
