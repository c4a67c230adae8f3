"""A file whose power can be cut: what was not synced may be there, in any part, or not.

Each write that no sync followed is kept apart; the cut applies, seeded, any subset of them, sector
by sector, in the order of their writing. That is more than a real disk does to us.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from kasou.errors import HostError

SECTOR = 512


class PowerCut(BaseException):
    """The power went; not an `Exception`, so that nothing tidies up after it."""


class CutFile:
    """`kasou.storage.file.File` in memory; after `budget` writes and syncs the power goes.

    With `at_sync` only syncs count: then most is at stake, in the middle of a commit.
    """

    def __init__(
        self, content: bytes, rng: random.Random, budget: int, at_sync: bool = False
    ) -> None:
        self.path = Path("cut.qcow2")
        self._stable = bytearray(content)
        self._seen = bytearray(content)
        self._waiting: list[tuple[str, int, bytes | int]] = []
        self._rng = rng
        self._budget = budget
        self._at_sync = at_sync

    def size(self) -> int:
        return len(self._seen)

    def read(self, offset: int, n: int) -> bytes:
        return bytes(self._seen[offset : offset + n])

    def readv(self, offset: int, views: Sequence[memoryview]) -> int:
        done = 0
        for view in views:
            data = self.read(offset + done, len(view))
            view[: len(data)] = data
            done += len(data)
        return done

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._do(("write", offset, bytes(data)))

    def writev(self, offset: int, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        self.write(offset, b"".join(parts))

    def sync(self) -> None:
        self._spend(is_sync=True)
        for op in self._waiting:
            _apply(self._stable, op)
        self._waiting.clear()

    def truncate(self, size: int) -> None:
        self._do(("truncate", size, 0))

    def zero(self, offset: int, n: int, unmap: bool) -> None:
        self._do(("write", offset, bytes(n)))

    def punch(self, offset: int, n: int) -> None:
        n = min(n, len(self._seen) - offset)
        if n > 0:
            self._do(("write", offset, bytes(n)))

    def downgrade(self) -> None: ...

    def upgrade(self) -> None: ...

    def close(self) -> None: ...

    def after_the_cut(self) -> bytes:
        """What the medium holds."""
        rng = self._rng
        odds = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for op in self._waiting:
            kind, offset, data = op
            if kind == "truncate":
                if rng.random() < odds:
                    _apply(self._stable, op)
                continue
            assert isinstance(data, bytes)
            if rng.random() < 0.5:  # whole or not at all
                if rng.random() < odds:
                    _apply(self._stable, op)
                continue
            at = 0
            while at < len(data):
                n = min(SECTOR - (offset + at) % SECTOR, len(data) - at)
                if rng.random() < odds:
                    _apply(self._stable, ("write", offset + at, data[at : at + n]))
                at += n
        return bytes(self._stable)

    def _do(self, op: tuple[str, int, bytes | int]) -> None:
        self._spend()
        _apply(self._seen, op)
        self._waiting.append(op)

    def _spend(self, is_sync: bool = False) -> None:
        self._budget -= is_sync or not self._at_sync
        if self._budget < 0:
            raise PowerCut


def _apply(content: bytearray, op: tuple[str, int, bytes | int]) -> None:
    kind, offset, data = op
    if kind == "truncate":
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    assert isinstance(data, bytes)
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class BrokenFile(CutFile):
    """Refuses with `errno` instead of losing power, `failures` times, then works again."""

    def __init__(self, content: bytes, budget: int, errno: int, failures: int = 1) -> None:
        super().__init__(content, random.Random(0), budget)
        self._errno = errno
        self._failures = failures

    def _spend(self, is_sync: bool = False) -> None:
        self._budget -= 1
        if self._budget < 0 and self._failures:
            self._failures -= 1
            raise HostError("disk cut.qcow2: refused", self._errno)
