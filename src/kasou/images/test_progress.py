import sys

import pytest

from kasou.images.progress import TerminalReport


def test_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalReport() as report:
        report.step("one")
        report.warn("two [/x]")
    assert capsys.readouterr().err == "kasou: one\nkasou: warning: two [/x]\n"


def test_a_bar_after_two_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    now = 0.0
    with TerminalReport(lambda: now) as report:
        report.advance("thing.deb", 1, 10)
        now = 1.9
        report.advance("thing.deb", 2, 10)
        assert "thing" not in capsys.readouterr().err
        now = 2.1
        report.advance("thing.deb", 3, 10)
        report.advance("thing.deb", 10, 10)
    assert "thing.deb" in capsys.readouterr().err
