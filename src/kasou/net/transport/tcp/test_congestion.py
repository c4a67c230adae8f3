import pytest

from kasou.errors import ConfigError
from kasou.net.transport.tcp.congestion import CongestionControl, initial_window
from kasou.net.transport.tcp.cubic import BETA, C, Cubic
from kasou.net.transport.tcp.options import CONTROLLERS, controller

MSS = 1000
SECOND = 1_000_000_000


@pytest.fixture(params=CONTROLLERS)
def control(request: pytest.FixtureRequest) -> CongestionControl:
    return controller(request.param, MSS)


def round_trip(control: CongestionControl, now: int, rtt: int = SECOND // 10) -> None:
    for _ in range(control.cwnd // MSS):
        control.acknowledged(MSS, now, rtt)


def test_slow_start_doubles_each_round_trip(control: CongestionControl) -> None:
    assert control.cwnd == initial_window(MSS) == 10 * MSS
    round_trip(control, 0)
    assert control.cwnd == 20 * MSS


def test_avoidance_grows_by_about_a_segment_at_first(control: CongestionControl) -> None:
    control.congested(100 * MSS, 0)
    before = control.cwnd
    round_trip(control, SECOND)
    assert before < control.cwnd <= before + 2 * MSS


def test_congestion_shrinks_once_and_never_below_two_segments(control: CongestionControl) -> None:
    control.congested(10 * MSS, 0)
    assert 5 * MSS <= control.cwnd <= 7 * MSS
    for _ in range(10):
        control.congested(control.cwnd, 0)
    assert control.cwnd == 2 * MSS


def test_timeout_starts_from_one_segment(control: CongestionControl) -> None:
    control.timed_out(10 * MSS, 0)
    assert control.cwnd == MSS and control.ssthresh >= 5 * MSS


def test_a_mistake_is_undone(control: CongestionControl) -> None:
    control.timed_out(10 * MSS, 0)
    control.undo()
    assert control.cwnd == 10 * MSS


def test_idle_time_decays_towards_the_initial_window(control: CongestionControl) -> None:
    for _ in range(4):
        round_trip(control, 0)
    control.idle(1)
    assert control.cwnd == 80 * MSS
    control.idle(20)
    assert control.cwnd == 10 * MSS


def test_cubic_comes_back_to_where_it_was_after_k_seconds() -> None:
    control = Cubic(MSS)
    control.cwnd = 1000 * MSS
    control.congested(1000 * MSS, 0)
    assert control.cwnd == int(1000 * MSS * BETA)
    k = (1000 * (1 - BETA) / C) ** (1 / 3)
    now = 0
    while now < k * SECOND:
        now += SECOND // 10
        round_trip(control, now)
    assert 0.97 * 1000 * MSS < control.cwnd < 1.03 * 1000 * MSS
    growth = []
    for _ in range(3):  # steeper and steeper beyond
        before = control.cwnd
        for _ in range(20):
            now += SECOND // 10
            round_trip(control, now)
        growth.append(control.cwnd - before)
    assert growth[0] < growth[1] < growth[2]


def test_an_unknown_name_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="'vegas' is not one of newreno, cubic"):
        controller("vegas", MSS)
