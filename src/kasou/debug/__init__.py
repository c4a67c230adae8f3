"""Looking into a machine from outside. Reading order:

- `gdb_protocol`  the remote serial protocol of GDB, without a socket
- `target`        a machine as a debugger sees it: registers, memory, breakpoints, steps
"""
