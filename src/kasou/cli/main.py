"""Where `kasou` starts: exit codes, and errors as one line.

| exit code | meaning |
|---|---|
| the guest's | what the machine ended with: 0 for power-off, or the code the guest gave |
| 2 | the command line makes no sense |
| 124 | `--timeout` passed |
| 125 | kasou could not do it: bad input, or the host refused |
| 130 | interrupted: Ctrl-] three times, or a signal |

`KASOU_DEBUG=1` shows the traceback of an error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from kasou.cli.options import UsageError, parse_plainly
from kasou.errors import KasouError

USAGE = 2
TIMEOUT = 124
FAILURE = 125
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: this process's) and end with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = guarded(lambda: dispatch(arguments))
    try:
        sys.stdout.flush()
    except OSError:
        # Who read our output has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def dispatch(arguments: list[str]) -> int:
    """Carry out a command line; `run` in its plain spellings does not wait for typer."""
    if arguments and arguments[0] == "run":
        options = parse_plainly(arguments[1:])
        if options is not None:
            from kasou.cli.run import execute

            return execute(options)
    from kasou.cli.app import invoke

    return invoke(arguments)


def guarded(work: Callable[[], int]) -> int:
    """`work`'s exit code; an error becomes one line on standard error and its code."""
    try:
        return work()
    except UsageError as problem:
        return fail(str(problem), USAGE)
    except KasouError as problem:
        return fail(str(problem), FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILURE
    except FileNotFoundError as problem:
        return fail(f"{problem.filename}: no such file", FAILURE)
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        return fail(f"{where}{problem.strerror or problem}", FAILURE)
    except MemoryError:
        return fail(
            "the host has not enough memory for this machine; use a smaller --memory", FAILURE
        )
    except Exception as problem:
        # A bug of ours; a user gets a line, not a traceback.
        what = f"{type(problem).__name__}: {problem}".strip().partition("\n")[0]
        return fail(f"internal error: {what}; KASOU_DEBUG=1 shows where", FAILURE)


def fail(message: str, code: int) -> int:
    """Say `message` on standard error, as one line, and return `code`."""
    if os.environ.get("KASOU_DEBUG", "") not in ("", "0") and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    line = " ".join(message.split("\n"))
    print(f"kasou: {line}", file=sys.stderr, flush=True)
    return code
