"""A network card. (Virtio 1.2, 5.1)

    queue 2n    receive: empty buffers from the driver; a frame may fill several (MRG_RXBUF)
    queue 2n+1  transmit: one chain is one frame, up to 64 KiB of it
    last queue  control: a class, a command and its data; one byte of answer

Frames go out in batches through the `Port`; whoever builds the board attaches `receive` to it, so
that it is called with the board's lock held. What comes in waits, within bounds, for buffers of the
driver. Frames that need offloads which the driver did not accept are finished in software first.
"""

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag

from kasou.devices.virtio.device import Feature, Status, VirtioDevice, VirtioState
from kasou.devices.virtio.net_filter import FilterState, ReceiveFilter
from kasou.devices.virtio.net_header import (
    HEADER,
    MAX_FRAME,
    SHORT_HEADER,
    NetFeature,
    frame_from_guest,
    header_for_guest,
    with_num_buffers,
)
from kasou.devices.virtio.net_steering import FlowTable
from kasou.devices.virtio.offload import segments, with_checksum
from kasou.devices.virtio.queue import Chain, Virtqueue
from kasou.errors import ConfigError, GuestError
from kasou.ports import Frame, GuestMemory, Port

RECEIVE_SIZE, TRANSMIT_SIZE, CONTROL_SIZE = 1024, 256, 64
MAX_PAIRS = 16
MIN_MTU, MAX_MTU = 68, 65535
MAX_WAITING_FRAMES = 2048
MAX_WAITING_BYTES = 8 << 20
"""Of a receive queue; frames beyond either are dropped."""
_BATCH = 64
_MAX_COMMAND = 1 << 14
_SPEED_MBIT, _FULL_DUPLEX = 10_000, 1
_CONFIG = struct.Struct("<6sHHHIB")
_PAIRS = struct.Struct("<H")
_OFFLOADS = struct.Struct("<Q")

_ALWAYS = (
    NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.CTRL_GUEST_OFFLOADS | NetFeature.MAC
    | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_ECN
    | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_ECN
    | NetFeature.MRG_RXBUF | NetFeature.STATUS | NetFeature.CTRL_VQ | NetFeature.CTRL_RX
    | NetFeature.CTRL_VLAN | NetFeature.CTRL_RX_EXTRA | NetFeature.GUEST_ANNOUNCE
    | NetFeature.CTRL_MAC_ADDR | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6
    | NetFeature.HOST_USO | NetFeature.SPEED_DUPLEX
)  # fmt: skip
_GUEST_OFFLOADS = int(
    NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_ECN
    | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6
)  # fmt: skip
_LONG_HEADER = int(NetFeature.MRG_RXBUF) | int(Feature.VERSION_1)
_MERGE = int(NetFeature.MRG_RXBUF)
_GUEST_CSUM = int(NetFeature.GUEST_CSUM)


class LinkStatus(IntFlag):
    """`status` in the configuration space."""

    LINK_UP = 1
    ANNOUNCE = 2


class Control(IntEnum):
    """Classes of commands."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5


OK, ERR = 0, 1
_TABLE_SET, _ADDR_SET = 0, 1
_ADD, _DEL = 0, 1


@dataclass(slots=True)
class Counters:
    """What passed in one direction; `drops` are frames that did not. Bytes are of whole frames."""

    packets: int = 0
    bytes: int = 0
    drops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetState(VirtioState):
    """A network card at rest; frames that wait are lost, as frames may be."""

    active_pairs: int
    offloads: int
    filter: FilterState


class VirtioNet(VirtioDevice):
    """virtio-net at a `Port`; `mac` are the 6 bytes of its address, `mtu` what the driver is told.

    `sent` and `received` count as the guest sees it. Raises `ConfigError` for what cannot be built.
    """

    device_id = 1

    def __init__(
        self,
        memory: GuestMemory,
        port: Port,
        mac: bytes,
        *,
        queue_pairs: int = 1,
        mtu: int | None = None,
    ) -> None:
        if len(mac) != 6 or mac[0] & 1:
            raise ConfigError(f"network card: {mac.hex(':')} is not the address of one card")
        if not 1 <= queue_pairs <= MAX_PAIRS:
            raise ConfigError(f"network card: {queue_pairs} queue pairs; 1 to {MAX_PAIRS} can be")
        if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
            raise ConfigError(f"network card: MTU {mtu}; {MIN_MTU} to {MAX_MTU} can be")
        offered = _ALWAYS
        if mtu is not None:
            offered |= NetFeature.MTU
        if queue_pairs > 1:
            offered |= NetFeature.MQ
        config = _CONFIG.pack(
            mac, LinkStatus.LINK_UP, queue_pairs, mtu or 0, _SPEED_MBIT, _FULL_DUPLEX
        )
        sizes = (RECEIVE_SIZE, TRANSMIT_SIZE) * queue_pairs + (CONTROL_SIZE,)
        super().__init__(memory, int(offered), config, sizes)
        self._port = port
        self.queue_pairs = queue_pairs
        self.active_pairs = 1
        self.sent, self.received = Counters(), Counters()
        self._filter = ReceiveFilter(mac)
        self._offloads = 0
        self._flows = FlowTable()
        self._waiting: list[deque[tuple[bytes, bytes]]] = [deque() for _ in range(queue_pairs)]
        self._waiting_bytes = [0] * queue_pairs

    # ------------------------------------------------------------------ host side
    def receive(self, frames: Sequence[Frame]) -> None:
        """Frames for the guest; what it has no room for is dropped."""
        if not self.running or not self.link_up:
            self.received.drops += len(frames)
            return
        pairs = set()
        for frame in frames:
            if not self._filter.passes(frame.data):
                continue
            pair = self._flows.pair(frame.data, self.active_pairs) if self.active_pairs > 1 else 0
            header = header_for_guest(frame, self._offloads)
            if header is not None:
                self._enqueue(pair, header, frame.data)
            else:
                self._enqueue_finished(pair, frame)
            pairs.add(pair)
        for pair in pairs:
            self.notify(2 * pair)

    @property
    def mac(self) -> bytes:
        """The address in force."""
        return self.config[:6]

    @property
    def link_up(self) -> bool:
        """Whether the cable is in."""
        return bool(self.config[6] & LinkStatus.LINK_UP)

    def set_link(self, up: bool) -> None:
        """Plug the cable in or pull it; frames are dropped while it is out."""
        if up != self.link_up:
            self._set_link_status(self.config[6] ^ LinkStatus.LINK_UP)
            self._drop_waiting()

    def announce(self) -> None:
        """Ask the guest to tell the network where it is; for after a restore elsewhere."""
        if self.accepted & NetFeature.GUEST_ANNOUNCE:
            self._set_link_status(self.config[6] | LinkStatus.ANNOUNCE)

    def _set_link_status(self, status: int) -> None:
        self.change_config(self.config[:6] + bytes((status, 0)) + self.config[8:])

    # ------------------------------------------------------------------ features, queues
    def accept(self, features: int) -> None:
        """The driver's choice; its offloads are those until it changes them by command."""
        super().accept(features)
        if not self.status & Status.FEATURES_OK:
            self._offloads = self.accepted & _GUEST_OFFLOADS
            self._filter.filter_vlans(bool(self.accepted & NetFeature.CTRL_VLAN))

    def serve(self, index: int) -> None:
        """Move frames in the direction of the queue, or obey a command."""
        queue = self.queues[index]
        control = 2 * self.queue_pairs if self.accepted & NetFeature.MQ else 2
        if index == control:
            if self.accepted & NetFeature.CTRL_VQ:
                for chain in queue.chains():
                    self._command(queue, chain)
        elif index > control:
            return
        elif index & 1:
            self._transmit(queue, index >> 1)
        elif self._waiting[index >> 1]:
            self._deliver(queue, index >> 1)

    def _header_bytes(self) -> int:
        return HEADER if self.accepted & _LONG_HEADER else SHORT_HEADER

    # ------------------------------------------------------------------ transmit
    def _transmit(self, queue: Virtqueue, pair: int) -> None:
        header_bytes, accepted = self._header_bytes(), self.accepted
        frames: list[Frame] = []
        done: list[tuple[Chain, int]] = []
        try:
            for chain in queue.chains():
                n = chain.readable_bytes
                if n < header_bytes:
                    raise GuestError(f"VirtioNet: a chain of {n} bytes holds no header")
                frame = None
                if n <= header_bytes + MAX_FRAME:
                    frame = frame_from_guest(chain.read(0, n), header_bytes, accepted)
                done.append((chain, 0))
                if frame is None:
                    self.sent.drops += 1
                else:
                    frames.append(frame)
                    if self.active_pairs > 1:
                        self._flows.learn(frame.data, pair)
                if len(done) == _BATCH:
                    queue.complete_many(done)
                    self._send(frames)
                    frames, done = [], []
        finally:
            if done:
                queue.complete_many(done)
                self._send(frames)

    def _send(self, frames: list[Frame]) -> None:
        if not self.link_up:
            self.sent.drops += len(frames)
        elif frames:
            self.sent.packets += len(frames)
            self.sent.bytes += sum(len(frame.data) for frame in frames)
            self._port.send(frames)

    # ------------------------------------------------------------------ receive
    def _enqueue(self, pair: int, header: bytes, data: bytes) -> None:
        waiting = self._waiting[pair]
        if (
            len(waiting) >= MAX_WAITING_FRAMES
            or self._waiting_bytes[pair] + len(data) > MAX_WAITING_BYTES
        ):
            self.received.drops += 1
            return
        waiting.append((header, data))
        self._waiting_bytes[pair] += len(data)

    def _enqueue_finished(self, pair: int, frame: Frame) -> None:
        """Do in software what the driver did not agree to do."""
        if frame.gso is not None:
            pieces = segments(frame, complete=not self._offloads & _GUEST_CSUM)
        else:
            done = with_checksum(frame)
            pieces = [] if done is None else [done]
        if not pieces:
            self.received.drops += 1
        for piece in pieces:
            header = header_for_guest(piece, self._offloads)
            assert header is not None, "a finished frame needs no offload"
            self._enqueue(pair, header, piece.data)

    def _deliver(self, queue: Virtqueue, pair: int) -> None:
        """Fill the driver's buffers with the frames that wait, as many as there is room for."""
        waiting = self._waiting[pair]
        header_bytes = self._header_bytes()
        merge = self.accepted & _MERGE
        chains = queue.chains()
        done: list[tuple[Chain, int]] = []
        try:
            while waiting:
                header, data = waiting[0]
                need = header_bytes + len(data)
                taken: list[Chain] = []
                room = 0
                while room < need and (merge or not taken):
                    chain = next(chains, None)
                    if chain is None:
                        break
                    if not chain.writable_bytes:
                        raise GuestError("VirtioNet: a receive buffer without room")
                    taken.append(chain)
                    room += chain.writable_bytes
                if room < need:
                    queue.give_back(taken)
                    if not taken or (merge and len(taken) < queue.size):
                        return  # more room may come
                    self.received.drops += 1
                    chains = queue.chains()
                else:
                    if header_bytes == HEADER:
                        header = with_num_buffers(header, len(taken))
                    _fill(taken, header + data, done)
                    self.received.packets += 1
                    self.received.bytes += len(data)
                waiting.popleft()
                self._waiting_bytes[pair] -= len(data)
        finally:
            if done:
                queue.complete_many(done)

    def _drop_waiting(self) -> None:
        for pair, waiting in enumerate(self._waiting):
            self.received.drops += len(waiting)
            waiting.clear()
            self._waiting_bytes[pair] = 0

    # ------------------------------------------------------------------ commands
    def _command(self, queue: Virtqueue, chain: Chain) -> None:
        if chain.readable_bytes < 2 or not chain.writable_bytes:
            raise GuestError("VirtioNet: a command without class, number or room for an answer")
        obeyed = False
        if chain.readable_bytes <= _MAX_COMMAND:
            kind, command = chain.read(0, 2)
            obeyed = self._obey(kind, command, chain.read(2, chain.readable_bytes - 2))
        chain.write(0, bytes((OK if obeyed else ERR,)))
        queue.complete(chain, 1)

    def _obey(self, kind: int, command: int, data: bytes) -> bool:
        """Whether the command exists and could be obeyed."""
        if kind == Control.RX:
            return len(data) == 1 and self._filter.switch(command, bool(data[0]))
        if kind == Control.MAC and command == _TABLE_SET:
            return self._filter.set_table(data)
        if kind == Control.MAC and command == _ADDR_SET and len(data) == 6:
            self.config = data + self.config[6:]
            self._filter.mac = data
            return True
        if kind == Control.VLAN and command in (_ADD, _DEL):
            return self._filter.set_vlan(data, on=command == _ADD)
        if kind == Control.ANNOUNCE and command == 0:
            status = self.config[6] & ~LinkStatus.ANNOUNCE
            self.config = self.config[:6] + bytes((status,)) + self.config[7:]
            return True
        if kind == Control.MQ and command == 0 and len(data) == _PAIRS.size:
            (pairs,) = _PAIRS.unpack(data)
            return self._set_pairs(pairs)
        if kind == Control.GUEST_OFFLOADS and command == 0 and len(data) == _OFFLOADS.size:
            (offloads,) = _OFFLOADS.unpack(data)
            if offloads & ~(self.accepted & _GUEST_OFFLOADS):
                return False
            self._offloads = offloads
            return True
        return False

    def _set_pairs(self, pairs: int) -> bool:
        if not self.accepted & NetFeature.MQ or not 1 <= pairs <= self.queue_pairs:
            return False
        self.active_pairs = pairs
        self._flows.clear()
        return True

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """As after power-on; the cable stays as it is."""
        super().reset()
        self._drop_waiting()
        self._filter.reset()
        self._flows.clear()
        self._offloads, self.active_pairs = 0, 1
        status = self.config[6] & ~LinkStatus.ANNOUNCE
        self.config = self._filter.mac + bytes((status,)) + self.config[7:]

    def save(self) -> NetState:
        """The card at rest."""
        base = super().save()
        return NetState(
            **{field.name: getattr(base, field.name) for field in fields(base)},
            active_pairs=self.active_pairs,
            offloads=self._offloads,
            filter=self._filter.save(),
        )

    def restore(self, state: VirtioState) -> None:
        """Continue where `state` was. Raises `ConfigError` when it is another device's."""
        if (
            not isinstance(state, NetState)
            or len(state.config) != _CONFIG.size
            or len(state.queues) != len(self.queues)
            or not 1 <= state.active_pairs <= self.queue_pairs
        ):
            raise ConfigError(
                "VirtioNet: the snapshot's state is damaged, or of a card with more or fewer queues"
            )
        super().restore(state)
        self._drop_waiting()
        self._flows.clear()
        self.active_pairs, self._offloads = state.active_pairs, state.offloads
        self._filter.restore(state.filter)
        self._filter.mac = self.mac


def _fill(chains: list[Chain], packet: bytes, done: list[tuple[Chain, int]]) -> None:
    """Spread `packet` over `chains`, and append to `done` how much each holds."""
    at = 0
    for chain in chains:
        piece = packet[at : at + chain.writable_bytes]
        chain.write(0, piece)
        done.append((chain, len(piece)))
        at += len(piece)
