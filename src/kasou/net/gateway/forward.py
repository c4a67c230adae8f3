"""Port forwards as people write them: `[HOST:][PORT:]GUESTPORT[/tcp|/udp][,source]`.

    8080:80               127.0.0.1:8080 on the host leads to port 80 of the guest
    0.0.0.0:8080:80       from every address of the host; also `*:8080:80`
    [::1]:8080:80         IPv6 of the host; the guest is reached by IPv4 all the same
    5353:53/udp           UDP
    127.0.0.1:0:22        any free port, also `127.0.0.1::22` and `22`; who asks is told which
    8080:80,source        the guest sees the client's own address, not the gateway's

Without an address only the host itself can connect. docker and QEMU's `hostfwd` open every address
then; a test machine reachable from the whole network by accident is the worse surprise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kasou.errors import ConfigError
from kasou.net.wire.address import ANY4, IpAddress, ip, ip_text

LOOPBACK4: IpAddress = bytes((127, 0, 0, 1))

_SPEC = re.compile(
    r"(?:(?:\[(?P<six>[^\]]+)\]|(?P<four>[0-9.]+|\*|localhost)):(?=[^:]*:))?"
    r"(?:(?P<port>[0-9]{0,5}):)?(?P<guest>[0-9]{1,5})(?:/(?P<protocol>tcp|udp))?(?P<source>,source)?"
)


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward. `host_port` 0 means any free port."""

    host: IpAddress
    host_port: int
    guest_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    keep_source: bool = False

    @classmethod
    def parse(cls, spec: str) -> Forward:
        """Read a forward as written above. Raises `ConfigError`."""
        met = _SPEC.fullmatch(spec.strip())
        if met is None:
            raise ConfigError(
                f"port forward {spec!r}: expected [HOST:][PORT:]GUESTPORT[/tcp|/udp], "
                "for example 8080:80 or [::1]:5353:53/udp"
            )
        host = LOOPBACK4
        if met["six"]:
            host = ip(met["six"])
            if len(host) != 16:
                raise ConfigError(f"port forward {spec!r}: brackets are for IPv6 addresses")
        elif met["four"] == "*":
            host = ANY4
        elif met["four"] and met["four"] != "localhost":
            host = ip(met["four"])
        host_port, guest_port = int(met["port"] or 0), int(met["guest"])
        if host_port > 65535 or not 0 < guest_port < 65536:
            raise ConfigError(f"port forward {spec!r}: ports are 1 to 65535 (the host's may be 0)")
        protocol: Literal["tcp", "udp"] = "udp" if met["protocol"] == "udp" else "tcp"
        return cls(host, host_port, guest_port, protocol, bool(met["source"]))

    def __str__(self) -> str:
        host = ip_text(self.host)
        host = f"[{host}]" if len(self.host) == 16 else host
        source = ",source" if self.keep_source else ""
        return f"{host}:{self.host_port}:{self.guest_port}/{self.protocol}{source}"


@dataclass(slots=True, eq=False)
class Forwarded:
    """A forward that is open; `port` is the host's, also where any was asked for."""

    forward: Forward
    port: int
