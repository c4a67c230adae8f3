from pathlib import Path

import pytest

from kasou.errors import ConfigError
from kasou.images.mirror import candidates

ONE_LINE = """\
# deb http://commented.example/debian trixie main
deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian/ bookworm main contrib
deb-src http://source.example/debian bookworm main
deb http://vendor.example/packages stable vendor
deb http://other.example/ubuntu noble main   # tried last
deb http://one.example/debian-security bookworm-security main
deb cdrom:[Debian]/ bookworm main
deb [broken http://x.example/debian bookworm main
"""
DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://two.example/debian
 https://three.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
Enabled: no
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    return tmp_path


def test_apt_sources_debians_first(apt: Path) -> None:
    assert candidates(environ={}, apt=apt) == [
        "http://one.example/debian",
        "http://two.example/debian",
        "https://three.example/debian",
        "http://other.example/ubuntu",
    ]


def test_what_a_person_names_is_the_only_one(apt: Path) -> None:
    environ = {"KASOU_MIRROR": "http://env.example/debian"}
    assert candidates(None, environ, apt) == ["http://env.example/debian"]
    assert candidates("http://arg.example/d/", environ, apt) == ["http://arg.example/d"]


def test_no_address(tmp_path: Path) -> None:
    assert candidates(environ={}, apt=tmp_path) == []
    with pytest.raises(ConfigError, match="--mirror ftp:nothing"):
        candidates("ftp:nothing", {}, tmp_path)
    with pytest.raises(ConfigError, match="KASOU_MIRROR nowhere"):
        candidates(None, {"KASOU_MIRROR": "nowhere"}, tmp_path)
