"""Where `kasou` starts: exit codes, and errors as one line.

| exit code | meaning |
|---|---|
| the guest's | what the machine ended with: 0 for power-off, or the code the guest gave |
| 2 | the command line makes no sense |
| 124 | `--timeout` passed |
| 125 | kasou could not do it: bad input, or the host refused |
| 130 | interrupted: Ctrl-] three times, or a signal |

With `--json` an error is `{"error": {"kind", "message", "code"}}` on standard output, alone there
(`kasou.cli.output`); for `run`, `exec`, `shell` and `qemu`, whose standard output is the guest's,
it stays a line on standard error. `KASOU_DEBUG=1` shows the traceback of an error.
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
    global _json
    arguments = list(sys.argv[1:] if argv is None else argv)
    _json = wants_json(arguments)
    code = guarded(lambda: dispatch(arguments))
    try:
        sys.stdout.flush()
    except OSError:
        # Who read our output has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


_json = False
"""Whether this command line asked for JSON."""
GUESTS_OUTPUT = ("run", "exec", "shell", "console", "qemu")
"""Commands whose standard output is the guest's."""


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors are to be JSON: known before the command line is understood."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    return command not in GUESTS_OUTPUT and "--json" in arguments


def dispatch(arguments: list[str]) -> int:
    """Carry out a command line; `run` in its plain spellings does not wait for typer."""
    if arguments and arguments[0] == "run":
        options = parse_plainly(arguments[1:])
        if options is not None:
            from kasou.cli.run import execute

            return execute(options)
    if arguments and arguments[0] == "qemu":
        from kasou.cli.qemu import qemu

        return qemu(arguments[1:])
    from kasou.cli.app import invoke

    return invoke(arguments)


def guarded(work: Callable[[], int]) -> int:
    """`work`'s exit code; an error becomes one line on standard error and its code."""
    try:
        return work()
    except UsageError as problem:
        return fail(str(problem), USAGE, "config")
    except KasouError as problem:
        from kasou.control.messages import kind_of

        return fail(str(problem), getattr(problem, "exit_code", FAILURE), kind_of(problem))
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
        return fail(f"internal error: {what}; KASOU_DEBUG=1 shows where", FAILURE, "internal")


def fail(message: str, code: int, kind: str = "host") -> int:
    """Say `message`, as one line without control characters, and return `code`."""
    if os.environ.get("KASOU_DEBUG", "") not in ("", "0") and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    from kasou.control.messages import sanitised

    if _json:
        import json

        print(json.dumps({"error": {"kind": kind, "message": sanitised(message), "code": code}}))
    else:
        print(f"kasou: {sanitised(message)}", file=sys.stderr, flush=True)
    return code
