"""Named networks of this user: one process each, found by a socket, started when it is first joined.

    $XDG_RUNTIME_DIR/kasou/networks/NAME.sock    where members join
    $XDG_RUNTIME_DIR/kasou/networks/NAME.lock    held by the network's process, with its number

`python -m kasou.control.network.named NAME [SECONDS]` is that process. Without being asked to stay it
ends `LINGER_S` after its last member has left.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from kasou.control import socket_path
from kasou.control.network.client import NetworkClient
from kasou.errors import ConfigError, HostError
from kasou.net.gateway.config import GatewayConfig
from kasou.paths import runtime_directory, state_directory

LINGER_S = 60.0
START_S = 15.0
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.IGNORECASE)


def socket_of(name: str) -> Path:
    """Where network `name` is joined; it need not run. Raises `ConfigError` for a bad name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"network {name!r}: a name is letters, digits, '.', '_' and '-'")
    folder = runtime_directory() / "networks"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{name}.sock"


def networks() -> list[str]:
    """The names of the networks that run."""
    folder = runtime_directory() / "networks"
    return sorted(path.stem for path in folder.glob("*.sock") if is_running(path.stem))


def is_running(name: str) -> bool:
    """Whether somebody serves network `name`."""
    try:
        connect(name).close()
    except OSError:
        return False
    return True


def connect(name: str) -> socket.socket:
    """A socket to network `name`. Raises `OSError` when it does not run."""
    return socket_path.connected(socket_of(name))


def join(name: str) -> NetworkClient:
    """A client for network `name`, which is started if it does not run. Raises `HostError`."""
    return NetworkClient(lambda: _connect_or_start(name))


def _connect_or_start(name: str) -> socket.socket:
    try:
        return connect(name)
    except OSError:
        start(name)
    return connect(name)


def start(name: str, linger_s: float = LINGER_S) -> None:
    """Start network `name` in a process of its own and wait until it can be joined.

    When two start it at once one of the processes finds the lock taken and ends: both are served by
    the other. Raises `HostError`.
    """
    path = socket_of(name)
    log = state_directory() / "networks" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "kasou.control.network.named", name, str(linger_s)]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if is_running(name):
            return
        if process.poll() not in (None, 0):
            break
        time.sleep(0.02)
    raise HostError(f"network {name}: its process did not start; {log} says why ({path})")


def stop(name: str) -> None:
    """End network `name` and wait until it has; its VMs find their wire dead. Raises `ConfigError`."""
    lock = socket_of(name).with_suffix(".lock")
    try:
        process = int(lock.read_text()) if is_running(name) else 0
    except (OSError, ValueError):
        process = 0
    if not process:
        raise ConfigError(f"network {name}: does not run")
    os.kill(process, signal.SIGTERM)
    end = time.monotonic() + START_S
    while is_running(name):
        if time.monotonic() > end:
            raise HostError(f"network {name}: process {process} does not end")
        time.sleep(0.02)


def serve(
    name: str, linger_s: float | None = LINGER_S, config: GatewayConfig | None = None
) -> None:
    """Be the process of network `name` until nobody is left (None: until SIGTERM or SIGINT).

    Raises `HostError` when another process is.
    """
    from kasou.control.network.server import NetworkServer
    from kasou.control.network.user_network import UserNetwork

    path = socket_of(name)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise HostError(f"network {name}: runs already") from None

    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())

    def end(*_: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server = None
    try:
        server = NetworkServer(socket_path.bound(path), UserNetwork(config))
        if linger_s is None:
            while True:
                signal.pause()
        server.wait_until_idle(linger_s)
    finally:
        path.unlink(missing_ok=True)
        if server is not None:
            server.close()
        os.close(lock)


def main() -> None:
    """Serve the network that the arguments name; found to run already is no failure."""
    name, *linger = sys.argv[1:]
    try:
        serve(name, float(linger[0]) if linger else None)
    except HostError as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
