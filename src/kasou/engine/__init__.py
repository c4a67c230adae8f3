"""How the machine's meaning is run.

Reading order: `memory` (RAM), `reference` (the judge), `hart_state` (the block that compiled code
and Python share), `staging` (the value protocol on LLVM values), `context` and `handler` (the hart
as staged code sees it), `host_float`, `mechanics` (the engine's own texts: TLB, code pages, the
service point), `decode_tree`, `interpreter_ir` (the module), `loader` and `object_cache`,
`interpreter` (one hart at run time). Lock-step of both is in `kasou.machine`.
"""
