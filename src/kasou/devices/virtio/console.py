"""A terminal for the guest, with its size, and named ports beside it. (Virtio 1.2, 5.3)

    queues 0, 1    receive and transmit of port 0, the console
    queues 2, 3    control: what the device says of its ports, and what the driver does
    queues 4, 5    port 1; 6, 7 port 2 ...

Each port is a stream of bytes, and both ends say when they are open. Linux shows a named port as
`/dev/virtio-ports/NAME`. Without other ports, or with a driver that did not accept MULTIPORT, there
is the console alone, which is always open.

    DEVICE_READY ->             the driver is there
                 <- PORT_ADD    for each port
    PORT_READY   ->             for each port
                 <- CONSOLE_PORT and RESIZE, or PORT_NAME; PORT_OPEN if the host's end is open
    PORT_OPEN    ->             a program of the guest opened or closed it
"""

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag

from kasou.devices.virtio.device import VirtioDevice, VirtioState, log
from kasou.devices.virtio.queue import Virtqueue
from kasou.errors import ConfigError, GuestError
from kasou.ports import ByteSink, GuestMemory

RECEIVE, TRANSMIT = 0, 1
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
QUEUE_SIZE = 64
MAX_PORTS = 31
MAX_MESSAGES = 256
"""Control messages that wait for buffers; a driver that lets more pile up is broken."""
_CHUNK = 1 << 16
_MESSAGE = struct.Struct("<IHH")
_EMERG_WR = 8


class ConsoleFeature(IntFlag):
    """Features of a console."""

    SIZE = 1 << 0
    MULTIPORT = 1 << 1
    EMERG_WRITE = 1 << 2


class Event(IntEnum):
    """What control messages tell."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class PortState:
    """A port at rest; `pending` are bytes that the guest has not taken yet."""

    ready: bool
    guest_open: bool
    host_open: bool
    pending: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleState(VirtioState):
    """A console at rest, with all its ports and the control messages that wait."""

    ports: tuple[PortState, ...]
    messages: tuple[bytes, ...]


class ConsolePort:
    """The host's end of a port; used with the board's lock held.

    `output` takes what the guest sends, `opened` hears when a program of the guest opens (True) or
    closes the port. A port of the guest that nobody reads keeps what the host sends (`waiting`
    bytes of it) until it is opened; what waits when it is closed is gone.
    """

    def __init__(
        self, name: str, output: ByteSink, opened: Callable[[bool], None] | None = None
    ) -> None:
        self.name = name
        self._output = output
        self._opened = opened
        self._device: VirtioConsole | None = None
        self._number = 0
        self._pending = bytearray()
        self.ready = self.guest_open = False
        self.host_open = True

    # ------------------------------------------------------------------ host side
    def receive(self, data: bytes) -> None:
        """Bytes for the guest; they wait until it gives a buffer."""
        self._pending += data
        if self._device is not None:
            self._device.notify(_queue_of(self._number))

    @property
    def waiting(self) -> int:
        """Bytes that the guest has not taken."""
        return len(self._pending)

    def set_open(self, is_open: bool) -> None:
        """Say whether somebody is at the host's end; so it is at first."""
        if is_open != self.host_open:
            self.host_open = is_open
            if self._device is not None and self.ready:
                self._device.tell(self._number, Event.PORT_OPEN, is_open)

    # ------------------------------------------------------------------ for the device
    def attach(self, device: "VirtioConsole", number: int) -> None:
        """This port belongs to `device`."""
        self._device, self._number = device, number

    def transmit(self, queue: Virtqueue) -> None:
        """Take what the driver sends."""
        for chain in queue.chains():
            for done in range(0, chain.readable_bytes, _CHUNK):
                self._output(chain.read(done, min(_CHUNK, chain.readable_bytes - done)))
            queue.complete(chain, 0)

    def deliver(self, queue: Virtqueue) -> None:
        """Fill the driver's buffers with what waits."""
        while self._pending and (chain := queue.next_chain()):
            data = bytes(self._pending[: chain.writable_bytes])
            chain.write(0, data)
            del self._pending[: len(data)]
            queue.complete(chain, len(data))

    def open_by_guest(self, is_open: bool) -> None:
        """The guest opened or closed its end."""
        if is_open == self.guest_open:
            return
        self.guest_open = is_open
        if not is_open:
            self._pending.clear()
        if self._opened is not None:
            self._opened(is_open)

    def output(self, data: bytes) -> None:
        """Bytes of the guest that come by another way."""
        self._output(data)

    def reset(self) -> None:
        """The driver is gone; what was typed still waits for the next one."""
        self.ready = False
        if self.guest_open:
            self.open_by_guest(False)

    def save(self) -> PortState:
        """The port at rest."""
        return PortState(
            ready=self.ready,
            guest_open=self.guest_open,
            host_open=self.host_open,
            pending=bytes(self._pending),
        )

    def restore(self, state: PortState) -> None:
        """Continue where `state` was."""
        self.ready, self.guest_open = state.ready, state.guest_open
        self.host_open = state.host_open
        self._pending = bytearray(state.pending)


class VirtioConsole(VirtioDevice):
    """virtio-console: `output` takes what the guest sends, `receive` brings it what is typed.

    `ports` are further ones, from 1 on in their order. Raises `ConfigError`.
    """

    device_id = 3

    def __init__(
        self,
        memory: GuestMemory,
        output: ByteSink,
        columns: int = 80,
        rows: int = 24,
        *,
        ports: Sequence[ConsolePort] = (),
    ) -> None:
        names = [port.name for port in ports]
        if len(ports) > MAX_PORTS or len(set(names)) != len(names) or not all(names):
            raise ConfigError(
                f"console: up to {MAX_PORTS} ports with names of their own; got {names}"
            )
        offered = ConsoleFeature.SIZE | ConsoleFeature.EMERG_WRITE
        if ports:
            offered |= ConsoleFeature.MULTIPORT
        self.ports = (ConsolePort("", output), *ports)
        sizes = (QUEUE_SIZE,) * (2 * len(self.ports) + (2 if ports else 0))
        super().__init__(memory, int(offered), self._config(columns, rows), sizes)
        self._messages: deque[bytes] = deque()
        for number, port in enumerate(self.ports):
            port.attach(self, number)

    def _config(self, columns: int, rows: int) -> bytes:
        """cols, rows, max_nr_ports, emerg_wr."""
        return struct.pack("<HHII", columns & 0xFFFF, rows & 0xFFFF, len(self.ports), 0)

    # ------------------------------------------------------------------ host side
    def receive(self, data: bytes) -> None:
        """Bytes for the console."""
        self.ports[0].receive(data)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has a new size, in characters."""
        if self._config(columns, rows) != self.config:
            self.change_config(self._config(columns, rows))
            if self.ports[0].ready:
                self._tell_size()

    def tell(self, number: int, event: Event, value: int = 1, more: bytes = b"") -> None:
        """A control message about a port, for a driver that accepted several."""
        if not self.accepted & ConsoleFeature.MULTIPORT:
            return
        if len(self._messages) >= MAX_MESSAGES:
            self.fail(GuestError("VirtioConsole: the driver takes no control messages"))
            return
        self._messages.append(_MESSAGE.pack(number, event, value) + more)
        self.notify(CONTROL_RECEIVE)

    def _tell_size(self) -> None:
        self.tell(0, Event.RESIZE, 0, self.config[:4])

    # ------------------------------------------------------------------ guest side
    def serve(self, index: int) -> None:
        """Move bytes in the direction of the queue."""
        queue = self.queues[index]
        several = bool(self.accepted & ConsoleFeature.MULTIPORT)
        if index in (CONTROL_RECEIVE, CONTROL_TRANSMIT):
            if several and index == CONTROL_TRANSMIT:
                self._hear(queue)
            elif several:
                self._speak(queue)
            return
        number = max(0, (index >> 1) - 1)
        if number and not several:
            return
        port = self.ports[number]
        if index & 1:
            port.transmit(queue)
        elif port.guest_open or not several:
            port.deliver(queue)

    def _speak(self, queue: Virtqueue) -> None:
        while self._messages and (chain := queue.next_chain()):
            message = self._messages.popleft()
            if chain.writable_bytes < len(message):
                raise GuestError(
                    f"VirtioConsole: a control buffer of {chain.writable_bytes} bytes "
                    f"for a message of {len(message)}"
                )
            chain.write(0, message)
            queue.complete(chain, len(message))

    def _hear(self, queue: Virtqueue) -> None:
        for chain in queue.chains():
            if chain.readable_bytes < _MESSAGE.size:
                raise GuestError(
                    f"VirtioConsole: a control message of {chain.readable_bytes} bytes"
                )
            number, event, value = _MESSAGE.unpack(chain.read(0, _MESSAGE.size))
            queue.complete(chain, 0)
            self._obey(number, event, value)

    def _obey(self, number: int, event: int, value: int) -> None:
        """The driver's news; of ports that do not exist there are none."""
        if event == Event.DEVICE_READY:
            if not value:
                log.debug("VirtioConsole: the guest's driver could not set the device up")
                return
            for n in range(len(self.ports)):
                self.tell(n, Event.PORT_ADD)
        elif number >= len(self.ports):
            log.debug("VirtioConsole: the guest speaks of port %d, which there is not", number)
        elif event == Event.PORT_READY:
            if value:
                self._introduce(number)
        elif event == Event.PORT_OPEN:
            self.ports[number].open_by_guest(bool(value))
            if value:
                self.notify(_queue_of(number))

    def _introduce(self, number: int) -> None:
        port = self.ports[number]
        port.ready = True
        if number == 0:
            self.tell(0, Event.CONSOLE_PORT)
            self._tell_size()
        else:
            self.tell(number, Event.PORT_NAME, 1, port.name.encode())
        if port.host_open:
            self.tell(number, Event.PORT_OPEN)

    def write_config(self, offset: int, data: bytes) -> None:
        """`emerg_wr`: one character without a queue, even before the driver is ready."""
        if offset == _EMERG_WR:
            self.ports[0].output(data[:1])

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """As after power-on; what was typed is kept."""
        super().reset()
        self._messages.clear()
        for port in self.ports:
            port.reset()

    def save(self) -> ConsoleState:
        """Console, ports and messages at rest."""
        base = super().save()
        return ConsoleState(
            **{field.name: getattr(base, field.name) for field in fields(base)},
            ports=tuple(port.save() for port in self.ports),
            messages=tuple(self._messages),
        )

    def restore(self, state: VirtioState) -> None:
        """Continue where `state` was. Raises `ConfigError` when it is another device's."""
        if not isinstance(state, ConsoleState) or len(state.ports) != len(self.ports):
            raise ConfigError("VirtioConsole: the snapshot's state is not of a console like this")
        super().restore(state)
        for port, saved in zip(self.ports, state.ports, strict=True):
            port.restore(saved)
        self._messages = deque(state.messages)


def _queue_of(number: int) -> int:
    """The receive queue of a port."""
    return 2 * number + 2 if number else RECEIVE
