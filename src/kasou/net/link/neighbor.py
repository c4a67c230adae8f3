r"""Who is where on the link: the cache behind ARP (RFC 826) and Neighbor Discovery (RFC 4861 7.3).

    INCOMPLETE --answer--> REACHABLE --REACHABLE_NS--> STALE --used--> PROBE --answer--> REACHABLE
        \                                                               \
         `--MAX_SOLICITS unanswered: waiting packets are failed           `--unanswered: forgotten

A packet for an address that is not known waits (at most `MAX_WAITING` an address, the oldest
dropped first, RFC 4861 7.2.2); what it is does not matter here. STALE entries go on being used
while they are probed (RFC 4861's DELAY is folded into PROBE's first interval).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from kasou.net.wire.address import IpAddress, MacAddress

_SECOND = 1_000_000_000
REACHABLE_NS = 30 * _SECOND
RETRANSMIT_NS = 1 * _SECOND
DELAY_FIRST_PROBE_NS = 5 * _SECOND
MAX_SOLICITS = 3
MAX_WAITING = 16
MAX_NEIGHBORS = 4096

Waiting = TypeVar("Waiting")


class Reachability(Enum):
    """RFC 4861 7.3.2."""

    INCOMPLETE = "INCOMPLETE"
    REACHABLE = "REACHABLE"
    STALE = "STALE"
    PROBE = "PROBE"


@dataclass(slots=True)
class _Neighbor(Generic[Waiting]):
    state: Reachability
    mac: MacAddress | None
    timer: int  # when the state changes or the next solicitation is due, ns
    used: int
    solicits: int = 0
    waiting: deque[Waiting] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))


class NeighborCache(Generic[Waiting]):
    """Link addresses of IP addresses on one interface, and the packets that wait for one."""

    def __init__(self) -> None:
        self._neighbors: dict[IpAddress, _Neighbor[Waiting]] = {}
        self._solicit: list[tuple[IpAddress, MacAddress | None]] = []

    def __len__(self) -> int:
        return len(self._neighbors)

    def state(self, address: IpAddress) -> Reachability | None:
        """The state of an entry, None when there is none."""
        found = self._neighbors.get(address)
        return found.state if found else None

    def peek(self, address: IpAddress) -> MacAddress | None:
        """The link address, if known; nothing is asked."""
        found = self._neighbors.get(address)
        return found.mac if found else None

    def lookup(self, address: IpAddress, now: int) -> MacAddress | None:
        """The link address of `address`; None starts to ask, and a packet may then `wait`."""
        found = self._neighbors.get(address)
        if found is None:
            if len(self._neighbors) >= MAX_NEIGHBORS:
                self._evict()
            found = _Neighbor(Reachability.INCOMPLETE, None, now + RETRANSMIT_NS, now, 1)
            self._neighbors[address] = found
            self._solicit.append((address, None))
        found.used = now
        if found.state is Reachability.REACHABLE and now >= found.timer:
            found.state = Reachability.STALE
        if found.state is Reachability.STALE:
            found.state, found.solicits = Reachability.PROBE, 0
            found.timer = now + DELAY_FIRST_PROBE_NS
        return found.mac

    def wait(self, address: IpAddress, packet: Waiting) -> None:
        """Keep `packet` until `address`, whose `lookup` gave None, is known."""
        self._neighbors[address].waiting.append(packet)

    def learn(
        self, address: IpAddress, mac: MacAddress, now: int, *, confirmed: bool, create: bool = True
    ) -> list[Waiting]:
        """`address` was seen at `mac`; gives back the packets that waited for it.

        `confirmed`: it answered us, so the path works both ways; otherwise a changed address is
        STALE. `create` False only updates (an unasked advertisement makes no entry).
        """
        found = self._neighbors.get(address)
        if found is None:
            if not create:
                return []
            if len(self._neighbors) >= MAX_NEIGHBORS:
                self._evict()
            found = self._neighbors[address] = _Neighbor(Reachability.STALE, mac, now, now)
        if confirmed:
            found.state, found.timer = Reachability.REACHABLE, now + REACHABLE_NS
        elif found.mac != mac:
            found.state = Reachability.STALE
        found.mac = mac
        waiting = list(found.waiting)
        found.waiting.clear()
        return waiting

    def confirm(self, address: IpAddress, now: int) -> None:
        """A reply from above (a TCP acknowledgment) proves that the path works (RFC 4861 7.3.1)."""
        found = self._neighbors.get(address)
        if found is not None and found.mac is not None:
            found.state, found.timer = Reachability.REACHABLE, now + REACHABLE_NS

    def forget(self, address: IpAddress) -> None:
        """Drop an entry and what waits for it."""
        self._neighbors.pop(address, None)

    def to_solicit(self) -> list[tuple[IpAddress, MacAddress | None]]:
        """Addresses to ask for now: by multicast, or (with a link address) by unicast probe."""
        asked, self._solicit = self._solicit, []
        return asked

    def deadline(self) -> int | None:
        """The next retransmission, ns."""
        timers = (
            each.timer
            for each in self._neighbors.values()
            if each.state in (Reachability.INCOMPLETE, Reachability.PROBE)
        )
        return min(timers, default=None)

    def handle_timer(self, now: int) -> list[Waiting]:
        """Ask again; gives back the packets whose neighbor does not answer."""
        failed: list[Waiting] = []
        for address, each in list(self._neighbors.items()):
            if each.state not in (Reachability.INCOMPLETE, Reachability.PROBE) or now < each.timer:
                continue
            if each.solicits >= MAX_SOLICITS:
                failed += each.waiting
                del self._neighbors[address]
                continue
            each.solicits += 1
            each.timer = now + RETRANSMIT_NS
            self._solicit.append((address, each.mac))
        return failed

    def _evict(self) -> None:
        oldest = min(self._neighbors, key=lambda address: self._neighbors[address].used)
        del self._neighbors[oldest]
