"""A network of VMs with its gateway, alive: one thread that drives it all.

    hart threads --UserPort.send--> queues --wake--> [thread: sockets, timers, VirtualNetwork]
                                                        |--> the sinks that devices attached

Frames are taken and given in batches: all that waits is received before anything is sent. A sink is
called on the network's thread with the network locked; it may take the device's lock and must not
block, nor call this object. Every other method may be called from any other thread.

With `thread=False` nothing runs by itself: `step(now)` does what is due at `now` (virtual time of
`--clock icount`, from 0) and `deadline` says when it is wanted again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from kasou.control.network.host_sockets import HostSockets
from kasou.errors import ConfigError
from kasou.net.gateway.capture import Capture
from kasou.net.gateway.config import GatewayConfig
from kasou.net.gateway.egress import EgressPolicy
from kasou.net.gateway.forward import Forward, Forwarded
from kasou.net.gateway.gateway import EgressDenied, OpenForward
from kasou.net.gateway.network import NetworkPort, VirtualNetwork
from kasou.net.wire.address import MacAddress, ip_text, mac
from kasou.ports import ByteSink, Frame, FrameSink

log = logging.getLogger("kasou.network")

MAX_QUEUED_FRAMES = 2048
"""What a port keeps of a VM that sends faster than the network takes; more is dropped."""


class UserPort:
    """A VM's end of its wire: `kasou.ports.Port`, and what was opened for it."""

    def __init__(self, network: UserNetwork, port: NetworkPort) -> None:
        self._network, self.port = network, port
        self.sink: FrameSink | None = None
        self.incoming: deque[Frame] = deque()
        self.dropped = 0
        self.forwards: list[OpenForward] = []

    @property
    def name(self) -> str:
        """The VM's name on the network."""
        return self.port.name

    @property
    def address(self) -> str:
        """The IPv4 address that DHCP gives the VM."""
        return ip_text(self.port.station.address4)

    def send(self, frames: Sequence[Frame]) -> None:
        """Frames of the VM; never blocks."""
        if len(self.incoming) >= MAX_QUEUED_FRAMES:
            self.dropped += len(frames)
            return
        self.incoming.extend(frames)
        self._network.frames_wait(self)

    def attach(self, sink: FrameSink | None) -> None:
        """Say who takes the frames for the VM; None drops them."""
        self.sink = sink

    def add_forward(self, forward: Forward | str) -> Forwarded:
        """`UserNetwork.add_forward` to this VM."""
        return self._network.add_forward(self, forward)

    def remove_forward(self, opened: Forwarded) -> None:
        """`UserNetwork.remove_forward` of this VM's."""
        self._network.remove_forward(self, opened)

    def reset_connections(self) -> None:
        """`UserNetwork.reset_connections` of this VM's."""
        self._network.reset_connections(self)


class UserNetwork:
    """See the module. `seed` makes the network's random choices repeatable."""

    def __init__(
        self,
        config: GatewayConfig | None = None,
        *,
        seed: int | None = None,
        thread: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
        on_denied: Callable[[EgressDenied], None] | None = None,
    ) -> None:
        self.config = config or GatewayConfig()
        self.ports: dict[str, UserPort] = {}
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._on_denied = on_denied
        self._rng = random.Random(seed) if seed is not None else random.SystemRandom()
        self._lock = threading.RLock()
        self._waiting: dict[UserPort, None] = {}
        self._sockets = HostSockets()
        self._now = clock() if thread else 0
        self._network = VirtualNetwork(
            self.config, self._sockets, self._rng, self._now, on_denied=self._denied
        )
        self._closing = False
        self._thread: threading.Thread | None = None
        if thread:
            self._thread = threading.Thread(target=self._run, name="kasou-network", daemon=True)
            self._thread.start()

    # ------------------------------------------------------------------ what people ask for

    def add_port(
        self,
        name: str,
        mac_address: MacAddress | str,
        forwards: Iterable[Forward | str] = (),
        egress: EgressPolicy | str | None = None,
        *,
        vlan: int = 1,
        trunk: Collection[int] | None = None,
    ) -> UserPort:
        """Plug VM `name` in, with port forwards. Raises `ConfigError`, `HostError`; then all or nothing."""
        address = mac(mac_address) if isinstance(mac_address, str) else mac_address
        wanted = [Forward.parse(each) if isinstance(each, str) else each for each in forwards]
        policy = EgressPolicy.parse(egress) if isinstance(egress, str) else egress
        with self._lock:
            self._require_open()
            inner = self._network.add_port(name, address, policy, vlan=vlan, trunk=trunk)
            port = self.ports[name] = UserPort(self, inner)
            try:
                for forward in wanted:
                    self.add_forward(port, forward)
            except Exception:
                self.remove_port(port)
                raise
        return port

    def remove_port(self, port: UserPort) -> None:
        """Unplug a VM: its forwards are closed and its connections reset. Nothing is sent after."""
        with self._lock:
            if self.ports.get(port.name) is not port:
                return
            port.sink = None
            self._waiting.pop(port, None)
            self._network.remove_port(port.port)
            del self.ports[port.name]
        self._sockets.wake()

    def add_forward(self, port: UserPort, forward: Forward | str) -> OpenForward:
        """Lead a port of the host to the VM; `.port` of the answer says which. Raises `HostError`."""
        wanted = Forward.parse(forward) if isinstance(forward, str) else forward
        with self._lock:
            self._require_open()
            opened = self._network.gateway.add_forward(wanted, port.port.station)
            port.forwards.append(opened)
        self._sockets.wake()
        return opened

    def remove_forward(self, port: UserPort, opened: Forwarded) -> None:
        """Close a forwarded port; connections that came through it go on."""
        with self._lock:
            mine = next((each for each in port.forwards if each is opened), None)
            if mine is not None:
                port.forwards.remove(mine)
                self._network.gateway.remove_forward(mine)
        self._sockets.wake()

    def reset_connections(self, port: UserPort) -> None:
        """The VM went back to an earlier moment: end what its connections to the host have become.

        Its forwards, address and rules stay; the guest learns of it when it next sends.
        """
        with self._lock:
            self._network.gateway.reset_connections(port.port.station)
        self._sockets.wake()

    def capture(
        self, name: str, sink: ByteSink, *, snap_bytes: int = 0, whole: bool = False
    ) -> Callable[[], None]:
        """Write what passes VM `name`'s port to `sink` as pcapng; call the answer to stop.

        `sink` is called on the network's thread and must not block. Raises `ConfigError`.
        """
        with self._lock:
            port = self.ports.get(name)
            if port is None:
                raise ConfigError(f"the network has no VM named {name!r}")
            now = self._now if self._thread is None else self._clock()
            epoch = time.time_ns() - now
            capture = Capture(sink, name, epoch=epoch, snap_bytes=snap_bytes, whole=whole)
            captures = port.port.captures
            captures.append(capture)

        def stop() -> None:
            with self._lock:
                if capture in captures:
                    captures.remove(capture)

        return stop

    def statistics(self) -> dict[str, Any]:
        """Counters for people: of each port, of TCP, UDP, DNS and the gateway."""
        with self._lock:
            gateway = self._network.gateway
            tcp = gateway.host.tcp.statistics
            return {
                "ports": {
                    name: {
                        "address": port.address,
                        "from_vm": port.port.switch_port.received,
                        "to_vm": port.port.switch_port.sent,
                        "dropped": port.dropped + port.port.switch_port.dropped,
                        "denied": port.port.station.egress.denied,
                        "spoofed": port.port.station.spoofed,
                        "forwards": [str(each.forward) for each in port.forwards],
                    }
                    for name, port in self.ports.items()
                },
                "tcp": {name: getattr(tcp, name) for name in tcp.__slots__},
                "relays": len(gateway.tcp.relays),
                "nat": dict(gateway.tcp.counters),
                "udp": dict(gateway.udp.counters),
                "dns": dict(gateway.dns.counters),
                "ip": dict(gateway.host.ip.counters),
                "malformed": gateway.interface.statistics.malformed,
                "network": dict(self.counters),
            }

    @property
    def sockets(self) -> HostSockets:
        """The reactor of the network's thread; what is posted there may use the network freely."""
        return self._sockets

    def close(self) -> None:
        """End the network: sockets are closed, guests' connections reset. May be called twice."""
        with self._lock:
            if self._closing:
                return
            for port in list(self.ports.values()):
                port.sink = None
            self._network.close()
            self._closing = True
        self._sockets.wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._sockets.close()

    def __enter__(self) -> UserNetwork:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closing:
            raise ConfigError("the network is closed")

    # ------------------------------------------------------------------ the thread

    def frames_wait(self, port: UserPort) -> None:
        """`port` has frames for us. From any thread; `UserPort.send` calls it."""
        self._waiting[port] = None
        self._sockets.wake()

    def _idle(self) -> bool:
        return not self._waiting and not self._closing

    def _run(self) -> None:
        while not self._closing:
            due = self.deadline()
            timeout = None if due is None else max(0, due - self._clock()) / 1e9
            ready = self._sockets.wait(timeout, self._idle)
            with self._lock:
                if self._closing:
                    return
                self._guarded(ready)

    def _guarded(self, ready: list[Any]) -> None:
        """A bug met by one batch must not end every VM's network: it is logged and counted."""
        try:
            self._process(ready, self._clock())
        except Exception:
            self.counters["bugs"] += 1
            log.exception("the network met a bug of ours; what it was doing is dropped")

    def deadline(self) -> int | None:
        """When something is due, ns of the clock."""
        with self._lock:
            return self._network.deadline()

    def step(self, now: int) -> None:
        """Without a thread: do what can be done at `now`, without waiting."""
        assert self._thread is None, "a network with a thread steps by itself"
        with self._lock:
            self._process(self._sockets.wait(0, self._idle), now)

    def _process(self, ready: list[Any], now: int) -> None:
        network = self._network
        self._now = now
        network.gateway.tick(now)
        self._sockets.run(ready)
        while self._waiting:
            port = next(iter(self._waiting))
            del self._waiting[port]
            incoming = port.incoming
            frames = [incoming.popleft() for _ in range(len(incoming))]
            if frames:
                network.receive(port.port, frames, now)
        due = network.deadline()
        if due is not None and due <= now:
            network.handle_timer(now)
        for inner, frames in network.to_send(now):
            holder = self.ports.get(inner.name)
            if holder is not None and holder.sink is not None:
                holder.sink(frames)

    def _denied(self, event: EgressDenied) -> None:
        log.info("%s", event)
        if self._on_denied is not None:
            self._on_denied(event)
