"""Names to addresses, as a loop's `getaddrinfo`: numbers, a table or function, and our own."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from kasou.net.loop.socket_view import socket_address
from kasou.net.wire.address import ANY4, ANY6, IpAddress

Names = (
    Mapping[str, Sequence[IpAddress]]
    | Callable[[str], Sequence[IpAddress] | Awaitable[Sequence[IpAddress]]]
)


async def resolve(
    names: Names, own: Sequence[IpAddress], host: Any, passive: bool = False
) -> Sequence[IpAddress]:
    """The addresses of `host`. `own` are the stack's: localhost. Raises `socket.gaierror`."""
    if isinstance(host, bytes):
        host = host.decode()
    if host is None or host == "":
        return [ANY4, ANY6] if passive else own
    packed = numeric(host)
    if packed is not None:
        return [packed]
    if callable(names):
        answer = names(host)
        addresses = await answer if isinstance(answer, Awaitable) else answer
    else:
        addresses = names.get(host, ())
    if not addresses and host in ("localhost", "localhost.localdomain"):
        return own
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r}: name or service not known")
    return addresses


def address_info(
    addresses: Sequence[IpAddress], port: int, family: int, kind: int, protocol: int
) -> list[Any]:
    """What `socket.getaddrinfo` would say of them."""
    kinds = [
        (each, number)
        for each, number in (
            (socket.SOCK_STREAM, socket.IPPROTO_TCP),
            (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        )
        if kind in (0, each) and protocol in (0, number)
    ]
    found: list[Any] = []
    for address in addresses:
        of = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        if family in (0, of):
            name = socket_address(address, port)
            found += [(of, each, number, "", name) for each, number in kinds]
    return found


def numeric(host: str) -> IpAddress | None:
    """The packed form of a numeric address, else None."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
    return None


def packed_address(host: str) -> IpAddress:
    """The packed form of a numeric address. Raises `socket.gaierror`."""
    packed = numeric(host)
    if packed is None:
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is not a numeric address")
    return packed


def numeric_name(name: Any) -> tuple[IpAddress, int]:
    """A socket address of numbers as (packed address, port). Raises `socket.gaierror`."""
    return packed_address(name[0]), int(name[1])


def port_number(port: Any) -> int:
    """A port given as number or text. Raises `socket.gaierror`."""
    if port is None or port == "":
        return 0
    try:
        return int(port)
    except ValueError:
        raise socket.gaierror(socket.EAI_SERVICE, f"{port!r} is not a port number") from None
