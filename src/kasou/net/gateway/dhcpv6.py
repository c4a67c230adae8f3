"""The network's DHCPv6 server (RFC 8415): DNS for those who ask, and an address for who insists.

Guests configure their addresses by router advertisements; those say that *other* configuration is
to be had here. A client that asks for an address anyway gets one made of its MAC or DUID, so it is
the same every time and needs no table.
"""

from __future__ import annotations

from zlib import crc32

from kasou.net.gateway.config import GatewayConfig
from kasou.net.wire.address import IpAddress
from kasou.net.wire.dhcpv6 import (
    Dhcpv6,
    Dhcpv6Option,
    Dhcpv6Type,
    IdentityAssociation,
    ia_address,
    parse_identity_association,
)

_PREFERRED_S, _VALID_S = 43200, 86400
_STATUS_NO_BINDING = b"\0\3"
_STATUS_SUCCESS = b"\0\0"


class Dhcpv6Server:
    """Answers to messages; there are no leases to keep."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.duid = b"\0\3\0\1" + config.mac  # DUID-LL, Ethernet

    def receive(self, message: Dhcpv6) -> Dhcpv6 | None:
        """The answer to a client's message. Raises `ParseError` for a malformed association."""
        client = message.option(Dhcpv6Option.CLIENT_ID)
        server = message.option(Dhcpv6Option.SERVER_ID)
        if server is not None and server != self.duid:
            return None
        kind = message.type
        if kind == Dhcpv6Type.INFORMATION_REQUEST:
            return self._reply(message, Dhcpv6Type.REPLY, client, ())
        if client is None:
            return None
        rapid = message.option(Dhcpv6Option.RAPID_COMMIT) is not None
        match kind:
            case Dhcpv6Type.SOLICIT:
                extra = self._addresses(message, client)
                if rapid:
                    extra += ((Dhcpv6Option.RAPID_COMMIT, b""),)
                answer = Dhcpv6Type.REPLY if rapid else Dhcpv6Type.ADVERTISE
                return self._reply(message, answer, client, extra)
            case Dhcpv6Type.REQUEST | Dhcpv6Type.RENEW | Dhcpv6Type.REBIND:
                extra = self._addresses(message, client)
                return self._reply(message, Dhcpv6Type.REPLY, client, extra)
            case Dhcpv6Type.CONFIRM | Dhcpv6Type.RELEASE | Dhcpv6Type.DECLINE:
                status = ((int(Dhcpv6Option.STATUS_CODE), _STATUS_SUCCESS),)
                return self._reply(message, Dhcpv6Type.REPLY, client, status)
        return None

    def address_of(self, client: bytes) -> IpAddress:
        """The address that the client with DUID `client` gets."""
        prefix = self.config.network6
        assert prefix is not None, "a network without IPv6 has no DHCPv6"
        return prefix.address[:8] + b"\0\0\0\1" + crc32(client).to_bytes(4, "big")

    def _addresses(self, message: Dhcpv6, client: bytes) -> tuple[tuple[int, bytes], ...]:
        given: list[tuple[int, bytes]] = []
        for kind, value in message.options:
            if kind != Dhcpv6Option.IA_NA:
                continue
            asked = parse_identity_association(value)
            if given:  # one address a client
                status = ((int(Dhcpv6Option.STATUS_CODE), _STATUS_NO_BINDING),)
                association = IdentityAssociation(asked.iaid, 0, 0, status)
            else:
                address = ia_address(self.address_of(client), _PREFERRED_S, _VALID_S)
                inner = ((int(Dhcpv6Option.IA_ADDRESS), address),)
                association = IdentityAssociation(
                    asked.iaid, _PREFERRED_S // 2, _PREFERRED_S * 4 // 5, inner
                )
            given.append((Dhcpv6Option.IA_NA, association.emit()))
        return tuple(given)

    def _reply(
        self,
        message: Dhcpv6,
        kind: Dhcpv6Type,
        client: bytes | None,
        extra: tuple[tuple[int, bytes], ...],
    ) -> Dhcpv6:
        options: list[tuple[int, bytes]] = []
        if client is not None:
            options.append((Dhcpv6Option.CLIENT_ID, client))
        options.append((Dhcpv6Option.SERVER_ID, self.duid))
        options += extra
        asked = message.option(Dhcpv6Option.OPTION_REQUEST) or b""
        wanted = {int.from_bytes(asked[at : at + 2], "big") for at in range(0, len(asked), 2)}
        dns = self.config.dns6
        if dns is not None and Dhcpv6Option.DNS_SERVERS in wanted:
            options.append((Dhcpv6Option.DNS_SERVERS, dns))
        if Dhcpv6Option.DOMAIN_LIST in wanted:
            label = self.config.domain.encode("ascii")
            options.append((Dhcpv6Option.DOMAIN_LIST, bytes((len(label),)) + label + b"\0"))
        return Dhcpv6(kind, message.transaction, tuple(options))
