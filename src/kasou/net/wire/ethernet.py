"""Ethernet II frames and the 802.1Q tag (IEEE 802.3 3.2, 802.1Q 9.6).

    destination 6 | source 6 | [0x8100, priority 3 DEI 1 VID 12] | type 2 | payload

No frame check sequence: links here do not carry it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import pack, unpack_from

from kasou.net.wire.address import MacAddress
from kasou.net.wire.checksum import Buffer
from kasou.net.wire.error import ParseError

HEADER_BYTES = 14
TAG_BYTES = 4


class EtherType(IntEnum):
    """What a frame carries."""

    IPV4 = 0x0800
    ARP = 0x0806
    VLAN = 0x8100
    IPV6 = 0x86DD


@dataclass(frozen=True, slots=True)
class VlanTag:
    """The tag control information: VLAN 1 to 4094 (0 is a priority alone), priority 0 to 7."""

    vid: int
    priority: int = 0
    drop_eligible: bool = False


@dataclass(frozen=True, slots=True)
class EthernetHeader:
    """The header of a frame; `type` is 1536 or more, or an 802.3 length below."""

    destination: MacAddress
    source: MacAddress
    type: int
    vlan: VlanTag | None = None

    def emit(self) -> bytes:
        """14 bytes, 18 with a tag."""
        if self.vlan is None:
            return self.destination + self.source + self.type.to_bytes(2, "big")
        tag = self.vlan
        control = tag.priority << 13 | tag.drop_eligible << 12 | tag.vid
        return self.destination + self.source + pack(">HHH", EtherType.VLAN, control, self.type)


def parse_ethernet(frame: Buffer) -> tuple[EthernetHeader, int]:
    """The header and the offset at which the payload begins. Raises `ParseError`."""
    if len(frame) < HEADER_BYTES:
        raise ParseError(f"Ethernet frame of {len(frame)} bytes, shorter than its header")
    destination, source = bytes(frame[:6]), bytes(frame[6:12])
    (type_,) = unpack_from(">H", frame, 12)
    if type_ != EtherType.VLAN:
        return EthernetHeader(destination, source, type_), HEADER_BYTES
    if len(frame) < HEADER_BYTES + TAG_BYTES:
        raise ParseError(f"802.1Q frame of {len(frame)} bytes, shorter than its tag")
    control, type_ = unpack_from(">HH", frame, 14)
    tag = VlanTag(control & 0xFFF, control >> 13, bool(control & 0x1000))
    return EthernetHeader(destination, source, type_, tag), HEADER_BYTES + TAG_BYTES
