"""A host that runs full under a guest: told, or waited for."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pytest
from guests.conftest import PROMPT, Session

from kasou.errors import HostError
from kasou.machine.config import Peripherals

pytestmark = pytest.mark.guest


class FullDisk:
    """A disk of 4 MiB in memory, on a host that has no room while `is_full`."""

    size_bytes = 4 << 20
    read_only = False

    def __init__(self) -> None:
        self.data = bytearray(self.size_bytes)
        self.is_full = True

    def read(self, offset: int, n: int) -> bytes:
        return bytes(self.data[offset : offset + n])

    def write(self, offset: int, data: bytes) -> None:
        if self.is_full:
            raise HostError("disk: No space left on device", errno=errno.ENOSPC)
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        pass

    def discard(self, offset: int, n: int) -> None:
        pass

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None:
        self.write(offset, bytes(n))


WRITE = "yes kasou | head -c 65536 >/tmp/x; dd if=/tmp/x of=/dev/vda bs=64k conv=fsync; echo st''atus $?"


def test_a_full_host_is_waited_for(boot: Callable[..., Session]) -> None:
    disk = FullDisk()
    session = boot(peripherals=Peripherals(disks=(disk,), disk_errors="enospc"))
    session.wait_for(PROMPT)
    if b"exists" not in session.type("[ -b /dev/vda ] && echo ex''ists"):
        pytest.skip("not run: this image has no disk drivers")
    machine = session.machine
    session.machine.console_input(WRITE.encode() + b"\n")
    for _ in range(400):
        if machine.is_paused:
            break
        time.sleep(0.05)
    assert machine.is_paused and "No space left" in str(machine.disk_error)
    count = machine.cores[0].count
    time.sleep(0.2)
    assert machine.cores[0].count == count
    machine.resume()  # nobody made room: it pauses again
    time.sleep(0.5)
    assert machine.is_paused and not any(disk.data)
    disk.is_full = False
    machine.resume()
    session.wait_for(b"status 0")
    assert disk.data[:65536] == (b"kasou\n" * 11000)[:65536] and machine.disk_error is None


def test_or_the_guest_is_told(boot: Callable[..., Session]) -> None:
    session = boot(peripherals=Peripherals(disks=(FullDisk(),)))
    session.wait_for(PROMPT)
    if b"exists" not in session.type("[ -b /dev/vda ] && echo ex''ists"):
        pytest.skip("not run: this image has no disk drivers")
    said = session.type(WRITE)
    assert b"status 1" in said and not session.machine.is_paused
