from kasou.net.transport.tcp.config import MS, SECOND, TcpConfig
from kasou.net.transport.tcp.rto import RttEstimator


def test_rfc_6298_by_its_numbers() -> None:
    rtt = RttEstimator(TcpConfig(min_rto=MS))
    assert rtt.rto == SECOND
    rtt.sample(100 * MS, 0)
    assert (rtt.srtt, rtt.rttvar, rtt.rto) == (100 * MS, 50 * MS, 300 * MS)
    rtt.sample(60 * MS, 0)
    assert (rtt.srtt, rtt.rttvar) == (95 * MS, 475 * MS // 10)
    rtt.back_off()
    assert rtt.rto == 2 * (95 * MS + 190 * MS)
    rtt.sample(60 * MS, 0)
    assert rtt.rto < 300 * MS and rtt.minimum == 60 * MS


def test_bounds() -> None:
    rtt = RttEstimator(TcpConfig())
    rtt.sample(1000, 0)
    assert rtt.rto == 200 * MS
    for _ in range(20):
        rtt.back_off()
    assert rtt.rto == 60 * SECOND
