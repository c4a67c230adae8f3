"""CUBIC (RFC 9438): the window grows as a cubic of the time since the last congestion.

    W_cubic(t) = C * (t - K)^3 + W_max          K = cbrt((W_max - cwnd_epoch) / C)

Steep far from W_max, flat around it, and never slower than Reno would be (W_est). Windows in the
formulas are in segments, time in seconds.
"""

from __future__ import annotations

from kasou.net.transport.tcp.congestion import INFINITE, initial_window

C = 0.4
BETA = 0.7
_ALPHA = 3 * (1 - BETA) / (1 + BETA)  # 4.3: as fast as Reno with a decrease of BETA


class Cubic:
    """A `CongestionControl`. `cwnd` and `ssthresh` in bytes; the epoch's values in segments."""

    __slots__ = (
        "_before",
        "_cwnd_epoch",
        "_epoch",
        "_k",
        "_w_est",
        "_w_max",
        "cwnd",
        "mss",
        "ssthresh",
    )

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.cwnd = initial_window(mss)
        self.ssthresh = INFINITE
        self._w_max = 0.0
        self._epoch: int | None = None  # when the present avoidance stage began, ns
        self._cwnd_epoch = 0.0
        self._k = 0.0
        self._w_est = 0.0
        self._before: tuple[int, int, float] | None = None

    def acknowledged(self, n: int, now: int, srtt: int) -> None:
        """4.2 to 4.5: towards what W_cubic will be a round trip from now, half as much more."""
        if self.cwnd < self.ssthresh:
            grown = min(self.cwnd + n, self.ssthresh)
            n -= grown - self.cwnd
            self.cwnd = grown
            if not n:
                return
        cwnd = self.cwnd / self.mss
        if self._epoch is None:
            self._begin(cwnd, now)
        t = (now - (self._epoch or 0)) / 1e9
        target = C * (t + srtt / 1e9 - self._k) ** 3 + self._w_max
        acked = n / self.mss
        alpha = 1.0 if self._w_est >= self._w_max else _ALPHA
        self._w_est += alpha * acked / cwnd
        if C * (t - self._k) ** 3 + self._w_max < self._w_est:  # 4.3: Reno would be ahead
            cwnd = max(cwnd, self._w_est)
        else:
            target = min(max(target, cwnd), 1.5 * cwnd)
            cwnd += (target - cwnd) / cwnd * acked
        self.cwnd = max(self.cwnd, int(cwnd * self.mss))

    def _begin(self, cwnd: float, now: int) -> None:
        self._epoch = now
        self._cwnd_epoch = self._w_est = cwnd
        if cwnd >= self._w_max:  # above the old saddle point: probe from here
            self._w_max, self._k = cwnd, 0.0
        else:
            self._k = float(((self._w_max - cwnd) / C) ** (1 / 3))

    def congested(self, in_flight: int, now: int) -> None:
        """4.6 and 4.7: remember where it was, a little lower if it is falling; shrink by BETA."""
        self._before = (self.cwnd, self.ssthresh, self._w_max)
        cwnd = self.cwnd / self.mss
        self._w_max = cwnd * (1 + BETA) / 2 if cwnd < self._w_max else cwnd
        self.ssthresh = max(int(min(in_flight, self.cwnd) * BETA), 2 * self.mss)
        self.cwnd = self.ssthresh
        self._epoch = None

    def timed_out(self, in_flight: int, now: int) -> None:
        """4.8: as `congested`, from one segment."""
        self.congested(in_flight, now)
        self.cwnd = self.mss

    def idle(self, rounds: int) -> None:
        """As in `NewReno`, and the cubic's clock starts anew (4.2: not counting idle time)."""
        self.ssthresh = max(self.ssthresh if self.ssthresh < INFINITE else 0, self.cwnd * 3 // 4)
        floor = min(self.cwnd, initial_window(self.mss))
        self.cwnd = max(floor, self.cwnd >> min(rounds, 30))
        self._epoch = None

    def undo(self) -> None:
        """4.9."""
        if self._before is not None:
            cwnd, self.ssthresh, self._w_max = self._before
            self.cwnd = max(self.cwnd, cwnd)
            self._epoch = None
            self._before = None
