import pytest

from kasou.devices.vmgenid import VmGenId
from kasou.errors import BusError


def test_a_copy_is_told_once() -> None:
    wire: list[bool] = []
    device = VmGenId(bytes(range(16)), wire.append)
    assert device.read(0, 8) == 0x0706_0504_0302_0100 and device.read(12, 4) == 0x0F0E_0D0C
    assert device.read(15, 1) == 15 and wire == []
    saved = device.save()
    device.renew(b"\xff" * 16)
    assert device.read(8, 8) == (1 << 64) - 1 and wire == [True, False]
    device.restore(saved)
    assert device.read(0, 1) == 0 and wire == [True, False]
    with pytest.raises(BusError):
        device.write(0, 8, 1)
