"""Every command, as typer knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Optional

import typer

from kasou.cli import commands, consoles, machines, moments, network, top
from kasou.cli.main import INTERRUPTED, USAGE, fail
from kasou.cli.options import RunOptions

app = typer.Typer(
    name="kasou",
    help="A RISC-V computer in Python: boots unmodified operating systems, without root or KVM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def invoke(arguments: Sequence[str]) -> int:
    """Carry out `arguments` with typer; the command's exit code."""
    try:
        result = app(args=list(arguments), prog_name="kasou", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except Exception as problem:
        # typer's usage errors, whichever click they come from.
        if not hasattr(problem, "format_message"):
            raise
        context = getattr(problem, "ctx", None)
        message = " ".join(problem.format_message().split())
        if not message:  # no command given: the help has been printed
            return USAGE
        command = context.command_path if context is not None else "kasou"
        return fail(f"{message.rstrip('.')}; see '{command} --help'", USAGE, "config")
    return result if isinstance(result, int) else 0


for group in (machines, consoles, commands, moments, network, top):
    app.add_typer(group.commands)


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def everything(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A RISC-V computer in Python: boots unmodified operating systems, without root or KVM."""


@app.command()
def run(
    image: machines.Image = None,
    name: machines.VmName = None,
    bios: machines.Bios = None,
    kernel: machines.Kernel = None,
    initrd: machines.Initrd = None,
    append: machines.Append = None,
    memory: machines.Memory = "512M",
    cpus: machines.Cpus = 1,
    drive: machines.Drives = None,
    port: machines.Ports = None,
    volume: machines.Volumes = None,
    network: machines.Network = None,
    egress: machines.Egress = "allow",
    cloud_init: machines.CloudInit = None,
    disk_errors: machines.DiskErrors = "report",
    minimal: Annotated[
        bool, typer.Option("--minimal", help="The small guest: a kernel and busybox in memory.")
    ] = False,
    technique: machines.Technique = "direct",
    paging: machines.Paging = "direct",
    io: machines.Io = "virtio",
    scheduler: machines.Scheduler = "direct",
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="interpreter, or reference (slow, the judge).")
    ] = "interpreter",
    lockstep: Annotated[
        bool, typer.Option("--lockstep", help="Run both engines; stop where they differ.")
    ] = False,
    clock: machines.Clock = "host",
    seed: machines.Seed = None,
    timeout: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(metavar="SECONDS", help="End with exit code 124 after this long."),
    ] = None,
    no_reboot: Annotated[
        bool, typer.Option("--no-reboot", help="End when the guest resets instead of rebooting.")
    ] = False,
    mirror: machines.Mirror = None,
    max_instructions: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="End after this many guest instructions."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print how it ended as JSON, on standard error.")
    ] = False,
) -> int:
    """Boot a VM on this terminal. Ctrl-] three times within a second ends it.

    Other commands reach it meanwhile. Without --name it is gone when it ends.
    """
    from kasou.cli.run import execute

    return execute(
        RunOptions(
            image=image, name=name, bios=bios, kernel=kernel, initrd=initrd, append=append,
            memory=memory, cpus=cpus, drive=tuple(drive or ()), port=tuple(port or ()),
            volume=tuple(volume or ()), network=network, egress=egress, cloud_init=cloud_init,
            disk_errors=disk_errors,
            minimal=minimal, technique=technique, paging=paging, io=io, scheduler=scheduler,
            engine=engine, lockstep=lockstep, clock=clock, seed=seed, timeout=timeout,
            no_reboot=no_reboot, mirror=mirror, max_instructions=max_instructions, json=json,
        )
    )  # fmt: skip


@app.command("build", help="Make an image from Debian's packages: verified, finished in a VM.")
@app.command()
def pull(
    image: Annotated[str, typer.Argument(help="Which image.")] = "debian:trixie",
    mirror: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="URL", help="Mirror to fetch from; also KASOU_MIRROR."),
    ] = None,
) -> int:
    """Fetch a guest's packages, verified, into the cache."""
    from kasou.cli.images import pull

    return pull(image, mirror)


@app.command()
def images(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """List the guests that `kasou run` knows."""
    from kasou.cli.images import images

    return images(json)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="An instruction: addi, c.addi, fmadd.d")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Print an instruction's encoding, assembly, meaning and source."""
    from kasou.cli.explain import explain

    return explain(name, json)


@app.command()
def disasm(
    file: Annotated[str, typer.Argument(help="An ELF file, or a flat binary.")],
    base: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where a flat binary is loaded.")
    ] = "0x80000000",
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> int:
    """Disassemble a program."""
    from kasou.cli.disasm import disasm

    return disasm(file, base, json)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check whether this host has what kasou needs."""
    from kasou.cli.doctor import doctor

    return doctor(json)


@app.command()
def version() -> int:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        print(f"kasou {installed('kasou')}")
    except PackageNotFoundError:
        print("kasou (not installed)")
    return 0
