"""Segments that leave: one packet's payload each, or a unit that stands for many (GSO).

The checksum is left to whoever knows whether the wire needs it: the header's field holds the
pseudo-header's sum, over which the one's complement sum of the segment completes it. That is
Linux's CHECKSUM_PARTIAL and virtio's NEEDS_CSUM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kasou.net.transport.tcp.sequence import wrap
from kasou.net.wire.address import ip_text
from kasou.net.wire.checksum import checksum, pseudo_header
from kasou.net.wire.tcp import CHECKSUM_OFFSET, CWR, FIN, PROTOCOL, PSH


class Endpoint(NamedTuple):
    """A packed address (4 or 16 bytes) and a port."""

    address: bytes
    port: int

    def __str__(self) -> str:
        text = ip_text(self.address)
        return f"{text}:{self.port}" if len(self.address) == 4 else f"[{text}]:{self.port}"


class OutgoingSegment(NamedTuple):
    """A TCP header and its payload, addressed; see the package for what the fields mean."""

    source: bytes
    destination: bytes
    header: bytes
    payload: Sequence[bytes | memoryview]
    length: int
    gso_size: int | None = None
    ecn: int = 0

    @property
    def csum_offset(self) -> int:
        """Where in the header the checksum stands, bytes."""
        return CHECKSUM_OFFSET

    def checksummed(self) -> bytes:
        """Header and payload, the checksum computed."""
        data = bytearray().join((self.header, *self.payload))
        data[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 2] = checksum(data).to_bytes(2, "big")
        return bytes(data)

    def cut(self) -> list[OutgoingSegment]:
        """The packets this unit stands for: FIN and PSH on the last, CWR on the first."""
        if self.gso_size is None:
            return [self]
        payload = memoryview(b"".join(self.payload))
        sequence = int.from_bytes(self.header[4:8], "big")
        pieces = []
        for at in range(0, len(payload), self.gso_size):
            piece = payload[at : at + self.gso_size]
            header = bytearray(self.header)
            header[4:8] = wrap(sequence + at).to_bytes(4, "big")
            if at + len(piece) < len(payload):
                header[13] &= ~(FIN | PSH)
            if at:
                header[13] &= ~CWR
            length = len(header) + len(piece)
            pseudo = pseudo_header(self.source, self.destination, PROTOCOL, length)
            header[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 2] = pseudo.to_bytes(2, "big")
            pieces.append(
                self._replace(header=bytes(header), payload=(piece,), length=length, gso_size=None)
            )
        return pieces
