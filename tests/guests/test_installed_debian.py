"""Debian as kasou makes it: built once in the cache, booted on an overlay, looked over, and left unharmed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from guests.conftest import PROMPT, Session

from kasou.errors import HostError
from kasou.images import DefaultGuest, ensure
from kasou.machine.machine import MachineConfig, Peripherals
from kasou.storage.create import create_qcow2
from kasou.storage.disk import open_disk
from kasou.storage.inspect import check

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.fixture(scope="session")
def installed() -> DefaultGuest:
    try:
        return ensure("debian:trixie")
    except HostError as problem:
        pytest.skip(f"not run: Debian cannot be made here: {problem}")


def test_a_whole_system(installed: DefaultGuest, tmp_path: Path) -> None:
    base = installed.disk
    assert base is not None and installed.agent
    digest = hashlib.sha256(base.read_bytes()).digest()
    overlay = tmp_path / "disk.qcow2"
    create_qcow2(overlay, 8 << 30, backing=base, backing_format="qcow2")
    with open_disk(overlay, format="qcow2") as disk:
        session = Session(
            MachineConfig(
                kernel=installed.kernel, initrd=installed.initrd, append=installed.append
            ),
            Peripherals(disks=(disk,), vsock_cid=3),
        )
        session.start()
        session.wait_for(PROMPT, seconds=280)
        assert b"running" in session.type("systemctl is-system-running --wait")
        units = "ssh kasou-agent systemd-networkd systemd-resolved"
        assert session.type(f"systemctl is-active {units}").count(b"active") == 4
        assert b"audit=0 check=0" in session.type(
            'dpkg --audit >/tmp/a; apt-get check >/dev/null; echo "audit=$(wc -c </tmp/a) check=$?"'
        )
        # What makes this machine itself was made now, not when the image was.
        assert b"ssh_host_ed25519_key" in session.type("ls /etc/ssh")
        assert b"32" in session.type("tr -d '\\n' </etc/machine-id | wc -c")
        session.type("echo kept >/root/note; sync")
        assert session.finish("poweroff").kind == "poweroff"
    assert check(overlay).is_clean
    assert hashlib.sha256(base.read_bytes()).digest() == digest
