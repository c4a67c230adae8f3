"""What a disk may hold, sector by sector, given what was asked of it and when it died.

A sector has the values it may have once everything asked so far is done (`now`; a discard leaves
two: as before, or zeroes), and those it may have if the power goes at this moment (`could`: every
value since the last flush that was acknowledged, and the one before).
"""

from __future__ import annotations

SECTOR = 512
ZERO = bytes(SECTOR)


class History:
    def __init__(self, content: bytes) -> None:
        self.certain = bytearray(content)
        self._now: dict[int, frozenset[bytes]] = {}
        self._could: dict[int, frozenset[bytes]] = {}

    def now(self, sector: int) -> frozenset[bytes]:
        return self._now.get(sector) or frozenset((self._certain(sector),))

    def write(self, offset: int, data: bytes) -> None:
        for at in range(0, len(data), SECTOR):
            self._set((offset + at) // SECTOR, frozenset((data[at : at + SECTOR],)))

    def zero(self, offset: int, n: int) -> None:
        for sector in range(offset // SECTOR, (offset + n) // SECTOR):
            self._set(sector, frozenset((ZERO,)))

    def discard(self, offset: int, n: int) -> None:
        for sector in range(offset // SECTOR, (offset + n) // SECTOR):
            self._set(sector, self.now(sector) | {ZERO})

    def apply(self, op: tuple[object, ...]) -> None:
        """Note an operation of `workload.operations`."""
        match op:
            case ("write", int(offset), bytes(data)):
                self.write(offset, data)
            case ("zero", int(offset), int(n), _):
                self.zero(offset, n)
            case ("discard", int(offset), int(n)):
                self.discard(offset, n)

    def failed(self, op: tuple[object, ...]) -> None:
        """An operation failed: each of its sectors is as it was or as it was to be."""
        if op == ("flush",):
            return
        offset = op[1]
        n = len(op[2]) if isinstance(op[2], bytes) else op[2]
        assert isinstance(offset, int) and isinstance(n, int)
        sectors = range(offset // SECTOR, (offset + n) // SECTOR)
        before = [self.now(sector) for sector in sectors]
        self.apply(op)
        for sector, old in zip(sectors, before, strict=True):
            self._now[sector] |= old

    def flushed(self) -> None:
        """A flush was acknowledged for everything noted so far."""
        self._could = {sector: values for sector, values in self._now.items() if len(values) > 1}
        for sector, values in self._now.items():
            if len(values) == 1:
                self.certain[sector * SECTOR : (sector + 1) * SECTOR] = next(iter(values))
        self._now = dict(self._could)

    def check_alive(self, content: bytes) -> None:
        """`content` is what the disk reads now, nothing having died."""
        self._check(content, self._now)

    def check_dead(self, content: bytes) -> None:
        """`content` is what the disk reads after a crash; it is certain from here on."""
        self._check(content, self._could)
        self.certain = bytearray(content)
        self._now = {}
        self._could = {}

    def _check(self, content: bytes, allowed: dict[int, frozenset[bytes]]) -> None:
        assert len(content) == len(self.certain)
        for sector in range(len(content) // SECTOR if content != self.certain else 0):
            found = content[sector * SECTOR : (sector + 1) * SECTOR]
            values = allowed.get(sector) or (self._certain(sector),)
            assert found in values, (
                f"sector {sector} holds {_brief(found)}, allowed: {[_brief(v) for v in values]}"
            )
        if content == self.certain:
            for sector, values in allowed.items():
                assert self._certain(sector) in values, f"sector {sector} is as it was"

    def _set(self, sector: int, values: frozenset[bytes]) -> None:
        could = self._could.get(sector) or frozenset((self._certain(sector),))
        self._now[sector] = values
        self._could[sector] = could | values

    def _certain(self, sector: int) -> bytes:
        return bytes(self.certain[sector * SECTOR : (sector + 1) * SECTOR])


def _brief(sector: bytes) -> str:
    """A sector in few characters: its start, where it differs from it, its end."""
    start = sector[:16]
    same = next((at for at in range(0, SECTOR, 16) if sector[at : at + 16] != start), SECTOR)
    return f"{start.hex()} x{same // 16}" + (f" .. {sector[-16:].hex()}" if same < SECTOR else "")
