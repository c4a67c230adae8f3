from hypothesis import given
from hypothesis import strategies as st

from kasou.net.transport.tcp.sequence import is_before, unwrap, wrap


@given(st.integers(-(1 << 40), 1 << 40), st.integers(-(1 << 31), (1 << 31) - 1))
def test_unwrap_finds_what_is_less_than_2_31_away(near: int, distance: int) -> None:
    assert unwrap(wrap(near + distance), near) == near + distance


@given(st.integers(0, 0xFFFF_FFFF), st.integers(1, (1 << 31) - 1))
def test_before_goes_round(a: int, distance: int) -> None:
    b = wrap(a + distance)
    assert is_before(a, b) and not is_before(b, a) and not is_before(a, a)
