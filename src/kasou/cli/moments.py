"""Moments of a VM: snapshot create, ls, restore, rm; fork, save, load."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kasou.cli.options import UsageError
from kasou.cli.output import Json, Name, Patience, print_json
from kasou.units import format_size

if TYPE_CHECKING:
    from kasou.control.operations import SnapshotInfo

commands = typer.Typer()
snapshot = typer.Typer(
    help="Moments of a VM: memory, devices and disks, to go back to.", no_args_is_help=True
)
commands.add_typer(snapshot, name="snapshot")

Snapshot = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="A snapshot, by name.")]


@snapshot.command()
def create(
    name: Name,
    snapshot: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[SNAPSHOT]", help="Its name; default: the next number."),
    ] = None,
    comment: Annotated[str, typer.Option("--comment", "-m", help="What it is of.")] = "",
    json: Json = False,
) -> int:
    """Keep a running VM as it is now. It goes on running."""
    from kasou.aio import VM

    async def work() -> SnapshotInfo:
        return await (await VM.open(name)).snapshot(comment, snapshot)

    with Patience(f"keeping {name}"):
        made = asyncio.run(work())
    if json:
        print_json(made)
    else:
        print(made.name)
    return 0


@snapshot.command()
def ls(name: Name, json: Json = False) -> int:
    """List a VM's snapshots as the tree they are; * marks what the VM came from."""
    from kasou.control.snapshots import list_all
    from kasou.control.vm_directory import find

    found = list_all(find(name))
    if json:
        print_json(found)
        return 0
    if not found:
        print(f"no snapshots; kasou snapshot create {name} makes one")
        return 0
    names = {one.name for one in found}
    rows: list[tuple[str, SnapshotInfo]] = []

    def below(parent: str | None, indent: str) -> None:
        children = [
            one
            for one in found
            if (one.parent if one.parent in names else None) == parent and one.name != parent
        ]
        for number, one in enumerate(children):
            last = number == len(children) - 1
            branch = "" if parent is None else ("└─ " if last else "├─ ")
            rows.append((indent + branch + one.name, one))
            below(one.name, indent + ("" if parent is None else "   " if last else "│  "))

    below(None, "")
    width = max(len(text) for text, _ in rows)
    for text, one in rows:
        mark = "*" if one.current else " "
        when = one.created.replace("T", " ")[:19]
        print(f"{mark} {text:<{width}}  {when}  {format_size(one.size):>6}  {one.comment}".rstrip())
    return 0


@snapshot.command()
def restore(name: Name, snapshot: Snapshot, json: Json = False) -> int:
    """Go back to a snapshot; what happened since is dropped. Starts a VM that is stopped."""
    from kasou.aio import VM

    async def work() -> Any:
        vm = await VM.open(name)
        await vm.restore(snapshot)
        return await vm.info()

    with Patience(f"restoring {name}"):
        info = asyncio.run(work())
    if json:
        print_json(info)
    return 0


@snapshot.command()
def rm(
    name: Name,
    snapshots: Annotated[list[str], typer.Argument(metavar="SNAPSHOT...", help="Which.")],
    json: Json = False,
) -> int:
    """Forget snapshots; those made after them stay whole."""
    from kasou.aio import VM

    async def work() -> None:
        vm = await VM.open(name)
        for one in snapshots:
            await vm.remove_snapshot(one)

    asyncio.run(work())
    if json:
        print_json({"removed": snapshots})
    return 0


@commands.command()
def fork(
    name: Name,
    n: Annotated[int, typer.Option("-n", "--count", metavar="N", help="How many copies.")] = 1,
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--name", metavar="NAME", help="What a copy is called; may be repeated."),
    ] = None,
    json: Json = False,
) -> int:
    """Make live copies of a running VM: they share its memory and disks until they write."""
    from kasou.aio import VM

    if not 1 <= n <= 1000:
        raise UsageError(f"-n {n}: 1 to 1000 copies at once")
    if names and n not in (1, len(names)):
        raise UsageError(f"-n {n}, but {len(names)} names")

    async def work() -> list[str]:
        vm = await VM.open(name)
        return await vm.fork_named(list(names or [""] * n))

    with Patience(f"forking {name}"):
        made = asyncio.run(work())
    if json:
        print_json(made)
    else:
        print("\n".join(made))
    return 0


@commands.command()
def save(
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; it is replaced.")],
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Do not stop it there.")
    ] = False,
    json: Json = False,
) -> int:
    """Write a running VM, all of it, into one file, and stop it. `load` goes on from there."""
    from kasou.aio import VM

    async def work() -> None:
        await (await VM.open(name)).save(file, stop=not keep_running)

    with Patience(f"saving {name}"):
        asyncio.run(work())
    if json:
        print_json({"file": file})
    return 0


@commands.command()
def load(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `kasou save` wrote.")],
    vm_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", "-n", help="What it is called; default: as it was."),
    ] = None,
    json: Json = False,
) -> int:
    """Go on with a saved VM, here or on another host."""
    from kasou.aio import VM
    from kasou.aio.definition import existing

    path = existing("load", file)

    async def work() -> Any:
        vm = await VM.load(path, vm_name or VM.saved_name(path))
        info = await vm.info()
        return info

    with Patience(f"loading {path.name}"):
        info = asyncio.run(work())
    if json:
        print_json(info)
    else:
        print(info.name)
    return 0
