"""A running VM's network: its own gateway, or its port on a named network; forwards and captures.

The network stack is imported and started when it is needed: at once for a VM with forwards, rules or
a named network, otherwise when the guest sends its first frame. With counted time it has no thread:
the machine's turns serve it, in the guest's time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kasou.control import operations as op
from kasou.control.assembly import Handlers
from kasou.control.vm_config import VmConfig
from kasou.errors import ConfigError
from kasou.ports import Frame, FrameSink

if TYPE_CHECKING:
    import asyncio

    from kasou.control.network import UserNetwork, UserPort
    from kasou.control.network.client import JoinedPort, NetworkClient
    from kasou.control.server import Pump
    from kasou.machine.machine import Machine
    from kasou.net.gateway.forward import Forwarded

MOST_WAITING = 256
"""Frames that wait for the network to start."""
MOST_CAPTURED = 16 << 20
"""Bytes of a capture that wait for its reader; frames beyond it are left out."""
ALLOW = "allow"


class Wire:
    """The port that the network card holds. What stands behind it may come later, and change."""

    def __init__(self, network: VmNetwork) -> None:
        self._network = network
        self._behind: UserPort | JoinedPort | None = None
        self._sink: FrameSink | None = None
        self._waiting: deque[Frame] = deque(maxlen=MOST_WAITING)

    def send(self, frames: Sequence[Frame]) -> None:
        """Frames of the VM; never blocks."""
        if self._behind is None:
            self._waiting.extend(frames)
            self._network.wanted()
            return
        self._behind.send(frames)

    def attach(self, sink: FrameSink | None) -> None:
        """Who takes the frames for the VM."""
        self._sink = sink
        if self._behind is not None:
            self._behind.attach(sink)

    def connect(self, behind: UserPort | JoinedPort) -> None:
        """The network has started."""
        behind.attach(self._sink)
        self._behind = behind
        waiting = list(self._waiting)
        self._waiting.clear()
        if waiting:
            behind.send(waiting)


class VmNetwork:
    """The network of the VM that `config` describes. Raises `ConfigError`, `HostError`."""

    def __init__(self, config: VmConfig) -> None:
        self.config = config
        self.wire = Wire(self)
        self._user: UserNetwork | NetworkClient | None = None
        self._port: UserPort | JoinedPort | None = None
        self._lock = threading.Lock()
        self._wanted = False
        self._closed = False
        self._machine: Machine | None = None
        self.is_counted = config.clock == "icount"
        if config.ports or config.egress != ALLOW or config.network:
            self.start()

    @property
    def handlers(self) -> Handlers:
        """The operations on it."""
        return {
            "port_list": self.port_list,
            "port_add": self.port_add,
            "port_remove": self.port_remove,
            "capture": self.capture,
        }

    # ------------------------------------------------------------------ life
    def start(self) -> UserPort | JoinedPort:
        """Start it, if that has not happened."""
        with self._lock:
            if self._closed:
                raise ConfigError(f"{self.config.name}: has ended")
            if self._port is None:
                self._port = self._plug_in()
                self.wire.connect(self._port)
            return self._port

    def _plug_in(self) -> UserPort | JoinedPort:
        from kasou.control.network import UserNetwork

        config = self.config
        if config.network is not None:
            from kasou.control.network.named import join

            if self.is_counted:
                raise ConfigError(
                    f"network {config.network}: other VMs' time is not counted; leave out --network"
                    " or --clock icount"
                )
            self._user = join(config.network)
        else:
            self._user = UserNetwork(seed=config.seed, thread=not self.is_counted)
        assert config.mac is not None
        try:
            return self._user.add_port(config.name, config.mac, config.ports, config.egress)
        except BaseException:
            self._user.close()
            self._user = None
            raise

    def wanted(self) -> None:
        """The guest sent a frame and there is no network yet; called by harts, must not wait."""
        if not self._wanted:
            self._wanted = True
            if self.is_counted:
                self.start()  # a run that repeats cannot leave the moment to another thread
            else:
                threading.Thread(target=self.start, name="kasou-network-start", daemon=True).start()

    def serve(self, machine: Machine) -> None:
        """`machine` is the one on the wire now; with counted time its turns serve the network."""
        self._machine = machine
        if self.is_counted:
            machine.runner.companions.append(self._Turns(self))

    class _Turns:
        """The network as a companion of the harts."""

        def __init__(self, network: VmNetwork) -> None:
            self._network = network

        def serve(self) -> int | None:
            """Do what is due in the guest's time; the ns until more is."""
            from kasou.control.network import UserNetwork
            from kasou.engine.hart_state import TICK_NS

            user, machine = self._network._user, self._network._machine
            if not isinstance(user, UserNetwork) or machine is None:
                return None
            now = machine.runner.current.time() * TICK_NS
            user.step(now)
            due = user.deadline()
            return None if due is None else max(0, due - now)

    def close(self) -> None:
        """End it; the machine has ended."""
        with self._lock:
            self._closed = True
            user, self._user = self._user, None
        if user is not None:
            user.close()

    @property
    def address(self) -> str | None:
        """The guest's IPv4 address, once the network has started."""
        return self._port.address if self._port is not None else None

    # ------------------------------------------------------------------ operations
    def forwards(self) -> tuple[op.PortForward, ...]:
        """The ports that are forwarded now."""
        return tuple(map(_described, self._port.forwards)) if self._port is not None else ()

    def port_list(self, request: op.PortList) -> op.PortForwards:
        """The forwarded ports."""
        return op.PortForwards(self.forwards())

    def port_add(self, request: op.PortAdd) -> op.PortForward:
        """Forward one more. Raises `ConfigError`, `HostError` (the port is in use)."""
        port = self.start()
        return _described(port.add_forward(request.spec))

    def port_remove(self, request: op.PortRemove) -> op.Done:
        """Forward one less. Raises `ConfigError` when none is like that."""
        port = self.start()
        text, _, protocol = request.spec.partition("/")
        host, _, number = text.rpartition(":")
        found = [
            one
            for one in port.forwards
            if request.spec in (str(one.forward), _described(one).given)
            or (
                str(_described(one).host_port) == number
                and (protocol or one.forward.protocol) == one.forward.protocol
                and host.strip("[]") in ("", _described(one).host)
            )
        ]
        if not found:
            raise ConfigError(
                f"{self.config.name}: {request.spec} is not forwarded;"
                f" kasou port ls {self.config.name} lists what is"
            )
        for one in found:
            port.remove_forward(one)
        return op.Done()

    async def capture(self, request: op.Capture) -> Pump:
        """Frames as pcapng."""
        import asyncio

        from kasou.control.server import copy_both_ways

        port = await asyncio.to_thread(self.start)
        loop = asyncio.get_running_loop()
        waiting: deque[bytes] = deque()
        ready = asyncio.Event()
        size = 0

        def sink(data: bytes) -> None:
            nonlocal size
            if size + len(data) > MOST_CAPTURED:
                return  # whole blocks are left out: the stream stays readable
            size += len(data)
            waiting.append(data)
            loop.call_soon_threadsafe(ready.set)

        assert self._user is not None
        stop = self._user.capture(port.name, sink, snap_bytes=request.snaplen)

        async def read() -> bytes:
            nonlocal size
            while not waiting:
                ready.clear()
                await ready.wait()
            data = waiting.popleft()
            size -= len(data)
            return data

        async def ignore(data: bytes) -> None:
            """A capture takes no input."""

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await copy_both_ways(reader, writer, read, ignore)
            finally:
                stop()

        return pump


def _described(opened: Forwarded) -> op.PortForward:
    from kasou.net.wire.address import ip_text

    forward = opened.forward
    return op.PortForward(
        forward.protocol, ip_text(forward.host), opened.port, forward.guest_port, str(forward)
    )
