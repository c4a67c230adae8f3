"""Sequence numbers (RFC 9293 3.4): 32 bits on the wire, whole numbers inside.

Inside a connection every sequence number is the count of 2^32 wraps and the 32 bits in one int, so
that `<` and `-` mean what they say. A number from the wire is unwrapped near one that is known;
any two that meet are less than 2^31 apart, which the window scale of at most 14 guarantees
(RFC 7323 2.3).
"""

MASK = 0xFFFF_FFFF
_HALF = 0x8000_0000


def unwrap(number: int, near: int) -> int:
    """The whole number within 2^31 of `near` whose low 32 bits are `number`."""
    return near + ((number - near + _HALF) & MASK) - _HALF


def wrap(number: int) -> int:
    """The 32 bits that go on the wire."""
    return number & MASK


def is_before(a: int, b: int) -> bool:
    """Whether 32-bit `a` is older than `b`, for numbers never unwrapped (timestamps)."""
    return (a - b) & MASK >= _HALF
