"""Unix sockets at paths of any length.

`sun_path` holds 107 bytes. A longer path is reached through its directory, opened, and named
`/proc/self/fd/N`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from kasou.errors import HostError

LONGEST = 107


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for `path` that fits into `sun_path`, good inside the `with`."""
    if len(os.fsencode(path)) <= LONGEST:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def bound(path: Path) -> socket.socket:
    """A listening socket at `path`, in place of whatever socket was there. Raises `HostError`.

    The caller holds the VM's lock: a socket that is there already is stale.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with short(path) as name:
            listener.bind(name)
        os.chmod(path, 0o600)
        listener.listen(128)
    except OSError as problem:
        listener.close()
        raise HostError(f"{path}: cannot listen there ({problem.strerror})") from None
    listener.setblocking(False)
    return listener


def connected(path: Path) -> socket.socket:
    """A socket connected to `path`. Raises `OSError` when nobody listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short(path) as name:
            client.connect(name)
    except BaseException:
        client.close()
        raise
    return client
