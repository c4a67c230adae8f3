"""Which frames a network card passes to its driver, as the driver asked. (Virtio 1.2, 5.1.6.5.1)

Until the driver says otherwise every frame passes.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from kasou.errors import ConfigError

BROADCAST = b"\xff" * 6
MAX_ADDRESSES = 64
"""Addresses kept of each table; with more of them in the table all pass."""
MAX_VLAN = 4096
_COUNT = struct.Struct("<I")
_VLAN = struct.Struct("<H")


class RxCommand(IntEnum):
    """Commands of class VIRTIO_NET_CTRL_RX; each is one switch."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterState:
    """A filter at rest. `vlans` is a bit map of 4,096, empty while all pass."""

    version: int = 1
    switches: tuple[bool, ...]
    unicast: tuple[bytes, ...]
    multicast: tuple[bytes, ...]
    unicast_overflow: bool
    multicast_overflow: bool
    vlans: bytes


class ReceiveFilter:
    """The filter of a card whose own address is `mac`."""

    def __init__(self, mac: bytes) -> None:
        self._default_mac = mac
        self.reset()

    def reset(self) -> None:
        """Pass everything, under the address that the card was built with."""
        self.mac = self._default_mac
        self.switches = [command == RxCommand.PROMISC for command in RxCommand]
        self._unicast: frozenset[bytes] = frozenset()
        self._multicast: frozenset[bytes] = frozenset()
        self._unicast_overflow = self._multicast_overflow = False
        self._vlans: bytearray | None = None

    # ------------------------------------------------------------------ commands
    def switch(self, command: int, on: bool) -> bool:
        """A command of class RX; whether there is such a command."""
        if command >= len(self.switches):
            return False
        self.switches[command] = on
        return True

    def set_table(self, data: bytes) -> bool:
        """MAC_TABLE_SET: a table of unicast addresses, then one of multicast ones."""
        tables: list[list[bytes]] = []
        for _ in range(2):
            if len(data) < _COUNT.size:
                return False
            (count,) = _COUNT.unpack_from(data)
            end = _COUNT.size + 6 * count
            if end > len(data):
                return False
            tables.append([data[at : at + 6] for at in range(_COUNT.size, end, 6)])
            data = data[end:]
        unicast, multicast = tables
        self._unicast_overflow = len(unicast) > MAX_ADDRESSES
        self._multicast_overflow = len(multicast) > MAX_ADDRESSES
        self._unicast = frozenset(unicast[:MAX_ADDRESSES])
        self._multicast = frozenset(multicast[:MAX_ADDRESSES])
        return not data

    def filter_vlans(self, on: bool) -> None:
        """Whether tagged frames pass only for the VLANs that are added from now on."""
        self._vlans = bytearray(MAX_VLAN // 8) if on else None

    def set_vlan(self, data: bytes, on: bool) -> bool:
        """Add or remove the VLAN whose number is in `data`."""
        if len(data) != _VLAN.size or self._vlans is None:
            return False
        (vlan,) = _VLAN.unpack(data)
        if vlan >= MAX_VLAN:
            return False
        bit = 1 << vlan % 8
        self._vlans[vlan // 8] = self._vlans[vlan // 8] & ~bit | (bit if on else 0)
        return True

    # ------------------------------------------------------------------ frames
    def passes(self, frame: bytes) -> bool:
        """Whether the driver wants `frame`."""
        promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast = (
            self.switches
        )
        if promiscuous:
            return True
        if self._vlans is not None and frame[12:14] == b"\x81\x00":
            vlan = int.from_bytes(frame[14:16], "big") & MAX_VLAN - 1
            if not self._vlans[vlan // 8] >> vlan % 8 & 1:
                return False
        to = frame[:6]
        if to[0] & 1:
            if to == BROADCAST:
                return not no_broadcast
            if no_multicast:
                return False
            return all_multicast or self._multicast_overflow or to in self._multicast
        if no_unicast:
            return False
        return all_unicast or to == self.mac or self._unicast_overflow or to in self._unicast

    # ------------------------------------------------------------------ rest
    def save(self) -> FilterState:
        """The filter at rest; the address is in the card's configuration space."""
        return FilterState(
            switches=tuple(self.switches),
            unicast=tuple(sorted(self._unicast)),
            multicast=tuple(sorted(self._multicast)),
            unicast_overflow=self._unicast_overflow,
            multicast_overflow=self._multicast_overflow,
            vlans=bytes(self._vlans or b""),
        )

    def restore(self, state: FilterState) -> None:
        """Continue where `state` was. Raises `ConfigError`."""
        if len(state.switches) != len(RxCommand) or len(state.vlans) not in (0, MAX_VLAN // 8):
            raise ConfigError("VirtioNet: the snapshot's receive filter is damaged")
        self.switches = list(state.switches)
        self._unicast, self._multicast = frozenset(state.unicast), frozenset(state.multicast)
        self._unicast_overflow = state.unicast_overflow
        self._multicast_overflow = state.multicast_overflow
        self._vlans = bytearray(state.vlans) if state.vlans else None
