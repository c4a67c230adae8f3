"""What a user asks for, resolved into a VM's configuration.

Command line and Python both come through `define`: names become files, sizes bytes, mounts and
drives values; everything is checked before a directory is made or a process started.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kasou.control import warm
from kasou.control.assembly import mac_address, machine_id
from kasou.control.vm_config import (
    DriveConfig,
    MountConfig,
    VmConfig,
    check_choices,
    check_name,
    next_free_tag,
)
from kasou.control.vm_directory import VmDirectory, free_name
from kasou.errors import ConfigError, HostError
from kasou.units import parse_size

TINY = "tiny"
DEFAULT_IMAGE = "debian"
DEFAULT_MEMORY = "512M"
FORMATS = ("raw", "qcow2")
U_BOOT = "u-boot"
CACHES = ("writeback", "none", "unsafe")


class ImageFiles(NamedTuple):
    """The files of an image. `disk` is a base, read only to us; `agent` whether it has ours."""

    kernel: Path | None
    initrd: Path | None = None
    append: str = ""
    disk: Path | None = None
    agent: bool = False
    bios: Path | None = None


def image_files(image: str, mirror: str | None = None) -> ImageFiles:
    """The files of `image`, fetched or built first if need be, with progress on standard error.

    Raises `ConfigError` for an unknown name, `HostError` when it cannot be had.
    """
    if image == TINY:
        from kasou.guest.kernels import assembled

        return ImageFiles(assembled(TINY))
    from kasou.images import ensure

    guest = ensure(image, mirror)
    return ImageFiles(
        guest.kernel,
        guest.initrd,
        guest.append,
        getattr(guest, "disk", None),
        bool(getattr(guest, "agent", False)),
    )


def define(
    image: str | None = None,
    *,
    name: str | None = None,
    cpus: int = 1,
    memory: str | int = DEFAULT_MEMORY,
    bios: str | os.PathLike[str] | None = None,
    kernel: str | os.PathLike[str] | None = None,
    initrd: str | os.PathLike[str] | None = None,
    append: str | None = None,
    drives: Iterable[str | DriveConfig] = (),
    mounts: Iterable[str | tuple[str, str] | MountConfig] = (),
    ports: Iterable[str] = (),
    network: str | Literal[False] | None = None,
    egress: str = "allow",
    cloud_init: str | os.PathLike[str] | None = None,
    disk_errors: str = "report",
    seed: int | None = None,
    clock: str = "host",
    technique: str = "direct",
    paging: str = "direct",
    io: str = "virtio",
    scheduler: str = "direct",
    transport: Literal["mmio", "pci"] = "mmio",
    engine: str = "interpreter",
    reboot: bool = True,
    max_instructions: int | None = None,
    ephemeral: bool = False,
    held: bool = False,
    mirror: str | None = None,
) -> VmConfig:
    """The configuration of a VM, complete. Raises `ConfigError` and `HostError`.

    Without `image` and `kernel` (and `bios`) it is the default image. `network` False is a VM
    without one, None its own gateway, a name the network of that name. Paths become absolute.
    """
    if image is not None and kernel is not None:
        raise ConfigError(f"give either the image {image} or a kernel, not both")
    if bios == "none" and kernel is None and image is None:
        raise ConfigError("bios none: needs a kernel, a bare-metal ELF or flat binary")
    if bios == U_BOOT:
        if kernel is not None or image is not None:
            raise ConfigError("bios u-boot: boots from a disk; give no image and no kernel")
        from kasou.images.boot_loader import boot_loader

        bios, kernel = None, boot_loader(mirror)
    if name is not None:
        check_name(name)
        if VmDirectory(name).exists:
            raise taken(name)
    # Everything of the user's is looked at before an image is fetched.
    config = VmConfig(
        name=name or "unnamed",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        cpus=cpus,
        memory=parse_size(memory),
        bios="none" if bios == "none" else _text(existing("bios", bios) if bios else None),
        kernel=_text(existing("kernel", kernel) if kernel else None),
        initrd=_text(existing("initrd", initrd) if initrd else None),
        append=append or "",
        drives=tuple(_drive(one) for one in drives),
        mounts=_mounts(mounts),
        cloud_init=_text(existing("cloud-init", cloud_init) if cloud_init else None),
        ports=tuple(ports),
        network=network or None,
        disk_errors=disk_errors,  # type: ignore[arg-type]  # check_choices looks at it
        egress=egress,
        transport=transport,
        engine=engine,
        clock=clock,
        seed=seed,
        technique=technique,
        paging=paging,
        io=io,
        scheduler=scheduler,
        reboot=reboot,
        max_instructions=max_instructions,
        ephemeral=ephemeral,
        held=held,
    )
    check_choices(config)
    _check_network(config)
    if kernel is None and (image is not None or bios is None):
        config = _with_image(config, image or DEFAULT_IMAGE, mirror)
    name = name or next(free_name(short_name(config.image, kernel)))
    asked_for = bool(config.ports or config.network or config.egress != "allow")
    is_bare = config.image == TINY or config.bios == "none" or config.engine == "reference"
    config = replace(
        config,
        name=name,
        networked=asked_for or (network is not False and not is_bare),
        mac=mac_address(name, config.created, seed, config.network),
    )
    return replace(config, warm=warm.key_of(config) if initrd is None else None)


def _check_network(config: VmConfig) -> None:
    """Refuse rules that cannot be read. Raises `ConfigError`."""
    if config.ports:
        from kasou.net.gateway.forward import Forward

        for spec in config.ports:
            Forward.parse(spec)
    if config.egress != "allow":
        from kasou.net.gateway.egress import EgressPolicy

        EgressPolicy.parse(config.egress)


def _with_image(config: VmConfig, image: str, mirror: str | None) -> VmConfig:
    """`config` with the image's files where the user gave none."""
    parts = image_files(image, mirror)
    return replace(
        config,
        image=image,
        bios=config.bios or _text(parts.bios),
        kernel=_text(parts.kernel),
        initrd=config.initrd or _text(parts.initrd),
        append=f"{parts.append} {config.append}".strip(),
        disk=_text(parts.disk),
        agent=parts.agent,
    )


def taken(name: str) -> ConfigError:
    """The error for a name that another VM has."""
    return ConfigError(
        f"{name}: there is a VM of this name; kasou start {name} starts it, kasou rm {name}"
        " removes it"
    )


def create(config: VmConfig) -> VmDirectory:
    """Make the VM's directory: configuration, and what it needs of its image.

    Kernel and initrd become links in it, so that the image may be renewed meanwhile. Raises
    `ConfigError` when the name is taken, `HostError` when the disk is full.
    """
    directory = VmDirectory(config.name)
    directory.create(config)
    try:
        _keep(directory, config)
    except BaseException as problem:
        directory.remove()
        if isinstance(problem, OSError):
            raise HostError(f"{directory.path}: {problem.strerror}") from None
        raise
    return directory


def _keep(directory: VmDirectory, config: VmConfig) -> None:
    if config.cloud_init is not None:
        from kasou.images.cloud_init import seed_from

        volume = directory.path / "cidata.img"
        volume.write_bytes(seed_from(Path(config.cloud_init), machine_id(config), config.name))
        drive = DriveConfig(str(volume), read_only=True, format="raw")
        config = replace(config, drives=(*config.drives, drive))
        directory.write_config(config)
    if config.image is None or config.image == TINY:
        return
    kept: dict[str, Any] = {}
    for field in ("kernel", "initrd"):
        source = getattr(config, field)
        if source is None:
            continue
        target = directory.path / field
        try:
            os.link(source, target)
        except OSError:  # another file system: the image's own file will do
            continue
        kept[field] = str(target)
    if kept:
        directory.write_config(replace(config, **kept))


def short_name(image: str | None, kernel: str | os.PathLike[str] | None) -> str:
    """What an unnamed VM is called before its number."""
    if image is not None:
        return Path(image).stem.split(":")[0]
    return Path(kernel).stem if kernel is not None else "vm"


def existing(what: str, name: str | os.PathLike[str]) -> Path:
    """The absolute path of a file. Raises `ConfigError` when it cannot be read."""
    path = Path(name)
    try:
        if not path.exists():
            raise ConfigError(f"{what} {name}: no such file")
        if path.is_dir():
            raise ConfigError(f"{what} {name}: is a directory, not a file")
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ConfigError(f"{what} {name}: {reason}") from None
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{what} {name}: not readable; check its permissions")
    return path.absolute()


def parse_drive(text: str) -> DriveConfig:
    """A drive as written: `FILE[,ro][,format=raw|qcow2][,cache=...][,snapshot]`.

    A comma in FILE is fine as long as no option follows it by that name. Raises `ConfigError`.
    """
    path, options = text, []
    while "," in path:
        head, _, option = path.rpartition(",")
        key = option.partition("=")[0]
        if key not in ("ro", "format", "cache", "snapshot"):
            break
        path = head
        options.append(option)
    if not path:
        raise ConfigError("drive: no file named; write FILE or FILE,ro")
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key in ("ro", "snapshot") and not equals:
            values["read_only" if key == "ro" else key] = True
        elif (key == "format" and value in FORMATS) or (key == "cache" and value in CACHES):
            values[key] = value
        else:
            raise ConfigError(
                f"drive {path}: {option} is not an option; there are ro, snapshot,"
                f" format={'|'.join(FORMATS)}, cache={'|'.join(CACHES)}"
            )
    return DriveConfig(path, **values)


def _drive(given: str | DriveConfig) -> DriveConfig:
    drive = parse_drive(given) if isinstance(given, str) else given
    return replace(drive, path=str(existing("drive", drive.path)))


def parse_mount(text: str) -> tuple[str, str, bool]:
    """(host directory, guest directory, read-only) of `HOST:GUEST[:ro]`. Raises `ConfigError`."""
    source, _, rest = text.partition(":")
    target, colon, mode = rest.partition(":")
    if not source or not target.startswith("/") or (colon and mode not in ("ro", "rw")):
        raise ConfigError(f"volume {text}: write HOST:/GUEST or HOST:/GUEST:ro")
    return source, target, mode == "ro"


def _mounts(given: Iterable[str | tuple[str, str] | MountConfig]) -> tuple[MountConfig, ...]:
    mounts: tuple[MountConfig, ...] = ()
    for one in given:
        if isinstance(one, MountConfig):
            mounts += (one,)
            continue
        if isinstance(one, str):
            source, target, read_only = parse_mount(one)
        else:
            source, target, read_only = str(one[0]), str(one[1]), False
        path = Path(source).expanduser().absolute()
        if not path.is_dir():
            raise ConfigError(f"volume {source}: no such directory")
        if any(mount.target == target for mount in mounts):
            raise ConfigError(f"volume {source}: {target} is given twice")
        mounts += (MountConfig(str(path), target, next_free_tag(mounts), read_only),)
    return mounts


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
