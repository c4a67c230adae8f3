"""Fragments put together again, within limits (RFC 791 3.2, RFC 8200 4.5, RFC 5722).

Overlapping fragments are no packet that anyone means to send: the whole datagram is dropped, in
IPv4 too, and its key stays poisoned until its time is over. An exact repetition is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kasou.net.wire.error import ParseError

TIMEOUT4_NS = 30 * 1_000_000_000
TIMEOUT6_NS = 60 * 1_000_000_000
MAX_BYTES = 4 << 20
MAX_PER_SOURCE = 64
MAX_DATAGRAMS = 1024
_MAX_DATAGRAM = 65535
_MAX_FRAGMENTS = 8192 // 8  # of one datagram

Key = tuple[bytes, bytes, int, int]
"""Source, destination, protocol, identification."""
Header = TypeVar("Header")


@dataclass(slots=True)
class _Datagram(Generic[Header]):
    deadline: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    total: int | None = None
    first: Header | None = None
    received: int = 0
    poisoned: bool = False


@dataclass(frozen=True, slots=True)
class Expired(Generic[Header]):
    """A datagram whose time is over. `first` is None when its first fragment never came."""

    first: Header | None
    payload: bytes


class Reassembler(Generic[Header]):
    """Datagrams of one address family that are not whole yet; `timeout_ns` from the first piece."""

    def __init__(self, timeout_ns: int, max_bytes: int = MAX_BYTES) -> None:
        self.timeout_ns, self.max_bytes = timeout_ns, max_bytes
        self.held_bytes = 0
        self._datagrams: dict[Key, _Datagram[Header]] = {}

    def receive(
        self, key: Key, header: Header, offset: int, more: bool, payload: memoryview, now: int
    ) -> tuple[Header, bytes] | None:
        """One fragment: the first one's header and the whole payload once all are there.

        Raises `ParseError` for a fragment that cannot be part of a datagram.
        """
        end = offset + len(payload)
        if end > _MAX_DATAGRAM or not len(payload) or (more and len(payload) % 8):
            raise ParseError(f"fragment of {len(payload)} bytes at {offset}, more: {more}")
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._open(key, len(payload), now)
        if datagram.poisoned:
            return None
        same = datagram.pieces.get(offset)
        if same is not None and payload == same and (more or datagram.total == end):
            return None
        if self._conflicts(datagram, offset, end, more):
            self._poison(datagram)
            raise ParseError(f"fragment {offset} to {end} overlaps another")
        datagram.pieces[offset] = bytes(payload)
        datagram.received += len(payload)
        self.held_bytes += len(payload)
        if offset == 0:
            datagram.first = header
        if not more:
            datagram.total = end
        if datagram.received != datagram.total or datagram.first is None:
            return None
        self._drop(key)
        return datagram.first, b"".join(datagram.pieces[at] for at in sorted(datagram.pieces))

    def deadline(self) -> int | None:
        """When the oldest datagram is given up, ns."""
        return next((each.deadline for each in self._datagrams.values()), None)

    def handle_timer(self, now: int) -> list[Expired[Header]]:
        """Give up what is too old."""
        expired = []
        for key, each in list(self._datagrams.items()):
            if now < each.deadline:
                break  # all have one timeout: they are in order
            self._drop(key)
            if not each.poisoned:
                expired.append(Expired(each.first, each.pieces.get(0, b"")))
        return expired

    def _open(self, key: Key, size: int, now: int) -> _Datagram[Header]:
        source = key[0]
        mine = [other for other in self._datagrams if other[0] == source]
        if len(mine) >= MAX_PER_SOURCE:
            self._drop(mine[0])
        while self._datagrams and (
            self.held_bytes + size > self.max_bytes or len(self._datagrams) >= MAX_DATAGRAMS
        ):
            self._drop(next(iter(self._datagrams)))
        datagram = self._datagrams[key] = _Datagram(now + self.timeout_ns)
        return datagram

    @staticmethod
    def _conflicts(datagram: _Datagram[Header], offset: int, end: int, more: bool) -> bool:
        total = datagram.total
        if total is not None and (end > total or not more):
            return True
        if not more and any(at + len(each) > end for at, each in datagram.pieces.items()):
            return True
        if len(datagram.pieces) >= _MAX_FRAGMENTS:
            return True
        return any(at < end and offset < at + len(each) for at, each in datagram.pieces.items())

    def _poison(self, datagram: _Datagram[Header]) -> None:
        self.held_bytes -= datagram.received
        datagram.pieces.clear()
        datagram.received, datagram.poisoned = 0, True

    def _drop(self, key: Key) -> None:
        self.held_bytes -= self._datagrams.pop(key).received
