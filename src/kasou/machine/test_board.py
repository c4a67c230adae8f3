import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from kasou.devices.test_finisher import Finish
from kasou.errors import BusError, ConfigError, GuestError
from kasou.machine.board import FW_CFG, RAM_BASE, UART, VIRTIO, Board, isa_string
from kasou.machine.test_device_tree import decompile
from kasou.ports import Disk

EXTENSIONS = ("i", "m", "a", "f", "d", "c", "zicsr", "zifencei", "zicbom", "zicboz", "zicbop")


class Harts:
    def __init__(self) -> None:
        self.external: dict[tuple[int, str], bool] = {}
        self.time = 0

    def set_msip(self, hart: int, on: bool) -> None: ...

    def set_ssip(self, hart: int) -> None: ...

    def set_external(self, hart: int, mode: Literal["M", "S"], on: bool) -> None:
        self.external[hart, mode] = on

    def mtime(self) -> int:
        return self.time

    def set_mtime(self, value: int) -> None:
        self.time = value

    def mtimecmp(self, hart: int) -> int:
        return 0

    def set_mtimecmp(self, hart: int, value: int) -> None: ...


class Ram:
    def read(self, gpa: int, n: int) -> bytes:
        if not RAM_BASE <= gpa <= gpa + n <= RAM_BASE + (1 << 20):
            raise GuestError("outside RAM")
        return bytes(n)

    def write(self, gpa: int, data: bytes) -> None:
        self.read(gpa, len(data))

    def view(self, gpa: int, n: int) -> memoryview:
        return memoryview(bytearray(self.read(gpa, n)))

    def wrote(self, gpa: int, n: int) -> None: ...


class NullDisk:
    size_bytes = 1 << 20
    read_only = True

    def read(self, offset: int, n: int) -> bytes:
        return bytes(n)

    def write(self, offset: int, data: bytes) -> None: ...

    def flush(self) -> None: ...

    def discard(self, offset: int, n: int) -> None: ...

    def write_zeroes(self, offset: int, n: int, unmap: bool) -> None: ...


class Machine:
    def __init__(self, harts: int = 2, disks: Sequence[Disk] = (), sswi: bool = False) -> None:
        self.harts = Harts()
        self.sent = bytearray()
        self.finished: list[tuple[Finish, int]] = []
        self.board = Board(
            harts,
            256 << 20,
            Ram(),
            self.harts,
            console_output=self.sent.extend,
            entropy=bytes,
            now_ns=lambda: 0,
            on_finish=lambda kind, code: self.finished.append((kind, code)),
            disks=disks,
            sswi=sswi,
        )

    def tree(self, mmu: str | None = "sv57") -> bytes:
        return self.board.device_tree(
            bootargs="console=ttyS0",
            initrd_range=(0x8400_0000, 0x8500_0000),
            isa_extensions=EXTENSIONS,
            mmu=mmu,
            rng_seed=bytes(range(32)),
        )


def test_everything_answers_where_qemu_has_it() -> None:
    m = Machine(disks=[NullDisk()])
    bus = m.board.bus
    bus.write(0x1000_0000, 1, ord("k"))
    assert m.sent == b"k"
    bus.write(0x10_0000, 4, 0x5555)
    assert m.finished == [(Finish.PASS, 0)]
    ids = [bus.read(place.base + 8, 4) for place in VIRTIO]
    assert ids == [2, 4, 0, 0, 0, 0, 0, 0]
    m.harts.time = 77
    assert bus.read(0x200_BFF8, 8) == 77
    assert bus.read(FW_CFG.base, 4).to_bytes(4, "little") == b"QEMU"
    assert bus.read(0x3000_0000, 4) == 0x0008_1B36
    assert bus.read(0x3000_8000, 4) == bus.read(0x4000_0000, 4) == 0xFFFF_FFFF
    with pytest.raises(BusError):
        bus.read(0x3000_0000 - 4, 4)


def test_uart_interrupt_reaches_the_supervisor_of_the_second_hart() -> None:
    m = Machine()
    bus = m.board.bus
    bus.write(0xC00_0000 + 4 * UART.irq, 4, 1)
    bus.write(0xC00_2000 + 0x80 * 3, 4, 1 << UART.irq)
    bus.write(UART.base + 1, 1, 1)
    m.board.uart.receive(b"x")
    assert m.harts.external == {(1, "S"): True}
    other = Machine()
    other.board.restore(m.board.save())
    assert other.harts.external[1, "S"]
    assert other.board.bus.read(0xC20_3004, 4) == UART.irq
    m.board.reset()
    assert m.harts.external == {(1, "S"): False}


def test_limits() -> None:
    with pytest.raises(ConfigError, match="harts"):
        Machine(harts=9)
    with pytest.raises(ConfigError, match="places are taken"):
        Machine(disks=[NullDisk()] * 39)


def test_devices_behind_the_eighth_go_to_pci() -> None:
    board = Machine(disks=[NullDisk()] * 9).board
    assert [t.device.device_id for t in board.virtio] == [2] * 8
    ids = [board.bus.read(0x3000_0000 + (n << 15), 4) for n in range(4)]
    assert ids == [0x0008_1B36, 0x1042_1AF4, 0x1044_1AF4, 0xFFFF_FFFF]


def test_isa_string() -> None:
    assert isa_string(["zicsr", "c", "m", "i", "a", "zba"]) == "rv64imac_zicsr_zba"
    with pytest.raises(ConfigError):
        isa_string(["x"])


def test_device_tree_says_what_linux_needs() -> None:
    text = decompile(Machine().tree())
    for line in (
        'riscv,isa = "rv64imafdc_zicsr_zifencei_zicbom_zicboz_zicbop";',
        'riscv,isa-base = "rv64i";',
        'mmu-type = "riscv,sv57";',
        "riscv,cbom-block-size = <0x40>;",
        "riscv,cbop-block-size = <0x40>;",
        "timebase-frequency = <0x989680>;",
        'bootargs = "console=ttyS0";',
        "linux,initrd-start = <0x00 0x84000000>;",
        'stdout-path = "/soc/serial@10000000";',
        "reg = <0x00 0x80000000 0x00 0x10000000>;",
        "riscv,ndev = <0x5f>;",
    ):
        assert line in text, line
    assert "mmu-type" not in decompile(Machine().tree(mmu=None))
    assert "sswi@2f00000" in decompile(Machine(sswi=True).tree())


def properties(text: str) -> dict[str, dict[str, str]]:
    """Node path to properties of a decompiled tree."""
    found: dict[str, dict[str, str]] = {}
    path: list[str] = []
    for line in (raw.strip() for raw in text.splitlines()):
        if line.endswith("{"):
            path.append(line[:-1].strip())
            found["/".join(path)] = {}
        elif line == "};":
            path.pop()
        elif path and line.endswith(";"):
            name, _, value = line[:-1].partition(" = ")
            found["/".join(path)][name] = value.replace('", "', "\\0")
    return found


def resolved(tree: dict[str, dict[str, str]], path: str, name: str) -> str:
    """A property with the phandles among its cells replaced by node paths."""
    value = tree[path][name]
    if name not in ("interrupts-extended", "interrupt-parent", "interrupt-map", "regmap", "cpu"):
        return value
    where = {p["phandle"]: path for path, p in tree.items() if "phandle" in p}
    cells = re.findall(r"0x[0-9a-f]+", value)
    every, which = (6, 4) if name == "interrupt-map" else (2, 0)
    return " ".join(where[f"<{c}>"] if i % every == which else c for i, c in enumerate(cells))


@pytest.mark.parametrize("harts", [1, 2])
def test_device_tree_agrees_with_qemu(tmp_path: Path, harts: int) -> None:
    if not shutil.which("qemu-system-riscv64"):
        pytest.skip("qemu-system-riscv64 is not installed")
    dump = tmp_path / "qemu.dtb"
    subprocess.run(
        ["qemu-system-riscv64", "-M", f"virt,dumpdtb={dump}", "-smp", str(harts), "-m", "256M"],
        check=True,
        capture_output=True,
    )
    ours = properties(decompile(Machine(harts).tree()))
    qemus = properties(decompile(dump.read_bytes()))
    # qemu's version decides these, or they say what differs by intention
    free = {
        "phandle",
        "riscv,isa",
        "mmu-type",
        "rng-seed",
        "riscv,ndev",
        "model",
    }
    not_built = ("flash@", "platform-bus@", "pmu")
    compared = 0
    for path, theirs in qemus.items():
        if any(part.startswith(not_built) for part in path.split("/")):
            continue
        assert path in ours, path
        for name in theirs.keys() - free:
            assert resolved(ours, path, name) == resolved(qemus, path, name), (path, name)
            compared += 1
    assert compared > 60
