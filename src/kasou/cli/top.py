"""`kasou top`: what VMs are doing, as a table that renews itself."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from kasou.cli.machines import look
from kasou.cli.options import UsageError
from kasou.cli.output import Json, ago, print_columns, print_json
from kasou.units import format_size

if TYPE_CHECKING:
    from kasou.control.operations import VmInfo

commands = typer.Typer()
HEADER = ("NAME", "STATE", "CPUS", "HOST CPU", "MIPS", "MEMORY", "HOST MEMORY", "UP")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Load:
    """A VM between two looks. `host_cpu` in percent of one core, memory in bytes (PSS)."""

    name: str
    state: str
    cpus: int
    memory: int
    host_cpu: float
    mips: float
    host_memory: int
    started: float | None

    def row(self) -> tuple[str, ...]:
        """For a table."""
        if self.state not in ("running", "paused"):
            return (
                self.name,
                self.state,
                str(self.cpus),
                "-",
                "-",
                format_size(self.memory),
                "-",
                "-",
            )
        return (
            self.name, self.state, str(self.cpus), f"{self.host_cpu:.0f}%", f"{self.mips:.0f}",
            format_size(self.memory), format_size(self.host_memory), ago(self.started),
        )  # fmt: skip


@commands.command()
def top(
    once: Annotated[bool, typer.Option("--once", "-1", help="Print once and end.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Between looks.")] = 1.0,
    json: Json = False,
) -> int:
    """Watch VMs: processor time, instructions, memory. Ctrl-C ends it."""
    if not 0.1 <= every <= 3600:
        raise UsageError(f"--every {every:g}: 0.1 to 3600")
    before = _look()
    if once or json:
        time.sleep(min(every, 1.0))
        loads = _between(before, _look())
        if json:
            print_json(loads)
        else:
            print_columns(HEADER, [load.row() for load in loads])
        return 0
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    colours = {"running": "green", "paused": "yellow", "crashed": "red"}
    with Live(auto_refresh=False, transient=True) as live:
        while True:
            time.sleep(every)
            after = _look()
            table = Table(*HEADER, box=None, pad_edge=False)
            for load in _between(before, after):
                table.add_row(*(Text(cell, style=colours.get(cell, "")) for cell in load.row()))
            live.update(table, refresh=True)
            before = after


Seen = tuple[float, dict[str, "tuple[VmInfo, float]"]]
"""When, and for each VM what it said and its process's seconds of processor time."""


def _look() -> Seen:
    infos = asyncio.run(look())
    return time.monotonic(), {one.name: (one, _cpu_seconds(one.pid)) for one in infos}


def _between(before: Seen, after: Seen) -> list[Load]:
    loads = []
    seconds = max(1e-6, after[0] - before[0])
    for name, (info, cpu) in after[1].items():
        earlier, cpu_earlier = before[1].get(name, (info, cpu))
        done = info.statistics.get("instructions", 0) - earlier.statistics.get("instructions", 0)
        loads.append(
            Load(
                name, info.state, info.cpus, info.memory, 100 * max(0.0, cpu - cpu_earlier) / seconds,
                max(0.0, done / seconds / 1e6), _memory(info.pid), info.started,
            )
        )  # fmt: skip
    return loads


def _cpu_seconds(pid: int | None) -> float:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, ValueError, IndexError):
        return 0.0


def _memory(pid: int | None) -> int:
    """Its proportional share: pages that forks share count once among them."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
