"""The instructions, one extension a file; importing this package fills `INSTRUCTIONS`.

Reading order: `i`, `m`, `a`, `zicsr`, `zba`, `zbb`, `zbs`, `zicond`, `zicbo`, `zawrs`, `f` (with
D), `c`, `privileged`. The order of import is the order of definition: `c` comes last, since it
expands to the others.
"""

# isort: off
from kasou.isa.rv64 import i, m, a, zicsr  # noqa: F401
from kasou.isa.rv64 import zba, zbb, zbs, zicond, zicbo, zawrs  # noqa: F401
from kasou.isa.rv64 import f, privileged  # noqa: F401
from kasou.isa.rv64 import c  # noqa: F401
