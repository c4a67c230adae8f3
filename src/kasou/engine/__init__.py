"""How the machine's meaning is run.

Reading order: `memory` (RAM), `reference` (the judge), `hart_state` (the block that compiled code
and Python share), `staging` (the value protocol on LLVM values), `context` (the hart as staged code
sees it), `mechanics` (TLB fill, code pages, the service point: engine texts), `decode_tree`,
`interpreter_ir` (the module), `loader` and `object_cache`, `interpreter` (one hart at run time),
`lockstep`.
"""
