"""A balloon: memory that the guest lends back to the host. (Virtio 1.2, 5.5)

    queue 0  inflate: numbers of pages that the guest put into the balloon
    queue 1  deflate: numbers of pages that it took out again
    queue 2  statistics: one buffer that goes to and fro, full when the driver makes it available
    queue 3  hints of free pages, only while the device asks for them, which this one never does
    queue 4  reports of free pages: buffers that nobody uses until they are completed

A page that was given up reads as zero when the guest touches it again, so that nothing is to be done
when the balloon shrinks. Pages are of 4 KiB here, whatever the guest's are.

FREE_PAGE_HINT is offered although it is not used: without it drivers disagree with the standard on
the number of the queue for reports (Linux long counted only the queues that there are).
"""

import struct
from collections.abc import Callable, Iterable
from enum import IntEnum, IntFlag

from kasou.devices.virtio.device import VirtioDevice, VirtioState
from kasou.devices.virtio.queue import Chain, Virtqueue
from kasou.errors import ConfigError, GuestError
from kasou.ports import GuestMemory

PAGE = 4096
INFLATE, DEFLATE, STATS, HINT, REPORT = range(5)
QUEUE_SIZE = 128
MAX_REQUEST = 1 << 16
"""Bytes of page numbers, or of statistics, in one chain."""
_CONFIG = struct.Struct("<IIII")
"""num_pages, actual, free_page_hint_cmd_id, poison_val."""
_ACTUAL, _POISON = slice(4, 8), slice(12, 16)
_STATISTIC = struct.Struct("<HQ")
_U32 = 0xFFFF_FFFF

GiveUp = Callable[[int, int], None]
"""Takes (gpa, bytes) of whole pages whose content is not needed. Raises `GuestError`."""


class BalloonFeature(IntFlag):
    """Features of a balloon."""

    MUST_TELL_HOST = 1 << 0
    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    FREE_PAGE_HINT = 1 << 3
    PAGE_POISON = 1 << 4
    PAGE_REPORTING = 1 << 5


class Statistic(IntEnum):
    """Tags of the guest's statistics; sizes are in bytes."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJOR_FAULTS = 2
    MINOR_FAULTS = 3
    FREE_MEMORY = 4
    TOTAL_MEMORY = 5
    AVAILABLE_MEMORY = 6
    DISK_CACHES = 7
    HUGETLB_ALLOCATIONS = 8
    HUGETLB_FAILURES = 9


class VirtioBalloon(VirtioDevice):
    """virtio-balloon; `give_up` returns memory to the host.

    `statistics` are the guest's last ones, by tag; `updated` is called when they are new.
    `reported_bytes` counts what was given up on reports since power-on.
    """

    device_id = 5
    queue_sizes = (QUEUE_SIZE,) * 5

    def __init__(
        self,
        memory: GuestMemory,
        give_up: GiveUp,
        *,
        deflate_on_oom: bool = True,
        updated: Callable[[], None] | None = None,
    ) -> None:
        offered = BalloonFeature.STATS_VQ | BalloonFeature.FREE_PAGE_HINT
        offered |= BalloonFeature.PAGE_POISON | BalloonFeature.PAGE_REPORTING
        if deflate_on_oom:
            offered |= BalloonFeature.DEFLATE_ON_OOM
        super().__init__(memory, int(offered), bytes(_CONFIG.size))
        self._give_up = give_up
        self._updated = updated
        self._stats_buffer: Chain | None = None
        self.statistics: dict[Statistic, int] = {}
        self.reported_bytes = 0

    # ------------------------------------------------------------------ host side
    @property
    def target_bytes(self) -> int:
        """How large the balloon should be."""
        return PAGE * int.from_bytes(self.config[:4], "little")

    @property
    def actual_bytes(self) -> int:
        """How large it is, as the driver says."""
        return PAGE * int.from_bytes(self.config[_ACTUAL], "little")

    def set_target(self, n: int) -> None:
        """Ask the guest for a balloon of `n` bytes; it takes its time. Raises `ConfigError`."""
        if not 0 <= n <= PAGE * _U32:
            raise ConfigError(f"balloon: {n} bytes; 0 to {PAGE * _U32} can be")
        pages = (n // PAGE).to_bytes(4, "little")
        if pages != self.config[:4]:
            self.change_config(pages + self.config[4:])

    def request_statistics(self) -> bool:
        """Ask for new statistics; whether the driver gave a buffer to ask with."""
        chain = self._stats_buffer
        if chain is None or not self.running:
            return False
        self._stats_buffer = None
        self.queues[STATS].complete(chain, 0)
        self.signal(STATS)
        return True

    # ------------------------------------------------------------------ guest side
    def serve(self, index: int) -> None:
        """Give pages up, take statistics."""
        queue = self.queues[index]
        if index == STATS:
            if self.accepted & BalloonFeature.STATS_VQ:
                self._take_statistics(queue)
        elif index == REPORT or (
            index == HINT and not self.accepted & BalloonFeature.FREE_PAGE_HINT
        ):
            if self.accepted & BalloonFeature.PAGE_REPORTING:
                self._take_reports(queue)
        else:
            for chain in queue.chains():
                if index == INFLATE:
                    self._inflate(chain)
                queue.complete(chain, 0)

    def _inflate(self, chain: Chain) -> None:
        n = chain.readable_bytes
        if n % 4 or n > MAX_REQUEST:
            raise GuestError(f"VirtioBalloon: {n} bytes are no numbers of pages")
        pages = struct.unpack(f"<{n // 4}I", chain.read_all())
        for gpa, size in _runs(pages):
            self._give_up(gpa, size)

    def _take_reports(self, queue: Virtqueue) -> None:
        """Free pages may be given up if zero is what the driver wants to find there later."""
        poisoned = self.accepted & BalloonFeature.PAGE_POISON and any(self.config[_POISON])
        for chain in queue.chains():
            if not poisoned:
                for gpa, n in chain.writable:
                    start, end = -(-gpa // PAGE) * PAGE, (gpa + n) // PAGE * PAGE
                    if start < end:
                        self._give_up(start, end - start)
                        self.reported_bytes += end - start
            queue.complete(chain, 0)

    def _take_statistics(self, queue: Virtqueue) -> None:
        """Read them, and keep the buffer until new ones are wanted."""
        for chain in queue.chains():
            if chain.readable_bytes > MAX_REQUEST:
                raise GuestError(f"VirtioBalloon: {chain.readable_bytes} bytes of statistics")
            if self._stats_buffer is not None:
                queue.complete(self._stats_buffer, 0)
            self._stats_buffer = chain
            data = chain.read_all()
            whole = data[: len(data) // _STATISTIC.size * _STATISTIC.size]
            known = set(Statistic)
            self.statistics = {
                Statistic(tag): value
                for tag, value in _STATISTIC.iter_unpack(whole)
                if tag in known and value != (1 << 64) - 1
            }
            if self._updated is not None:
                self._updated()

    def write_config(self, offset: int, data: bytes) -> None:
        """`actual` and `poison_val` are the driver's."""
        end = offset + len(data)
        for field in (_ACTUAL, _POISON):
            if field.start <= offset and end <= field.stop:
                self.config = self.config[:offset] + data + self.config[end:]

    # ------------------------------------------------------------------ rest
    def queue_was_reset(self, index: int) -> None:
        """The buffer for statistics is gone with its queue."""
        if index == STATS:
            self._stats_buffer = None

    def reset(self) -> None:
        """As after power-on: the balloon is empty, the wish stays."""
        super().reset()
        self._stats_buffer = None
        self.statistics = {}
        self.config = self.config[:4] + bytes(_CONFIG.size - 4)

    def restore(self, state: VirtioState) -> None:
        """Continue where `state` was. Raises `ConfigError` when it is another device's."""
        if len(state.config) != _CONFIG.size or len(state.queues) != len(self.queues):
            raise ConfigError("VirtioBalloon: the snapshot's state is not of a balloon like this")
        super().restore(state)
        self._stats_buffer = None


def _runs(pages: Iterable[int]) -> Iterable[tuple[int, int]]:
    """(gpa, bytes) of the longest pieces that the pages make up."""
    start = end = -1
    for page in sorted(set(pages)):
        if page != end:
            if start >= 0:
                yield start * PAGE, (end - start) * PAGE
            start = page
        end = page + 1
    if start >= 0:
        yield start * PAGE, (end - start) * PAGE
