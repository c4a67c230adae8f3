"""Opening, closing, resets: RFC 9293 3.5, 3.6, 3.10.7 and RFC 5961, as dialogues."""

import pytest
from net.dialogue import PEER, US, Dialogue

from kasou.errors import LocalError
from kasou.net.transport.tcp import Event, State
from kasou.net.transport.tcp.state import TRANSITIONS, On

# ---- 3.5 establishing


def test_active_open_offers_everything_and_takes_what_the_peer_has():
    d = Dialogue.connecting()
    d.expect("SYN seq=0 win=65535 mss=1460 ws=5 sackok")
    d.peer("SYN|ACK seq=0 ack=1 win=8000 mss=536 ws=2")
    d.expect("ACK seq=1 ack=1")
    assert d.state is State.ESTABLISHED and d.events == [Event.ESTABLISHED]
    assert d.connection.mss == 536 and d.connection.snd_scale == 2
    assert not d.connection.sack and not d.connection.timestamps


def test_passive_open_answers_only_what_was_offered():
    d = Dialogue.listening()
    d.peer("SYN seq=0 mss=1460 sackok")
    d.expect("SYN|ACK seq=0 ack=1 win=65535 len=0 mss=1460 sackok")
    d.peer("ACK seq=1 ack=1")
    d.expect_nothing()
    assert d.state is State.ESTABLISHED and d.connection.capacity == 65535


def test_syn_is_repeated_with_back_off_until_it_times_out():
    d = Dialogue.connecting(syn_retries=3)
    d.expect("SYN seq=0")
    for wait in (1000, 2000, 4000):
        d.passes(ms=wait - 1)
        d.expect_nothing()
        d.passes(ms=1)
        d.expect("SYN seq=0")
    d.passes(ms=8000)
    d.expect_nothing()
    assert d.events == [Event.TIMED_OUT, Event.CLOSED] and not d.tcp.connections


def test_syn_ack_is_repeated_and_a_repeated_syn_answered():
    d = Dialogue.listening()
    d.peer("SYN seq=0")
    d.expect("SYN|ACK seq=0 ack=1")
    d.peer("SYN seq=0")
    d.expect("SYN|ACK seq=0 ack=1")
    d.passes(ms=1000)
    d.expect("SYN|ACK seq=0 ack=1")


def test_simultaneous_open():
    d = Dialogue.connecting()
    d.expect("SYN seq=0")
    d.peer("SYN seq=0 mss=1000")
    d.expect("SYN|ACK seq=0 ack=1")
    assert d.state is State.SYN_RECEIVED
    d.peer("SYN|ACK seq=0 ack=1 mss=1000")
    d.expect("ACK seq=1 ack=1")
    assert d.state is State.ESTABLISHED and d.events == [Event.ESTABLISHED]


def test_syn_sent_refused_by_reset_only_when_it_acknowledges_the_syn():
    d = Dialogue.connecting()
    d.expect("SYN seq=0")
    d.peer("RST seq=0")
    d.peer("RST|ACK seq=0 ack=0")
    assert d.state is State.SYN_SENT
    d.peer("RST|ACK seq=0 ack=1")
    assert d.events == [Event.REFUSED, Event.CLOSED]


def test_half_open_discovery():
    # 3.5.1: an ACK for something never sent is answered by a reset, and the SYN goes on.
    d = Dialogue.connecting()
    d.expect("SYN seq=0")
    d.peer("ACK seq=50 ack=77")
    d.expect("RST seq=77")
    d.passes(ms=1000)
    d.expect("SYN seq=0")


def test_segments_to_nobody_are_reset():
    d = Dialogue()
    d.peer("SYN seq=10 len=3")
    d.expect("RST|ACK seq=0 ack=14")
    d.peer("ACK seq=10 ack=5")
    d.expect("RST seq=5")
    d.peer("RST seq=10")
    d.expect_nothing()


def test_backlog_limits_connections_being_opened():
    d = Dialogue()
    d.tcp.listen(None, US.port, d.take, backlog=1)
    d.peer("SYN seq=0")
    d.expect("SYN|ACK seq=0")
    other = bytes(d.parse("SYN seq=0", 4001, 80).payload)
    assert other == b""
    from kasou.net.wire import tcp as wire

    segment = d.parse("SYN seq=0", 4001, 80)
    d.tcp.receive(PEER.address, US.address, wire.emit_header(segment), d.now, trusted=True)
    d.flush()
    d.expect_nothing()
    assert d.tcp.statistics.backlog_overflows == 1


def test_reset_in_syn_received_frees_the_listener():
    d = Dialogue.listening()
    d.peer("SYN seq=0")
    d.expect("SYN|ACK seq=0")
    d.peer("RST seq=1")
    d.expect_nothing()
    assert not d.tcp.connections and d.connection is None
    d.peer("SYN seq=0")
    d.expect("SYN|ACK seq=0")


def test_syn_received_needs_an_acceptable_ack():
    d = Dialogue.listening()
    d.peer("SYN seq=0")
    d.expect("SYN|ACK seq=0")
    d.peer("ACK seq=1 ack=9")
    d.expect("RST seq=9")


# ---- a SYN that a gateway decides on


def deferring():
    d = Dialogue()
    d.tcp.on_unclaimed_syn = d.take
    d.peer("SYN seq=0 mss=1000")
    d.expect_nothing()
    d.peer("SYN seq=0 mss=1000")
    d.expect_nothing()
    assert d.state is State.SYN_RECEIVED and d.connection.first_header[13] == 2
    return d


def test_deferred_syn_accepted():
    d = deferring()
    d.call("accept")
    d.expect("SYN|ACK seq=0 ack=1")
    d.peer("ACK seq=1 ack=1")
    assert d.events == [Event.ESTABLISHED]


def test_deferred_syn_refused():
    d = deferring()
    d.call("refuse")
    d.expect("RST|ACK ack=1")
    assert d.events == [Event.CLOSED] and not d.tcp.connections


def test_deferred_syn_ignored():
    d = deferring()
    d.call("ignore")
    d.expect_nothing()
    assert not d.tcp.connections


# ---- 3.6 closing


def test_close_by_us_to_time_wait():
    d = Dialogue.established()
    d.call("close")
    d.expect("FIN|ACK seq=1 ack=1")
    assert d.state is State.FIN_WAIT_1
    d.peer("ACK seq=1 ack=2")
    assert d.state is State.FIN_WAIT_2
    d.peer("ACK seq=1 ack=2 len=10")  # half-closed: the peer may go on
    d.passes(ms=40)
    d.expect("ACK seq=2 ack=11")
    d.peer("FIN|ACK seq=11 ack=2")
    d.expect("ACK seq=2 ack=12")
    assert d.state is State.TIME_WAIT and d.read() == bytes(range(10))
    d.peer("FIN|ACK seq=11 ack=2")  # repeated: answered, 2 MSL begin anew
    d.expect("ACK seq=2 ack=12")
    d.passes(ms=59_999)
    assert d.state is State.TIME_WAIT
    d.passes(ms=1)
    assert d.state is State.CLOSED and not d.tcp.connections
    assert d.events == [Event.READABLE, Event.REMOTE_CLOSED, Event.CLOSED]


def test_close_by_the_peer():
    d = Dialogue.established()
    d.peer("FIN|ACK seq=1 ack=1")
    d.expect("ACK seq=1 ack=2")
    assert d.state is State.CLOSE_WAIT and d.events == [Event.REMOTE_CLOSED]
    d.write(5)
    d.expect("PSH|ACK seq=1 ack=2 len=5")
    d.call("close")
    d.expect("FIN|ACK seq=6 ack=2")
    assert d.state is State.LAST_ACK
    d.peer("ACK seq=2 ack=7")
    assert d.state is State.CLOSED and d.events[-1] is Event.CLOSED


def test_simultaneous_close():
    d = Dialogue.established()
    d.call("close")
    d.expect("FIN|ACK seq=1 ack=1")
    d.peer("FIN|ACK seq=1 ack=1")
    d.expect("ACK seq=2 ack=2")
    assert d.state is State.CLOSING
    d.peer("ACK seq=2 ack=2")
    assert d.state is State.TIME_WAIT


def test_fin_that_acknowledges_ours():
    d = Dialogue.established()
    d.call("close")
    d.expect("FIN|ACK seq=1 ack=1")
    d.peer("FIN|ACK seq=1 ack=2")
    d.expect("ACK seq=2 ack=2")
    assert d.state is State.TIME_WAIT


def test_fin_goes_with_the_last_data_and_is_repeated():
    d = Dialogue.established()
    d.connection.write(bytes(10))
    d.call("close")
    d.expect("FIN|PSH|ACK seq=1 len=10")
    d.passes(ms=1000, until_said=True)
    d.expect("FIN|PSH|ACK seq=1 len=10")
    with pytest.raises(LocalError, match="closed"):
        d.connection.write(b"more")


def test_a_fin_out_of_order_waits_for_what_is_missing():
    d = Dialogue.established()
    d.peer("FIN|ACK seq=11 ack=1 len=10")
    d.expect("ACK seq=1 ack=1")
    assert d.state is State.ESTABLISHED
    d.peer("ACK seq=1 ack=1 len=10")
    d.expect("ACK seq=1 ack=22")
    assert d.state is State.CLOSE_WAIT and len(d.read()) == 20


def test_close_in_syn_received_waits_for_established():
    d = Dialogue()
    d.tcp.on_unclaimed_syn = d.take
    d.peer("SYN seq=0")
    d.call("accept")
    d.call("close")
    d.expect("SYN|ACK seq=0")
    d.peer("ACK seq=1 ack=1")
    d.expect("FIN|ACK seq=1")


def test_syn_in_time_wait_reopens_when_it_is_newer():
    d = Dialogue.established()
    d.call("close")
    d.peer("FIN|ACK seq=1 ack=2")
    d.out.clear()
    assert d.state is State.TIME_WAIT
    d.peer("SYN seq=1 ")
    assert d.state is State.TIME_WAIT
    d.out.clear()
    d.peer("SYN seq=500")
    d.expect("SYN|ACK ack=501")


def test_data_nobody_will_read_is_answered_by_reset():
    d = Dialogue.established()
    d.call("close")
    d.call("discard_input")
    d.expect("FIN|ACK seq=1")
    d.peer("ACK seq=1 ack=2 len=10")
    d.expect("RST|ACK seq=2")
    assert d.state is State.CLOSED


def test_fin_wait_2_is_left_when_nobody_reads():
    d = Dialogue.established()
    d.call("close")
    d.call("discard_input")
    d.peer("ACK seq=1 ack=2")
    d.out.clear()
    assert d.state is State.FIN_WAIT_2
    d.passes(ms=60_000)
    assert d.state is State.CLOSED


def test_abort_resets():
    d = Dialogue.established()
    d.write(10)
    d.out.clear()
    d.call("abort")
    d.expect("RST|ACK seq=11 ack=1")
    assert d.state is State.CLOSED and d.events == [Event.CLOSED]


# ---- RFC 5961


def test_reset_at_the_very_next_number_resets():
    d = Dialogue.established()
    d.peer("RST seq=1")
    d.expect_nothing()
    assert d.events == [Event.RESET, Event.CLOSED]


def test_reset_elsewhere_in_the_window_is_challenged():
    d = Dialogue.established()
    d.peer("RST seq=2")
    d.expect("ACK seq=1 ack=1")
    d.peer("RST seq=90000")  # outside
    d.expect_nothing()
    assert d.state is State.ESTABLISHED and d.tcp.statistics.challenge_acks == 1


def test_syn_in_the_window_is_challenged():
    d = Dialogue.established()
    d.peer("SYN seq=5")
    d.expect("ACK seq=1 ack=1")
    assert d.state is State.ESTABLISHED


def test_ack_of_the_far_past_is_challenged_and_its_data_dropped():
    d = Dialogue.established(win=1000)
    d.peer("ACK seq=1 ack=-2000 win=1000 len=5")
    d.expect("ACK seq=1 ack=1")
    assert not d.connection.readable


def test_challenges_are_limited():
    d = Dialogue.established(challenge_acks=3)
    for _ in range(10):
        d.peer("RST seq=2")
    assert len(d.out) == 3
    d.passes(ms=1000)
    d.out.clear()
    d.peer("RST seq=2")
    assert len(d.out) == 1


# ---- 3.10.7.4 first: acceptability


def test_unacceptable_segments_are_answered_by_an_ack():
    d = Dialogue.established()
    d.peer("ACK seq=80000 ack=1 len=10")
    d.expect("ACK seq=1 ack=1")
    d.peer("ACK seq=-9 ack=1 len=10")
    d.expect("ACK seq=1 ack=1")
    d.peer("ACK seq=0 ack=1")  # a keepalive
    d.expect("ACK seq=1 ack=1")


def test_acknowledging_what_was_not_sent_is_dropped():
    d = Dialogue.established()
    d.peer("ACK seq=1 ack=5 len=3")
    d.expect("ACK seq=1 ack=1")
    assert not d.connection.readable


def test_urgent_data_is_in_line():
    d = Dialogue.established()
    d.peer("ACK|URG|PSH seq=1 ack=1 len=5")
    assert d.read() == bytes(range(5))


def test_segments_are_cut_to_the_window():
    d = Dialogue.established(receive_buffer=2000)
    d.peer("FIN|ACK seq=1 ack=1 len=2500")
    d.expect("ACK ack=2001 win=0")
    assert len(d.read()) == 2000 and d.state is State.ESTABLISHED


@pytest.mark.parametrize(
    "data",
    [b"", b"short", bytes(19), bytes(12) + b"\x40" + bytes(7), bytes(12) + b"\xf0" + bytes(30)],
)
def test_malformed_segments_are_counted(data):
    d = Dialogue.established()
    d.raw(data)
    assert d.tcp.statistics.malformed == 1


def test_a_wrong_checksum_is_counted_and_ignored_unless_trusted():
    d = Dialogue.listening()
    from kasou.net.wire import tcp as wire

    header = wire.emit_header(d.parse("SYN seq=0", PEER.port, US.port))
    d.raw(header)
    d.expect_nothing()
    assert d.tcp.statistics.bad_checksum == 1
    d.tcp.receive(PEER.address, US.address, header, d.now, trusted=True)
    d.flush()
    d.expect("SYN|ACK seq=0")


def test_the_table_reaches_every_state_and_ends_in_closed():
    reached, front = {State.CLOSED}, {State.CLOSED}
    while front:
        front = {to for (start, _), to in TRANSITIONS.items() if start in front} - reached
        reached |= front
    assert reached == set(State)
    for state in set(State) - {State.CLOSED, State.LISTEN}:
        assert TRANSITIONS[state, On.ABORT] is State.CLOSED


def test_ports_in_use():
    d = Dialogue.listening()
    with pytest.raises(LocalError, match="in use"):
        d.tcp.listen(None, US.port, d.take)
    d.tcp.connect(US, PEER, d.now)
    with pytest.raises(LocalError, match="in use"):
        d.tcp.connect(US, PEER, d.now)


def test_closing_a_listener_drops_what_was_being_opened():
    d = Dialogue()
    listener = d.tcp.listen(None, US.port, d.take)
    d.peer("SYN seq=0")
    d.expect("SYN|ACK seq=0")
    listener.close()
    d.flush()
    d.expect("RST|ACK")
    d.peer("SYN seq=0")
    d.expect("RST|ACK ack=1")


def test_icmp_unreachable_ends_only_an_opening():
    d = Dialogue.connecting()
    d.tcp.unreachable(US, PEER, (d.isn + 99) & 0xFFFFFFFF, d.now)
    assert d.state is State.SYN_SENT
    d.tcp.unreachable(US, PEER, d.isn, d.now)
    d.tcp.deliver_events()
    assert d.events == [Event.UNREACHABLE, Event.CLOSED]
    d = Dialogue.established()
    d.write(10)
    d.tcp.unreachable(US, PEER, (d.isn + 1) & 0xFFFFFFFF, d.now)
    assert d.state is State.ESTABLISHED
