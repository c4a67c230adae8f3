"""The Internet checksum (RFC 1071) and the pseudo-headers it covers in UDP, TCP and ICMPv6.

The sum of 16-bit words with end-around carry is the whole message, read as one big number, modulo
2**16 - 1, because 2**16 is 1 there. CPython divides a long number by a small one in C: 1,500 bytes take
3 us, 64 KiB 0.15 ms. Big frames carry offloads and are not summed at all.
"""

from __future__ import annotations

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview


def ones_complement_sum(data: Buffer, initial: int = 0) -> int:
    """The folded sum of `data` as big-endian 16-bit words, an odd last byte padded with zero.

    `initial` is a sum (of a pseudo-header) to go on from. 0 only when everything summed is zero.
    """
    number = int.from_bytes(data, "big")
    total = initial + (number << 8 if len(data) & 1 else number)
    return total % 0xFFFF or (0xFFFF if total else 0)


def checksum(data: Buffer, initial: int = 0) -> int:
    """What the checksum field must hold for `data` (with that field zero); 0 when it is right."""
    return ones_complement_sum(data, initial) ^ 0xFFFF


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The sum of the pseudo-header, to be passed as `initial` (RFC 9293 3.1, RFC 8200 8.1).

    `length` is that of the transport header and its payload, bytes.
    """
    addresses = int.from_bytes(source, "big") + int.from_bytes(destination, "big")
    return (addresses + protocol + length) % 0xFFFF
