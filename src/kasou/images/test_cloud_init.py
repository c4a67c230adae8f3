"""Seeds for cloud-init, read by a reader of our own and, where they are installed, by mtools and fsck."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasou.errors import ConfigError
from kasou.images.cloud_init import seed, seed_from
from kasou.images.fat import make_fat

CONFIG = b"#cloud-config\nhostname: x\n"


def read_fat(image: bytes) -> tuple[str, dict[str, bytes]]:
    """Label and files of a FAT12 volume, by its long names."""
    size, spc, reserved, fats, entries = struct.unpack_from("<HBHBH", image, 11)
    sectors, _, fat_sectors = struct.unpack_from("<HBH", image, 19)
    assert (size, sectors * 512, image[510:512]) == (512, len(image), b"\x55\xaa")
    fat = image[reserved * 512 :][: fat_sectors * 512]
    assert fat == image[(reserved + fat_sectors) * 512 :][: fat_sectors * 512]
    root = (reserved + fats * fat_sectors) * 512
    data = root + entries * 32
    assert (len(image) - data) // (spc * 512) <= 4084, "more clusters would be FAT16"

    def following(cluster: int) -> int:
        pair = int.from_bytes(fat[cluster * 3 // 2 :][:2], "little")
        return pair >> 4 if cluster % 2 else pair & 0xFFF

    label, files, long = "", {}, ""
    for at in range(root, data, 32):
        entry = image[at : at + 32]
        if entry[0] == 0:
            break
        if entry[11] == 0x0F:
            part = entry[1:11] + entry[14:26] + entry[28:32]
            long = part.decode("utf-16-le", "replace").split("\0")[0].rstrip("\uffff") + long
        elif entry[11] & 8:
            label = entry[:11].decode().rstrip()
        else:
            cluster, length = struct.unpack_from("<HI", entry, 26)
            content = b""
            while 2 <= cluster < 0xFF8:
                content += image[data + (cluster - 2) * spc * 512 :][: spc * 512]
                cluster = following(cluster)
            files[long] = content[:length]
            long = ""
    return label, files


@given(
    st.dictionaries(
        st.text("abcdefghij-.", min_size=1, max_size=30).filter(lambda n: n.strip(".") == n),
        st.binary(max_size=3000),
        max_size=8,
    )
)
@settings(max_examples=60)
def test_what_is_written_is_read(files: dict[str, bytes]) -> None:
    assert read_fat(make_fat(files, "LABEL")) == ("LABEL", files)


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 2_000_000, 9_000_001])
def test_sizes(n: int) -> None:
    content = bytes(i % 251 for i in range(n))
    assert read_fat(make_fat({"a": content, "b": b"behind"}, "X"))[1] == {
        "a": content,
        "b": b"behind",
    }


def test_too_much() -> None:
    with pytest.raises(ConfigError, match="too much"):
        make_fat({"a": bytes(40 << 20)}, "X")
    with pytest.raises(ConfigError, match="too many"):
        make_fat({f"file-{i}": b"" for i in range(40)}, "X")


def test_a_seed() -> None:
    image = seed(CONFIG, "iid-1", "web", b"version: 2\n")
    assert read_fat(image) == (
        "CIDATA",
        {
            "user-data": CONFIG,
            "meta-data": b'{"instance-id": "iid-1", "local-hostname": "web"}\n',
            "network-config": b"version: 2\n",
        },
    )
    assert image == seed(CONFIG, "iid-1", "web", b"version: 2\n")


def test_what_cloud_init_would_ignore() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml: cloud-init would ignore it"):
        seed(b"hostname: x\n", "i", "h", origin="f.yaml")


def test_from_files(tmp_path: Path) -> None:
    (tmp_path / "user-data").write_bytes(CONFIG)
    assert seed_from(tmp_path / "user-data", "i", "h") == seed(CONFIG, "i", "h")
    (tmp_path / "network-config").write_bytes(b"version: 2\n")
    assert seed_from(tmp_path, "i", "h") == seed(CONFIG, "i", "h", b"version: 2\n")
    with pytest.raises(ConfigError, match="No such file"):
        seed_from(tmp_path / "nothing", "i", "h")


@pytest.mark.skipif(shutil.which("fsck.fat") is None, reason="dosfstools is not installed")
def test_others_find_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "seed.img"
    path.write_bytes(seed(CONFIG, "i", "h"))
    subprocess.run(["fsck.fat", "-n", str(path)], check=True, capture_output=True)
