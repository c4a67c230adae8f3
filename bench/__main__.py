"""`python -m bench [--quick] [--json] [NAME ...]`: the table."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.programs import BOTH_HARTS, ONE_HART, PROGRAMS, Program
from bench.run import Timing, build_cold, have_qemu, kasou, qemu, start_warm
from kasou.isa.asm import assemble

Row = dict[str, object]


def median(runs: list[Timing]) -> Timing:
    """The run of median time."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def side_by_side(
    ours: Callable[[], Timing], theirs: Callable[[], Timing] | None, rounds: int
) -> tuple[Timing, Timing | None]:
    """Medians of interleaved runs."""
    mine, its = [], []
    for _ in range(rounds):
        mine.append(ours())
        if theirs is not None:
            its.append(theirs())
    return median(mine), median(its) if its else None


def row(name: str, what: str, ours: Timing, theirs: Timing | None) -> Row:
    """One line of the table; the ratio is kasou's time over QEMU's."""
    return {
        "name": name,
        "what": what,
        "kasou_s": ours.seconds,
        "mips": ours.statistics.get("mips"),
        "instructions": ours.statistics.get("instructions"),
        "kasou_peak_mib": ours.peak_bytes / 2**20,
        "qemu_s": theirs.seconds if theirs else None,
        "qemu_peak_mib": theirs.peak_bytes / 2**20 if theirs else None,
        "ratio": ours.seconds / theirs.seconds if theirs else None,
    }


def loop(program: Program, folder: Path, peer: bool, quick: bool, rounds: int) -> Row:
    """A bare-metal program on both."""
    image = folder / f"{program.name}.bin"
    image.write_bytes(assemble(program.source(quick)))
    harts = str(program.harts)
    ours, theirs = side_by_side(
        lambda: kasou("--bios", "none", "--kernel", str(image), "--smp", harts),
        (lambda: qemu("-bios", "none", "-kernel", str(image), "-smp", harts)) if peer else None,
        rounds,
    )
    return row(program.name, program.what, ours, theirs)


def boot(peer: bool, rounds: int) -> Row:
    """Debian to its prompt and `poweroff`."""
    from kasou.images import ensure

    guest = ensure("debian:minimal")
    ours, theirs = side_by_side(
        lambda: kasou("debian", type_at_prompt=b"poweroff\n"),
        (
            lambda: qemu(
                "-m",
                "512M",
                "-kernel",
                str(guest.kernel),
                "-initrd",
                str(guest.initrd),
                "-append",
                guest.append or "console=ttyS0",
                type_at_prompt=b"poweroff\n",
            )
        )
        if peer
        else None,
        rounds,
    )
    return row("boot", "Debian to the prompt and power-off", ours, theirs)


def start(folder: Path) -> Row:
    """Process start to the first entry into compiled code, everything cached."""
    times = [start_warm(folder / "bytecode", "debian") for _ in range(12)][1:]
    warm = Timing(statistics.median(times), 0, {})
    return row("start", "kasou run, warm, to Debian's first instruction", warm, None)


def build(folder: Path) -> Row:
    """The interpreter made by LLVM."""
    times = [build_cold(folder / f"cold{i}") for i in range(3)]
    cold = Timing(statistics.median(times), 0, {})
    return row("build", "the interpreter's object, cold", cold, None)


def gateway(name: str, quick: bool) -> Row:
    """The gateway alone, by the core it has to itself and by the clock on the wall."""
    from bench.network import measure

    what, result, (wall, core), unit = measure(name, quick)
    return {
        "name": name, "what": f"{what}: {core:.4g} {unit} a core, {wall:.4g} by the clock",
        "kasou_s": result.wall_s, "mips": None, "instructions": None, "kasou_peak_mib": None,
        "qemu_s": None, "qemu_peak_mib": None, "ratio": None, "rate": core, "unit": unit,
    }  # fmt: skip


def machines(peer: bool, quick: bool) -> list[Row]:
    """Machines as people use them: commands, snapshots, forks, a shared folder, disk, network."""
    from bench.machines import measure

    return list(measure(quick, peer))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these rows")
    parser.add_argument("--quick", action="store_true", help="one round of shorter loops")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    peer, rounds = have_qemu(), 1 if options.quick else 3
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs: dict[str, Callable[[], Row | list[Row]]] = {
            "build": lambda: build(folder), "start": lambda: start(folder), "boot": lambda: boot(peer, rounds)
        }  # fmt: skip
        for program in (*PROGRAMS, ONE_HART, BOTH_HARTS):
            jobs[program.name] = lambda p=program: loop(p, folder, peer, options.quick, rounds)
        for name in ("tcp out", "tcp in", "udp"):
            jobs[name] = lambda n=name: gateway(n, options.quick)
        jobs["machines"] = lambda: machines(peer, options.quick)
        for wanted in options.names:
            if wanted not in jobs:
                parser.error(f"no row is called {wanted}; there are {', '.join(jobs)}")
        for job, measure in jobs.items():
            if not options.names or job in options.names:
                print(f"measuring {job} ...", file=sys.stderr)
                made = measure()
                rows += made if isinstance(made, list) else [made]
    if options.json:
        print(json.dumps({"host": platform.processor(), "qemu": peer, "rows": rows}, indent=2))
    else:
        show(rows, peer)
    return 0


def show(rows: list[Row], peer: bool) -> None:
    """The table for a person."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "what", "kasou s", "MIPS", "peak MiB", "QEMU s", "peak MiB", "kasou / QEMU")

    def cell(value: object, form: str) -> str:
        return format(value, form) if isinstance(value, (int, float)) else "-"

    for one in rows:
        table.add_row(
            str(one["name"]), str(one["what"]), cell(one["kasou_s"], ".3f"), cell(one["mips"], ".0f"),
            cell(one["kasou_peak_mib"], ".0f"), cell(one["qemu_s"], ".3f"),
            cell(one["qemu_peak_mib"], ".0f"), cell(one["ratio"], ".2f"),
        )  # fmt: skip
    Console().print(table)
    by_name = {str(one["name"]): one for one in rows}
    if "one hart" in by_name and "two harts" in by_name:
        single, double = (float(str(by_name[n]["kasou_s"])) for n in ("one hart", "two harts"))
        print(f"throughput of two harts over one: {2 * single / double:.2f}")
    if not peer:
        print("qemu-system-riscv64 is not installed: nothing was compared")


if __name__ == "__main__":
    sys.exit(main())
