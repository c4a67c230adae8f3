"""The names of the network: its VMs by name, and `host` for the machine they run on.

A VM `web` is `web`, `web.kasou` (the network's domain, which DHCP makes a search domain) and
`web.internal` (which ICANN keeps for private use). `host.kasou` and `host.internal` are the gateway.
In the network's own domain we are the authority; other names of `.internal` may be somebody's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from kasou.net.wire.address import IpAddress

TTL_S = 10
_GATEWAY_NAMES = ("host", "gateway")


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """What we say about a name: addresses (none: the name has no such record), or a name for PTR.

    `exists` False is NXDOMAIN.
    """

    exists: bool
    addresses: Sequence[IpAddress] = ()
    pointer: str | None = None


class LocalNames:
    """Answers for names of this network; `addresses_of` gives a VM's, None for an unknown name."""

    def __init__(
        self,
        domain: str,
        gateway: Sequence[IpAddress],
        addresses_of: Callable[[str], Sequence[IpAddress] | None],
        name_at: Callable[[IpAddress], str | None],
        is_local: Callable[[IpAddress], bool],
    ) -> None:
        self.domain, self.gateway = domain.lower(), gateway
        self._addresses_of, self._name_at, self._is_local = addresses_of, name_at, is_local

    def lookup(self, name: str, kind: Literal["A", "AAAA", "PTR", "other"]) -> LocalAnswer | None:
        """What we know of `name` (lower case, no final dot); None: it is not ours to answer."""
        if kind == "PTR":
            return self._reverse(name)
        label, _, parent = name.partition(".")
        if parent not in ("", self.domain, "internal") or not label:
            inside = name == self.domain or name.endswith("." + self.domain)
            return LocalAnswer(name == self.domain) if inside else None
        found = self._addresses_of(label)
        if found is None and parent and label in _GATEWAY_NAMES:
            found = self.gateway
        if found is None:
            return LocalAnswer(False) if parent == self.domain else None
        size = {"A": 4, "AAAA": 16}.get(kind, 0)
        return LocalAnswer(True, [each for each in found if len(each) == size])

    def _reverse(self, name: str) -> LocalAnswer | None:
        address = _reversed_address(name)
        if address is None or not self._is_local(address):
            return None
        if address in self.gateway:
            return LocalAnswer(True, pointer=f"host.{self.domain}")
        known = self._name_at(address)
        return LocalAnswer(known is not None, pointer=known and f"{known}.{self.domain}")


def _reversed_address(name: str) -> IpAddress | None:
    """The address that a name of in-addr.arpa or ip6.arpa is about."""
    labels = name.split(".")
    try:
        if name.endswith(".in-addr.arpa") and len(labels) == 6:
            return bytes(int(label) for label in reversed(labels[:4]))
        if name.endswith(".ip6.arpa") and len(labels) == 34:
            return bytes.fromhex("".join(reversed(labels[:32])))
    except ValueError:
        pass
    return None
