"""A VM as the gateway sees it: the port it is on, its addresses, what it may do."""

from __future__ import annotations

from dataclasses import dataclass, field

from kasou.net.gateway.egress import Egress
from kasou.net.wire.address import IpAddress, MacAddress

MAX_ADDRESSES = 256


@dataclass(slots=True, eq=False)
class Station:
    """One VM. `address4` is the address that DHCP gives its `mac`; `addresses` were heard from it."""

    name: str
    mac: MacAddress
    address4: IpAddress
    egress: Egress = field(default_factory=Egress)
    addresses: set[IpAddress] = field(default_factory=set)
    spoofed: int = 0

    @property
    def unrestricted(self) -> bool:
        """Whether its egress policy lets everything through."""
        return self.egress.policy.everything


class Owners:
    """Who uses which address. An address once heard belongs to that VM until it leaves.

    Only VMs without egress rules may take an address over from one another (a service address that
    moves); else a VM could borrow its neighbor's rules.
    """

    def __init__(self) -> None:
        self._owners: dict[IpAddress, Station] = {}

    def of(self, address: IpAddress) -> Station | None:
        """The VM that uses `address`."""
        return self._owners.get(address)

    def claim(self, station: Station, address: IpAddress) -> bool:
        """`station` speaks from `address`; False when it may not."""
        owner = self._owners.get(address)
        if owner is station:
            return True
        if owner is not None:
            if not (owner.unrestricted and station.unrestricted):
                station.spoofed += 1
                return False
            owner.addresses.discard(address)
        elif len(station.addresses) >= MAX_ADDRESSES:
            station.spoofed += 1
            return False
        self._owners[address] = station
        station.addresses.add(address)
        return True

    def release(self, station: Station) -> None:
        """`station` left the network."""
        for address in station.addresses:
            del self._owners[address]
        station.addresses.clear()
