"""What the agent tells about the guest: its version, open ports, load. Part of the agent's script."""

import os
import time

from kasou.guest.agent.protocol import VERSION

_LISTEN = "0A"


def ping(request: dict[str, object]) -> dict[str, object]:
    """That the agent is there, in which boot, and what the guest calls itself."""
    return {
        "version": VERSION,
        "boot_id": _read("/proc/sys/kernel/random/boot_id").strip(),
        "hostname": os.uname().nodename,
        "kernel": os.uname().release,
        "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
    }


def ports(request: dict[str, object]) -> dict[str, object]:
    """TCP ports that something listens on: address and number of each, sorted."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in _read(f"/proc/net/{name}").splitlines()[1:]:
            fields = line.split(None, 4)
            if len(fields) > 3 and fields[3] == _LISTEN:
                address, _, port = fields[1].rpartition(":")
                found.add((_address(address), int(port, 16)))
    return {"tcp": sorted(found)}


def load(request: dict[str, object]) -> dict[str, object]:
    """Memory in bytes, load averages, processes, seconds of processor time."""
    memory = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        memory[name] = int(rest.split()[0]) * 1024
    averages = _read("/proc/loadavg").split()
    ticks = [int(field) for field in _read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    per_second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return {
        "memory_total": memory.get("MemTotal", 0),
        "memory_available": memory.get("MemAvailable", 0),
        "memory_free": memory.get("MemFree", 0),
        "swap_total": memory.get("SwapTotal", 0),
        "swap_free": memory.get("SwapFree", 0),
        "load": [float(field) for field in averages[:3]],
        "processes": int(averages[3].partition("/")[2]),
        "cpus": os.cpu_count() or 1,
        "busy_s": (sum(ticks) - idle) / per_second,
        "idle_s": idle / per_second,
        "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
    }


def _read(path: str) -> str:
    """A file of /proc; empty where this kernel has none."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _address(text: str) -> str:
    """From /proc/net: 32-bit words in hexadecimal, each in the host's order (little-endian)."""
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    if len(raw) == 4:
        return ".".join(str(byte) for byte in raw)
    if raw[:12] == bytes(10) + b"\xff\xff":
        return ".".join(str(byte) for byte in raw[12:])
    return ":".join(f"{int.from_bytes(raw[i : i + 2], 'big'):x}" for i in range(0, 16, 2))
