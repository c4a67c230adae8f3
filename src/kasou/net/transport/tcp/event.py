"""What a connection tells its user; the order and the promises stand in the package's docstring."""

from enum import Enum


class Event(Enum):
    """The last five are ends: one of the four reasons, or none when it ended well, then CLOSED."""

    ESTABLISHED = "established"
    READABLE = "readable"
    WRITABLE = "writable"
    REMOTE_CLOSED = "closed by the peer"
    RESET = "reset by the peer"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    UNREACHABLE = "unreachable"
    CLOSED = "closed"
