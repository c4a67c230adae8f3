"""The fuzzers of `fuzz`, for a few seconds a device; `python -m fuzz` runs them for longer."""

import importlib
import pkgutil
import random

import pytest

import kasou.devices.virtio
from fuzz.hostile_driver import HostileDriver
from fuzz.rigs import RIGS
from kasou.devices.virtio.device import VirtioDevice
from kasou.devices.virtio.driver_model import Ram

RUNS = 3


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("transport", ["mmio", "pci"])
@pytest.mark.parametrize("name", RIGS)
def test_no_driver_breaks_a_device(name: str, transport: str, packed: bool) -> None:
    for seed in range(RUNS):
        HostileDriver(name, transport, packed, seed).run(200)


def test_no_device_is_forgotten() -> None:
    for module in pkgutil.iter_modules(kasou.devices.virtio.__path__):
        if not module.name.startswith("test_"):
            importlib.import_module(f"kasou.devices.virtio.{module.name}")
    tested = {type(rig(Ram(), random.Random(0)).device) for rig in RIGS.values()}
    found: list[type[VirtioDevice]] = [VirtioDevice]
    for kind in found:
        found += kind.__subclasses__()
    devices = {k for k in found if k.device_id and k.__module__.startswith("kasou.")}
    devices = {k for k in devices if ".test_" not in k.__module__}
    assert devices - tested == set(), "give it a row in fuzz/rigs.py"
