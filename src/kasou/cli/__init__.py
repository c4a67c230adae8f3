"""The command line: a thin face over the rest.

Reading order: `main` (exit codes, errors, the fast way to `run`), `options`, `app` (every
command), `output` (what they print, and `--json`), then one file a command group: `run`,
`machines`, `consoles`, `commands` (exec, shell, cp), `moments` (snapshot, fork, save, load),
`network`, `top`, `qemu`, `images`, `explain`, `disasm`, `doctor`.

Rule: importing `main`, `options` or `run` imports nothing slow, because a machine is to execute
its first instruction 150 ms after Enter. typer, rich and the machine itself come inside functions.
"""
