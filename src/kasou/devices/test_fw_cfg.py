import struct

import pytest

from kasou.devices.fw_cfg import FwCfg
from kasou.devices.virtio.driver_model import Ram
from kasou.errors import ConfigError


def be(value: int, n: int) -> int:
    return int.from_bytes(value.to_bytes(n, "big"), "little")


def take(device: FwCfg, n: int) -> bytes:
    return bytes(device.read(0, 1) for _ in range(n))


def test_items_and_directory() -> None:
    device = FwCfg(Ram(0x2000))
    device.add_file("opt/b", b"hello")
    device.add_file("opt/a", b"abc")
    assert device.read(0, 4).to_bytes(4, "little") == b"QEMU"
    device.write(8, 2, be(1, 2))
    assert take(device, 4) == struct.pack("<I", 3)
    device.write(8, 2, be(0x19, 2))
    assert take(device, 4) == struct.pack(">I", 2)
    first = struct.unpack(">IHH56s", take(device, 64))
    assert first[0] == 3
    assert first[3].rstrip(b"\0") == b"opt/a"
    device.write(8, 2, be(first[1], 2))
    assert device.read(0, 8).to_bytes(8, "little") == b"abc\0\0\0\0\0"
    with pytest.raises(ConfigError):
        device.add_file("opt/a", b"")
    with pytest.raises(ConfigError):
        device.add_file("x" * 56, b"")


def test_dma() -> None:
    ram = Ram(0x2000)
    device = FwCfg(ram)
    device.add_file("f", bytes(range(100)))
    assert device.read(0x10, 8).to_bytes(8, "little") == b"QEMU CFG"
    assert device.read(0x14, 4).to_bytes(4, "little") == b" CFG"
    ram.write(0x100, struct.pack(">IIQ", 0x20 << 16 | 8 | 4, 10, 0))  # select, skip 10
    device.write(0x10, 8, be(0x100, 8))
    assert ram.read(0x100, 4) == bytes(4)
    ram.write(0x100, struct.pack(">IIQ", 2, 20, 0x400))
    device.write(0x10, 4, 0)
    device.write(0x14, 4, be(0x100, 4))
    assert ram.read(0x100, 4) == bytes(4)
    assert ram.read(0x400, 20) == bytes(range(10, 30))
    for control, address in ((2, 0x1FFF), (0x10, 0x400)):
        ram.write(0x100, struct.pack(">IIQ", control, 20, address))
        device.write(0x10, 8, be(0x100, 8))
        assert ram.read(0x100, 4) == struct.pack(">I", 1)
    device.write(0x10, 8, be(1 << 40, 8))
    other = FwCfg(ram)
    other.restore(device.save())
    assert other.save() == device.save()
