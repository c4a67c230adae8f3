"""A seed for cloud-init: what a cloud image wants to be told when it first boots.

Its data source `nocloud` looks for a file system with the label `cidata` that has the files
`user-data` and `meta-data`, and perhaps `network-config` and `vendor-data`. (cloud-init's
documentation, "NoCloud"; "User data formats")
"""

import json
from pathlib import Path

from kasou.errors import ConfigError
from kasou.images.fat import make_fat

LABEL = "CIDATA"
MOST_BYTES = 16 << 20
BEGINNINGS = (
    b"#cloud-config", b"#!", b"#include", b"#cloud-boothook", b"#part-handler", b"## template:",
    b"#cloud-config-archive", b"#upstart-job", b"Content-Type:", b"MIME-Version:", b"\x1f\x8b",
)  # fmt: skip
"""What user data may begin with; cloud-init silently ignores any other."""


def seed(
    user_data: bytes,
    instance_id: str,
    hostname: str,
    network_config: bytes | None = None,
    origin: str = "user-data",
) -> bytes:
    """A disk image for a VM to read, made from the bytes of `user_data`.

    cloud-init runs what is said once for each `instance_id`, so it must be new for a new VM and stay
    for an old one. Raises `ConfigError`, naming `origin`, for what cloud-init would not understand.
    """
    if not user_data.lstrip().startswith(BEGINNINGS):
        raise ConfigError(
            f"{origin}: cloud-init would ignore it; its first line has to be #cloud-config, #!/bin/sh"
            " or another that cloud-init knows"
        )
    if len(user_data) > MOST_BYTES:
        raise ConfigError(f"{origin}: {len(user_data)} bytes; at most {MOST_BYTES}")
    # JSON is YAML, and quotes what has to be quoted.
    meta_data = json.dumps({"instance-id": instance_id, "local-hostname": hostname}) + "\n"
    files = {"user-data": user_data, "meta-data": meta_data.encode()}
    if network_config is not None:
        files["network-config"] = network_config
    return make_fat(files, LABEL)


def seed_from(path: Path, instance_id: str, hostname: str) -> bytes:
    """The same from a file, or a directory with `user-data` and perhaps `network-config`.

    Raises `ConfigError` when they cannot be read.
    """
    is_directory = path.is_dir()
    user_data = path / "user-data" if is_directory else path
    network = path / "network-config"
    try:
        network_config = network.read_bytes() if is_directory and network.exists() else None
        text = user_data.read_bytes()
    except OSError as error:
        raise ConfigError(f"cloud-init: {error.filename}: {error.strerror}") from None
    return seed(text, instance_id, hostname, network_config, str(user_data))
