from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kasou.aio.definition import create, define, parse_drive, parse_mount
from kasou.control.vm_config import DriveConfig
from kasou.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KASOU_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").write_bytes(bytes(512))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "drive"),
    [
        ("a,b.img,ro", DriveConfig("a,b.img", read_only=True)),
        ("a,b.img", DriveConfig("a,b.img")),
        ("x,format=qcow2,cache=none", DriveConfig("x", format="qcow2", cache="none")),
        ("x,snapshot", DriveConfig("x", snapshot=True)),
    ],
)
def test_drive(text: str, drive: DriveConfig) -> None:
    assert parse_drive(text) == drive


@pytest.mark.parametrize("text", ["", ",ro", "x,format=vmdk", "x,cache=", "x,ro=1"])
def test_bad_drive(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_drive(text)


def test_mount() -> None:
    assert parse_mount(".:/src") == (".", "/src", False)
    assert parse_mount("/a:/src:ro") == ("/a", "/src", True)


@pytest.mark.parametrize("text", ["", "x", ":/src", "x:src", "x:/src:readonly"])
def test_bad_mount(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_mount(text)


def test_everything_becomes_absolute_and_is_kept(home: Path) -> None:
    config = define(
        "tiny", name="web", cpus=2, memory="64M", drives=["disk,ro"], mounts=[(".", "/src")]
    )
    assert config.memory == 64 << 20 and config.cpus == 2
    assert config.drives == (DriveConfig(str(home / "disk"), read_only=True),)
    assert config.mounts[0].source == str(home) and config.mounts[0].target == "/src"
    directory = create(config)
    assert directory.read_config() == config
    with pytest.raises(ConfigError, match="there is a VM of this name"):
        define("tiny", name="web")
    assert define("tiny").name == "tiny-1"


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "../x"}, {"name": ""}, {"cpus": 0}, {"cpus": 9}, {"memory": "lots"},
        {"technique": "trap"}, {"paging": "shadow"}, {"io": "x"}, {"scheduler": "x"},
        {"clock": "sun"}, {"drives": ["nowhere"]}, {"drives": ["."]}, {"mounts": ["nowhere:/x"]},
        {"mounts": [".:/x", ".:/x"]}, {"kernel": "disk"}, {"cloud_init": "nowhere"},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_made(
    arguments: dict[str, Any], home: Path
) -> None:
    with pytest.raises(ConfigError):
        define("tiny", **arguments)
    assert not (home / "home" / "vms").exists()
