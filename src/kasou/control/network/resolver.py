"""How this host resolves names: its DNS servers for queries, its C library for all else it knows."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from kasou.net.wire.address import IpAddress, is_loopback

RESOLV_CONF = Path("/etc/resolv.conf")
_MAX_THREADS = 4

Answer = Callable[[list[IpAddress] | None], None]


def parse_resolv_conf(text: str) -> list[IpAddress]:
    """The `nameserver` lines that hold an address, in order (resolv.conf(5))."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                servers.append(_packed(words[1].partition("%")[0]))
            except OSError:
                continue
    return servers


def _packed(text: str) -> IpAddress:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


class Resolver:
    """Reads resolv.conf when it changes, and asks the C library on threads of its own.

    `post` brings an answer back to the thread that drives the network.
    """

    def __init__(
        self, post: Callable[[Callable[[], None]], None], resolv_conf: Path = RESOLV_CONF
    ) -> None:
        self._post, self._path = post, resolv_conf
        self._read: tuple[int, list[IpAddress]] = (-1, [])
        self._queue: deque[tuple[str, int, Answer]] = deque()
        self._threads = 0
        self._lock = threading.Lock()

    def name_servers(self) -> list[IpAddress]:
        """The host's DNS servers; none when it has no resolv.conf."""
        try:
            changed = os.stat(self._path).st_mtime_ns
            if changed != self._read[0]:
                text = self._path.read_text(encoding="utf-8", errors="replace")
                self._read = changed, parse_resolv_conf(text)
        except OSError:
            return []
        return self._read[1]

    def resolve(self, name: str, six: bool, on_resolved: Answer) -> None:
        """Ask the C library; None when it knows no such name.

        Addresses of the host's loopback, as /etc/hosts gives them for the host's own name, mean
        nothing to a guest and are left out.
        """
        family = socket.AF_INET6 if six else socket.AF_INET
        with self._lock:
            self._queue.append((name, family, on_resolved))
            if self._threads >= _MAX_THREADS:
                return
            self._threads += 1
        threading.Thread(target=self._work, name="kasou-resolver", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                name, family, on_resolved = self._queue.popleft()
            found = _ask_library(name, family)
            self._post(lambda on_resolved=on_resolved, found=found: on_resolved(found))  # type: ignore[misc]


def _ask_library(name: str, family: int) -> list[IpAddress] | None:
    try:
        entries = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    found = dict.fromkeys(_packed(str(entry[4][0]).partition("%")[0]) for entry in entries)
    return [address for address in found if not is_loopback(address)]
