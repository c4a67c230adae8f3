"""Every conformance test runs on both engines."""

from __future__ import annotations

import pytest
from conformance.computer import Computer


@pytest.fixture(params=["interpreter", "reference"])
def computer(request: pytest.FixtureRequest) -> Computer:
    return Computer(request.param)
