"""Stream sockets between host and guest, without a network. (Virtio 1.2, 5.10)

The host is CID 2. It connects to a port of the guest with `connect_to`, and takes what the guest
connects to with `listen`; both give a `VsockStream`. Replies go before data, streams with data
take turns. The guest cannot make us keep much: a stream's receive buffer is what its credit says,
streams are bounded, and while too many replies wait for receive buffers its packets are left in
the transmit queue. What does not fit a connection is answered with RST; only a packet that is
malformed as such is a `GuestError`.

Connections do not survive `restore`: after it the owner calls `transport_reset`, and the guest's
driver closes its ends.
"""

import struct
from collections import deque
from collections.abc import Callable
from enum import IntFlag

from kasou.devices.virtio.device import VirtioDevice, VirtioState
from kasou.devices.virtio.queue import Chain
from kasou.devices.virtio.vsock_packet import (
    BOTH_WAYS,
    HEADER_BYTES,
    HOST_CID,
    MAX_DATA,
    Header,
    Op,
    Shutdown,
    Type,
)
from kasou.devices.virtio.vsock_stream import RECEIVE_BYTES, State, VsockStream
from kasou.errors import GuestError, LocalError
from kasou.ports import GuestMemory

RECEIVE, TRANSMIT, EVENT = 0, 1, 2
MAX_STREAMS = 1024
MAX_REPLIES = 1024
"""Replies that may wait for receive buffers before the guest's packets are left alone."""
FIRST_EPHEMERAL = 0x4000_0000
_TRANSPORT_RESET = struct.pack("<I", 0)

Accept = Callable[[VsockStream], None]
"""Takes a connection from the guest and sets its callbacks; may `reset` it at once."""


class VsockFeature(IntFlag):
    """Features of a socket device."""

    STREAM = 1 << 0


class VirtioVsock(VirtioDevice):
    """virtio-vsock: the guest's address is `guest_cid`, from 3 on."""

    device_id = 19
    queue_sizes = (128, 128, 16)

    def __init__(self, memory: GuestMemory, guest_cid: int = 3) -> None:
        if not HOST_CID < guest_cid < 0xFFFF_FFFF:
            raise LocalError(f"VirtioVsock: CID {guest_cid} is not one for a guest")
        super().__init__(memory, int(VsockFeature.STREAM), struct.pack("<Q", guest_cid))
        self._streams: dict[tuple[int, int], VsockStream] = {}
        self._listeners: dict[int, Accept] = {}
        self._next_port = FIRST_EPHEMERAL
        self._reset_due = self._receiving = self._transmitting = False
        self._clear()

    # ------------------------------------------------------------------ host side
    @property
    def guest_cid(self) -> int:
        """The guest's address."""
        return int.from_bytes(self.config[:8], "little")

    def connect_to(self, port: int) -> VsockStream:
        """Connect to the guest's `port`; the owner sets the callbacks before it lets the board go.

        The request waits until the guest has a driver. Raises `LocalError` at `MAX_STREAMS`.
        """
        if len(self._streams) >= MAX_STREAMS:
            raise LocalError(f"VirtioVsock: {MAX_STREAMS} connections are open")
        self.notify(EVENT)
        while (self._next_port, port) in self._streams:
            self._advance_port()
        stream = VsockStream(self, self._next_port, port, Op.REQUEST)
        self._advance_port()
        self._streams[stream.host_port, port] = stream
        self.forward(stream)
        return stream

    def listen(self, port: int, accept: Accept | None) -> None:
        """`accept` takes what the guest connects to the host's `port`; None refuses it again."""
        if accept is None:
            self._listeners.pop(port, None)
        else:
            self._listeners[port] = accept

    def transport_reset(self) -> None:
        """After `restore`: end every connection, and tell the guest that they are gone."""
        self._end_all("the machine was restored")
        self._reset_due = True
        self.notify(EVENT)

    # ------------------------------------------------------------------ for streams
    def forward(self, stream: VsockStream) -> None:
        """The stream has something to send."""
        if stream.state is not State.CLOSED:
            self._ready[stream] = None
            self.notify(RECEIVE)

    def forget(self, stream: VsockStream, tell: bool) -> None:
        """The stream is closed; with `tell` the guest is to hear of it by RST."""
        self._streams.pop((stream.host_port, stream.guest_port), None)
        self._ready.pop(stream, None)
        if tell:
            self._replies.append(self._header(stream, Op.RST))
            self.notify(RECEIVE)

    # ------------------------------------------------------------------ guest side
    def serve(self, index: int) -> None:
        """Packets one way or the other; both loops call the owner, who may call back."""
        if index == RECEIVE:
            self._serve_receive()
            if self._held and len(self._replies) < MAX_REPLIES:
                self.notify(TRANSMIT)
        elif index == TRANSMIT:
            self._serve_transmit()
        elif self._reset_due and (chain := self.queues[EVENT].next_chain()):
            self._reset_due = False
            if chain.writable_bytes < len(_TRANSPORT_RESET):
                raise GuestError(f"VirtioVsock: an event buffer of {chain.writable_bytes} bytes")
            chain.write(0, _TRANSPORT_RESET)
            self.queues[EVENT].complete(chain, len(_TRANSPORT_RESET))

    def fail(self, error: GuestError) -> None:
        """No connection outlives a broken driver."""
        super().fail(error)
        self._end_all("the guest's driver failed")

    def reset(self) -> None:
        """The driver starts anew: its connections are gone."""
        super().reset()
        self._reset_due = False
        self._end_all("the guest's driver was reset")

    def save_pending(self) -> bytes:
        """Whether the guest is still to be told of an earlier restore."""
        return bytes((self._reset_due,))

    def restore_pending(self, pending: bytes) -> None:
        """See `transport_reset`, which the owner calls when the whole machine is back."""
        self._reset_due = True

    def restore(self, state: VirtioState) -> None:
        """Continue where `state` was, without its connections."""
        self._end_all("the machine was restored")
        super().restore(state)

    # ------------------------------------------------------------------
    def _serve_receive(self) -> None:
        """Fill the driver's receive buffers: replies first, then streams in turn."""
        if self._receiving:
            return  # called back by an owner: the loop below goes on with what it added
        self._receiving = True
        queue = self.queues[RECEIVE]
        try:
            while self._replies or self._next_ready():
                chain = queue.next_chain()
                if chain is None:
                    return
                room = chain.writable_bytes - HEADER_BYTES
                if room <= 0:
                    raise GuestError(f"VirtioVsock: a receive buffer of {chain.writable_bytes}")
                packet = self._next_packet(room)
                chain.write(0, packet)
                queue.complete(chain, len(packet))
        finally:
            self._receiving = False

    def _next_ready(self) -> bool:
        """Whether a stream can send; those that cannot leave the turn until something changes."""
        while self._ready and not self._replies:
            stream = next(iter(self._ready))
            if stream.has_packet:
                return True
            del self._ready[stream]
            stream.rest()
        return bool(self._replies)

    def _next_packet(self, room: int) -> bytes:
        """The oldest reply, or else one of the stream whose turn it is, which then waits."""
        if self._replies:
            return self._replies.popleft().pack()
        stream = next(iter(self._ready))
        del self._ready[stream]
        self._ready[stream] = None
        op, flags, data = stream.next_packet(room)
        return self._header(stream, op, flags, len(data)).pack() + data

    def _serve_transmit(self) -> None:
        """Take the driver's packets, as long as our replies find room."""
        if self._transmitting:
            return
        self._transmitting, self._held = True, False
        try:
            while len(self._replies) < MAX_REPLIES:
                chain = self.queues[TRANSMIT].next_chain()
                if chain is None:
                    return
                header, data = _packet(chain)
                self.queues[TRANSMIT].complete(chain, 0)
                self._receive(header, data)
            self._held = True
        finally:
            self._transmitting = False

    def _receive(self, header: Header, data: bytes) -> None:
        """One packet from the guest. (5.10.6.4 to 5.10.6.6)"""
        if header.src_cid != self.guest_cid:
            return  # not from an address of this guest: nobody to answer
        stream = self._streams.get((header.dst_port, header.src_port))
        if header.dst_cid != HOST_CID or header.type != Type.STREAM:
            self._refuse(header)
        elif header.op == Op.REQUEST and stream is None:
            self._accept(header)
        elif stream is None:
            self._refuse(header)
        elif header.op == Op.RST:
            connecting = stream.state is State.CONNECTING
            stream.end("refused by the guest" if connecting else _orderly(stream))
        elif not self._in_stream(stream, header, data):
            self._refuse(header)
            stream.end("the guest broke the protocol of the connection")

    def _in_stream(self, stream: VsockStream, header: Header, data: bytes) -> bool:
        """A packet of a known connection; False when it does not belong into its state."""
        if (header.op == Op.RESPONSE) != (stream.state is State.CONNECTING):
            return False
        stream.grant(header.buf_alloc, header.fwd_cnt)
        if header.op == Op.RESPONSE:
            stream.accepted()
        elif header.op == Op.RW:
            return stream.received(data)
        elif header.op == Op.CREDIT_REQUEST:
            stream.want_credit_update()
        elif header.op == Op.SHUTDOWN:
            if stream.peer_shut(Shutdown(header.flags & BOTH_WAYS)):
                self._refuse(header)  # "a clean disconnect": RST is the answer to both flags
                stream.end("")
        else:
            return header.op == Op.CREDIT_UPDATE
        return True

    def _accept(self, header: Header) -> None:
        accept = self._listeners.get(header.dst_port)
        if accept is None or len(self._streams) >= MAX_STREAMS:
            self._refuse(header)
            return
        stream = VsockStream(self, header.dst_port, header.src_port, Op.RESPONSE)
        self._streams[stream.host_port, stream.guest_port] = stream
        stream.grant(header.buf_alloc, header.fwd_cnt)
        accept(stream)
        if stream.state is State.CONNECTING:
            stream.accepted()

    def _refuse(self, header: Header) -> None:
        """Answer with RST, from where the guest thought it was talking to."""
        if header.op != Op.RST:
            answer = Header(
                src_cid=header.dst_cid,
                dst_cid=header.src_cid,
                src_port=header.dst_port,
                dst_port=header.src_port,
                n=0,
                type=header.type,
                op=Op.RST,
            )
            self._replies.append(answer)
            self.notify(RECEIVE)

    def _header(self, stream: VsockStream, op: Op, flags: int = 0, n: int = 0) -> Header:
        return Header(
            src_cid=HOST_CID,
            dst_cid=self.guest_cid,
            src_port=stream.host_port,
            dst_port=stream.guest_port,
            n=n,
            type=Type.STREAM,
            op=op,
            flags=flags,
            buf_alloc=RECEIVE_BYTES,
            fwd_cnt=stream.fwd_cnt,
        )

    def _advance_port(self) -> None:
        self._next_port += 1
        if self._next_port >= 0xFFFF_FFFF:
            self._next_port = FIRST_EPHEMERAL

    def _end_all(self, reason: str) -> None:
        """Every connection ends, nothing is sent of it."""
        streams = list(self._streams.values())
        self._clear()
        for stream in streams:
            stream.end(reason)

    def _clear(self) -> None:
        self._streams.clear()
        self._replies: deque[Header] = deque()
        self._ready: dict[VsockStream, None] = {}
        self._held = False


def _packet(chain: Chain) -> tuple[Header, bytes]:
    """The driver's packet. Raises `GuestError` when the chain does not hold what it says."""
    if chain.readable_bytes < HEADER_BYTES:
        raise GuestError(f"VirtioVsock: a packet of {chain.readable_bytes} bytes has no header")
    header = Header.parse(chain.read(0, HEADER_BYTES))
    if header.n > min(MAX_DATA, chain.readable_bytes - HEADER_BYTES):
        raise GuestError(
            f"VirtioVsock: {header.n} bytes of data in a packet of {chain.readable_bytes}"
        )
    return header, chain.read(HEADER_BYTES, header.n) if header.op == Op.RW else b""


def _orderly(stream: VsockStream) -> str:
    """Why a stream ended that the guest answered with RST: empty after our `close`."""
    return "" if stream.state is State.CLOSING else "reset by the guest"
