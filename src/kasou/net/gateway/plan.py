"""What addresses mean on a network: whose they are, and where the host finds them."""

from __future__ import annotations

from kasou.net.gateway.config import GatewayConfig
from kasou.net.gateway.forward import LOOPBACK4
from kasou.net.wire.address import (
    BROADCAST4,
    IpAddress,
    is_link_local,
    is_loopback,
    is_multicast,
)

LOOPBACK6: IpAddress = bytes(15) + b"\1"


class AddressPlan:
    """The addresses of the network that `config` describes."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.gateways = [each for each in (config.gateway4, config.gateway6) if each is not None]
        """Those that lead to the host."""
        servers = [each for each in (config.dns4, config.dns6) if each is not None]
        self.own = [*self.gateways, *servers]
        """All that the gateway answers for itself."""

    def is_local(self, address: IpAddress) -> bool:
        """Whether it is on the network."""
        network6 = self.config.network6
        return address in self.config.network4 or (network6 is not None and address in network6)

    def is_guests(self, address: IpAddress) -> bool:
        """Whether a guest may speak from it."""
        if address in self.own:
            return False
        return self.is_local(address) or (len(address) == 16 and is_link_local(address))

    def host_address(self, destination: IpAddress) -> IpAddress | None:
        """Where the host finds what a guest calls `destination`; None: nowhere."""
        if destination in self.gateways:
            if not self.config.host_access:
                return None
            return LOOPBACK4 if len(destination) == 4 else LOOPBACK6
        if self.is_local(destination) or is_link_local(destination):
            return None
        if is_loopback(destination) or is_multicast(destination):
            return None
        nobody = 1 if len(destination) == 4 else 10  # 0/8; ::/80 has IPv4-mapped ones: 127.0.0.1
        if destination[:nobody] == bytes(nobody):
            return None
        if destination == BROADCAST4 or (len(destination) == 4 and destination[0] >= 240):
            return None
        return destination

    def own_address(self, guest: IpAddress) -> IpAddress | None:
        """The gateway as `guest` knows it, in its family."""
        return self.config.gateway4 if len(guest) == 4 else self.config.gateway6
