"""A VM's network from the host: port ls, add, rm; capture."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated, Any

import typer

from kasou.cli.options import UsageError
from kasou.cli.output import Json, Name, print_columns, print_json, say

commands = typer.Typer()
port = typer.Typer(help="Ports of the host that lead into a VM.", no_args_is_help=True)
commands.add_typer(port, name="port")
net = typer.Typer(
    help="Named networks, on which VMs reach one another: launch --network NAME.",
    no_args_is_help=True,
)
commands.add_typer(net, name="net")

Spec = Annotated[str, typer.Argument(metavar="[ADDR:]HOST:GUEST[/udp]", help="As for -p.")]


async def _open(name: str) -> Any:
    from kasou.aio import VM

    return await VM.open(name)


@port.command()
def ls(name: Name, json: Json = False) -> int:
    """List the forwarded ports of a running VM."""
    from kasou.control import operations as op

    async def work() -> Any:
        return (await (await _open(name)).client.call(op.PortList())).ports

    ports = asyncio.run(work())
    if json:
        print_json(ports)
    elif ports:
        print_columns(
            ("HOST", "GUEST"),
            [(f"{p.host}:{p.host_port}", f"{p.guest_port}/{p.protocol}") for p in ports],
        )
    else:
        print(f"no ports; kasou port add {name} 8080:80 forwards one")
    return 0


@port.command()
def add(name: Name, spec: Spec, json: Json = False) -> int:
    """Forward one more port, until the VM ends or `port rm`."""

    async def work() -> Any:
        return await (await _open(name)).forward(spec)

    made = asyncio.run(work())
    if json:
        print_json(made)
    else:
        print(f"{made.host}:{made.host_port}")
    return 0


@port.command()
def rm(
    name: Name,
    spec: Annotated[str, typer.Argument(metavar="[ADDR:]PORT[/udp]", help="The host's port.")],
    json: Json = False,
) -> int:
    """No longer forward a port."""

    async def work() -> None:
        await (await _open(name)).unforward(spec)

    asyncio.run(work())
    if json:
        print_json({"removed": spec})
    return 0


@commands.command()
def capture(
    name: Name,
    file: Annotated[str, typer.Option("--write", "-w", metavar="FILE|-", help="Where to.")] = "-",
    snaplen: Annotated[
        int, typer.Option(metavar="BYTES", help="Keep so much of each frame; 0: all.")
    ] = 0,
) -> int:
    """Write every frame at a VM's network port as pcapng: kasou capture web -w - | wireshark -k -i -"""
    from kasou.control import operations as op

    if file == "-" and sys.stdout.isatty():
        raise UsageError("capture: standard output is a terminal; pipe it, or give -w FILE")
    if snaplen < 0:
        raise UsageError(f"--snaplen {snaplen}: 0 or more")

    async def work() -> int:
        vm = await _open(name)
        stream = await vm.client.open(op.Capture(snaplen))
        total = 0
        target = 1 if file == "-" else os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            while data := await stream.read():
                view = memoryview(data)
                total += len(data)
                while view:
                    view = view[await asyncio.to_thread(os.write, target, view) :]
        finally:
            stream.close()
            if target != 1:
                os.close(target)
        return total

    if file != "-":
        say(f"capturing to {file}; Ctrl-C ends it")
    try:
        asyncio.run(work())
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    return 0


@net.command("ls")
def list_networks(json: Json = False) -> int:
    """List the named networks that run, and the VMs on them."""
    from kasou.cli.machines import look
    from kasou.control.network.named import networks

    members: dict[str, list[str]] = {name: [] for name in networks()}
    for vm in asyncio.run(look()):
        if vm.network in members and vm.pid:
            members[vm.network].append(vm.name)
    if json:
        print_json([{"name": name, "vms": vms} for name, vms in members.items()])
    elif members:
        print_columns(("NAME", "VMS"), [(name, " ".join(vms)) for name, vms in members.items()])
    else:
        print("no networks run; kasou launch --network NAME starts one")
    return 0


@net.command("start")
def start_network(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.")],
    linger: Annotated[
        float, typer.Option(metavar="SECONDS", help="It ends so long after its last member.")
    ] = 3600.0,
    json: Json = False,
) -> int:
    """Start a named network before its first VM does."""
    from kasou.control.network.named import is_running, start

    if not 0 < linger <= 1e8:
        raise UsageError(f"--linger {linger:g}: more than 0")
    if not is_running(name):
        start(name, linger)
    if json:
        print_json({"name": name})
    return 0
