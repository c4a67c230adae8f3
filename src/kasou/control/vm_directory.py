"""A VM on disk, and whether it runs.

    <data>/vms/NAME/
        vm.json        what it is made of (`VmConfig`)
        state.json     what its process last said of itself (`VmState`)
        lock           held by its process for life
        disk.qcow2     what it has written, over the image's base
        snapshots/     by name
    <state>/vms/NAME/console.log
    <runtime>/NAME.sock

A VM runs if and only if its lock is held: the kernel lets go of a lock when its holder dies,
however it dies. A socket without the lock is stale; a state "running" without it is a crash.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kasou.control.vm_config import NAME, VERSION, VmConfig, check_name
from kasou.errors import ConfigError, HostError, KasouError, RemoteError
from kasou.json_values import from_json, to_json
from kasou.paths import data_directory, runtime_directory, state_directory

State = Literal["running", "paused", "stopped", "crashed"]

LEFTOVER_SECONDS = 300.0
"""A held VM that has not run for so long after it was made never will."""
FLOCK = struct.Struct("hhqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid (Linux, 64 bits)."""


@dataclass(frozen=True, slots=True)
class VmState:
    """What a VM's process last wrote: `pid` its own, `ended` how the machine ended if it has."""

    state: State
    pid: int | None = None
    started: float | None = None
    ended: str | None = None
    code: int = 0
    message: str = ""
    restored_from: str | None = None


@dataclass(frozen=True, slots=True)
class VmDirectory:
    """The files of the VM called `name`; they need not exist."""

    name: str

    @property
    def path(self) -> Path:
        """Its directory."""
        return vms_directory() / self.name

    @property
    def snapshots(self) -> Path:
        """The directory of its snapshots."""
        return self.path / "snapshots"

    @property
    def disk(self) -> Path:
        """Its own disk."""
        return self.path / "disk.qcow2"

    @property
    def console_log(self) -> Path:
        """What its serial port said."""
        return state_directory() / "vms" / self.name / "console.log"

    @property
    def socket_name(self) -> str:
        """Its control socket, in the runtime directory."""
        return f"{self.name}.sock"

    @property
    def exists(self) -> bool:
        """Whether there is such a VM."""
        return (self.path / "vm.json").is_file()

    # ------------------------------------------------------------------ what it is
    def read_config(self) -> VmConfig:
        """Raises `ConfigError` when `vm.json` is missing, damaged or newer than this kasou."""
        path = self.path / "vm.json"
        try:
            data = json.loads(path.read_text())
            version = data.get("version") if isinstance(data, dict) else None
            if isinstance(version, int) and version > VERSION:
                raise ConfigError(f"{path}: written by a newer kasou (version {version})")
            return from_json(VmConfig, data)
        except FileNotFoundError:
            raise no_such_vm(self.name) from None
        except (ValueError, RemoteError, OSError) as problem:
            raise ConfigError(f"{path}: damaged ({problem}); kasou rm -f {self.name}") from None

    def write_config(self, config: VmConfig) -> None:
        """Replace `vm.json` in one step."""
        replace(self.path / "vm.json", json.dumps(to_json(config), indent=2) + "\n")

    def read_state(self) -> VmState:
        """What the process last said; "stopped" when it never ran or the file is damaged."""
        try:
            return from_json(VmState, json.loads((self.path / "state.json").read_text()))
        except (OSError, ValueError, RemoteError):
            return VmState("stopped")

    def write_state(self, state: VmState) -> None:
        """Replace `state.json` in one step."""
        replace(self.path / "state.json", json.dumps(to_json(state)) + "\n")

    def state(self) -> VmState:
        """How it is now, from the lock and the file."""
        said = self.read_state()
        if self.is_locked():
            return said if said.state in ("running", "paused") else VmState("running")
        if said.state in ("running", "paused"):
            return VmState("crashed", started=said.started, ended="killed")
        return said

    # ------------------------------------------------------------------ the lock
    def is_locked(self) -> bool:
        """Whether a process runs this VM; asks without taking."""
        return self.holder() is not None

    def holder(self) -> int | None:
        """The pid written in the lock file by whoever holds it (0 if none is), else None."""
        try:
            file = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_ = FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
            if kind == fcntl.F_UNLCK:
                return None
            text = os.pread(file, 32, 0).strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(file)

    def lock(self) -> int:
        """Take the lock for this process; the descriptor that holds it. Raises `ConfigError`."""
        file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            wanted = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
        except OSError:
            os.close(file)
            raise ConfigError(f"{self.name}: is running already") from None
        os.ftruncate(file, 0)
        os.pwrite(file, b"%d\n" % os.getpid(), 0)
        return file

    # ------------------------------------------------------------------ making and removing
    def create(self, config: VmConfig) -> None:
        """Make the directory with `vm.json` in it. Raises `ConfigError` when the name is taken."""
        check_name(self.name)
        parent = vms_directory()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        except OSError as problem:
            raise HostError(
                f"{parent}: cannot be written ({problem.strerror}); set KASOU_HOME"
            ) from None
        try:
            replace(fresh / "vm.json", json.dumps(to_json(config), indent=2) + "\n")
            # Renaming onto a directory succeeds only while that is empty: a name is taken once.
            os.rename(fresh, self.path)
        except OSError as problem:
            if self.exists:
                raise ConfigError(
                    f"{self.name}: there is a VM of this name; kasou rm {self.name} removes it"
                ) from None
            raise HostError(f"{self.path}: cannot be made ({problem.strerror})") from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def remove(self) -> None:
        """Delete all its files; nobody may be running it. Raises `HostError`."""
        with contextlib.suppress(OSError):  # it vanishes from `ls` at once, then its files go
            os.unlink(runtime_directory() / self.socket_name)
        doomed = self.path.with_name(f".removed-{self.name}-{os.getpid()}-{time.monotonic_ns()}")
        try:
            os.rename(self.path, doomed)
            shutil.rmtree(doomed)
            shutil.rmtree(self.console_log.parent, ignore_errors=True)
        except FileNotFoundError:
            return
        except OSError as problem:
            raise HostError(f"{problem.filename}: cannot be removed ({problem.strerror})") from None


def vms_directory() -> Path:
    """Where VMs are."""
    return data_directory() / "vms"


def all_vms() -> list[VmDirectory]:
    """Every VM there is, by name."""
    try:
        entries = sorted(os.listdir(vms_directory()))
    except OSError:
        return []
    return [vm for name in entries if NAME.fullmatch(name) and (vm := VmDirectory(name)).exists]


def remove_leftovers() -> None:
    """Delete held VMs whose process was killed: whoever held them is gone, or would have."""
    for vm in all_vms():
        try:
            age = time.time() - os.stat(vm.path / "vm.json").st_mtime
            if age > LEFTOVER_SECONDS and vm.read_config().held and not vm.is_locked():
                vm.remove()
        except (OSError, KasouError):
            continue


def find(name: str) -> VmDirectory:
    """The VM called `name`. Raises `ConfigError` with the nearest name there is."""
    check_name(name)
    vm = VmDirectory(name)
    if not vm.exists:
        raise no_such_vm(name)
    return vm


def no_such_vm(name: str) -> ConfigError:
    """The error that says so, with a suggestion."""
    names = [vm.name for vm in all_vms()]
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return ConfigError(f"no VM is called {name}; did you mean {near[0]}?")
    return ConfigError(f"no VM is called {name}; kasou ls lists them")


def free_name(stem: str) -> Iterator[str]:
    """Names not taken now: the stem with 1, 2, 3 ... behind it."""
    clean = "".join(c if c.isalnum() and c.isascii() else "-" for c in stem).strip("-") or "vm"
    for number in range(1, 100_000):
        name = f"{clean[:48]}-{number}"
        if not (vms_directory() / name).exists():
            yield name


def replace(path: Path, text: str) -> None:
    """Write `text` so that a reader finds the old or the new file, whole. Raises `HostError`."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        fresh.write_text(text)
        os.replace(fresh, path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise HostError(f"{path}: cannot be written ({problem.strerror})") from None
