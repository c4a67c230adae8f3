"""pytest: machines as fixtures.

    @pytest.mark.kasou(image="debian:trixie", memory="512M", seed=1)
    def test_nginx(vm):
        vm.run("systemctl start nginx", check=True)

| name | what |
|---|---|
| `vm` | a fork of the session's machine for this image: booted once, shared until written |
| `vm_factory` | `vm_factory(image, ...)` gives further ones, ended with the test |
| `@pytest.mark.kasou(image, memory, seed, net, ...)` | what `vm` is made of; further words as for `kasou.VM` |
| `--kasou-on-fail=shell` | a failing test's machine opens a shell (needs `-s`) |
| `--kasou-on-fail=snapshot` | it is kept, paused, under a name that the report gives |

A base is booted by the first test that needs it, in the process of the worker that runs it, and forked
by all others: under xdist too, where workers find it through a file and its lock. It ends with the
session, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kasou.api import VM

TAIL = 4000
"""Characters of the serial port in a failing test's report."""
WORDS = ("image", "memory", "seed", "net")
FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.getgroup("kasou").addoption(
        "--kasou-on-fail",
        choices=("shell", "snapshot"),
        default=None,
        help="What becomes of a failing test's machine: a shell in it, or keep it.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line(
        "markers",
        "kasou(image, memory, seed, net): what the fixture `vm` is made of, as for kasou.VM",
    )


class Bases:
    """The machines that this session's tests fork; shared among xdist's workers by files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._here: list[VM] = []

    def get(self, arguments: dict[str, Any]) -> VM:
        """The base made of `arguments`, booted by whoever asks first."""
        from kasou.api import VM
        from kasou.errors import KasouError

        key = hashlib.sha256(json.dumps(arguments, sort_keys=True, default=str).encode())
        record = self.directory / key.hexdigest()[:16]
        with open(record.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if record.exists():
                with contextlib.suppress(KasouError):  # its worker may have died: boot another
                    base = VM.open(record.read_text())
                    if base.directory.is_locked():
                        base.hold()
                        self._here.append(base)
                        return base
            base = VM(**arguments)
            base.start()
            if base.config.agent:
                base.wait_for_agent()
            record.write_text(base.name)
        self._here.append(base)
        return base

    def close(self) -> None:
        """Let go of them: a base ends when the last worker has."""
        for base in self._here:
            with contextlib.suppress(Exception):
                base.release()


@pytest.fixture(scope="session")
def kasou_bases(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Bases]:
    """The session's machines."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run:
        directory = Path(tempfile.gettempdir()) / f"kasou-pytest-{os.getuid()}-{run}"
        directory.mkdir(mode=0o700, exist_ok=True)
    else:
        directory = tmp_path_factory.mktemp("kasou")
    bases = Bases(directory)
    yield bases
    bases.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failing test's report gains its machines' last output, and the way back into them."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    vms: list[VM] = getattr(item, "_kasou_vms", [])
    if report.when != "call" or not report.failed or not vms:
        return
    item.stash[FAILED] = True
    wanted = item.config.getoption("--kasou-on-fail")
    for vm in vms:
        with contextlib.suppress(Exception):
            report.sections.append((f"serial port of {vm.name}", serial_tail(vm)))
        if wanted == "snapshot":
            with contextlib.suppress(Exception):
                vm.pause()
                vm.keep()
                line = f"kasou resume {vm.name} && kasou shell {vm.name}"
                report.sections.append((f"{vm.name} is kept, paused", line))
        elif wanted == "shell":
            print(f"\nkasou: {item.nodeid} failed; a shell in {vm.name}", file=sys.stderr)
            command = "from kasou.cli.main import main; main()"
            subprocess.run([sys.executable, "-c", command, "shell", vm.name], check=False)
        else:
            line = "pytest --kasou-on-fail=snapshot keeps it; =shell opens a shell in it"
            report.sections.append((f"to enter {vm.name}", line))


def serial_tail(vm: VM) -> str:
    """The last of what its serial port said, without control sequences."""
    text = vm.directory.console_log.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|[^\n\t -~\u00a0-\uffff]", "", text)[-TAIL:]


def arguments_of(marker: pytest.Mark | None) -> dict[str, Any]:
    """What `kasou.VM` is called with for a marker."""
    if marker is None:
        return {}
    arguments = dict(zip(WORDS, marker.args, strict=False)) | dict(marker.kwargs)
    if "net" in arguments:
        net = arguments.pop("net")
        arguments["network"] = False if net in (False, "none") else (None if net is True else net)
    return arguments


@pytest.fixture
def vm_factory(request: pytest.FixtureRequest, kasou_bases: Bases) -> Iterator[Callable[..., VM]]:
    """`vm_factory(image, ...)`: a fork of the session's machine that is made so."""
    made: list[VM] = []
    request.node._kasou_vms = made

    def make(image: str | None = None, **arguments: Any) -> VM:
        if image is not None:
            arguments["image"] = image
        copy = kasou_bases.get(arguments).fork()
        made.append(copy)
        return copy

    yield make
    for one in made:
        with contextlib.suppress(Exception):
            one.close()


@pytest.fixture
def vm(request: pytest.FixtureRequest, vm_factory: Callable[..., VM]) -> VM:
    """A machine for this test alone: a fork of one that the session has booted."""
    return vm_factory(**arguments_of(request.node.get_closest_marker("kasou")))
