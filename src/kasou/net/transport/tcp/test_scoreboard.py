"""The scoreboard against a dictionary that says of every byte what became of it."""

from hypothesis import given
from hypothesis import strategies as st

from kasou.net.transport.tcp.scoreboard import Scoreboard


@given(st.data())
def test_counts_follow_the_bytes(data: st.DataObject) -> None:
    board = Scoreboard()
    una = nxt = 0
    for now in range(data.draw(st.integers(1, 40))):
        match data.draw(
            st.sampled_from(("send", "send", "ack", "sack", "lose", "resend", "forget"))
        ):
            case "send":
                n = data.draw(st.integers(1, 30))
                board.send(nxt, nxt + n, now)
                nxt += n
            case "ack":
                ack = data.draw(st.integers(una, nxt))
                news = [r for r in board.records if not r.sacked]
                fresh = sum(max(0, min(r.end, ack) - r.start) for r in news)
                delivered = board.acknowledge(ack)
                assert sum(r.size for r in delivered) == fresh
                una = ack
            case "sack" if nxt > una:
                start = data.draw(st.integers(una, nxt - 1))
                end = data.draw(st.integers(start + 1, nxt))
                before = board.sacked
                news = board.sack(start, end)
                assert board.sacked - before == sum(r.size for r in news)
                assert all(r.sacked for r in board.records if start <= r.start < end)
            case "lose" if board.records:
                board.lose(data.draw(st.sampled_from(board.records)))
            case "resend" if board.lost:
                i = board.first_lost()
                assert i is not None
                if board.records[i].size > 5:
                    board.split(i, board.records[i].start + 5)
                board.resend(board.records[i], now)
            case "forget":
                board.forget_sacks()
        records = board.records
        edges = [una, *(r.end for r in records)]
        assert ([r.start for r in records] == edges[:-1] and edges[-1] == nxt) or not records
        assert all(r.start < r.end and not (r.lost and r.sacked) for r in records)
        assert board.outstanding == nxt - una
        assert board.sacked == sum(r.size for r in records if r.sacked)
        assert board.lost == sum(r.size for r in records if r.lost)
        assert board.retransmitted == sum(r.retransmitted for r in records)
        assert board.pipe == sum(r.size for r in records if not r.sacked and not r.lost)
