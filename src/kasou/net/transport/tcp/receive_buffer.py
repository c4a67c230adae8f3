"""Data that arrived: what is in order waits for the user, the rest for the gap before it.

Pieces are views of the packets they came in. The islands behind a gap are kept sorted and do not
overlap; what arrives twice is kept once (the first copy, as RFC 9293 3.10.7.4 leaves free).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

Block = tuple[int, int]


class ReceiveBuffer:
    """`next` is RCV.NXT without a FIN; `readable` counts the bytes before it not yet read."""

    __slots__ = ("_islands", "_pieces", "_recent", "_starts", "duplicate", "next", "readable")

    def __init__(self, sequence: int) -> None:
        self.next = sequence
        self.readable = 0
        self.duplicate: Block | None = None  # what arrived twice last, for D-SACK (RFC 2883)
        self._pieces: deque[memoryview] = deque()
        self._islands: list[tuple[int, memoryview]] = []
        self._starts: list[int] = []
        self._recent: list[int] = []  # sequence numbers in the islands, latest arrival first

    @property
    def has_gap(self) -> bool:
        """Whether something arrived behind something missing."""
        return bool(self._islands)

    def insert(self, sequence: int, data: memoryview) -> bool:
        """Take `data`; the caller has cut it to the window. True when bytes became readable."""
        end = sequence + len(data)
        if sequence < self.next:
            self.duplicate = (sequence, min(end, self.next))
            if end <= self.next:
                return False
            data = data[self.next - sequence :]
            sequence = self.next
        if not self._islands and sequence == self.next:
            self._pieces.append(data)
            self.next = end
            self.readable += len(data)
            return True
        before = self.next
        self._insert_island(sequence, data)
        self._drain()
        return self.next > before

    def _insert_island(self, sequence: int, data: memoryview) -> None:
        islands, starts = self._islands, self._starts
        end = sequence + len(data)
        if sequence > self.next:
            self._recent.insert(0, sequence)
            del self._recent[8:]
        i = bisect_right(starts, sequence)
        if i:
            start, known = islands[i - 1]
            overlap = start + len(known) - sequence
            if overlap > 0:
                self.duplicate = (sequence, min(end, sequence + overlap))
                if overlap >= len(data):
                    return
                data = data[overlap:]
                sequence += overlap
        while data:  # fill the holes between the islands from i on
            if i == len(islands) or starts[i] >= end:
                islands.insert(i, (sequence, data))
                starts.insert(i, sequence)
                return
            start, known = islands[i]
            if start > sequence:
                islands.insert(i, (sequence, data[: start - sequence]))
                starts.insert(i, sequence)
                i += 1
            known_end = start + len(known)
            self.duplicate = (start, min(end, known_end))
            data = data[min(len(data), known_end - sequence) :]
            sequence = known_end
            i += 1

    def _drain(self) -> None:
        islands = self._islands
        n = 0
        for start, data in islands:
            if start != self.next:
                break
            self._pieces.append(data)
            self.next += len(data)
            self.readable += len(data)
            n += 1
        if n:
            del islands[:n], self._starts[:n]
            self._recent = [s for s in self._recent if s >= self.next] if islands else []

    def sack_blocks(self, limit: int) -> list[Block]:
        """At most `limit` blocks of RFC 2018 3: the one that holds the latest arrival first.

        A duplicate seen since the last call comes before them (RFC 2883) and is then forgotten.
        """
        blocks: list[Block] = []
        if self.duplicate is not None:
            blocks.append(self.duplicate)
            self.duplicate = None
        if not self._islands:
            return blocks
        contiguous = self._contiguous()
        latest: list[Block] = []
        for sequence in self._recent:
            block = next((b for b in contiguous if b[0] <= sequence < b[1]), None)
            if block is not None and block not in latest:
                latest.append(block)
        blocks += latest
        blocks += [block for block in contiguous if block not in latest]
        return blocks[:limit]

    def _contiguous(self) -> list[Block]:
        merged: list[Block] = []
        for start, data in self._islands:
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], start + len(data))
            else:
                merged.append((start, start + len(data)))
        return merged

    def read(self, n: int | None) -> bytes | memoryview:
        """The next piece, at most `n` bytes of it; empty when nothing is readable."""
        if not self._pieces:
            return b""
        piece = self._pieces[0]
        if n is None or n >= len(piece):
            self._pieces.popleft()
        else:
            self._pieces[0] = piece[n:]
            piece = piece[:n]
        self.readable -= len(piece)
        return piece

    def peek(self, n: int) -> list[memoryview]:
        """Pieces of together at most `n` bytes, left in place."""
        found: list[memoryview] = []
        for piece in self._pieces:
            if n <= 0:
                break
            found.append(piece[:n])
            n -= len(piece)
        return found

    def consume(self, n: int) -> None:
        """Drop the first `n` readable bytes."""
        assert n <= self.readable, f"consume({n}) of {self.readable} bytes"
        self.readable -= n
        while n:
            size = len(self._pieces[0])
            if size > n:
                self._pieces[0] = self._pieces[0][n:]
                return
            self._pieces.popleft()
            n -= size

    def clear(self) -> None:
        """Drop what is readable and what waits for a gap."""
        self._pieces.clear()
        self._islands.clear()
        self._starts.clear()
        self._recent.clear()
        self.readable = 0
