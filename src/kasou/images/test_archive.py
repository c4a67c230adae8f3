import os
from pathlib import Path

import pytest

from kasou.errors import HostError
from kasou.images.archive import BEGIN, SIGNATURE, BadSignature, read_deb, signed_text, verify
from kasou.images.test_images import Listener, make_deb

SIGNED = f"{BEGIN}\nHash: SHA256\n\nOrigin: Debian\n- -dashed\n{SIGNATURE}\nxx\n"


def test_only_what_is_signed_is_read() -> None:
    assert signed_text(SIGNED.encode(), "u") == "Origin: Debian\n-dashed\n"


@pytest.mark.parametrize(
    "text",
    [
        "Origin: Debian\n\n" + SIGNED,
        SIGNED.replace("Hash: SHA256", "Hash: SHA256\nOrigin: Evil"),
        SIGNED.replace(SIGNATURE, ""),
        "",
    ],
)
def test_tricks_with_the_armour_are_refused(text: str) -> None:
    with pytest.raises(HostError):
        signed_text(text.encode(), "u")


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str) -> list[Path]:
    """A `gpgv` that reports `status`; returns the keyrings to use with it."""
    program = tmp_path / "gpgv"
    lines = "".join(f"[GNUPG:] {line}\n" for line in status.splitlines())
    program.write_text(f"#!/bin/sh\nprintf '{lines}'\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    keyring = tmp_path / "keys.gpg"
    keyring.write_bytes(b"")
    return [keyring]


def test_one_good_signature_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyrings = stand_in(tmp_path, monkeypatch, "GOODSIG 1 Debian\nVALIDSIG 1\nNO_PUBKEY 2")
    assert verify(b"x", "u", Listener(), keyrings)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("BADSIG 1 Debian", "does not fit"),
        ("GOODSIG 1 Debian\nVALIDSIG 1\nBADSIG 2", "does not fit"),
        ("EXPKEYSIG 1 Debian\nVALIDSIG 1", "does not fit"),
        ("NO_PUBKEY 1", "no key that signed it"),
        ("", "does not fit"),
    ],
)
def test_bad_signatures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, says: str
) -> None:
    with pytest.raises(BadSignature, match=says):
        verify(b"x", "u", Listener(), stand_in(tmp_path, monkeypatch, status))


def test_a_host_that_cannot_check_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Listener()
    stand_in(tmp_path, monkeypatch, "")
    assert not verify(b"x", "u", report, [tmp_path / "none"])
    assert "debian-archive-keyring" in report.warnings[0]
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert not verify(b"x", "u", report)
    assert "gpgv" in report.warnings[1]


def test_read_deb(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(make_deb({"a/one": b"1", "two": b"2"}))
    assert read_deb(path, lambda name: name.startswith("a/")) == {"a/one": b"1"}
    for cut in (0, 10, 100, 200, 400):
        path.write_bytes(path.read_bytes()[:cut] if cut else b"")
        with pytest.raises(HostError, match="not a Debian package"):
            read_deb(path, lambda _: True)
        path.write_bytes(make_deb({"a/one": b"1", "two": b"2"}))
