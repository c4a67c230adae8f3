"""`kasou doctor`: whether this host has what kasou needs, and what to do where it has not."""

from __future__ import annotations

import json as json_text
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kasou.paths import cache_directory


class Finding(NamedTuple):
    """One thing looked at; `state` is "ok", "missing" (something optional) or "bad"."""

    what: str
    state: str
    detail: str


def doctor(json: bool) -> int:
    """Print the findings; 1 if kasou cannot run here."""
    findings = [look() for look in CHECKS]
    if json:
        print(json_text.dumps([one._asdict() for one in findings], indent=2))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        colours = {"ok": "green", "missing": "yellow", "bad": "red"}
        for one in findings:
            table.add_row(one.what, Text(one.state, style=colours[one.state]), Text(one.detail))
        Console(highlight=False).print(table)
    return int(any(one.state == "bad" for one in findings))


def python() -> Finding:
    """The interpreter's version."""
    good = sys.version_info >= (3, 11)
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return Finding("python", "ok" if good else "bad", version if good else f"{version}; needs 3.11")


def llvmlite() -> Finding:
    """The code generator."""
    try:
        import llvmlite
        from llvmlite import binding
    except (ImportError, OSError) as problem:
        return Finding("llvmlite", "bad", f"{problem}; pip install llvmlite")
    llvm = ".".join(map(str, binding.llvm_version_info))
    return Finding("llvmlite", "ok", f"{llvmlite.__version__}, LLVM {llvm}")


def processor() -> Finding:
    """Host architecture, cores, and the features that native code uses."""
    machine = platform.machine()
    state = "ok" if machine in ("x86_64", "aarch64") and sys.platform == "linux" else "bad"
    try:
        from llvmlite import binding

        features = binding.get_host_cpu_features()
        wanted = ("fma", "bmi2", "avx2") if machine == "x86_64" else ("lse", "neon")
        has = " ".join(f"{name}{'' if features.get(name) else ' absent'}" for name in wanted)
        name = binding.get_host_cpu_name()
    except (ImportError, OSError, RuntimeError):
        name, has = "unknown", "features unknown"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("processor", state, f"{sys.platform} {machine} ({name}), {cores} cores, {has}")


def cache() -> Finding:
    """Whether images and compiled code can be kept."""
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        free = shutil.disk_usage(directory).free >> 20
    except OSError as problem:
        return Finding(
            "cache", "bad", f"{directory}: {problem.strerror}; set KASOU_HOME or XDG_CACHE_HOME"
        )
    return Finding("cache", "ok", f"{directory}, {free} MiB free")


def gpgv() -> Finding:
    """The program that checks an archive's signature, and the keys it needs."""
    program = shutil.which("gpgv") or shutil.which("sqv")
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if program is None:
        return Finding("gpgv", "missing", "signatures go unchecked; apt install gpgv")
    if not keyring.exists() and not keyring.with_suffix(".pgp").exists():
        return Finding("gpgv", "missing", f"{program}, no keys; apt install debian-archive-keyring")
    return Finding("gpgv", "ok", f"{program}, {keyring}")


def mirrors() -> Finding:
    """Where packages would come from."""
    from kasou.errors import ConfigError
    from kasou.images.mirror import WAYS, candidates

    try:
        found = candidates()
    except ConfigError as problem:
        return Finding("mirror", "bad", str(problem))
    if not found:
        return Finding("mirror", "missing", f"none; {WAYS}")
    return Finding("mirror", "ok", ", ".join(found))


def code_memory() -> Finding:
    """Whether one piece of memory can be mapped twice: once to write, once to execute."""
    import mmap

    if not hasattr(os, "memfd_create"):
        return Finding("code memory", "bad", "no memfd_create; needs Linux 3.17")
    descriptor = os.memfd_create("kasou-doctor", 0)
    try:
        os.ftruncate(descriptor, mmap.PAGESIZE)
        with (
            mmap.mmap(descriptor, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as write,
            mmap.mmap(descriptor, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC) as run,
        ):
            write[:4] = b"code"
            good = run[:4] == b"code"
    except OSError as problem:
        return Finding("code memory", "bad", f"W^X double mapping refused: {problem.strerror}")
    finally:
        os.close(descriptor)
    detail = "W^X double mapping works" if good else "two mappings of one memfd differ"
    return Finding("code memory", "ok" if good else "bad", detail)


def memory() -> Finding:
    """Free memory, against the default machine's."""
    try:
        pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        available = pages * size >> 20
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) >> 10
    except (OSError, ValueError):
        return Finding("memory", "missing", "unknown")
    state = "ok" if available >= 768 else "missing"
    return Finding("memory", state, f"{available} MiB available; the default machine has 512 MiB")


def terminal() -> Finding:
    """What the guest's console would be."""
    if not os.isatty(0):
        return Finding("terminal", "ok", "standard input is not a terminal: plain bytes")
    columns, rows = shutil.get_terminal_size()
    return Finding("terminal", "ok", f"{os.environ.get('TERM', 'unknown')}, {columns}x{rows}")


CHECKS: tuple[Callable[[], Finding], ...] = (
    python, llvmlite, processor, memory, code_memory, cache, mirrors, gpgv, terminal,
)  # fmt: skip
