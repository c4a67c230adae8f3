"""The agent's protocol: frames and what they mean, spelled once for both sides. No I/O.

A connection carries one request and its outcome. Every frame is

    | kind u8 | length u32, big-endian | payload |

The host opens with REQUEST, a JSON object whose `do` names the service. A service that runs a
process answers STARTED, then STDOUT and STDERR as they come, and EXIT last; any other answers once
with ANSWER. FAILED, in either's place, says why the service could not be done. After EXIT, ANSWER
or FAILED the agent closes the connection. If the host closes earlier, it kills the process.

Only `WINDOW` bytes of STDIN may be under way: the agent says TAKEN for what the process has read
(or will never read), so a process that does not read cannot hold up SIGNAL or RESIZE. Output is
held back by the connection itself.

JSON carries file names and arguments with the bytes that are not UTF-8 as surrogates (PEP 383).

This file becomes part of the script that runs in the guest: it may import only what
python3-minimal has, and nothing of kasou.
"""

import json
import struct

VERSION = 1
PORT = 1024
"""Where the agent listens on AF_VSOCK."""
HOST_CID = 2
"""Who may connect."""
WINDOW = 1 << 18
"""Bytes of STDIN the host may send beyond what was TAKEN."""
PIECE = 1 << 16
"""Most bytes of data that a sender puts into one frame."""
MAX_PAYLOAD = 1 << 20
"""Longest payload that a receiver takes."""

_HEADER = struct.Struct(">BI")
_EXIT = struct.Struct(">BB")
_SIZE = struct.Struct(">HH")
_COUNT = struct.Struct(">I")


class Kind:
    """What a frame is. Plain numbers: the guest's processor is slow, and `enum` is not free."""

    # from the host
    REQUEST = 0x01  # JSON
    STDIN = 0x02  # bytes
    STDIN_EOF = 0x03
    SIGNAL = 0x04  # number u8, for the process group
    RESIZE = 0x05  # columns u16, rows u16
    # from the agent
    STARTED = 0x81  # JSON: pid, and what the service adds
    STDOUT = 0x82  # bytes
    STDERR = 0x83  # bytes
    TAKEN = 0x84  # u32: bytes of STDIN that are done with
    EXIT = 0x85  # status u8 as a shell gives it, signal u8 or 0
    ANSWER = 0x86  # JSON
    FAILED = 0x87  # JSON: message, errno (a name such as ENOENT, or empty)


class BadFrame(ValueError):
    """The other side sent what is no frame, or no payload for its kind."""


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(kind, len(payload)) + payload


def json_frame(kind: int, value: dict[str, object]) -> bytes:
    """One frame with a JSON object."""
    return frame(kind, json.dumps(value, separators=(",", ":")).encode())


def exit_frame(status: int, signal: int = 0) -> bytes:
    """EXIT."""
    return frame(Kind.EXIT, _EXIT.pack(status & 0xFF, signal & 0xFF))


def taken_frame(n: int) -> bytes:
    """TAKEN."""
    return frame(Kind.TAKEN, _COUNT.pack(n))


def resize_frame(columns: int, rows: int) -> bytes:
    """RESIZE; sizes beyond 16 bits are cut down to them."""
    return frame(Kind.RESIZE, _SIZE.pack(min(columns, 0xFFFF), min(rows, 0xFFFF)))


def parse_json(payload: bytes) -> dict[str, object]:
    """A JSON object. Raises `BadFrame`."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadFrame(f"JSON {type(value).__name__}, expected an object")
    return value


def parse_exit(payload: bytes) -> tuple[int, int]:
    """Status and signal of EXIT. Raises `BadFrame`."""
    status, signal = _fields(_EXIT, payload)
    return status, signal


def parse_size(payload: bytes) -> tuple[int, int]:
    """Columns and rows of RESIZE. Raises `BadFrame`."""
    columns, rows = _fields(_SIZE, payload)
    return columns, rows


def parse_count(payload: bytes) -> int:
    """The number in TAKEN. Raises `BadFrame`."""
    return _fields(_COUNT, payload)[0]


def _fields(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise BadFrame(f"a payload of {len(payload)} bytes, expected {layout.size}")
    return layout.unpack(payload)


class FrameReader:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames, kind and payload, that `data` completes. Raises `BadFrame`."""
        buffer = self._buffer
        buffer += data
        frames = []
        at, end = 0, len(buffer)
        while end - at >= _HEADER.size:
            kind, n = _HEADER.unpack_from(buffer, at)
            if n > MAX_PAYLOAD:
                raise BadFrame(f"a frame of {n} bytes, at most {MAX_PAYLOAD} are taken")
            if end - at < _HEADER.size + n:
                break
            at += _HEADER.size
            frames.append((kind, bytes(buffer[at : at + n])))
            at += n
        del buffer[:at]
        return frames
