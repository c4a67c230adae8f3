from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from kasou.cli.options import UsageError
from kasou.cli.qemu import define_arguments, properties, translate
from kasou.control.vm_config import DriveConfig

XV6 = (
    "-machine virt -bios none -kernel kernel/kernel -m 128M -smp 3 -nographic"
    " -global virtio-mmio.force-legacy=false -drive file=fs.img,if=none,format=raw,id=x0"
    " -device virtio-blk-device,drive=x0,bus=virtio-mmio-bus.0"
)


def test_make_qemu_of_xv6() -> None:
    assert define_arguments(translate(XV6.split())) == {
        "bios": "none", "kernel": "kernel/kernel", "memory": "128M", "cpus": 3, "ports": [],
        "network": False, "drives": [DriveConfig("fs.img", format="raw")],
    }  # fmt: skip


def test_a_linux_with_a_network() -> None:
    line = (
        "-M virt,aclint=on -m 1G -smp cpus=2 -kernel Image -append 'root=/dev/vda console=ttyS0'"
        " -drive file=a.qcow2,id=hd0,if=none,cache=none -device virtio-blk-pci,drive=hd0"
        " -netdev user,id=n,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:53"
        " -device virtio-net-pci,netdev=n -device virtio-rng-pci -serial mon:stdio -display none"
        " -no-reboot -snapshot -S -s"
    )
    machine = translate(shlex.split(line))
    arguments = define_arguments(machine)
    assert arguments["ports"] == ["*:2222:22/tcp", "127.0.0.1:53:53/udp"]
    assert arguments["drives"] == [DriveConfig("a.qcow2", cache="none", snapshot=True)]
    assert arguments["append"] == "root=/dev/vda console=ttyS0" and arguments["cpus"] == 2
    assert arguments["network"] is None and arguments["transport"] == "pci"
    assert arguments["reboot"] is False and machine.stopped and machine.gdb == ":1234"


def test_drives_are_ordered_by_their_bus() -> None:
    line = (
        "-kernel k -drive file=a,id=a,if=none -drive file=b,id=b,if=none"
        " -device virtio-blk-device,drive=a,bus=virtio-mmio-bus.1"
        " -device virtio-blk-device,drive=b,bus=virtio-mmio-bus.0"
    )
    drives = define_arguments(translate(line.split()))["drives"]
    assert [drive.path for drive in drives] == ["b", "a"]


def test_commas() -> None:
    assert properties("file=a,,b.img,ro") == {"file": "a,b.img", "ro": "on"}


@pytest.mark.parametrize(
    "line",
    [
        "-machine sifive_u", "-kernel", "-wat", "-m", "-kernel k -device e1000", "-smp x",
        "-kernel k -device virtio-blk-device,drive=none", "-drive if=none", "-netdev tap",
        "-drive file=x,format=vmdk", "-netdev user,hostfwd=22", "-serial pty", "-m 1G", "-cpu x86",
        "-gdb unix:x", "-drive file=a,id=a -drive file=b,id=a", "-drive file=x,if=ide",
        "-kernel k -drive file=a,id=a,if=none"
        " -device virtio-blk-device,drive=a,bus=virtio-mmio-bus.3",
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_named(line: str) -> None:
    with pytest.raises(UsageError, match=r"^qemu: "):
        define_arguments(translate(line.split()))


def test_help(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from kasou.cli.qemu import qemu

    assert qemu(["-h"]) == 0 and "xv6" in capsys.readouterr().out
