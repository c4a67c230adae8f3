"""Frames as they pass a port, for Wireshark: pcapng as a stream of bytes, from the first call on.

Frames are written as they are passed: units of 64 KiB whole, and checksums that were left to the
other side unfinished, which Wireshark shows as such. `whole` cuts and completes them instead, into
what a wire without offloads would have carried.
"""

from __future__ import annotations

from collections.abc import Sequence

from kasou.net.link.offload import segment
from kasou.net.wire.error import ParseError
from kasou.net.wire.pcapng import enhanced_packet, interface_description, section_header
from kasou.ports import ByteSink, Frame


class Capture:
    """Writes what passes to `sink`, each call whole blocks. `epoch` is what time 0 of `now` is,

    in ns since 1970. `snap_bytes` of each frame are kept, 0 for all.
    """

    def __init__(
        self, sink: ByteSink, name: str, *, epoch: int = 0, snap_bytes: int = 0, whole: bool = False
    ) -> None:
        self._sink, self._epoch, self._snap, self._whole = sink, epoch, snap_bytes, whole
        self.packets = 0
        sink(section_header() + interface_description(name, snap_bytes))

    def frames(self, frames: Sequence[Frame], now: int) -> None:
        """These frames passed at `now`."""
        blocks = []
        for frame in frames:
            try:
                pieces = segment(frame) if self._whole else [frame]
            except ParseError:
                pieces = [frame]
            for piece in pieces:
                data = memoryview(piece.data)
                kept = data[: self._snap] if self._snap else data
                blocks.append(enhanced_packet(0, self._epoch + now, kept, len(data)))
        self.packets += len(blocks)
        if blocks:
            self._sink(b"".join(blocks))
