"""A learning switch with ports and VLANs (IEEE 802.1D 7, 802.1Q 8).

Each frame belongs to a VLAN: that of an access port, or the tag it carries on a trunk (its native
VLAN when untagged). The switch learns which port a source address was last heard on, per VLAN,
and forgets it after `ageing_ns`. A frame to a learned address goes to that port alone, all others
go to every port of the VLAN but the one they came from. Frames are handed on as they are: units of
64 KiB stay whole, and only a frame that changes between tagged and untagged is copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from struct import pack, unpack_from

from kasou.errors import ConfigError
from kasou.net.wire.address import MacAddress
from kasou.net.wire.ethernet import EtherType
from kasou.ports import Frame

AGEING_NS = 300 * 1_000_000_000  # 802.1D table 7-5, recommended value
MAX_ADDRESSES = 8192
_VLAN_TAG = EtherType.VLAN.to_bytes(2, "big")


@dataclass(slots=True)
class SwitchPort:
    """A port. `vlan` is the access VLAN, or on a trunk the native one.

    `trunk` None makes an access port, which drops tagged frames; else the VLANs that pass tagged
    (empty: all).
    """

    name: str
    vlan: int = 1
    trunk: Collection[int] | None = None
    received: int = field(default=0, init=False)
    sent: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)

    def carries(self, vlan: int) -> bool:
        """Whether frames of `vlan` leave here."""
        if vlan == self.vlan:
            return True
        return self.trunk is not None and (not self.trunk or vlan in self.trunk)


@dataclass(slots=True)
class _Learned:
    port: SwitchPort
    heard: int


class Switch:
    """Ports and the table of addresses learned on them."""

    def __init__(self, ageing_ns: int = AGEING_NS, max_addresses: int = MAX_ADDRESSES) -> None:
        self.ageing_ns, self.max_addresses = ageing_ns, max_addresses
        self.ports: dict[str, SwitchPort] = {}
        self._table: dict[tuple[int, MacAddress], _Learned] = {}

    def add_port(
        self, name: str, vlan: int = 1, trunk: Collection[int] | None = None
    ) -> SwitchPort:
        """A new port. Raises `ConfigError` when the name is taken or a VLAN is not 1 to 4094."""
        if name in self.ports:
            raise ConfigError(f"the switch has a port {name!r} already")
        for number in (vlan, *(trunk or ())):
            if not 1 <= number <= 4094:
                raise ConfigError(f"port {name!r}: VLAN {number} is not 1 to 4094")
        self.ports[name] = port = SwitchPort(name, vlan, trunk)
        return port

    def remove_port(self, port: SwitchPort) -> None:
        """Take a port away and forget what was learned there."""
        del self.ports[port.name]
        self._table = {key: seen for key, seen in self._table.items() if seen.port is not port}

    def port_of(self, address: MacAddress, vlan: int = 1) -> SwitchPort | None:
        """Where `address` was last heard."""
        seen = self._table.get((vlan, address))
        return seen.port if seen is not None else None

    def receive(
        self, port: SwitchPort, frames: Iterable[Frame], now: int
    ) -> list[tuple[SwitchPort, Sequence[Frame]]]:
        """Frames arrived at `port`: what leaves at which ports, in batches, order kept."""
        out: dict[str, tuple[SwitchPort, list[Frame]]] = {}
        for frame in frames:
            port.received += 1
            classified = self._classify(port, frame)
            if classified is None:
                port.dropped += 1
                continue
            vlan, tagged = classified
            destination = frame.data[:6]
            self._learn(vlan, frame.data[6:12], port, now)
            for target in self._targets(port, vlan, destination, now):
                leaving = frame
                if tagged != (vlan != target.vlan):
                    leaving = _untag(frame) if tagged else _tag(frame, vlan)
                batch = out.get(target.name)
                if batch is None:
                    batch = out[target.name] = (target, [])
                batch[1].append(leaving)
                target.sent += 1
        return list(out.values())

    def _classify(self, port: SwitchPort, frame: Frame) -> tuple[int, bool] | None:
        """The VLAN of a frame and whether it is tagged; None when it may not enter here."""
        data = frame.data
        if len(data) < 14 or data[6] & 1:  # a group address cannot send
            return None
        if data[12:14] != _VLAN_TAG:
            return port.vlan, False
        if len(data) < 18:
            return None
        vlan = unpack_from(">H", data, 14)[0] & 0xFFF
        if vlan == 0:  # priority tag: the VLAN is the port's
            return port.vlan, True
        if port.trunk is None or not port.carries(vlan):
            return None
        return vlan, True

    def _learn(self, vlan: int, address: MacAddress, port: SwitchPort, now: int) -> None:
        seen = self._table.get((vlan, address))
        if seen is not None:
            seen.port, seen.heard = port, now
            return
        if len(self._table) >= self.max_addresses:
            self.handle_timer(now)
            if len(self._table) >= self.max_addresses:
                return  # 802.1D 7.8: a full database learns nothing, frames are flooded
        self._table[(vlan, address)] = _Learned(port, now)

    def _targets(
        self, port: SwitchPort, vlan: int, destination: MacAddress, now: int
    ) -> Iterable[SwitchPort]:
        if not destination[0] & 1:
            seen = self._table.get((vlan, destination))
            if seen is not None and now - seen.heard <= self.ageing_ns:
                return () if seen.port is port else (seen.port,)
        return [each for each in self.ports.values() if each is not port and each.carries(vlan)]

    def deadline(self) -> int | None:
        """None: ageing costs no wake-up, an aged entry is not used and goes when room is needed."""
        return None

    def handle_timer(self, now: int) -> None:
        """Forget the addresses not heard for `ageing_ns`."""
        self._table = {
            key: seen for key, seen in self._table.items() if now - seen.heard <= self.ageing_ns
        }


def _tag(frame: Frame, vlan: int) -> Frame:
    data = frame.data[:12] + _VLAN_TAG + pack(">H", vlan) + frame.data[12:]
    return _moved(frame, data, 4)


def _untag(frame: Frame) -> Frame:
    return _moved(frame, frame.data[:12] + frame.data[16:], -4)


def _moved(frame: Frame, data: bytes, by: int) -> Frame:
    """`frame` with its header longer `by` bytes: offsets that offloads hold move along."""
    csum = frame.csum and (frame.csum[0] + by, frame.csum[1])
    gso = frame.gso and frame.gso._replace(headers=frame.gso.headers + by)
    return Frame(data, csum, gso, frame.trusted)
