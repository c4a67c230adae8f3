"""To which of several receive queues a frame goes: where its connection was last sent from.

The driver chooses a transmit queue for a connection, usually by the processor that it runs on; the
device answers on the receive queue beside it. (Virtio 1.2, 5.1.6.5.5, automatic receive steering)
"""

_MAX_FLOWS = 4096
_ADDRESSES = {b"\x08\x00": (26, 4, 34), b"\x86\xdd": (22, 16, 54)}
"""By EtherType: where the source address begins, its length, and where the ports are."""


class FlowTable:
    """Connections, known by addresses and ports, and the queue pair of each."""

    def __init__(self) -> None:
        self._pairs: dict[bytes, int] = {}

    def learn(self, sent: bytes, pair: int) -> None:
        """The driver sent this frame on `pair`."""
        found = _ADDRESSES.get(sent[12:14])
        if found is None:
            return
        source, n, ports = found
        key = b"".join(
            (
                sent[source + n : source + 2 * n],
                sent[source : source + n],
                sent[ports + 2 : ports + 4],
                sent[ports : ports + 2],
            )
        )
        if len(self._pairs) >= _MAX_FLOWS and key not in self._pairs:
            self._pairs.clear()  # they are learned again as they send
        self._pairs[key] = pair

    def pair(self, frame: bytes, active: int) -> int:
        """The queue pair, below `active`, for a frame to the guest."""
        found = _ADDRESSES.get(frame[12:14])
        if found is None:
            return 0
        source, n, ports = found
        key = frame[source : source + 2 * n] + frame[ports : ports + 4]
        pair = self._pairs.get(key)
        if pair is None or pair >= active:
            return sum(key) % active
        return pair

    def clear(self) -> None:
        """Forget all."""
        self._pairs.clear()
