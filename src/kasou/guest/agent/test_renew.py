import os
from pathlib import Path

import pytest

from kasou.guest.agent import renew as module
from kasou.guest.agent.renew import renew
from kasou.guest.agent.trees import mount_command


def never(argv: list[str]) -> None:
    raise AssertionError(argv)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(tmp_path))
    return tmp_path


def test_keys_are_added_once(home: Path) -> None:
    for asked in ("ssh-ed25519 A me\n", "ssh-ed25519 A me\nssh-rsa B you\n"):
        assert renew({"authorized_keys": asked}, never) == {
            "done": ["authorized_keys"],
            "failed": {},
        }
    path = home / ".ssh/authorized_keys"
    assert path.read_text() == "ssh-ed25519 A me\nssh-rsa B you\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_new_host_keys_do_not_hold_up_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    ran: list[list[str]] = []
    assert renew({"ssh_host_keys": True}, ran.append)["done"] == ["ssh_host_keys"]
    assert "ssh-keygen" in ran[0][2]
    assert renew({"ssh_host_keys": False}, never) == {"done": [], "failed": {}}


def test_mounts_that_fail_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def command(tag: str, path: str, read_only: bool) -> list[str]:
        asked.append((tag, path, read_only))
        script = "exit 0" if tag == "good" else "echo mount: no such tag >&2; exit 32"
        return ["/bin/sh", "-c", script]

    monkeypatch.setattr(module, "mount_command", command)
    mounts = [["bad", "/a", False], ["good", "/b", True]]
    answer = renew({"mounts": mounts}, never)
    assert answer == {"done": [], "failed": {"mounts": "mount: no such tag"}}
    assert asked == [("bad", "/a", False), ("good", "/b", True)]
    assert renew({"mounts": mounts[1:]}, never)["done"] == ["mounts"]
    for broken in ("x", [1], [["a"]], [[1, 2, 3, 4]]):
        assert "mounts" in renew({"mounts": broken}, never)["failed"]  # type: ignore[operator]


def test_a_mount_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mount_command", lambda *_: ["/bin/sleep", "100"])
    monkeypatch.setattr(module, "_MOUNT_SECONDS", 0.1)
    assert "mounts" in renew({"mounts": [["a", "/a", False]]}, never)["failed"]  # type: ignore[operator]


def test_mount_command(tmp_path: Path) -> None:
    argv = mount_command("src", str(tmp_path / "new/point"), True)
    assert argv[0] == "/bin/mount" and argv[-2:] == ["src", str(tmp_path / "new/point")]
    assert "ro" in argv[-3].split(",") and (tmp_path / "new/point").is_dir()


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    module._replace(str(tmp_path / "f"), "new\n", 0o640)
    assert (tmp_path / "f").read_text() == "new\n"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]
