"""The network's DHCP server (RFC 2131 4.3): leases by MAC, the same one every time.

A VM's address is set aside when it joins, so that its name has an address before it boots and the
first VM always is at the first address. Stations that are not VMs of ours (a bridge within a guest)
get what is left. A lease is never given to another MAC while there is a free one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kasou.net.gateway.config import GatewayConfig
from kasou.net.wire.address import ANY4, BROADCAST4, IpAddress, MacAddress
from kasou.net.wire.dhcpv4 import BROADCAST_FLAG, DhcpOption, DhcpType, Dhcpv4

_SECOND = 1_000_000_000
OFFER_NS = 60 * _SECOND
DECLINED_NS = 600 * _SECOND


@dataclass(slots=True)
class Lease:
    """An address of a MAC. `reserved`: a VM's, kept while it is on the network; `until` in ns."""

    mac: MacAddress
    reserved: bool = False
    until: int = 0


class Dhcpv4Server:
    """Leases and the answers to messages; `name_of` gives the host name of a MAC, if it has one."""

    def __init__(self, config: GatewayConfig, name_of: Callable[[MacAddress], str | None]) -> None:
        self.config = config
        self.leases: dict[IpAddress, Lease] = {}
        self._name_of = name_of
        self._by_mac: dict[MacAddress, IpAddress] = {}
        self._pool = config.guests4()

    def reserve(self, mac: MacAddress, address: IpAddress | None = None) -> IpAddress | None:
        """The address that `mac` will be given, `address` if that is free; None when none is."""
        given = self._allocate(mac, address, 0)
        if given is not None:
            self.leases[given].reserved = True
        return given

    def release(self, mac: MacAddress) -> None:
        """A VM left; the address is remembered for it but may be given away."""
        address = self._by_mac.get(mac)
        if address is not None:
            lease = self.leases[address]
            lease.reserved, lease.until = False, 0

    def receive(self, message: Dhcpv4, now: int) -> tuple[Dhcpv4, IpAddress] | None:
        """The answer to a client's message and the address it is sent to."""
        if not message.is_request or message.giaddr != ANY4:
            return None
        match message.type:
            case DhcpType.DISCOVER:
                return self._discover(message, now)
            case DhcpType.REQUEST:
                return self._request(message, now)
            case DhcpType.DECLINE:
                self._decline(message, now)
            case DhcpType.RELEASE:
                self._released(message)
            case DhcpType.INFORM:
                return self._answer(message, DhcpType.ACK, ANY4), message.ciaddr
        return None

    def _discover(self, message: Dhcpv4, now: int) -> tuple[Dhcpv4, IpAddress] | None:
        wanted = message.address(DhcpOption.REQUESTED_ADDRESS)
        address = self._allocate(message.chaddr, wanted, now)
        if address is None:
            return None
        lease = self.leases[address]
        lease.until = max(lease.until, now + OFFER_NS)
        return self._answer(message, DhcpType.OFFER, address), self._reply_to(message)

    def _request(self, message: Dhcpv4, now: int) -> tuple[Dhcpv4, IpAddress] | None:
        """SELECTING has our server id; INIT-REBOOT an address to confirm; else it is renewed."""
        server = message.address(DhcpOption.SERVER_ID)
        if server is not None and server != self.config.gateway4:
            return None  # another server was chosen
        wanted = message.address(DhcpOption.REQUESTED_ADDRESS)
        if wanted is None:
            wanted = message.ciaddr
        mine = self._by_mac.get(message.chaddr)
        if server is None and mine is None and wanted in self.config.network4:
            mine = self._allocate(message.chaddr, wanted, now)  # we forgot: a network started anew
        if wanted != mine or mine is None:
            nak = self._answer(message, DhcpType.NAK, ANY4)
            return nak, BROADCAST4
        lease = self.leases[mine]
        lease.until = now + self.config.lease_s * _SECOND
        return self._answer(message, DhcpType.ACK, mine), self._reply_to(message)

    def _decline(self, message: Dhcpv4, now: int) -> None:
        """The client found the address in use: nobody gets it for a while."""
        address = message.address(DhcpOption.REQUESTED_ADDRESS)
        if address is None or self._by_mac.get(message.chaddr) != address:
            return
        del self._by_mac[message.chaddr]
        self.leases[address] = Lease(bytes(6), until=now + DECLINED_NS)

    def _released(self, message: Dhcpv4) -> None:
        address = self._by_mac.get(message.chaddr)
        if address is not None and address == message.ciaddr:
            self.leases[address].until = 0

    def _allocate(self, mac: MacAddress, wanted: IpAddress | None, now: int) -> IpAddress | None:
        known = self._by_mac.get(mac)
        if known is not None:
            return known
        free = [each for each in self._pool if each not in self.leases]
        if wanted is not None and wanted in free:
            address = wanted
        elif free:
            address = free[0]
        else:
            over = (
                each
                for each, lease in self.leases.items()
                if not lease.reserved and lease.until <= now
            )
            oldest = min(over, key=lambda each: self.leases[each].until, default=None)
            if oldest is None:
                return None
            self._by_mac.pop(self.leases[oldest].mac, None)
            address = oldest
        self.leases[address] = Lease(mac)
        self._by_mac[mac] = address
        return address

    @staticmethod
    def _reply_to(message: Dhcpv4) -> IpAddress:
        """RFC 2131 4.1. A client that cannot hear unicast yet says so; we send it to all anyway,

        as its address cannot be asked for by ARP before it has it.
        """
        if message.ciaddr != ANY4 and not message.flags & BROADCAST_FLAG:
            return message.ciaddr
        return BROADCAST4

    def _answer(self, message: Dhcpv4, kind: DhcpType, address: IpAddress) -> Dhcpv4:
        config = self.config
        options: dict[int, bytes] = {
            DhcpOption.MESSAGE_TYPE: bytes((kind,)),
            DhcpOption.SERVER_ID: config.gateway4,
        }
        client = message.options.get(DhcpOption.CLIENT_ID)
        if client is not None:  # RFC 6842
            options[DhcpOption.CLIENT_ID] = client
        ciaddr = message.ciaddr if kind is not DhcpType.NAK else ANY4
        if kind is DhcpType.NAK:
            options[DhcpOption.MESSAGE] = b"not your address on this network"
        else:
            options |= self._parameters(message)
            if address != ANY4:
                lease = config.lease_s
                options[DhcpOption.LEASE_TIME] = lease.to_bytes(4, "big")
                options[DhcpOption.RENEWAL_TIME] = (lease // 2).to_bytes(4, "big")
                options[DhcpOption.REBINDING_TIME] = (lease * 7 // 8).to_bytes(4, "big")
        return Dhcpv4(
            False, message.xid, message.chaddr, options, message.flags,
            ciaddr=ciaddr, yiaddr=address, siaddr=config.gateway4, giaddr=message.giaddr,
        )  # fmt: skip

    def _parameters(self, message: Dhcpv4) -> dict[int, bytes]:
        config = self.config
        parameters: dict[int, bytes] = {
            DhcpOption.SUBNET_MASK: config.network4.mask,
            DhcpOption.ROUTER: config.gateway4,
            DhcpOption.DNS: config.dns4,
            DhcpOption.DOMAIN_NAME: config.domain.encode("ascii"),
            DhcpOption.BROADCAST: config.network4.broadcast,
            DhcpOption.MTU: config.mtu.to_bytes(2, "big"),
        }
        name = self._name_of(message.chaddr)
        if name:
            parameters[DhcpOption.HOST_NAME] = name.encode("ascii", "ignore")[:63]
        asked = message.options.get(DhcpOption.PARAMETERS)
        if asked is None:
            del parameters[DhcpOption.MTU]
            return parameters
        always = (DhcpOption.SUBNET_MASK, DhcpOption.ROUTER, DhcpOption.DNS)
        return {
            kind: value for kind, value in parameters.items() if kind in always or kind in asked
        }
