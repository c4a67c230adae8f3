"""What passes through a control socket: JSON objects, each after its length.

    +----------------+----------------------------+
    | length, 4 LE   | JSON object, UTF-8         |
    +----------------+----------------------------+

A client sends requests, one after the other; the server answers each:

    {"operation": "info", "arguments": {...}}     ->
                                                  <- {"progress": "..."}      any number
                                                  <- {"result": {...}}
                                                  or {"error": {"kind": "config", "message": "..."}}

After the result of a *stream* operation (`console`, `tunnel`, `capture`, `hold`) the connection
carries plain bytes both ways until one side closes; there are no messages on it any more.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from kasou import errors
from kasou.errors import HostError, KasouError, RemoteError

LENGTH = struct.Struct("<I")
MOST_BYTES = 1 << 20
"""Of one message: what claims to be longer is not one of ours."""
MOST_OF_A_MESSAGE = 2000
"""Characters of an error's text."""

KINDS: dict[str, type[KasouError]] = {
    "config": errors.ConfigError,
    "host": errors.HostError,
    "guest": errors.GuestError,
    "remote": errors.RemoteError,
    "local": errors.LocalError,
}
"""How errors are named outside of Python; "internal" is a bug of ours."""


def encode(message: dict[str, Any]) -> bytes:
    """`message` with its length before it."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MOST_BYTES:
        raise errors.LocalError(f"control message of {len(text)} bytes; {MOST_BYTES} are allowed")
    return LENGTH.pack(len(text)) + text


def decode_length(header: bytes) -> int:
    """How many bytes follow. Raises `RemoteError` for a length that cannot be."""
    (length,) = LENGTH.unpack(header)
    if length > MOST_BYTES:
        raise RemoteError(f"control message of {length} bytes; {MOST_BYTES} are allowed")
    return int(length)


def decode(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`. Raises `RemoteError` when there is none."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise RemoteError(f"control message is not JSON: {text[:40]!r}") from None
    if not isinstance(message, dict):
        raise RemoteError(f"control message is not an object: {text[:40]!r}")
    return message


def kind_of(problem: BaseException) -> str:
    """The name of an error's kind."""
    for name, kind in KINDS.items():
        if isinstance(problem, kind):
            return name
    return "host" if isinstance(problem, OSError) else "internal"


def describe(problem: BaseException) -> dict[str, str]:
    """An error as it is sent and printed: its kind, and one line without control characters."""
    text = str(problem) or type(problem).__name__
    if isinstance(problem, OSError):
        where = f"{problem.filename}: " if problem.filename else ""
        text = f"{where}{problem.strerror or text}"
    elif not isinstance(problem, KasouError):
        text = f"{type(problem).__name__}: {text}"
    return {"kind": kind_of(problem), "message": sanitised(text)}


def error_from(described: Any) -> KasouError:
    """The exception that `describe` described."""
    if not isinstance(described, dict):
        return RemoteError(f"the VM's process sent an error that is none: {described!r:.60}")
    message = sanitised(str(described.get("message", "no reason given")))
    kind = described.get("kind")
    if kind == "internal":
        return HostError(f"the VM's process has a bug: {message}")
    return KINDS.get(str(kind), RemoteError)(message)


def sanitised(text: str) -> str:
    r"""`text` as one line: what a terminal would obey is written as `\x1b`."""
    line = " ".join(text.split("\n"))
    safe = "".join(
        c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"
        for c in line
    )
    return safe if len(safe) <= MOST_OF_A_MESSAGE else safe[: MOST_OF_A_MESSAGE - 3] + "..."
