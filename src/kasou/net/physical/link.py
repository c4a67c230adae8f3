"""A wire that loses, doubles, reorders, corrupts and delays: one direction of a simulated link.

Every fault is drawn from the `rng` that the caller seeds, so a run is repeated by its seed. A
packet is drawn for in a fixed order (loss, duplicate, then for each copy corruption, reordering
and jitter), one draw each whether or not the fault is enabled: raising one probability leaves
the draws of the others where they were.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass


@dataclass(slots=True)
class LinkStatistics:
    """What happened to the packets of a link, in packets."""

    sent: int = 0
    lost: int = 0
    overflowed: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    delivered: int = 0


class SimulatedLink:
    """One direction of a wire. `loss`, `duplicate`, `reorder`, `corrupt` are probabilities, 0 to 1.

    `delay_ns` is the propagation time; `jitter_ns` adds a uniform 0 to `jitter_ns` to each packet,
    which by itself reorders packets sent closer together than that. A reordered packet is held back
    by up to `reorder_ns` more (by default four delays, at least 1 ms). `bits_per_second` serialises
    packets one behind the other, and `queue_bytes` is then how much may wait: more is dropped at
    the tail, as by a router. A corrupted packet has one random bit inverted.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        corrupt: float = 0.0,
        delay_ns: int = 0,
        jitter_ns: int = 0,
        reorder_ns: int | None = None,
        bits_per_second: int | None = None,
        queue_bytes: int | None = None,
    ) -> None:
        self.loss, self.duplicate, self.reorder, self.corrupt = loss, duplicate, reorder, corrupt
        self.delay_ns, self.jitter_ns = delay_ns, jitter_ns
        self.reorder_ns = max(4 * delay_ns, 1_000_000) if reorder_ns is None else reorder_ns
        self.bits_per_second, self.queue_bytes = bits_per_second, queue_bytes
        self.statistics = LinkStatistics()
        self._rng = rng
        self._in_flight: list[tuple[int, int, bytes]] = []  # heap of (arrival ns, number, packet)
        self._number = 0
        self._idle_from = 0  # when the transmitter has sent all that was given to it, ns

    def send(self, data: bytes, now: int) -> None:
        """Put one packet on the wire at `now`."""
        rng, count = self._rng, self.statistics
        count.sent += 1
        lost, doubled = rng.random() < self.loss, rng.random() < self.duplicate
        leaves = now
        if self.bits_per_second is not None:
            waiting = max(0, self._idle_from - now) * self.bits_per_second // 8_000_000_000
            if self.queue_bytes is not None and waiting + len(data) > self.queue_bytes:
                count.overflowed += 1
                return
            leaves = max(now, self._idle_from) + len(data) * 8_000_000_000 // self.bits_per_second
            self._idle_from = leaves
        if lost:
            count.lost += 1
            return
        count.duplicated += doubled
        for _ in range(1 + doubled):
            self._fly(bytes(data), leaves)

    def _fly(self, data: bytes, leaves: int) -> None:
        rng, count = self._rng, self.statistics
        corrupted, held = rng.random() < self.corrupt, rng.random() < self.reorder
        arrives = leaves + self.delay_ns + int(rng.random() * self.jitter_ns)
        if corrupted and data:
            bit = rng.randrange(8 * len(data))
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            data = bytes(flipped)
            count.corrupted += 1
        if held:
            arrives += 1 + int(rng.random() * self.reorder_ns)
            count.reordered += 1
        self._number += 1
        heapq.heappush(self._in_flight, (arrives, self._number, data))

    def receive(self, now: int) -> list[bytes]:
        """The packets that have arrived by `now`, in the order of their arrival."""
        arrived = []
        while self._in_flight and self._in_flight[0][0] <= now:
            arrived.append(heapq.heappop(self._in_flight)[2])
        self.statistics.delivered += len(arrived)
        return arrived

    def deadline(self) -> int | None:
        """When the next packet arrives, ns; None when the wire is empty."""
        return self._in_flight[0][0] if self._in_flight else None
