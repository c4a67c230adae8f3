"""The packed layout: one ring of descriptors that both sides write. (Virtio 1.2, 2.8)

        descriptor area, `size` of         driver area          device area
    +------+-----+-----------+-------+     +----------+-------+ +----------+-------+
    | addr | len | buffer id | flags |     | off,wrap | flags | | off,wrap | flags |
    +------+-----+-----------+-------+     +----------+-------+ +----------+-------+
                                           when to interrupt    when to notify

    flags  AVAIL USED                      on a lap whose wrap counter is 1 (on the others inverted)
             1    0   the driver made it available
             1    1   the device has used it

A chain lies in neighbouring slots. The device overwrites slots in the order of completion, so that a
chain's own slots may be gone before it is completed; nothing is read twice.

A position counts slots modulo two laps: its slot is `position % size`, and its lap's wrap counter
is 1 for positions below `size`.
"""

import struct
import threading

from kasou.devices.virtio.chain import (
    DESCRIPTOR,
    INDIRECT,
    NEXT,
    WRITE,
    Chain,
    Segment,
    indirect_table,
    wrong_order,
)
from kasou.errors import GuestError
from kasou.ports import GuestMemory

MAX_SIZE = 1 << 15
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2
"""Event flags: events always, never, or when a descriptor is reached (with EVENT_IDX only)."""
WRAP = 1 << 15
LAPS = 4
"""Slots are taken for so many laps in one go before the device returns to its other work."""
_USED_PART = struct.Struct("<IH")  # of a descriptor, from byte 8: length, buffer id
_FLAGS = 7  # of a descriptor, in 16-bit words


class PackedRing:
    """A running packed virtqueue. Raises `GuestError` when its areas cannot be where they are said.

    `free` counts the slots that no chain in use takes: a driver that makes more available than it
    has is caught by it.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        areas: tuple[int, int, int],
        *,
        indirect: bool,
        event_idx: bool,
    ) -> None:
        desc, driver, device = areas
        if size > MAX_SIZE:
            raise GuestError(f"virtqueue: size {size} is more than {MAX_SIZE}")
        for name, gpa, align in (
            ("descriptor ring", desc, 16),
            ("driver event suppression", driver, 4),
            ("device event suppression", device, 4),
        ):
            if gpa % align:
                raise GuestError(f"virtqueue: {name} at {gpa:#x} is not {align}-byte aligned")
        self._memory = memory
        self._size = size
        self._indirect, self._event_idx = indirect, event_idx
        self._desc, self._device = desc, device
        self._ring = memory.view(desc, 16 * size)
        self._words = self._ring.cast("H")
        self._driver_event = memory.view(driver, 4).cast("H")
        self._device_event = memory.view(device, 4).cast("H")
        self._fence = threading.Lock()
        self._left = 0
        self._notified = False
        self.next_avail = self.next_used = self.unsignalled = 0
        self.free = size

    # ------------------------------------------------------------------ available
    def look(self) -> None:
        """Begin to take chains; without an end to them, they are taken for a few laps."""
        self._left = LAPS * self._size if self._event_idx else self._size
        self._notified = not self._event_idx

    def take(self) -> Chain | None:
        """The next chain that is available. Raises `GuestError`.

        None is given only when whatever the driver adds from then on is notified.
        """
        if self._left <= 0:
            if self._notified:
                return None
            # From here on every addition is notified; what was there before is within a lap.
            self._ask(0, ENABLE)
            self._notified = True
            self._left = self._size
        if not self._is_available():
            if self._notified:
                return None
            position = self.next_avail
            wrap = WRAP if position < self._size else 0
            self._ask(position % self._size | wrap, DESC)
            if not self._is_available():
                return None
        chain = self._walk()
        self._left -= chain.slots
        self.free -= chain.slots
        self.next_avail = (self.next_avail + chain.slots) % (2 * self._size)
        return chain

    def _is_available(self) -> bool:
        position = self.next_avail
        if position < self._size:
            return self._words[8 * position + _FLAGS] & (AVAIL | USED) == AVAIL
        return self._words[8 * (position - self._size) + _FLAGS] & (AVAIL | USED) == USED

    def _ask(self, where: int, flags: int) -> None:
        """Tell the driver which additions are to be notified; those after this is seen are."""
        self._device_event[0] = where
        self._device_event[1] = flags
        self._memory.wrote(self._device, 4)
        with self._fence:  # before the ring is looked at again
            pass

    def _walk(self) -> Chain:
        """The chain at `next_avail`; the last of its descriptors holds the buffer id."""
        readable: list[Segment] = []
        writable: list[Segment] = []
        slot = first = self.next_avail % self._size
        slots = 0
        while True:
            if slots == self.free:
                raise GuestError(
                    f"virtqueue: the chain at slot {first} is longer than the {slots} free slots"
                )
            slots += 1
            gpa, n, head, flags = DESCRIPTOR.unpack_from(self._ring, 16 * slot)
            if flags & INDIRECT:
                if slots > 1 or not self._indirect or flags & NEXT:
                    raise GuestError(
                        f"virtqueue: the descriptor at slot {slot} may not be indirect"
                    )
                self._walk_table(gpa, n, readable, writable)
                return Chain(self._memory, head, readable, writable, 1)
            if flags & WRITE:
                writable.append((gpa, n))
            elif writable:
                raise wrong_order(first)
            else:
                readable.append((gpa, n))
            if not flags & NEXT:
                return Chain(self._memory, head, readable, writable, slots)
            slot = slot + 1 if slot + 1 < self._size else 0

    def _walk_table(
        self, gpa: int, n: int, readable: list[Segment], writable: list[Segment]
    ) -> None:
        """All descriptors of an indirect table; of their flags only WRITE means anything."""
        table = indirect_table(self._memory, gpa, n)
        for at in range(0, n, 16):
            gpa, n, _, flags = DESCRIPTOR.unpack_from(table, at)
            if flags & INDIRECT:
                raise GuestError("virtqueue: an indirect descriptor in an indirect table")
            if flags & WRITE:
                writable.append((gpa, n))
            elif writable:
                raise wrong_order(self.next_avail % self._size)
            else:
                readable.append((gpa, n))

    # ------------------------------------------------------------------ used
    def complete(self, chain: Chain, written: int) -> None:
        """Give one chain back."""
        at, flags = self._store(chain, written)
        self._words[at] = flags
        self._memory.wrote(self._desc + 2 * at - 2 * _FLAGS, 16)

    def complete_many(self, chains: list[tuple[Chain, int]]) -> None:
        """Give chains back so that the driver sees all of them at once: the first one's flags last.

        The driver looks at the slot behind a used one only once it has seen that.
        """
        stored = [self._store(chain, written) for chain, written in chains]
        for at, flags in reversed(stored):
            self._words[at] = flags
        self._memory.wrote(self._desc, 16 * self._size)

    def _store(self, chain: Chain, written: int) -> tuple[int, int]:
        """Write all of a used descriptor but its flags: where those are, and what they become."""
        position = self.next_used
        slot = position if position < self._size else position - self._size
        _USED_PART.pack_into(self._ring, 16 * slot + 8, written, chain.head)
        flags = AVAIL | USED if position < self._size else 0
        self.next_used = (position + chain.slots) % (2 * self._size)
        self.unsignalled += chain.slots
        self.free += chain.slots
        # "this bit is used to specify whether any data has been written by the device"
        return 8 * slot + _FLAGS, flags | WRITE if written else flags

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was completed since this was last asked."""
        count, self.unsignalled = self.unsignalled, 0
        if not count:
            return False
        with self._fence:  # the used flags are out before the driver's wish is read
            pass
        flags = self._driver_event[1] & 3
        if flags != DESC or not self._event_idx:
            return flags != DISABLE
        where = self._driver_event[0]
        event = (where & ~WRAP) + (0 if where & WRAP else self._size)
        return (self.next_used - event - 1) % (2 * self._size) < count

    def go_on(self, next_avail: int, next_used: int, unsignalled: int) -> None:
        """Continue at these positions."""
        self.next_avail = next_avail % (2 * self._size)
        self.next_used = next_used % (2 * self._size)
        self.unsignalled = unsignalled
