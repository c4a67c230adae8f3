"""Floating point on the host: the operations that IEEE 754 makes the same everywhere.

Operands and results are raw bits; a NaN result becomes the canonical one. The host's sticky flags
are collected when they are read (`collect_flags`). With `strict` an operation stays between changes
of the host's rounding mode, by LLVM's constrained intrinsics. What is not the same everywhere
(round-to-nearest-max-magnitude, NaNs of a fused multiply-add) is left to the reference model.
"""

from __future__ import annotations

from kasou.engine.staging import Tracer

CANONICAL_NAN = {32: 0x7FC00000, 64: 0x7FF8000000000000}
FLOAT_TYPES = {32: "float", 64: "double"}
HOST_OPERATIONS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}


def emit_float(t: Tracer, name: str, bits: int, operands: list[str], strict: bool = False) -> str:
    """Host arithmetic on raw bits, NaN made canonical; `strict` for a changed rounding mode."""
    source = int(name[7:9]) if name.startswith("convert") else bits
    values = []
    for one in operands:
        narrow = one if source == 64 else t.emit(f"trunc i64 {one} to i{source}")
        values.append(t.emit(f"bitcast i{source} {narrow} to {FLOAT_TYPES[source]}"))
    kind = FLOAT_TYPES[bits]
    args = ", ".join(f"{FLOAT_TYPES[source]} {v}" for v in values)
    if strict:
        modes = 'metadata !"round.dynamic", metadata !"fpexcept.strict"'
        if name.startswith("convert") and source < bits:
            modes = 'metadata !"fpexcept.strict"'
        what = constrained(name, bits)
        result = t.emit(f"call {kind} @{what}({args}, {modes}) strictfp")
    elif name.startswith("convert"):
        result = t.emit(f"{'fpext' if source < bits else 'fptrunc'} {args} to {kind}")
    elif name in ("sqrt", "fma"):
        result = t.emit(f"call {kind} @llvm.{name}.f{bits}({args})")
    else:
        result = t.emit(f"f{name} {kind} {', '.join(values)}")
    integer = t.emit(f"bitcast {kind} {result} to i{bits}")
    magnitude = t.emit(f"and i{bits} {integer}, {(1 << bits - 1) - 1}")
    infinity = {32: 0x7F800000, 64: 0x7FF0000000000000}[bits]
    nan = t.emit(f"icmp ugt i{bits} {magnitude}, {infinity}")
    result = t.emit(f"select i1 {nan}, i{bits} {CANONICAL_NAN[bits]}, i{bits} {integer}")
    return result if bits == 64 else t.emit(f"zext i{bits} {result} to i64")


def constrained(name: str, bits: int) -> str:
    """The constrained intrinsic of an operation."""
    if name.startswith("convert"):
        source = int(name[7:9])
        what = "fpext" if source < bits else "fptrunc"
        return f"llvm.experimental.constrained.{what}.f{bits}.f{source}"
    what = name if name in ("sqrt", "fma") else f"f{name}"
    return f"llvm.experimental.constrained.{what}.f{bits}"
