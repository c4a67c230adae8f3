"""The split layout: three rings, one for each writer's job. (Virtio 1.2, 2.7)

        descriptor area            driver area: avail         device area: used
    +------+-----+-------+------+  +-------+-----+------+---  +-------+-----+------------+---
    | addr | len | flags | next |  | flags | idx | ring |     | flags | idx | (head, len)|
    +------+-----+-------+------+  +-------+-----+------+---  +-------+-----+------------+---
                                        ring[size] = used_event    ring[size] = avail_event

Indices are 16 bits wide and wrap. Rings are read and written in place; each word that the guest
wrote is read once.
"""

import threading

from kasou.devices.virtio.chain import (
    DESCRIPTOR,
    INDIRECT,
    MAX_CHAIN,
    NEXT,
    WRITE,
    Chain,
    Segment,
    indirect_table,
    wrong_order,
)
from kasou.errors import GuestError
from kasou.ports import GuestMemory

NO_INTERRUPT = 1
"""Flag of the avail ring: the driver does not want an interrupt."""


class SplitRing:
    """A running split virtqueue. Raises `GuestError` when its rings cannot be where they are said.

    `next_avail` and `next_used` are free-running, `unsignalled` counts what was completed since
    the last interrupt decision.
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
        if size & size - 1:
            raise GuestError(f"virtqueue: size {size} is not a power of two")
        desc, avail, used = areas
        for name, gpa, align in (
            ("descriptor table", desc, 16),
            ("avail ring", avail, 2),
            ("used ring", used, 4),
        ):
            if gpa % align:
                raise GuestError(f"virtqueue: {name} at {gpa:#x} is not {align}-byte aligned")
        self._memory = memory
        self._size = size
        self._indirect, self._event_idx = indirect, event_idx
        self._table = memory.view(desc, 16 * size)
        event = 2 if event_idx else 0
        self._avail = memory.view(avail, 4 + 2 * size + event).cast("H")
        self._used_bytes = 4 + 8 * size + event
        used_ring = memory.view(used, self._used_bytes)
        self._used_at = used
        self._used_header = used_ring[:4].cast("H")
        self._used = used_ring[4 : 4 + 8 * size].cast("I")
        self._avail_event = used_ring[4 + 8 * size :].cast("H")
        self._fence = threading.Lock()
        self._seen = 0
        self.next_avail = self.next_used = self.unsignalled = 0
        self.free = size

    # ------------------------------------------------------------------ avail
    def look(self) -> None:
        """Find out up to which index chains can be taken without missing a notification.

        With event indices the driver notifies when its index passes `avail_event`. So that is set
        to the index just read, and the index read again until it stood still; as nothing is
        completed meanwhile, the driver can move it `size` times at most.
        """
        avail, size = self._avail, self._size
        index = avail[1]
        if self._event_idx:
            for _ in range(size):
                self._avail_event[0] = index
                with self._fence:  # the store before the load: "a suitable memory barrier"
                    pass
                seen, index = index, avail[1]
                if index == seen:
                    break
            self._memory.wrote(self._used_at + 4 + 8 * size, 2)
        if (index - self.next_avail) & 0xFFFF > size:
            raise GuestError(
                f"virtqueue: avail idx {index} is more than {size} ahead of {self.next_avail}"
            )
        self._seen = index

    def take(self) -> Chain | None:
        """The next chain of those that `look` saw. Raises `GuestError`."""
        if self.next_avail == self._seen:
            return None
        if not self.free:
            raise GuestError(f"virtqueue: more than {self._size} chains are in use at once")
        head = self._avail[2 + (self.next_avail & self._size - 1)]
        chain = self._walk(head)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        self.free -= 1
        return chain

    def _walk(self, head: int) -> Chain:
        """Follow the chain from descriptor `head`, through an indirect table at its end."""
        readable: list[Segment] = []
        writable: list[Segment] = []
        table, length, i = self._table, self._size, head
        left = longest = self._size
        inside = False
        unpack = DESCRIPTOR.unpack_from
        while True:
            if i >= length:
                raise GuestError(f"virtqueue: descriptor {i} in a table of {length}")
            if not left:
                raise GuestError(f"virtqueue: the chain from {head} has more than {longest} parts")
            left -= 1
            gpa, n, flags, following = unpack(table, 16 * i)
            if flags & INDIRECT:
                if inside or not self._indirect or flags & NEXT:
                    raise GuestError(f"virtqueue: descriptor {i} may not be indirect")
                table, length, i = indirect_table(self._memory, gpa, n), n // 16, 0
                longest, left, inside = MAX_CHAIN, MAX_CHAIN - len(readable) - len(writable), True
                continue
            if flags & WRITE:
                writable.append((gpa, n))
            elif writable:
                raise wrong_order(head)
            else:
                readable.append((gpa, n))
            if not flags & NEXT:
                return Chain(self._memory, head, readable, writable)
            i = following

    # ------------------------------------------------------------------ used
    def complete(self, chain: Chain, written: int) -> None:
        """Give one chain back."""
        index = self.next_used
        at = 2 * (index & self._size - 1)
        self._used[at] = chain.head
        self._used[at + 1] = written
        self.next_used = self._used_header[1] = index + 1 & 0xFFFF  # publish last
        self.unsignalled += 1
        self.free += 1
        self._memory.wrote(self._used_at, self._used_bytes)

    def complete_many(self, chains: list[tuple[Chain, int]]) -> None:
        """Give chains back so that the driver sees all of them at once."""
        index = self.next_used
        for chain, written in chains:
            at = 2 * (index & self._size - 1)
            self._used[at] = chain.head
            self._used[at + 1] = written
            index += 1
        self.next_used = self._used_header[1] = index & 0xFFFF  # publish last
        self.unsignalled += len(chains)
        self.free += len(chains)
        self._memory.wrote(self._used_at, self._used_bytes)

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was completed since this was last asked."""
        count, self.unsignalled = self.unsignalled, 0
        if not count:
            return False
        if self._event_idx:
            with self._fence:  # the used index is out before the driver's wish is read
                pass
            event = self._avail[2 + self._size]
            return (self.next_used - event - 1) & 0xFFFF < count
        return not self._avail[0] & NO_INTERRUPT

    def go_on(self, next_avail: int, next_used: int, unsignalled: int) -> None:
        """Continue at these positions."""
        self.next_avail = self._seen = next_avail & 0xFFFF
        self.next_used = next_used & 0xFFFF
        self.unsignalled = unsignalled
