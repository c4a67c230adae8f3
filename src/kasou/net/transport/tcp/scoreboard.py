"""What is in flight: one record for each unit sent, in sequence order, and what became of it.

    snd_una                                                    snd_nxt
    | sent | sacked | lost | sent again | sacked | ...   | sent |

A record is split where a SACK, a loss or a smaller retransmission needs a border inside it. The
pipe of RFC 6675 is what is neither sacked nor lost and not yet sent again; it is kept as a count.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter

_by_start = attrgetter("start")


class Sent:
    """Sequence numbers [start, end), the last time they were sent (ns) and what is known."""

    __slots__ = ("end", "first_sent_at", "lost", "retransmitted", "sacked", "sent_at", "start")

    def __init__(self, start: int, end: int, now: int) -> None:
        self.start, self.end = start, end
        self.sent_at = self.first_sent_at = now
        self.sacked = self.lost = self.retransmitted = False

    @property
    def size(self) -> int:
        """Sequence numbers it covers."""
        return self.end - self.start


class Scoreboard:
    """Counts are bytes: `sacked`, `lost` (and not yet sent again) and everything, `outstanding`."""

    __slots__ = ("lost", "outstanding", "records", "retransmitted", "sacked")

    def __init__(self) -> None:
        self.records: list[Sent] = []
        self.outstanding = self.sacked = self.lost = 0
        self.retransmitted = 0  # records in flight for at least the second time

    @property
    def pipe(self) -> int:
        """What is thought to be on its way (RFC 6675 4), bytes."""
        return self.outstanding - self.sacked - self.lost

    def send(self, start: int, end: int, now: int) -> None:
        """New data, behind all other."""
        self.records.append(Sent(start, end, now))
        self.outstanding += end - start

    def acknowledge(self, ack: int) -> list[Sent]:
        """Remove everything before `ack`; the records (or parts) that it newly delivered."""
        delivered = []
        n = 0
        for record in self.records:
            if record.end > ack:
                if record.start < ack:
                    part = Sent(record.start, ack, record.sent_at)
                    part.retransmitted = record.retransmitted
                    part.sacked = record.sacked
                    self._forget(record, ack - record.start)
                    record.start = ack
                    if not part.sacked:
                        delivered.append(part)
                break
            n += 1
            self._forget(record, record.end - record.start)
            self.retransmitted -= record.retransmitted
            if not record.sacked:
                delivered.append(record)
        if n:
            del self.records[:n]
        return delivered

    def _forget(self, record: Sent, n: int) -> None:
        self.outstanding -= n
        if record.sacked:
            self.sacked -= n
        if record.lost:
            self.lost -= n

    def sack(self, start: int, end: int) -> list[Sent]:
        """Mark [start, end), inside what is outstanding, as received; what is news."""
        records = self.records
        news = []
        i = max(bisect_right(records, start, key=_by_start) - 1, 0)
        while i < len(records):
            record = records[i]
            if record.start >= end:
                break
            if record.end <= start or record.sacked:
                i += 1
                continue
            if record.start < start:
                self.split(i, start)
                i += 1
                continue
            if record.end > end:
                self.split(i, end)
            record.sacked = True
            self.sacked += record.size
            if record.lost:
                record.lost = False
                self.lost -= record.size
            news.append(record)
            i += 1
        return news

    def split(self, i: int, at: int) -> None:
        """Make record `i` two, the second from `at` on."""
        record = self.records[i]
        rest = Sent(at, record.end, record.sent_at)
        rest.first_sent_at = record.first_sent_at
        rest.lost, rest.sacked = record.lost, record.sacked
        rest.retransmitted = record.retransmitted
        self.retransmitted += rest.retransmitted
        record.end = at
        self.records.insert(i + 1, rest)

    def lose(self, record: Sent) -> None:
        """Mark `record` as lost: it is to be sent again."""
        if not record.lost and not record.sacked:
            record.lost = True
            self.lost += record.size

    def first_lost(self) -> int | None:
        """The index of the first record to send again."""
        if not self.lost:
            return None
        return next(i for i, record in enumerate(self.records) if record.lost)

    def resend(self, record: Sent, now: int) -> None:
        """`record` has just been sent again."""
        if record.lost:
            record.lost = False
            self.lost -= record.size
        if not record.retransmitted:
            record.retransmitted = True
            self.retransmitted += 1
        record.sent_at = now

    def forget_sacks(self) -> None:
        """The receiver may have dropped what it had sacked (reneging, RFC 2018 8)."""
        for record in self.records:
            record.sacked = False
        self.sacked = 0

    def clear(self) -> None:
        """Nothing is in flight any more."""
        self.records.clear()
        self.outstanding = self.sacked = self.lost = self.retransmitted = 0
