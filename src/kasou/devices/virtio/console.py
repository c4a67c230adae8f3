"""A terminal for the guest, one port, with its size. (Virtio 1.2, 5.3)"""

import struct
from enum import IntFlag

from kasou.devices.virtio.device import VirtioDevice
from kasou.ports import ByteSink, GuestMemory

RECEIVE, TRANSMIT = 0, 1
_CHUNK = 1 << 16


class ConsoleFeature(IntFlag):
    """Features of a console."""

    SIZE = 1 << 0
    EMERG_WRITE = 1 << 2


_EMERG_WR = 8


class VirtioConsole(VirtioDevice):
    """virtio-console: `output` takes what the guest sends, `receive` brings it what is typed."""

    device_id = 3
    queue_sizes = (64, 64)

    def __init__(
        self, memory: GuestMemory, output: ByteSink, columns: int = 80, rows: int = 24
    ) -> None:
        offered = ConsoleFeature.SIZE | ConsoleFeature.EMERG_WRITE
        super().__init__(memory, int(offered), _config(columns, rows))
        self._output = output
        self._pending = bytearray()

    # ------------------------------------------------------------------ host side
    def receive(self, data: bytes) -> None:
        """Bytes for the guest; they wait until it gives a buffer."""
        self._pending += data
        self.notify(RECEIVE)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has a new size, in characters."""
        if _config(columns, rows) != self.config:
            self.change_config(_config(columns, rows))

    # ------------------------------------------------------------------ guest side
    def serve(self, index: int) -> None:
        """Move bytes in the direction of the queue."""
        queue = self.queues[index]
        if index == TRANSMIT:
            for chain in queue.chains():
                for done in range(0, chain.readable_bytes, _CHUNK):
                    self._output(chain.read(done, min(_CHUNK, chain.readable_bytes - done)))
                queue.complete(chain, 0)
            return
        while self._pending and (chain_in := queue.next_chain()):
            data = bytes(self._pending[: chain_in.writable_bytes])
            chain_in.write(0, data)
            del self._pending[: len(data)]
            queue.complete(chain_in, len(data))

    def write_config(self, offset: int, data: bytes) -> None:
        """`emerg_wr`: one character without a queue, even before the driver is ready."""
        if offset == _EMERG_WR:
            self._output(data[:1])

    def save_pending(self) -> bytes:
        """Typed and not yet taken."""
        return bytes(self._pending)

    def restore_pending(self, pending: bytes) -> None:
        """Typed and not yet taken."""
        self._pending = bytearray(pending)


def _config(columns: int, rows: int) -> bytes:
    """cols, rows, max_nr_ports, emerg_wr."""
    return struct.pack("<HHII", columns & 0xFFFF, rows & 0xFFFF, 1, 0)
