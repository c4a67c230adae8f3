"""`kasou qemu ...`: the QEMU command lines that people paste, translated.

What has a meaning here is carried over; what only tunes QEMU is accepted and said to be without
effect (with KASOU_DEBUG); what kasou cannot do is refused by name. Enough for `make qemu` of
xv6-riscv: `make qemu QEMU="kasou qemu"`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasou.cli.options import UsageError
from kasou.control.vm_config import DriveConfig

WITHOUT_EFFECT_1 = {
    "-global", "-name", "-monitor", "-rtc", "-accel", "-cpu", "-object", "-boot", "-vga", "-k",
    "-uuid", "-chardev", "-pidfile", "-D", "-d",
}  # fmt: skip
"""Options with a value that change nothing for the guests kasou runs."""
WITHOUT_EFFECT_0 = {"-nodefaults", "-enable-kvm", "-no-user-config", "-no-shutdown", "-no-acpi"}
CONSOLES = ("stdio", "mon:stdio")
IGNORED_DEVICES = ("virtio-rng", "virtio-serial", "virtconsole", "virtio-balloon", "pcie-root-port")


@dataclass(slots=True)
class Drive:
    """`-drive`, to be plugged in by a `-device` or by itself."""

    config: DriveConfig
    plugged: bool
    bus: int | None = None
    device: str = ""


@dataclass(slots=True)
class Machine:
    """What a command line asks for."""

    arguments: dict[str, Any] = field(default_factory=dict)
    drives: dict[str, Drive] = field(default_factory=dict)
    ports: list[str] = field(default_factory=list)
    network: bool = False
    snapshot: bool = False
    gdb: str | None = None
    stopped: bool = False
    is_pci: bool | None = None


def properties(text: str) -> dict[str, str]:
    """`key=value,key,...` as QEMU writes it (",," is a comma); the first word is under "" ."""
    words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
    found: dict[str, str] = {}
    for place, word in enumerate(words):
        key, equals, value = word.partition("=")
        if place == 0 and not equals:
            found[""] = word
        else:
            found[key] = value if equals else "on"
    return found


def translate(words: Sequence[str]) -> Machine:
    """Read a QEMU command line. Raises `UsageError` naming what cannot be done."""
    machine = Machine()
    rest = iter(words)
    for word in rest:
        flag = "-" + word.lstrip("-") if word.startswith("-") else word
        if not word.startswith("-"):
            _drive(machine, {"file": word, "format": "raw", "if": "virtio"}, word)
        elif flag in SIMPLE:
            machine.arguments[SIMPLE[flag]] = _value(flag, rest)
        elif flag in READERS:
            READERS[flag](machine, _value(flag, rest))
        elif flag in SWITCHES:
            SWITCHES[flag](machine)
        elif flag in WITHOUT_EFFECT_1:
            value = _value(flag, rest)
            if flag == "-cpu" and value.split(",")[0] not in ("rv64", "max", "any", "host"):
                raise UsageError(f"qemu: -cpu {value}: kasou has rv64 only")
            _note(f"{flag} {value}")
        elif flag in WITHOUT_EFFECT_0:
            _note(flag)
        else:
            raise UsageError(f"qemu: {word}: kasou does not know this option of QEMU's")
    return machine


def _value(flag: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise UsageError(f"qemu: {flag}: needs a value")
    return value


def _note(what: str) -> None:
    if os.environ.get("KASOU_DEBUG", "") not in ("", "0"):
        print(f"kasou: qemu: {what}: without effect", file=sys.stderr)


def _machine(machine: Machine, text: str) -> None:
    given = properties(text)
    kind = given.pop("", given.pop("type", "virt"))
    if kind != "virt":
        raise UsageError(f"qemu: -machine {kind}: kasou has virt only")
    for key, value in given.items():
        if key in ("aia",) and value != "none":
            raise UsageError(f"qemu: -machine {key}={value}: not here; leave it out for a PLIC")
        _note(f"-machine {key}={value}")


def _memory(machine: Machine, text: str) -> None:
    given = properties(text)
    machine.arguments["memory"] = given.get("", given.get("size", "128M"))


def _smp(machine: Machine, text: str) -> None:
    given = properties(text)
    count = given.get("", given.get("cpus", "1"))
    if not count.isdigit():
        raise UsageError(f"qemu: -smp {text}: not a number of processors")
    machine.arguments["cpus"] = int(count)


def _bios(machine: Machine, text: str) -> None:
    if text != "default":
        machine.arguments["bios"] = text


def _drive_option(machine: Machine, text: str) -> None:
    _drive(machine, properties(text), text)


def _drive(machine: Machine, given: dict[str, str], text: str) -> None:
    file = given.get("file", given.get("", ""))
    if not file:
        raise UsageError(f"qemu: -drive {text}: no file=")
    format, cache = given.get("format"), given.get("cache", "writeback")
    if format not in (None, "raw", "qcow2"):
        raise UsageError(f"qemu: -drive format={format}: kasou reads raw and qcow2")
    if cache not in ("writeback", "none", "unsafe", "writethrough", "directsync"):
        raise UsageError(f"qemu: -drive cache={cache}: not a cache mode")
    interface = given.get("if", "virtio")
    if interface not in ("none", "virtio"):
        raise UsageError(f"qemu: -drive if={interface}: the board has virtio disks only")
    config = DriveConfig(
        file,
        read_only=given.get("readonly", given.get("read-only", "off")) == "on",
        format=format,  # type: ignore[arg-type]
        cache="none"
        if cache == "directsync"
        else "writeback"
        if cache == "writethrough"
        else cache,  # type: ignore[arg-type]
        snapshot=given.get("snapshot", "off") == "on",
    )
    name = given.get("id", f"drive{len(machine.drives)}")
    if name in machine.drives:
        raise UsageError(f"qemu: two drives are called {name}")
    machine.drives[name] = Drive(config, plugged=interface == "virtio")


def _device(machine: Machine, text: str) -> None:
    given = properties(text)
    kind = given.get("", given.get("driver", ""))
    match = re.fullmatch(r"(virtio-(?:blk|net|[a-z0-9]+)|[a-z0-9-]+?)(?:-(device|pci))?", kind)
    base, transport = (match[1], match[2]) if match else (kind, None)
    if kind.startswith(IGNORED_DEVICES) or base in ("virtio-rng",):
        return _note(f"-device {kind}")
    if base == "virtio-blk":
        drive = machine.drives.get(given.get("drive", ""))
        if drive is None:
            raise UsageError(
                f"qemu: -device {text}: no -drive has the id {given.get('drive', '')!r}"
            )
        drive.plugged, drive.device = True, kind
        if bus := re.fullmatch(r"virtio-mmio-bus\.(\d)", given.get("bus", "")):
            drive.bus = int(bus[1])
    elif base == "virtio-net":
        machine.network = True
    else:
        raise UsageError(f"qemu: -device {kind}: kasou has no such device")
    if transport == "pci":
        machine.is_pci = True
    elif machine.is_pci is None:
        machine.is_pci = False
    return None


def _netdev(machine: Machine, text: str) -> None:
    given = text.split(",")
    if given[0] == "none":
        return
    if given[0] != "user":
        raise UsageError(f"qemu: -netdev {given[0]}: kasou has user only; --network joins VMs")
    machine.network = True
    for word in given[1:]:
        key, _, value = word.partition("=")
        if key == "hostfwd":
            machine.ports.append(_forward(value))
        elif key == "model" or key in ("id", "ipv4", "ipv6", "hostname", "mac", "netdev"):
            _note(word)
        else:
            raise UsageError(f"qemu: -netdev user,{key}=: not here")


def _forward(text: str) -> str:
    """`tcp:[ADDR]:PORT-[ADDR]:PORT` as kasou writes it; QEMU's empty address is every address."""
    match = re.fullmatch(r"(tcp|udp)?:(.*?):(\d+)-(.*?):(\d+)", text)
    if match is None:
        raise UsageError(f"qemu: hostfwd={text}: expected tcp:ADDR:PORT-ADDR:PORT")
    protocol, address, port, _, guest = match.groups()
    return f"{address or '*'}:{port}:{guest}/{protocol or 'tcp'}"


def _only_stdio(what: str) -> Any:
    def read(machine: Machine, text: str) -> None:
        if text not in (*CONSOLES, "none", "null", "file:/dev/null"):
            raise UsageError(f"qemu: {what} {text}: kasou has stdio, mon:stdio and none")

    return read


def _nothing(machine: Machine) -> None:
    """Is as it always is here."""


def _set(name: str, value: Any) -> Any:
    def switch(machine: Machine) -> None:
        setattr(machine, name, value)

    return switch


def _gdb(machine: Machine, text: str) -> None:
    if not text.startswith("tcp:"):
        raise UsageError(f"qemu: -gdb {text}: write tcp::1234")
    machine.gdb = text.removeprefix("tcp:")


def _no_reboot(machine: Machine) -> None:
    machine.arguments["reboot"] = False


SIMPLE = {"-kernel": "kernel", "-initrd": "initrd", "-append": "append", "-seed": "seed"}
READERS = {
    "-machine": _machine, "-M": _machine, "-m": _memory, "-smp": _smp, "-bios": _bios,
    "-drive": _drive_option, "-device": _device, "-netdev": _netdev, "-nic": _netdev,
    "-net": lambda machine, text: None if text.startswith("nic") else _netdev(machine, text),
    "-serial": _only_stdio("-serial"), "-display": _only_stdio("-display"), "-gdb": _gdb,
    "-hda": lambda machine, text: _drive(machine, {"file": text}, text),
}  # fmt: skip
SWITCHES = {
    "-nographic": _nothing, "-no-reboot": _no_reboot, "-snapshot": _set("snapshot", True),
    "-S": _set("stopped", True), "-s": _set("gdb", ":1234"),
}  # fmt: skip


def define_arguments(machine: Machine) -> dict[str, Any]:
    """What `kasou.aio.definition.define` is called with. Raises `UsageError`."""
    from dataclasses import replace

    arguments = {"memory": "128M"} | machine.arguments
    if "seed" in arguments:
        if not arguments["seed"].isdigit():
            raise UsageError(f"qemu: -seed {arguments['seed']}: not a number")
        arguments["seed"] = int(arguments["seed"])
    drives = [drive for drive in machine.drives.values() if drive.plugged]
    placed = sorted(drives, key=lambda drive: 8 if drive.bus is None else drive.bus)
    for place, drive in enumerate(placed):
        if drive.bus is not None and drive.bus != place:
            raise UsageError(
                f"qemu: bus=virtio-mmio-bus.{drive.bus}: kasou's disks take the buses from 0 on"
            )
    arguments["drives"] = [
        replace(drive.config, snapshot=drive.config.snapshot or machine.snapshot)
        for drive in placed
    ]
    arguments["ports"] = machine.ports
    arguments["network"] = None if machine.network else False
    if "kernel" not in arguments and "bios" not in arguments:
        raise UsageError("qemu: give -kernel FILE or -bios FILE; kasou run boots Debian by itself")
    if machine.is_pci:
        arguments["transport"] = "pci"
    return arguments


def qemu(words: Sequence[str]) -> int:
    """Run the machine that a QEMU command line describes, on this terminal."""
    if any(word in ("-h", "-help", "--help") for word in words) or not words:
        print(HELP)
        return 0
    if any(word in ("-version", "--version") for word in words):
        from kasou.cli.app import version

        return version()
    machine = translate(words)
    from kasou.aio.definition import define
    from kasou.cli.options import RunOptions
    from kasou.cli.run import foreground

    config = define(**define_arguments(machine), ephemeral=True)
    return foreground(config, RunOptions(), gdb=machine.gdb, stopped=machine.stopped)


HELP = """Usage: kasou qemu OPTIONS

Runs what qemu-system-riscv64 OPTIONS would: -machine virt, -m, -smp, -kernel, -initrd, -append,
-bios none|default|FILE, -drive, -device virtio-blk-*|virtio-net-*|virtio-rng-*, -netdev user,hostfwd=,
-nographic, -serial stdio|mon:stdio|none, -no-reboot, -snapshot, -S, -s, -gdb tcp:ADDR:PORT.
For xv6-riscv: make qemu QEMU="kasou qemu"."""
