"""Data, windows, timers, losses: RFC 9293 3.8, 5681, 6298, 7323, 2018, 8985, as dialogues."""

from net.dialogue import PEER, US, Dialogue

from kasou.net.transport.tcp import Event, State

SACK = "mss=1000 sackok"
TS = "mss=1012 sackok ts=50"

# ---- acknowledging


def test_every_second_full_segment_is_acknowledged_at_once():
    d = Dialogue.established()
    d.peer("ACK seq=1 ack=1 len=1000")
    d.expect_nothing()
    d.peer("ACK seq=1001 ack=1 len=1000")
    d.expect("ACK seq=1 ack=2001")


def test_a_lone_segment_is_acknowledged_after_40_ms_or_with_data():
    d = Dialogue.established()
    d.peer("ACK seq=1 ack=1 len=100")
    d.passes(ms=39)
    d.expect_nothing()
    d.passes(ms=1)
    d.expect("ACK seq=1 ack=101")
    d.peer("ACK seq=101 ack=1 len=100")
    d.write(10)
    d.expect("PSH|ACK seq=1 ack=201 len=10")
    d.passes(ms=100)
    d.expect_nothing()


def test_out_of_order_data_is_acknowledged_at_once_with_sack():
    d = Dialogue.established(SACK)
    d.peer("ACK seq=1001 ack=1 len=1000")
    d.expect("ACK seq=1 ack=1 sack=1001-2001")
    d.peer("ACK seq=3001 ack=1 len=1000")
    d.expect("ACK seq=1 ack=1 sack=3001-4001,1001-2001")
    d.peer("ACK seq=2001 ack=1 len=1000")
    d.expect("ACK seq=1 ack=1 sack=1001-4001")
    d.peer("ACK seq=1 ack=1 len=1000")
    d.expect("ACK seq=1 ack=4001 len=0")
    assert len(d.read()) == 4000


def test_what_arrives_twice_is_reported_by_dsack():
    d = Dialogue.established(SACK)
    d.peer("ACK seq=1 ack=1 len=2000")
    d.expect("ACK ack=2001")
    d.peer("ACK seq=1001 ack=1 len=1000")
    d.expect("ACK ack=2001 sack=1001-2001")


# ---- windows


def test_the_window_closes_and_opens_with_reading():
    d = Dialogue.established(receive_buffer=4000)
    d.peer("ACK seq=1 ack=1 len=3000")
    d.expect("ACK ack=3001 win=1000")
    d.peer("ACK seq=3001 ack=1 len=1000")
    d.passes(ms=40)
    d.expect("ACK ack=4001 win=0")
    d.connection.read(100)
    d.flush()
    d.expect_nothing()  # silly: 3.8.6.2.2
    d.read()
    d.expect("ACK ack=4001 win=4000")


def test_a_closed_window_is_probed_with_back_off_for_ever():
    d = Dialogue.established(win=500)
    d.write(800)
    d.expect("ACK seq=1 len=500")
    d.peer("ACK seq=1 ack=501 win=0")
    waited = []
    for _ in range(25):
        before = d.elapsed
        d.passes(ms=100_000, until_said=True)
        waited.append(round(d.elapsed - before))
        d.expect("ACK seq=501 len=1")
        d.peer("ACK seq=1 ack=501 win=0")
    assert waited[0] < waited[1] < waited[2] and max(waited) <= 60_000
    assert d.state is State.ESTABLISHED
    d.peer("ACK seq=1 ack=501 win=500")
    d.expect("PSH|ACK seq=501 len=300")


def test_a_probe_that_is_taken_counts_as_sent():
    d = Dialogue.established(win=500)
    d.write(800)
    d.peer("ACK seq=1 ack=501 win=0")
    d.out.clear()
    d.passes(ms=2000, until_said=True)
    d.expect("ACK seq=501 len=1")
    d.peer("ACK seq=1 ack=502 win=1000")
    d.expect("PSH|ACK seq=502 len=299")


def test_a_probe_unanswered_ends_in_a_timeout():
    d = Dialogue.established(win=500, retries=3)
    d.write(800)
    d.peer("ACK seq=1 ack=501 win=0")
    d.passes(ms=600_000)
    assert d.events[-2:] == [Event.TIMED_OUT, Event.CLOSED]


def test_small_windows_wait_for_more_then_override():
    # 3.8.6.2.1: neither a full segment nor half the largest window.
    d = Dialogue.established(win=4000)
    d.write(5000)
    d.expect(*["ACK"] * 4)
    d.peer("ACK seq=1 ack=4001 win=100")
    d.expect_nothing()
    d.passes(ms=1000, until_said=True)
    d.expect("ACK seq=4001 len=100")


def test_the_peers_window_is_scaled():
    d = Dialogue.established("mss=1000 ws=3", win=1000)
    assert d.connection.snd_wnd == 8000


def test_pushed_data_fills_the_window_and_no_more():
    d = Dialogue.established(win=2500)
    assert d.write(10_000) == 10_000
    d.expect("ACK seq=1 len=1000", "ACK seq=1001 len=1000")
    d.peer("ACK seq=1 ack=2001 win=2500")
    d.expect("ACK seq=2001 len=1000", "ACK seq=3001 len=1000")


# ---- Nagle


def test_nagle_holds_small_segments_while_something_is_unacknowledged():
    d = Dialogue.established(nodelay=False)
    d.write(10)
    d.expect("PSH|ACK seq=1 len=10")
    d.write(10)
    d.write(10)
    d.expect_nothing()
    d.peer("ACK seq=1 ack=11")
    d.expect("PSH|ACK seq=11 len=20")
    d.write(5)
    d.expect_nothing()
    d.call("set_nodelay", True)
    d.expect("PSH|ACK seq=31 len=5")


# ---- MSS, path MTU, units


def test_timestamps_take_their_bytes_from_every_segment():
    d = Dialogue.established("mss=1012 ts=50")
    assert d.connection.mss == 1000
    d.write(1500)
    d.expect("ACK seq=1 len=1000 ts=100/100", "PSH|ACK seq=1001 len=500 ts=100/100")


def test_a_smaller_path_mtu_sends_again_at_once_and_shorter():
    d = Dialogue.established("mss=1460")
    d.write(3000)
    d.expect("ACK seq=1 len=1460", "ACK seq=1461 len=1460", "PSH|ACK seq=2921 len=80")
    d.tcp.path_mtu_changed(US, PEER, (d.isn + 1) & 0xFFFFFFFF, 1040, d.now)
    d.flush()
    d.expect(
        "ACK seq=1 len=1000",
        "ACK seq=1001 len=460",
        "ACK seq=1461 len=1000",
        "ACK seq=2461 len=460",
    )
    d.tcp.path_mtu_changed(US, PEER, (d.isn + 90000) & 0xFFFFFFFF, 500, d.now)
    assert d.connection.mss == 1000, "what is not in flight was not ours"


def test_units_stand_for_the_same_packets():
    d = Dialogue.established("mss=1000 ws=7", gso=True)
    d.connection.write(bytes(9500))
    (unit,) = d.tcp.to_send(d.now)
    assert unit.gso_size == 1000 and unit.length == 20 + 9500
    pieces = unit.cut()
    assert [piece.length - 20 for piece in pieces] == [1000] * 9 + [500]
    assert [piece.header[13] & 8 for piece in pieces] == [0] * 9 + [8]


# ---- RFC 6298, 5681: timeouts


def test_retransmission_backs_off_doubling_and_gives_up():
    d = Dialogue.established(retries=4)
    d.write(100)
    d.expect("PSH|ACK seq=1 len=100")
    times, before = [], d.elapsed
    for _ in range(4):
        d.passes(ms=100_000, until_said=True)
        d.expect("PSH|ACK seq=1 len=100")
        times.append(d.elapsed - before)
        before = d.elapsed
    assert times == [times[0] * 2**n for n in range(4)] and 200 <= times[0] <= 1000
    d.passes(ms=100_000)
    assert d.events == [Event.TIMED_OUT, Event.CLOSED]


def test_a_timeout_starts_from_one_segment():
    d = Dialogue.established()
    d.write(5000)
    d.out.clear()
    d.passes(ms=1000, until_said=True)
    d.expect("ACK seq=1 len=1000")
    assert d.connection.congestion.cwnd == 1000
    d.peer("ACK seq=1 ack=1001")
    assert d.connection.congestion.cwnd >= 2000  # slow start
    assert [d.say(s).split()[1] for s in d.out][:1] == ["seq=1001"]


def test_the_initial_window_is_ten_segments():
    d = Dialogue.established("mss=1000 ws=7")
    d.write(30_000)
    assert len(d.out) == 10


def test_slow_start_doubles():
    d = Dialogue.established("mss=1000 ws=7")
    d.write(100_000)
    d.out.clear()
    for n in range(1, 11):
        d.peer(f"ACK seq=1 ack={1 + 1000 * n} win=60000")
    assert len(d.out) == 20


# ---- losses without SACK: RFC 6582


def test_three_duplicate_acks_retransmit_and_a_partial_ack_the_next():
    d = Dialogue.established(congestion="newreno")
    d.write(8000)
    d.out.clear()
    d.passes(ms=10)
    for _ in range(2):
        d.peer("ACK seq=1 ack=1")
    d.expect_nothing()
    d.peer("ACK seq=1 ack=1")
    d.expect("ACK seq=1 len=1000")
    assert d.connection.congestion.cwnd == 4000
    d.peer("ACK seq=1 ack=3001")
    d.expect("ACK seq=3001 len=1000")
    d.peer("ACK seq=1 ack=8001")
    assert d.connection.recovery_point is None and d.connection.congestion.cwnd == 4000


def test_limited_transmit_sends_new_data_on_the_first_duplicates():
    d = Dialogue.established("mss=1000 ws=7")
    d.write(20_000)
    assert len(d.out) == 10
    d.out.clear()
    d.peer("ACK seq=1 ack=1")
    d.expect("ACK seq=10001 len=1000")
    d.peer("ACK seq=1 ack=1")
    d.expect("ACK seq=11001 len=1000")


# ---- losses with SACK: RFC 8985


def test_rack_retransmits_what_three_later_segments_overtook():
    d = Dialogue.established(SACK, congestion="newreno")
    d.write(8000)
    d.out.clear()
    d.passes(ms=100)
    d.peer("ACK seq=1 ack=1 sack=1001-3001")
    d.expect_nothing()
    d.peer("ACK seq=1 ack=1 sack=1001-4001")
    d.expect("ACK seq=1 len=1000")
    assert d.connection.recovery_point is not None
    d.peer("ACK seq=1 ack=8001")
    assert d.connection.recovery_point is None and d.connection.congestion.cwnd == 4000


def test_rack_waits_a_quarter_of_the_round_trip_for_reordering():
    d = Dialogue.established(SACK)
    d.write(2000)
    d.out.clear()
    d.passes(ms=100)
    d.peer("ACK seq=1 ack=1 sack=1001-2001")
    d.expect_nothing()
    d.passes(ms=24)
    d.expect_nothing()
    d.passes(ms=1)
    d.expect("ACK seq=1 len=1000")


def test_a_lost_retransmission_is_found_by_what_was_sent_after_it():
    d = Dialogue.established(SACK)
    d.write(9000)
    d.out.clear()
    d.passes(ms=100)
    d.peer("ACK seq=1 ack=1 sack=1001-5001")
    d.expect("ACK seq=1 len=1000")
    d.write(2000)
    d.expect("ACK seq=9001 len=1000")
    d.out.clear()
    d.passes(ms=100)
    d.peer("ACK seq=1 ack=1 sack=1001-10001")  # new data got through, the retransmission did not
    assert "seq=1" in [d.say(s).split()[1] for s in d.out]


def test_the_tail_is_probed_after_two_round_trips():
    d = Dialogue.established(SACK)
    d.write(3000)
    d.out.clear()
    before = d.elapsed
    d.passes(ms=1000, until_said=True)
    d.expect("PSH|ACK seq=2001 len=1000")
    assert 200 <= d.elapsed - before < 300
    d.passes(ms=100)
    d.peer("ACK seq=1 ack=1 sack=2001-3001")  # and what it tells repairs the rest
    d.passes(ms=50)
    d.expect("ACK seq=1 len=1000", "ACK seq=1001 len=1000")


def test_a_probe_that_repaired_the_tail_itself_counts_as_a_loss():
    d = Dialogue.established(SACK)
    d.write(2000)
    d.out.clear()
    d.passes(ms=1000, until_said=True)
    d.expect("PSH|ACK seq=1001 len=1000")
    d.write(1000)
    d.out.clear()
    before = d.connection.congestion.cwnd
    d.peer("ACK seq=1 ack=3001")
    assert d.connection.congestion.cwnd < before


def test_a_probe_that_was_not_needed_is_known_by_its_dsack():
    d = Dialogue.established(SACK)
    d.write(2000)
    d.out.clear()
    d.passes(ms=1000, until_said=True)
    d.out.clear()
    before = d.connection.congestion.cwnd
    d.peer("ACK seq=1 ack=2001")
    d.peer("ACK seq=1 ack=2001 sack=1001-2001")
    assert d.connection.congestion.cwnd >= before and d.connection.tlp_end is None


def test_sacks_forgotten_by_the_receiver_are_forgotten_at_the_timeout():
    d = Dialogue.established(SACK)
    d.write(3000)
    d.passes(ms=50)
    d.peer("ACK seq=1 ack=1 sack=1001-3001")
    d.peer("ACK seq=1 ack=1001")  # the second is next, and was sacked
    d.out.clear()
    d.passes(ms=10_000, until_said=True)
    d.expect("ACK seq=1001 len=1000")


def test_sack_blocks_that_cannot_be_are_ignored():
    d = Dialogue.established(SACK)
    d.write(3000)
    d.out.clear()
    for block in ("5001-9001", "2001-1001", "1-1", "-500-99999"):
        d.peer(f"ACK seq=1 ack=1 sack={block}") if not block.startswith("-") else None
    assert d.connection.scoreboard.sacked == 0


# ---- RFC 7323


def test_rtt_is_measured_by_timestamps_of_retransmissions():
    d = Dialogue.established(TS)
    d.write(100)
    d.passes(ms=10_000, until_said=True)
    sent = d.elapsed
    d.out.clear()
    d.passes(ms=30)
    d.peer("ACK seq=1 ack=101 ts=200")
    assert d.elapsed - sent == 30 and d.connection.rtt.minimum == 30_000_000


def test_paws_drops_old_duplicates():
    d = Dialogue.established(TS)
    d.peer("ACK seq=1 ack=1 len=10 ts=99")
    d.expect("ACK ack=1")
    assert not d.connection.readable and d.tcp.statistics.paws_dropped == 1
    d.peer("RST seq=1")  # but a reset is never dropped for its timestamp
    assert d.state is State.CLOSED


def test_a_segment_without_timestamps_is_dropped_where_they_were_agreed():
    d = Dialogue.established(TS)
    d.peer("ACK seq=1 ack=1 len=10")
    d.expect_nothing()
    assert not d.connection.readable


def test_the_timestamp_of_the_first_unacknowledged_segment_is_echoed():
    d = Dialogue.established(TS)
    d.peer("ACK seq=1 ack=1 len=10 ts=300")
    d.peer("ACK seq=11 ack=1 len=10 ts=301")
    d.passes(ms=40)
    assert d.say(d.out.pop()).split()[-1].endswith("/300")


def test_a_spurious_timeout_is_undone():
    d = Dialogue.established(TS)
    d.write(3000)
    original = d.ts_base
    assert original is not None
    d.out.clear()
    d.connection.tlp_end = d.connection.snd_nxt  # no probe: straight to the timeout
    before = d.connection.congestion.cwnd
    d.passes(ms=10_000, until_said=True)
    d.passes(ms=10_000, until_said=True)
    assert d.connection.in_loss and d.connection.congestion.cwnd < before
    d.peer("ACK seq=1 ack=1001 ts=400/100")  # an echo of the original's time
    assert not d.connection.in_loss and d.connection.congestion.cwnd >= before


# ---- keepalive


def test_keepalive_probes_a_silent_peer_and_gives_up():
    d = Dialogue.established()
    d.call("set_keepalive", 10_000_000_000, 1_000_000_000, 3)
    d.passes(ms=9_999)
    d.expect_nothing()
    d.passes(ms=1)
    d.expect("ACK seq=0 ack=1 len=0")
    d.peer("ACK seq=1 ack=1")
    d.passes(ms=10_000)
    d.expect("ACK seq=0")
    for _ in range(2):
        d.passes(ms=1000)
        d.expect("ACK seq=0")
    d.passes(ms=1000)
    d.expect("RST|ACK seq=1")
    assert d.events == [Event.TIMED_OUT, Event.CLOSED]


# ---- ECN (RFC 3168)


def test_ecn_is_negotiated_marked_and_answered():
    d = Dialogue.listening(ecn=True)
    d.peer("SYN|ECE|CWR seq=0 mss=1000")
    d.expect("SYN|ACK|ECE seq=0 ack=1")
    d.peer("ACK seq=1 ack=1")
    d.connection.write(bytes(5000))
    units = d.tcp.to_send(d.now)
    assert all(unit.ecn == 2 for unit in units)
    before = d.connection.congestion.cwnd
    d.peer("ACK|ECE seq=1 ack=2001")
    assert d.connection.congestion.cwnd < before
    d.peer("ACK|ECE seq=1 ack=3001")
    once = d.connection.congestion.cwnd
    d.peer("ACK|ECE seq=1 ack=4001")
    assert d.connection.congestion.cwnd == once
    d.out.clear()
    d.peer("ACK seq=1 ack=5001")
    d.write(100)
    d.expect("PSH|ACK|CWR seq=5001")


def test_idle_connections_start_again_from_the_initial_window():
    d = Dialogue.established("mss=1000 ws=7")
    d.write(100_000)
    for n in range(1, 21):
        d.peer(f"ACK seq=1 ack={1 + 1000 * n} win=60000")
    grown = d.connection.congestion.cwnd
    d.peer(f"ACK seq=1 ack={1 + d.connection.snd_nxt - d.connection.iss - 1} win=60000")
    while d.connection.unsent_or_unacknowledged:
        d.peer(f"ACK seq=1 ack={d.connection.snd_nxt - d.connection.iss} win=60000")
    d.passes(ms=600_000)
    d.out.clear()
    d.write(100_000)
    assert len(d.out) == 10 and d.connection.congestion.cwnd < grown
