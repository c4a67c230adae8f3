"""A virtqueue as a device sees it: descriptor chains, whatever the rings look like. (Virtio 1.2, 2.6)

A device takes chains with `chains()` or `next_chain()` and gives each back with `complete()`; it
never sees a ring index or a descriptor. The layout (`split`, `packed`) is what the driver negotiated.
Everything the rings hold was written by the guest: whatever it is, the walk ends, and breaking the
rules raises `GuestError` and nothing else.

The queue remembers the chains that the device holds. Those of a queue that was reset meanwhile are
dropped when they are completed; those of a queue that is saved are given out again after `restore`,
so that a request in flight is done twice rather than never.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kasou.devices.register import check_version
from kasou.devices.virtio.chain import MAX_CHAIN, Chain, ChainState, Descriptor, Segment, restored
from kasou.devices.virtio.packed import PackedRing
from kasou.devices.virtio.split import SplitRing
from kasou.errors import ConfigError, GuestError
from kasou.ports import GuestMemory

__all__ = ["MAX_CHAIN", "Chain", "ChainState", "Descriptor", "QueueState", "Segment", "Virtqueue"]

STATE_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue at rest. Positions are the layout's own; `in_use` are the chains the device holds."""

    version: int = STATE_VERSION
    size: int
    ready: bool
    packed: bool
    indirect: bool
    event_idx: bool
    desc: int
    driver: int
    device: int
    next_avail: int = 0
    next_used: int = 0
    unsignalled: int = 0
    in_use: tuple[ChainState, ...] = ()


class Virtqueue:
    """One virtqueue of at most `max_size` descriptors.

    The transport sets `size` and the guest-physical addresses of the three areas (`desc`, `driver`,
    `device`); the device sets `packed`, `indirect` and `event_idx` to what was negotiated and calls
    `enable`.
    """

    def __init__(self, memory: GuestMemory, max_size: int) -> None:
        self.memory = memory
        self.max_size = max_size
        self._ring: SplitRing | PackedRing | None
        self._in_use: dict[Chain, None]
        self._again: deque[Chain]
        self.reset()

    # ------------------------------------------------------------------ for device and transport
    def reset(self) -> None:
        """Forget everything the driver configured."""
        self.size = self.max_size
        self.desc = self.driver = self.device = 0
        self.packed = self.indirect = self.event_idx = False
        self.disable()

    @property
    def ready(self) -> bool:
        """Whether the queue is running."""
        return self._ring is not None

    def enable(self) -> None:
        """Start, if size and addresses allow it. Raises `GuestError`."""
        if not 0 < self.size <= self.max_size:
            raise GuestError(f"virtqueue: size {self.size} is not one of 1 to {self.max_size}")
        layout = PackedRing if self.packed else SplitRing
        self._ring = layout(
            self.memory,
            self.size,
            (self.desc, self.driver, self.device),
            indirect=self.indirect,
            event_idx=self.event_idx,
        )

    def disable(self) -> None:
        """Stop; the driver may set new addresses. Chains in use are forgotten."""
        self._ring = None
        self._in_use = {}
        self._again = deque()

    # ------------------------------------------------------------------ for devices
    def chains(self) -> Iterator[Chain]:
        """The chains that are available now, oldest first. Raises `GuestError`.

        What the driver makes available later comes with a notification of its own.
        """
        ring = self._ring
        if ring is None:
            return
        ring.look()
        in_use, again = self._in_use, self._again
        while self._ring is ring:
            chain = again.popleft() if again else ring.take()
            if chain is None:
                return
            in_use[chain] = None
            yield chain

    def next_chain(self) -> Chain | None:
        """One chain, None if there is none now; for devices that wait for the host's input."""
        ring = self._ring
        if ring is None:
            return None
        chain = self._again.popleft() if self._again else ring.take()
        if chain is None:
            ring.look()
            chain = ring.take()
        if chain is not None:
            self._in_use[chain] = None
        return chain

    def give_back(self, chains: Sequence[Chain]) -> None:
        """Leave for later the chains that were taken last, in order: they are the next given out."""
        for chain in reversed(chains):
            if self._in_use.pop(chain, self) is None:
                self._again.appendleft(chain)

    def complete(self, chain: Chain, written: int) -> None:
        """Give `chain` back with `written` bytes stored in it, from the start of its writable part.

        Nothing happens when the queue was reset since it was taken.
        """
        ring = self._ring
        if ring is not None and self._in_use.pop(chain, self) is None:
            ring.complete(chain, written)

    def complete_many(self, chains: Sequence[tuple[Chain, int]]) -> None:
        """Give back several chains, each with what was written, as one: the driver sees all or none.

        For a packet that fills several buffers.
        """
        held = [(c, n) for c, n in chains if self._in_use.pop(c, self) is None]
        if self._ring is not None and held:
            self._ring.complete_many(held)

    def holds(self, chain: Chain) -> bool:
        """Whether `chain` is still the device's: not completed, the queue not reset since."""
        return chain in self._in_use

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was completed since this was last asked."""
        return self._ring is not None and self._ring.wants_interrupt()

    # ------------------------------------------------------------------ rest
    @property
    def has_chains_again(self) -> bool:
        """Whether chains wait that were in use when the queue was saved, or were given back."""
        return bool(self._again)

    def save(self) -> QueueState:
        """Configuration, positions, and the chains in use."""
        ring = self._ring
        return QueueState(
            size=self.size,
            ready=ring is not None,
            packed=self.packed,
            indirect=self.indirect,
            event_idx=self.event_idx,
            desc=self.desc,
            driver=self.driver,
            device=self.device,
            next_avail=ring.next_avail if ring else 0,
            next_used=ring.next_used if ring else 0,
            unsignalled=ring.unsignalled if ring else 0,
            in_use=tuple(chain.save() for chain in (*self._in_use, *self._again)),
        )

    def restore(self, state: QueueState) -> None:
        """Continue where `state` was. Raises `ConfigError` when there cannot have been a queue."""
        check_version("Virtqueue", state.version, STATE_VERSION)
        self.disable()
        self.size = state.size
        self.packed, self.indirect = state.packed, state.indirect
        self.event_idx = state.event_idx
        self.desc, self.driver, self.device = state.desc, state.driver, state.device
        if not state.ready:
            return
        try:
            self.enable()
            assert self._ring is not None, "just enabled"
            self._ring.go_on(state.next_avail, state.next_used, state.unsignalled)
            for saved in state.in_use:
                self._again.append(restored(self.memory, saved))
                self._ring.free -= saved.slots
        except GuestError as error:
            raise ConfigError(f"the snapshot is damaged: {error}") from error
        if self._ring.free < 0:
            raise ConfigError("the snapshot is damaged: more chains in use than the queue has")
