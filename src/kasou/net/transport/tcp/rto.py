"""How long to wait before a retransmission: round-trip times and RTO (RFC 6298)."""

from __future__ import annotations

from kasou.net.transport.tcp.config import TcpConfig

_GRANULARITY = 1_000_000  # G, ns


class RttEstimator:
    """SRTT, RTTVAR and RTO, all in ns; `srtt` is None before the first sample."""

    __slots__ = ("_config", "_minimum_at", "minimum", "rto", "rttvar", "shift", "srtt")

    def __init__(self, config: TcpConfig) -> None:
        self._config = config
        self.srtt: int | None = None
        self.rttvar = 0
        self.rto = config.initial_rto
        self.shift = 0  # times it was backed off since the last sample
        self.minimum: int | None = None
        self._minimum_at = 0

    def sample(self, rtt: int, now: int) -> None:
        """Take a round-trip time of a segment that was sent once (Karn) or timestamped."""
        if self.srtt is None:  # (2.2)
            self.srtt, self.rttvar = rtt, rtt // 2
        else:  # (2.3)
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) // 4
            self.srtt += (rtt - self.srtt) // 8
        self.shift = 0
        self._compute(self.srtt)
        if self.minimum is None or rtt <= self.minimum or now - self._minimum_at > 300_000_000_000:
            self.minimum, self._minimum_at = rtt, now

    def _compute(self, srtt: int) -> None:
        wanted = srtt + max(_GRANULARITY, 4 * self.rttvar)
        self.rto = min(max(wanted, self._config.min_rto), self._config.max_rto)

    def restore(self) -> None:
        """The peer speaks again: what was backed off for a closed window says nothing of losses."""
        self.shift = 0
        if self.srtt is None:
            self.rto = self._config.initial_rto
        else:
            self._compute(self.srtt)

    def back_off(self) -> None:
        """(5.5): the timer expired, double it."""
        self.shift += 1
        self.rto = min(self.rto * 2, self._config.max_rto)
