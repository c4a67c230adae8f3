"""RACK: a segment is lost when one sent sufficiently later has been delivered (RFC 8985 6).

"Sufficiently" is the reordering window: nothing until reordering has been seen and three segments
are sacked, else a quarter of the minimum RTT, more when D-SACKs show that this was too little.
"""

from __future__ import annotations

from collections.abc import Iterable

from kasou.net.transport.tcp.rto import RttEstimator
from kasou.net.transport.tcp.scoreboard import Scoreboard, Sent

_DUP_THRESH = 3
_PERSIST = 16  # recoveries for which a widened window is kept


class Rack:
    """The most recently sent segment of those delivered: when it was sent, its end, its RTT."""

    __slots__ = ("_dsack_round", "_multiplier", "_persist", "end", "fack", "reordering", "rtt",
                 "sent_at")  # fmt: skip

    def __init__(self) -> None:
        self.sent_at = -1
        self.end = 0
        self.rtt = 0
        self.fack = -(1 << 62)  # the highest sequence number delivered
        self.reordering = False
        self._multiplier = 1
        self._dsack_round: int | None = None
        self._persist = 0

    def deliver(self, records: Iterable[Sent], now: int, rtt: RttEstimator) -> None:
        """Steps 2 and 3: take what an ACK delivered for the first time, in sequence order."""
        for record in records:
            sample = now - record.sent_at
            if record.retransmitted and rtt.minimum is not None and sample < rtt.minimum:
                continue  # most likely the original was delivered
            self.rtt = sample
            if (record.sent_at, record.end) > (self.sent_at, self.end):
                self.sent_at, self.end = record.sent_at, record.end
            if record.end > self.fack:
                self.fack = record.end
            elif record.end < self.fack and not record.retransmitted:
                self.reordering = True

    def saw_dsack(self, snd_una: int, snd_nxt: int) -> None:
        """Step 4: once a round trip, a spurious retransmission widens the window."""
        if self._dsack_round is None or snd_una >= self._dsack_round:
            self._dsack_round = snd_nxt
            self._multiplier += 1
            self._persist = _PERSIST

    def recovered(self) -> None:
        """Step 4: an episode of recovery is over."""
        if self._persist:
            self._persist -= 1
            if not self._persist:
                self._multiplier = 1

    def window(self, in_recovery: bool, sacked_segments: int, rtt: RttEstimator) -> int:
        """Step 4: the reordering window, ns."""
        if not self.reordering and (in_recovery or sacked_segments >= _DUP_THRESH):
            return 0
        return min(self._multiplier * (rtt.minimum or 0) // 4, rtt.srtt or 0)

    def detect(self, scoreboard: Scoreboard, window: int, now: int) -> int | None:
        """Step 5: mark losses. When the next might be known to be lost, ns."""
        again: int | None = None
        latest = (self.sent_at, self.end)
        for record in scoreboard.records:
            if record.sacked or record.lost or (record.sent_at, record.end) >= latest:
                continue
            at = record.sent_at + self.rtt + window
            if at <= now:
                scoreboard.lose(record)
            else:
                again = at if again is None else max(again, at)
        return again
