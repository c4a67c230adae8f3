"""What the machine means, in the order of the specification.

Reading order: `word` (the value protocol, on ints), `encoding` (encoding strings and the `@insn`
decorator), `rv64/` (one extension, one file), `state` (the architectural state as one table),
`trap`, `csr`, `pmp`, `translation`, `interrupts`, `softfloat`, `asm` (assembler and disassembler).

Nothing here imports llvmlite: `kasou.engine.staging` runs the same texts on LLVM values.
"""
