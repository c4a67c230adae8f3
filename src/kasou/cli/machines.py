"""VMs as a whole: launch, ls, info, start, stop, pause, resume, rm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kasou.cli.options import UsageError
from kasou.cli.output import Json, Name, Names, Patience, ago, print_columns, print_json, say
from kasou.errors import KasouError
from kasou.units import format_size

if TYPE_CHECKING:
    from kasou.aio import VM
    from kasou.control.operations import VmInfo

commands = typer.Typer()

ASK_SECONDS = 3.0
"""How long `ls` waits for one VM's process."""

# fmt: off
Image     = Annotated[Optional[str], typer.Argument(help="debian (the default), tiny, or what `kasou images` lists.")]  # noqa: UP045, E501
VmName    = Annotated[Optional[str], typer.Option("--name", "-n", help="What it is called.")]  # noqa: UP045
Cpus      = Annotated[int, typer.Option("--cpus", "-c", "--smp", metavar="N", help="Processors, 1 to 8.")]
Memory    = Annotated[str, typer.Option("--memory", "-m", metavar="SIZE", help="RAM: 512M, 2G.")]
Ports     = Annotated[Optional[list[str]], typer.Option("--port", "-p", metavar="[ADDR:]HOST:GUEST[/udp]", help="Forward a port of the host; may be repeated.")]  # noqa: UP045, E501
Volumes   = Annotated[Optional[list[str]], typer.Option("--volume", "-v", metavar="HOST:GUEST[:ro]", help="Share a directory; may be repeated.")]  # noqa: UP045, E501
Network   = Annotated[Optional[str], typer.Option(metavar="NAME|none", help="A named network shared with other VMs, or none.")]  # noqa: UP045, E501
Egress    = Annotated[str, typer.Option(metavar="RULE", help="What the guest may reach: allow, none, allow:DOMAIN,...")]  # noqa: E501
Drives    = Annotated[Optional[list[str]], typer.Option("--drive", "--disk", metavar="FILE[,ro][,format=F][,cache=C][,snapshot]", help="A disk image, raw or qcow2; may be repeated.")]  # noqa: UP045, E501
CloudInit = Annotated[Optional[str], typer.Option(metavar="FILE", help="User data for cloud-init (nocloud).")]  # noqa: UP045
DiskErrors = Annotated[str, typer.Option(metavar="report|enospc|stop", help="When the host cannot do what a disk is asked: tell the guest, or pause (enospc: only when it is full) until resume.")]  # noqa: E501
Kernel    = Annotated[Optional[str], typer.Option(metavar="FILE", help="ELF, flat binary, or Linux Image.")]  # noqa: UP045
Initrd    = Annotated[Optional[str], typer.Option(metavar="FILE", help="Initial RAM disk for the kernel.")]  # noqa: UP045
Append    = Annotated[Optional[str], typer.Option(metavar="TEXT", help="Kernel command line, behind the image's.")]  # noqa: UP045, E501
Bios      = Annotated[Optional[str], typer.Option(metavar="none|u-boot|FILE", help="No firmware, U-Boot (boots a disk), or a file; default: built-in SBI.")]  # noqa: UP045, E501
Mirror    = Annotated[Optional[str], typer.Option(metavar="URL", help="Debian mirror to fetch from; also KASOU_MIRROR.")]  # noqa: UP045, E501
Technique = Annotated[str, typer.Option(metavar="NAME", help="How the guest's kernel runs: direct.")]
Paging    = Annotated[str, typer.Option(metavar="NAME", help="Who keeps the page tables: direct.")]
Io        = Annotated[str, typer.Option(metavar="NAME", help="How devices are reached: virtio.")]
Scheduler = Annotated[str, typer.Option(metavar="NAME", help="Who puts vCPUs on harts: direct.")]
Clock     = Annotated[str, typer.Option(metavar="KIND", help="host time, or icount: instructions executed.")]
Seed      = Annotated[Optional[int], typer.Option(metavar="N", help="Seed of everything random in the machine.")]  # noqa: UP045, E501
# fmt: on


@commands.command()
def launch(
    image: Image = None,
    name: VmName = None,
    cpus: Cpus = 1,
    memory: Memory = "512M",
    port: Ports = None,
    volume: Volumes = None,
    network: Network = None,
    egress: Egress = "allow",
    drive: Drives = None,
    cloud_init: CloudInit = None,
    disk_errors: DiskErrors = "report",
    kernel: Kernel = None,
    initrd: Initrd = None,
    append: Append = None,
    bios: Bios = None,
    mirror: Mirror = None,
    technique: Technique = "direct",
    paging: Paging = "direct",
    io: Io = "virtio",
    scheduler: Scheduler = "direct",
    clock: Clock = "host",
    seed: Seed = None,
    json: Json = False,
) -> int:
    """Make a VM and start it in the background."""
    from kasou.aio.definition import create, define
    from kasou.control.start import start

    config = define(
        image, name=name, cpus=cpus, memory=memory, ports=port or (), mounts=volume or (),
        network=False if network == "none" else network, egress=egress, drives=drive or (),
        cloud_init=cloud_init, disk_errors=disk_errors, kernel=kernel, initrd=initrd, append=append, bios=bios,
        mirror=mirror, technique=technique, paging=paging, io=io, scheduler=scheduler,
        clock=clock, seed=seed,
    )  # fmt: skip
    directory = create(config)
    try:
        with Patience(f"starting {config.name}"):
            start(directory)
    except BaseException:
        directory.remove()  # it never ran: nothing is lost, and the name is free again
        raise
    if json:
        print_json(asyncio.run(_info(config.name)))
    else:
        print(config.name)
    return 0


async def _info(name: str) -> VmInfo:
    from kasou.aio import VM

    return await (await VM.open(name)).info()


async def look(names: Sequence[str] | None = None) -> list[VmInfo]:
    """All VMs, or those named, as they are now; a process that hangs keeps nobody waiting."""
    from kasou.control import operations as op
    from kasou.control.client import ControlClient
    from kasou.control.running_vm import describe
    from kasou.control.vm_directory import all_vms, find

    async def one(directory: Any) -> VmInfo | None:
        try:
            if directory.is_locked():
                asked = ControlClient(directory).call(op.Info())
                return await asyncio.wait_for(asked, ASK_SECONDS)
        except (KasouError, TimeoutError):
            pass
        try:
            return describe(directory.read_config(), directory, directory.state())
        except KasouError as problem:
            if directory.exists:  # it may just have been removed
                say(str(problem))
            return None

    directories = all_vms() if names is None else [find(name) for name in names]
    return [info for info in await asyncio.gather(*map(one, directories)) if info is not None]


@commands.command()
def ls(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names only.")] = False,
    json: Json = False,
) -> int:
    """List VMs: what they are made of, and whether they run."""
    from kasou.control.vm_directory import remove_leftovers

    remove_leftovers()
    vms = asyncio.run(look())
    if json:
        print_json(vms)
    elif quiet:
        print("".join(f"{vm.name}\n" for vm in vms), end="")
    elif vms:
        print_columns(
            ("NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "UP", "PORTS"),
            [
                (
                    vm.name, vm.state, vm.image or "-", str(vm.cpus), format_size(vm.memory),
                    ago(vm.started) if vm.pid else "-",
                    " ".join(f"{p.host}:{p.host_port}->{p.guest_port}/{p.protocol}" for p in vm.ports),
                )
                for vm in vms
            ],
        )  # fmt: skip
    else:
        print("no VMs; kasou launch makes one")
    return 0


@commands.command()
def info(names: Names, json: Json = False) -> int:
    """Show all there is to know of VMs."""
    vms = asyncio.run(look(names))
    if json:
        print_json(vms[0] if len(names) == 1 and vms else vms)
        return 0
    for number, vm in enumerate(vms):
        print(*([""] if number else []), sep="", end="\n" if number else "")
        _print_info(vm)
    return 0


def _print_info(vm: VmInfo) -> None:
    rows: list[tuple[str, object]] = [
        ("name", vm.name),
        ("state", vm.state + (f" (pid {vm.pid}, up {ago(vm.started)})" if vm.pid else "")),
        ("image", vm.image),
        ("processors", vm.cpus),
        ("memory", format_size(vm.memory)),
        ("created", vm.created),
        ("network", vm.network),
        ("address", vm.address),
        ("clock", vm.clock if vm.clock != "host" else None),
        ("seed", vm.seed),
        ("technique", vm.technique),
        ("forked from", vm.parent),
        ("files", vm.directory),
        ("console log", vm.console_log),
    ]
    rows += [("port", f"{p.host}:{p.host_port} -> {p.guest_port}/{p.protocol}") for p in vm.ports]
    if vm.ended:
        text = f"{vm.ended.kind} {vm.ended.code or ''} {vm.ended.message}"
        rows.append(("ended by", " ".join(text.split())))
    if "instructions" in vm.statistics:
        rows.append(("instructions", f"{vm.statistics['instructions']:,}"))
    for label, value in rows:
        if value is not None:
            print(f"{label:<14}{value}")


def each(names: Sequence[str], work: Callable[[VM], Awaitable[Any]], what: str, json: bool) -> int:
    """Do `work` to every VM named, all at once; errors are said, and the first one is the code's.

    With `json`, prints an object: what came of each, by name.
    """
    from kasou.aio import VM
    from kasou.control.messages import describe
    from kasou.control.vm_directory import find

    if len(set(names)) != len(names):
        raise UsageError(f"{what}: a VM is named twice")
    for name in names:  # a typo is found before anything is done
        find(name)

    async def all_of_them() -> list[Any]:
        vms = [await VM.open(name) for name in names]
        return await asyncio.gather(*map(work, vms), return_exceptions=True)

    with Patience(what):
        results = asyncio.run(all_of_them())
    failed = [one for one in results if isinstance(one, BaseException)]
    if json and not (len(names) == 1 and failed):
        print_json(
            {
                name: {"error": describe(one)} if isinstance(one, BaseException) else one
                for name, one in zip(names, results, strict=True)
            }
        )
        return 125 if failed else 0
    for one in failed[1:]:
        say(str(one))
    if failed:
        raise failed[0]
    return 0


@commands.command()
def start(
    names: Names,
    attach: Annotated[
        bool, typer.Option("--attach", "-a", help="Then use its serial port; Ctrl-] detaches.")
    ] = False,
    json: Json = False,
) -> int:
    """Boot VMs that are stopped, from their disks."""
    if attach and (json or len(names) != 1):
        raise UsageError("--attach: for one VM, and not with --json")

    async def work(vm: VM) -> VmInfo:
        await vm.start()
        return await vm.info()

    code = each(names, work, "starting", json)
    if attach and code == 0:
        from kasou.cli.consoles import console

        return console(names[0])
    return code


@commands.command()
def stop(
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="End at once, like a plug pulled.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long powering off may take.")] = 60.0,
    json: Json = False,
) -> int:  # fmt: skip
    """Power VMs off, cleanly."""
    if not 0 < timeout <= 1e6:
        raise UsageError(f"--timeout {timeout:g}: more than 0, at most 1000000")
    return each(names, lambda vm: vm.stop(timeout, force), "stopping", json)


@commands.command()
def pause(names: Names, json: Json = False) -> int:
    """Hold VMs still; memory and connections stay."""
    return each(names, lambda vm: vm.pause(), "pausing", json)


@commands.command()
def resume(names: Names, json: Json = False) -> int:
    """Let paused VMs go on; a file that `save` wrote is loaded."""
    if len(names) == 1 and "/" in names[0]:
        from kasou.cli.moments import load

        return load(names[0], None, json)
    return each(names, lambda vm: vm.resume(), "resuming", json)


@commands.command()
def rm(
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Even if it runs.")] = False,
    json: Json = False,
) -> int:
    """Delete VMs with their disks and snapshots."""
    return each(names, lambda vm: vm.remove(force), "removing", json)


@commands.command()
def wait(name: Name, json: Json = False) -> int:
    """Wait for a VM's end; the exit code is the guest's."""
    from kasou.aio import VM

    async def work() -> Any:
        return await (await VM.open(name)).wait()

    ended = asyncio.run(work())
    if json:
        print_json(ended)
    return int(ended.code) & 0xFF or int(bool(ended.code))
