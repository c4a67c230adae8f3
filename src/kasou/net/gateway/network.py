"""A virtual network: the switch, a port for each VM, and the gateway on a port of its own.

    port.frames --> capture --> switch --> other ports' frames, or the gateway
                                  ^------------ gateway.to_send

Sans-IO like all below it: `kasou.control.network` drives it with a clock and sockets, a machine
under `--clock icount` with its own time.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Sequence

from kasou.net.gateway.capture import Capture
from kasou.net.gateway.config import GatewayConfig
from kasou.net.gateway.egress import EgressPolicy
from kasou.net.gateway.gateway import EgressDenied, Gateway
from kasou.net.gateway.outside import Outside
from kasou.net.gateway.station import Station
from kasou.net.link.switch import Switch, SwitchPort
from kasou.net.transport.tcp import TcpConfig
from kasou.net.wire.address import MacAddress
from kasou.ports import Frame

_GATEWAY = "(gateway)"


class NetworkPort:
    """Where a VM is plugged in."""

    __slots__ = ("captures", "name", "output", "station", "switch_port")

    def __init__(self, name: str, switch_port: SwitchPort, station: Station) -> None:
        self.name, self.switch_port, self.station = name, switch_port, station
        self.output: deque[Frame] = deque()
        self.captures: list[Capture] = []


class VirtualNetwork:
    """See the module. All times are ns of one clock."""

    def __init__(
        self,
        config: GatewayConfig,
        outside: Outside,
        rng: random.Random,
        now: int,
        *,
        on_denied: Callable[[EgressDenied], None] = lambda event: None,
        tcp: TcpConfig | None = None,
    ) -> None:
        self.switch = Switch()
        self.gateway = Gateway(config, outside, rng, now, on_denied=on_denied, tcp=tcp)
        self.ports: dict[str, NetworkPort] = {}
        self._gateway_port = self.switch.add_port(_GATEWAY)
        self._ready: dict[str, NetworkPort] = {}

    def add_port(
        self,
        name: str,
        mac: MacAddress,
        egress: EgressPolicy | None = None,
        *,
        vlan: int = 1,
        trunk: Collection[int] | None = None,
    ) -> NetworkPort:
        """Plug a VM in. The gateway is on VLAN 1. Raises `ConfigError` when the name is taken."""
        switch_port = self.switch.add_port(name, vlan, trunk)
        try:
            station = self.gateway.add_station(name, mac, egress)
        except Exception:
            self.switch.remove_port(switch_port)
            raise
        port = self.ports[name] = NetworkPort(name, switch_port, station)
        return port

    def remove_port(self, port: NetworkPort) -> None:
        """Unplug a VM; its connections are reset."""
        self.gateway.remove_station(port.station)
        self.switch.remove_port(port.switch_port)
        self._ready.pop(port.name, None)
        del self.ports[port.name]

    def receive(self, port: NetworkPort, frames: Sequence[Frame], now: int) -> None:
        """Frames that a VM sent."""
        for capture in port.captures:
            capture.frames(frames, now)
        for target, batch in self.switch.receive(port.switch_port, frames, now):
            if target is self._gateway_port:
                self.gateway.receive(port.station, batch, now)
            else:
                self._deliver(target, batch, now)

    def to_send(self, now: int) -> list[tuple[NetworkPort, list[Frame]]]:
        """Frames for VMs, by port."""
        frames = self.gateway.to_send(now)
        if frames:
            for target, batch in self.switch.receive(self._gateway_port, frames, now):
                self._deliver(target, batch, now)
        if not self._ready:
            return []
        ready, self._ready = self._ready, {}
        out = []
        for port in ready.values():
            out.append((port, list(port.output)))
            port.output.clear()
        return out

    def _deliver(self, target: SwitchPort, frames: Sequence[Frame], now: int) -> None:
        port = self.ports[target.name]
        for capture in port.captures:
            capture.frames(frames, now)
        port.output.extend(frames)
        self._ready[port.name] = port

    def deadline(self) -> int | None:
        """When `handle_timer` is due, ns."""
        return self.gateway.deadline()

    def handle_timer(self, now: int) -> None:
        """Let time pass up to `now`."""
        self.gateway.handle_timer(now)

    def close(self) -> None:
        """End everything."""
        self.gateway.close()
