"""Congestion control: how much may be in flight. One interface, and NewReno.

Which packets are lost is not decided here (`recovery` does that), nor when data may leave
(`output`). A controller is told of acknowledgments, of a loss that begins an episode of recovery,
and of timeouts; it answers with `cwnd` and `ssthresh`, bytes.
"""

from __future__ import annotations

from typing import Protocol

INFINITE = 1 << 62


def initial_window(mss: int) -> int:
    """RFC 6928: ten segments, or less when they are long."""
    return min(10 * mss, max(2 * mss, 14600))


class CongestionControl(Protocol):
    """All sizes in bytes, times in ns."""

    cwnd: int
    ssthresh: int
    mss: int

    def acknowledged(self, n: int, now: int, srtt: int) -> None:
        """`n` bytes were acknowledged outside fast recovery, while cwnd was what limited us."""
        ...

    def congested(self, in_flight: int, now: int) -> None:
        """A loss or an ECN mark begins an episode; called once for each."""
        ...

    def timed_out(self, in_flight: int, now: int) -> None:
        """The retransmission timer expired for the first time for this data."""
        ...

    def idle(self, rounds: int) -> None:
        """Nothing was sent for `rounds` RTOs."""
        ...

    def undo(self) -> None:
        """The last `congested` or `timed_out` was a mistake: nothing had been lost."""
        ...


class NewReno:
    """Slow start and congestion avoidance of RFC 5681 with appropriate byte counting (RFC 3465)."""

    __slots__ = ("_acked", "_before", "cwnd", "mss", "ssthresh")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.cwnd = initial_window(mss)
        self.ssthresh = INFINITE
        self._acked = 0  # bytes acknowledged towards the next increase
        self._before: tuple[int, int] | None = None

    def acknowledged(self, n: int, now: int, srtt: int) -> None:
        """RFC 5681 3.1; in slow start twice, else once a window, one mss."""
        if self.cwnd < self.ssthresh:
            grown = min(self.cwnd + n, self.ssthresh)
            n -= grown - self.cwnd
            self.cwnd = grown
        if n:
            self._acked += n
            if self._acked >= self.cwnd:
                self._acked -= self.cwnd
                self.cwnd += self.mss

    def congested(self, in_flight: int, now: int) -> None:
        """RFC 5681 (4): half of what is in flight, at least two segments."""
        self._before = (self.cwnd, self.ssthresh)
        self.ssthresh = max(in_flight // 2, 2 * self.mss)
        self.cwnd = self.ssthresh
        self._acked = 0

    def timed_out(self, in_flight: int, now: int) -> None:
        """The loss window is one segment."""
        self.congested(in_flight, now)
        self.cwnd = self.mss

    def idle(self, rounds: int) -> None:
        """RFC 9293 3.8.2, RFC 5681 4.1: back to the initial window, halving each RTO (RFC 2861)."""
        self.ssthresh = max(self.ssthresh if self.ssthresh < INFINITE else 0, self.cwnd * 3 // 4)
        floor = min(self.cwnd, initial_window(self.mss))
        self.cwnd = max(floor, self.cwnd >> min(rounds, 30))

    def undo(self) -> None:
        """Back to before."""
        if self._before is not None:
            cwnd, self.ssthresh = self._before
            self.cwnd = max(self.cwnd, cwnd)
            self._before = None
