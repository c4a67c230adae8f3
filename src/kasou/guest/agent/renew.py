"""What a guest must correct after it was restored or forked: it wakes in another time, perhaps
beside its own twins; and what a new VM is told by its host. Part of the agent's script.

| field | value | |
|---|---|---|
| `clock_ns` | ns since 1970 | |
| `entropy` | hexadecimal | mixed in, and used from now on |
| `machine_id` | 32 hexadecimal digits | |
| `hostname` | a name | the kernel's, `/etc/hostname`, `/etc/hosts` |
| `mac` | 52:54:00:12:34:56 | of `interface`, or the first with hardware under it |
| `network` | true | ask for an address anew |
| `ssh_host_keys` | true | new ones; in the background |
| `authorized_keys` | lines | added to root's |
| `mounts` | [tag, path, read only], ... | directories that the host shares |

Each is done if the host asks for it, in this order, and one that fails does not stop the others:
the answer lists what was `done` and, by name, why something `failed`. But for the new keys for ssh,
all is done when the answer is given.
"""

import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from kasou.guest.agent.trees import mount_command

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_SIOCSIFHWADDR = 0x8924
_ARPHRD_ETHER = 1
_MOUNT_SECONDS = 10

Run = Callable[[list[str]], None]
"""Starts a program and does not wait for it."""


def renew(request: dict[str, object], run: Run) -> dict[str, object]:
    """Do what is asked."""
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
        f'rm -f {key}.new {key}.new.pub; ssh-keygen -q -t ed25519 -N "" -f {key}.new && mv {key}.new {key} &&'
        f" mv {key}.new.pub {key}.pub && systemctl try-restart ssh.service"
    )
    run(["/bin/sh", "-c", script])


def _authorized_keys(value: object) -> None:
    """Let those in, beside the ones that may already."""
    home = os.path.expanduser("~root")
    os.makedirs(f"{home}/.ssh", 0o700, exist_ok=True)
    path = f"{home}/.ssh/authorized_keys"
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        lines = []
    new = [line for line in str(value).splitlines() if line and line not in lines]
    if new:
        _replace(path, "".join(f"{line}\n" for line in lines + new), 0o600)


def _mounts(value: object) -> None:
    """All of them, as far as that goes. Raises `OSError` with what `mount` said."""
    if not isinstance(value, list):
        raise TypeError("mounts: not a list")
    problems = []
    for tag, path, read_only in value:
        try:
            _wait(mount_command(str(tag), str(path), bool(read_only)))
        except OSError as error:
            problems.append(str(error))
    if problems:
        raise OSError("; ".join(problems))


def _wait(argv: list[str]) -> None:
    """Run a program to its end. Raises `OSError` with its complaint if that is not a good one."""
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, fd, i) for i, fd in enumerate((null, write, write))]
    try:
        pid = os.posix_spawn(argv[0], argv, dict(os.environ), file_actions=actions, setsid=True)
    finally:
        os.close(null)
        os.close(write)
    with open(read, errors="replace") as complaint:
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = poll.poll(_MOUNT_SECONDS * 1000)
        os.close(pidfd)
        if not ended:
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if status:
            raise OSError(complaint.read(4096).strip() or f"{argv[0]}: wait status {status}")


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
