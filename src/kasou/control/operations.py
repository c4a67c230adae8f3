"""The operations on a running VM, each typed once.

A request is a dataclass: its class says what it is called, what answers it, and whether the
connection becomes a stream afterwards. From this table come the server's dispatch, the client's
types, what `--json` prints, and `docs`. How requests travel: `messages`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

R = TypeVar("R")


class Request(Generic[R]):
    """Base of all requests; `R` is the type of the answer."""

    operation: ClassVar[str]
    answer: ClassVar[type]
    is_stream: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Done:
    """It was done."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the machine ended: `kind` poweroff, exit, reset, budget, timeout, stopped or failed."""

    kind: str
    code: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class PortForward:
    """A port of the host that leads to a port of the guest.

    `host` is an address; `given` how the user wrote it.
    """

    protocol: str
    host: str
    host_port: int
    guest_port: int
    given: str = ""


@dataclass(frozen=True, slots=True)
class PortForwards:
    """What `port_list` answers."""

    ports: tuple[PortForward, ...] = ()


@dataclass(frozen=True, slots=True)
class VmInfo:
    """A VM as `kasou info` shows it. `memory` in bytes, times in seconds since 1970.

    `address` is the guest's on its network; `statistics` are the machine's counters.
    """

    name: str
    state: Literal["running", "paused", "stopped", "crashed"]
    image: str | None
    cpus: int
    memory: int
    created: str
    pid: int | None = None
    started: float | None = None
    ended: Ended | None = None
    ports: tuple[PortForward, ...] = ()
    network: str | None = None
    address: str | None = None
    clock: str = "host"
    seed: int | None = None
    technique: str = "direct"
    ephemeral: bool = False
    parent: str | None = None
    agent: bool = False
    directory: str = ""
    console_log: str = ""
    statistics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot of a VM: RAM, devices and disks at one moment. `size` is what it takes on disk.

    `parent` is the snapshot the VM had come from; `current` whether the VM comes from this one.
    """

    name: str
    comment: str = ""
    created: str = ""
    parent: str | None = None
    size: int = 0
    current: bool = False


@dataclass(frozen=True, slots=True)
class Forked:
    """What `fork` answers."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Info(Request[VmInfo]):
    """What the VM is and how it does."""

    operation = "info"
    answer = VmInfo


@dataclass(frozen=True, slots=True)
class Stop(Request[Ended]):
    """Press the power button and wait; `force` ends the machine at once.

    After `timeout` seconds without an end it is an error, or with `then_force` a forced end.
    """

    operation = "stop"
    answer = Ended
    force: bool = False
    timeout: float = 60.0
    then_force: bool = False


@dataclass(frozen=True, slots=True)
class Wait(Request[Ended]):
    """Wait for the machine's end."""

    operation = "wait"
    answer = Ended


@dataclass(frozen=True, slots=True)
class Pause(Request[Done]):
    """Stop the harts at an instruction boundary."""

    operation = "pause"
    answer = Done


@dataclass(frozen=True, slots=True)
class Resume(Request[Done]):
    """Let the harts go on."""

    operation = "resume"
    answer = Done


@dataclass(frozen=True, slots=True)
class Keep(Request[Done]):
    """Make an ephemeral VM an ordinary one, which stays when nobody holds it."""

    operation = "keep"
    answer = Done


@dataclass(frozen=True, slots=True)
class Hold(Request[Done]):
    """Keep a held VM alive: it ends when the last connection that holds it has closed."""

    operation = "hold"
    answer = Done
    is_stream = True


@dataclass(frozen=True, slots=True)
class Console(Request[Done]):
    """The serial port, as a stream; begins with up to `replay` bytes of what it said before."""

    operation = "console"
    answer = Done
    is_stream = True
    replay: int = 0


@dataclass(frozen=True, slots=True)
class Tunnel(Request[Done]):
    """A stream to a vsock port of the guest; waits up to `timeout` seconds for a listener."""

    operation = "tunnel"
    answer = Done
    is_stream = True
    port: int = 0
    timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class Capture(Request[Done]):
    """Every frame at the VM's network port, as a stream of pcapng."""

    operation = "capture"
    answer = Done
    is_stream = True
    snaplen: int = 0


@dataclass(frozen=True, slots=True)
class PortList(Request[PortForwards]):
    """The forwarded ports."""

    operation = "port_list"
    answer = PortForwards


@dataclass(frozen=True, slots=True)
class PortAdd(Request[PortForward]):
    """Forward one more port, written as for `-p`."""

    operation = "port_add"
    answer = PortForward
    spec: str = ""


@dataclass(frozen=True, slots=True)
class PortRemove(Request[Done]):
    """No longer forward a port: as `-p` wrote it, or [ADDRESS:]PORT[/udp] of the host."""

    operation = "port_remove"
    answer = Done
    spec: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotCreate(Request[SnapshotInfo]):
    """Keep RAM, devices and disks under a name (None: a fresh one); the VM goes on."""

    operation = "snapshot_create"
    answer = SnapshotInfo
    name: str | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotRestore(Request[SnapshotInfo]):
    """Go back to a snapshot; what happened since is dropped."""

    operation = "snapshot_restore"
    answer = SnapshotInfo
    name: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotRemove(Request[Done]):
    """Forget a snapshot; those made after it stay whole."""

    operation = "snapshot_remove"
    answer = Done
    name: str = ""


@dataclass(frozen=True, slots=True)
class Fork(Request[Forked]):
    """Live copies of the VM under these names, running; they share its pages until written."""

    operation = "fork"
    answer = Forked
    names: tuple[str, ...] = ()
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Save(Request[Done]):
    """Write the whole VM into the file `path`; with `stop` it ends there."""

    operation = "save"
    answer = Done
    path: str = ""
    stop: bool = True


OPERATIONS: dict[str, type[Request[Any]]] = {
    request.operation: request
    for request in (
        Info, Stop, Wait, Pause, Resume, Keep, Hold, Console, Tunnel, Capture,
        PortList, PortAdd, PortRemove,
        SnapshotCreate, SnapshotRestore, SnapshotRemove, Fork, Save,
    )
}  # fmt: skip
