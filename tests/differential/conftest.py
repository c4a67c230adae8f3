"""Fixtures of the differential tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from differential.pair import BASE, Pair


@pytest.fixture(scope="session")
def pair() -> Pair:
    return Pair()


@pytest.fixture
def run_on_both(pair: Pair) -> Callable[..., None]:
    """Run one instruction on both engines from a lock-step report's state, translation off."""

    def run(state: dict[str, int], instruction: int, pc: int) -> None:
        place = BASE + (pc & 0xFFE)
        pair.write(place, instruction.to_bytes(4, "little"))
        pair.set({**state, "satp": 0, "pc": place, "monitor": 1})
        pair.step()
        assert pair.differences() == {}

    return run
