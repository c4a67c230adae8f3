"""What a guest must correct after it was restored or forked: it wakes in another time, perhaps
beside its own twins. Part of the agent's script.

Each correction is made if the host asks for it, in the order below, and one that fails does not
stop the others: the answer lists what was `done` and, by name, why something `failed`.
"""

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_SIOCSIFHWADDR = 0x8924
_ARPHRD_ETHER = 1

Run = Callable[[list[str]], None]
"""Starts a program and does not wait for it."""


def renew(request: dict[str, object], run: Run) -> dict[str, object]:
    """Do what is asked: `clock_ns`, `entropy`, `machine_id`, `hostname`, `mac`, `network`,
    `ssh_host_keys`, `authorized_keys` and `mounts`.
    """
    done: list[str] = []
    failed: dict[str, str] = {}
    for name, correct in (
        ("clock_ns", _clock),
        ("entropy", _entropy),
        ("machine_id", _machine_id),
        ("hostname", _hostname),
        ("mac", lambda value: _mac(value, _interface(request))),
        ("network", lambda value: _network(value, _interface(request), run)),
        ("ssh_host_keys", lambda value: _ssh_host_keys(run)),
        ("authorized_keys", _authorized_keys),
        ("mounts", _mounts),
    ):
        value = request.get(name)
        if value is None or value is False:
            continue
        try:
            correct(value)
            done.append(name)
        except (OSError, ValueError, TypeError) as error:
            failed[name] = str(error)
    return {"done": done, "failed": failed}


def _clock(value: object) -> None:
    """Nanoseconds since 1970."""
    if not isinstance(value, int):
        raise TypeError("clock_ns: not a number")
    time.clock_settime_ns(time.CLOCK_REALTIME, value)


def _entropy(value: object) -> None:
    """Bytes in hexadecimal, from the host's generator; counted, and used from now on."""
    data = bytes.fromhex(str(value))
    with open("/dev/urandom", "wb", buffering=0) as device:
        credited = struct.pack("ii", 8 * len(data), len(data)) + data
        try:
            fcntl.ioctl(device, _RNDADDENTROPY, credited)
        except OSError:
            device.write(data)  # mixed in all the same
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def _machine_id(value: object) -> None:
    """Thirty-two hexadecimal digits. (machine-id(5))"""
    text = str(value)
    if len(text) != 32 or text.strip("0123456789abcdef"):
        raise ValueError("machine_id: not 32 hexadecimal digits")
    _replace("/etc/machine-id", text + "\n", 0o444)


def _hostname(value: object) -> None:
    """The kernel's, and that of the next boot."""
    name = str(value)
    if not name or len(name) > 64 or set("/\n\0 ") & set(name):
        raise ValueError(f"hostname: {name!r} is none")
    old = socket.gethostname()
    socket.sethostname(name)
    _replace("/etc/hostname", name + "\n", 0o644)
    try:
        with open("/etc/hosts") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        return
    changed = [
        "\t".join([name if word == old else word for word in line.split()])
        if old in line.split()
        else line
        for line in lines
    ]
    if changed != lines:
        _replace("/etc/hosts", "\n".join(changed), 0o644)


def _interface(request: dict[str, object]) -> str:
    """The one that is named, or the first Ethernet device with hardware under it."""
    if name := request.get("interface"):
        return str(name)
    for name in sorted(os.listdir("/sys/class/net")):
        if os.path.exists(f"/sys/class/net/{name}/device"):
            return name
    raise ValueError("no network interface")


def _mac(value: object, interface: str) -> None:
    """Six bytes, as in 52:54:00:12:34:56."""
    address = bytes(int(part, 16) for part in str(value).split(":"))
    if len(address) != 6 or address[0] & 1:
        raise ValueError(f"mac: {value} is no address of one device")
    request = struct.pack("16sH6s8x", interface.encode()[:15], _ARPHRD_ETHER, address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        fcntl.ioctl(anything, _SIOCSIFHWADDR, request)


def _network(value: object, interface: str, run: Run) -> None:
    """Ask for an address anew, by whatever this guest uses for it."""
    if os.path.isdir("/run/systemd/netif/links") and os.path.exists("/usr/bin/networkctl"):
        run(["/usr/bin/networkctl", "reconfigure", interface])
    elif os.path.exists("/sbin/ifup") and os.path.exists("/run/network/ifstate"):
        script = 'ifdown --force "$0"; ifup --force "$0"'
        run(["/bin/sh", "-c", script, interface])
    elif os.path.exists("/sbin/dhcpcd"):
        run(["/sbin/dhcpcd", "-n", interface])
    elif os.path.exists("/sbin/dhclient"):
        run(["/sbin/dhclient", "-nw", interface])
    else:
        raise ValueError("network: no DHCP client that the agent knows")


def _ssh_host_keys(run: Run) -> None:
    """This machine's own, in place of those of the machine that it was copied from."""
    if not os.path.exists("/usr/bin/ssh-keygen"):
        return
    key = "/etc/ssh/ssh_host_ed25519_key"
    script = (
        f'ssh-keygen -q -t ed25519 -N "" -f {key}.new && mv {key}.new {key} &&'
        f" mv {key}.new.pub {key}.pub && systemctl try-restart ssh.service"
    )
    run(["/bin/sh", "-c", script])


def _authorized_keys(value: object) -> None:
    """Lines of public keys that may log in as root; those that are there stay."""
    path = "/root/.ssh/authorized_keys"
    os.makedirs("/root/.ssh", 0o700, exist_ok=True)
    try:
        with open(path) as file:
            present = file.read()
    except FileNotFoundError:
        present = ""
    missing = [line for line in str(value).split("\n") if line and line not in present]
    if missing:
        _replace(path, present + "".join(line + "\n" for line in missing), 0o600)


def _mounts(value: object) -> None:
    """A list of [tag, directory, read-only]: shares of the host. (9p)"""
    if not isinstance(value, list):
        raise TypeError("mounts: not a list")
    failed = []
    for tag, directory, read_only in value:
        os.makedirs(directory, exist_ok=True)
        if os.path.ismount(directory):
            continue
        options = "trans=virtio,version=9p2000.L,msize=131072,cache=none"
        command = ["mount", "-t", "9p", "-o", options + (",ro" if read_only else "")]
        status = os.spawnvp(os.P_WAIT, "mount", [*command, str(tag), str(directory)])
        if status:
            failed.append(f"{directory}: mount ended with {status}")
    if failed:
        raise OSError("; ".join(failed))


def _replace(path: str, text: str, mode: int) -> None:
    """The whole file at once; in place where it is a mount of its own."""
    beside = path + ".kasou"
    with open(beside, "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    try:
        os.rename(beside, path)
    except OSError:
        os.unlink(beside)
        with open(path, "w") as file:
            file.write(text)
