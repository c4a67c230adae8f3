"""Data the user wrote and the peer has not acknowledged: a queue of pieces, never copied.

A piece is what one write brought, `bytes` or a view of memory that does not change. Small writes
are joined until a piece is worth its bookkeeping.
"""

from __future__ import annotations

from collections import deque

_SMALL = 4096
"""Writes up to this are joined to the piece before them, bytes."""


class SendBuffer:
    """`sequence` is the sequence number of the first byte kept, `length` how many are."""

    __slots__ = ("_cursor", "_cursor_piece", "_pieces", "length", "sequence")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.length = 0
        self._pieces: deque[bytes | memoryview] = deque()
        # Where the last `slice` ended: sequence number of the start of piece number
        # `_cursor_piece`. New data is sent in order, so the next slice begins there.
        self._cursor = sequence
        self._cursor_piece = 0

    @property
    def end(self) -> int:
        """The sequence number behind the last byte."""
        return self.sequence + self.length

    def append(self, data: bytes | memoryview) -> None:
        """Take `data`, which must not change afterwards."""
        self.length += len(data)
        pieces = self._pieces
        if pieces and len(data) <= _SMALL and len(pieces[-1]) <= _SMALL:
            # Slices already handed out keep the old piece; its start stays where it was.
            pieces[-1] = b"".join((pieces[-1], data))
        else:
            pieces.append(data)

    def slice(self, sequence: int, n: int) -> list[bytes | memoryview]:
        """The `n` bytes from `sequence` on, as pieces; the caller stays inside the buffer."""
        if n == 0:
            return []
        pieces = self._pieces
        start, i = self._cursor, self._cursor_piece
        if sequence < start:
            start, i = self.sequence, 0
        while sequence >= start + len(pieces[i]):
            start += len(pieces[i])
            i += 1
        found: list[bytes | memoryview] = []
        skip = sequence - start
        while True:
            piece = pieces[i]
            size = len(piece) - skip
            if size > n:
                found.append(memoryview(piece)[skip : skip + n])
                break
            found.append(memoryview(piece)[skip:] if skip else piece)
            n -= size
            if not n:
                break
            start += len(piece)
            skip = 0
            i += 1
        self._cursor, self._cursor_piece = start, i
        return found

    def acknowledge(self, sequence: int) -> None:
        """Drop everything before `sequence`, which is inside the buffer or at its end."""
        n = sequence - self.sequence
        self.length -= n
        self.sequence = sequence
        pieces = self._pieces
        gone = 0
        while n and n >= len(pieces[0]):
            n -= len(pieces.popleft())
            gone += 1
        if n:
            pieces[0] = memoryview(pieces[0])[n:]
        self._cursor_piece -= gone
        if self._cursor_piece < 0 or self._cursor < sequence:
            self._cursor, self._cursor_piece = sequence, 0

    def clear(self) -> None:
        """Drop everything."""
        self.acknowledge(self.end)
