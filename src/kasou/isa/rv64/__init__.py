"""The instructions, one extension a file; importing this package fills `INSTRUCTIONS`.

Reading order: `i`, `m`, `a`, `zicsr`, `zba`, `zbb`, `zbs`, `zicond`, `zicbo`, `f` (with D),
`c`, `privileged`. The order of import is the order of definition: `c` expands to the others.
"""

from kasou.isa.rv64 import i  # noqa: F401
