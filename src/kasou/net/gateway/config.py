"""What a network looks like: addresses as slirp gives them, unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from kasou.errors import ConfigError
from kasou.net.wire.address import IpAddress, MacAddress, Prefix, ip_text, mac

NETWORK4 = Prefix.parse("10.0.2.0/24")
NETWORK6 = Prefix.parse("fd00::/64")
MAC = mac("52:55:0a:00:02:02")


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Addresses and services of one network. Raises `ConfigError` when they cannot be.

    `network6` None is a network without IPv6. `host_access`: the gateway's own address leads to the
    host's loopback, as with slirp. `lease_s` in s; `mtu` is that of IP, bytes.
    """

    network4: Prefix = NETWORK4
    network6: Prefix | None = NETWORK6
    gateway_number: int = 2
    dns_number: int = 3
    first_guest: int = 15
    mac: MacAddress = MAC
    domain: str = "kasou"
    mtu: int = 1500
    lease_s: int = 86400
    host_access: bool = True

    def __post_init__(self) -> None:
        if len(self.network4.address) != 4 or self.network4.length > 29:
            raise ConfigError(f"{self.network4}: a network needs an IPv4 prefix of /29 or shorter")
        if self.network6 is not None and (
            len(self.network6.address) != 16 or self.network6.length != 64
        ):
            raise ConfigError(f"{self.network6}: guests configure themselves in an IPv6 /64 only")
        if not 1280 <= self.mtu <= 65535:
            raise ConfigError(f"MTU {self.mtu}: expected 1280 to 65535")
        self.network4.host(max(self.gateway_number, self.dns_number))
        if self.gateway_number == self.dns_number:
            raise ConfigError("the gateway and the DNS server need an address each")

    @property
    def gateway4(self) -> IpAddress:
        """The gateway; with `host_access` also the way to the host's 127.0.0.1."""
        return self.network4.host(self.gateway_number)

    @property
    def dns4(self) -> IpAddress:
        """The DNS server that DHCP tells."""
        return self.network4.host(self.dns_number)

    @property
    def gateway6(self) -> IpAddress | None:
        """The same in IPv6, leading to ::1."""
        return self.network6.host(self.gateway_number) if self.network6 else None

    @property
    def dns6(self) -> IpAddress | None:
        """The DNS server that router advertisements and DHCPv6 tell."""
        return self.network6.host(self.dns_number) if self.network6 else None

    def guests4(self) -> list[IpAddress]:
        """The addresses that DHCP hands out, in their order."""
        size = min(1 << 32 - self.network4.length, 4096)
        first = self.first_guest if self.first_guest < size - 1 else 1
        taken = {self.gateway_number, self.dns_number}
        order = [*range(first, size - 1), *range(1, first)]
        return [self.network4.host(number) for number in order if number not in taken]

    def __str__(self) -> str:
        return f"{self.network4} via {ip_text(self.gateway4)}"
