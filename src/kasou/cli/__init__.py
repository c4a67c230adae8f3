"""The command line: a thin face over the rest.

Reading order: `main` (exit codes, errors, the fast way to `run`), `options`, `app` (every
command), then one file a command group: `run`, `images`, `explain`, `disasm`, `doctor`.

Rule: importing `main`, `options` or `run` imports nothing slow, because a machine is to execute
its first instruction 150 ms after Enter. typer, rich and the machine itself come inside functions.
"""
