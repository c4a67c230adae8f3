import shutil
import subprocess

import pytest

from kasou.errors import ConfigError
from kasou.machine.device_tree import Node, blob, region, u64


def decompile(data: bytes) -> str:
    if not shutil.which("dtc"):
        pytest.skip("dtc is not installed")
    done = subprocess.run(
        ["dtc", "-I", "dtb", "-O", "dts", "-"], input=data, capture_output=True, check=True
    )
    return done.stdout.decode()


def test_every_kind_of_value() -> None:
    root = Node("", {"#address-cells": 2, "#size-cells": 2})
    intc = root.add("intc", {"interrupt-controller": True, "absent": False})
    wires: list[int | Node] = [intc, 9]
    root.add(
        "device@80000000",
        {
            "compatible": ["a,b", "c"],
            "reg": region(0x8000_0000, 0x1_0000_0000),
            "wires": wires,
            "long": u64(0x1234_5678_9ABC_DEF0),
            "raw": b"\1\2\3",
            "text": "hi",
        },
    )
    text = decompile(blob(root, reserved=[(0x8000_0000, 0x1000)]))
    assert "/memreserve/\t0x0000000080000000 0x0000000000001000;" in text
    assert 'compatible = "a,b\\0c"' in text or 'compatible = "a,b", "c"' in text
    assert "reg = <0x00 0x80000000 0x01 0x00>;" in text
    assert "wires = <0x01 0x09>;" in text
    assert "phandle = <0x01>;" in text
    assert "long = <0x12345678 0x9abcdef0>;" in text
    assert "raw = [01 02 03];" in text
    assert "interrupt-controller;" in text
    assert "absent" not in text


def test_layout_of_the_blob() -> None:
    data = blob(Node("", {"model": "x"}))
    roomy = blob(Node("", {"model": "x"}), room=0x1000)
    assert len(roomy) == int.from_bytes(roomy[4:8], "big") == len(data) + 0x1000
    assert data[:4] == b"\xd0\x0d\xfe\xed"
    assert int.from_bytes(data[4:8], "big") == len(data)
    assert len(data) % 8 == 0


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"/: big.*does not fit"):
        blob(Node("", {"big": 1 << 32}))
    with pytest.raises(ConfigError, match="stranger is referred to"):
        blob(Node("", {"x": Node("stranger")}))
