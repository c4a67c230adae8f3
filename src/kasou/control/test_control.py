from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.control import operations as op
from kasou.control.messages import (
    LENGTH,
    MOST_BYTES,
    decode,
    decode_length,
    describe,
    encode,
    error_from,
    sanitised,
)
from kasou.control.serial import BACKLOG_BYTES, LOG_BYTES, TAIL_BYTES, SerialLog
from kasou.control.server import request_from
from kasou.control.socket_path import bound, connected
from kasou.control.vm_config import VmConfig, check_name
from kasou.control.vm_directory import VmDirectory, VmState, find
from kasou.errors import ConfigError, HostError, KasouError, RemoteError
from kasou.json_values import from_json, to_json


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KASOU_HOME", str(tmp_path / "home"))
    return tmp_path


# ---------------------------------------------------------------------- messages
def test_every_request_survives_the_wire() -> None:
    for name, kind in op.OPERATIONS.items():
        request = kind()
        message = {"operation": name, "arguments": to_json(request)}
        data = encode(message)
        length = decode_length(data[: LENGTH.size])
        assert request_from(decode(data[LENGTH.size : LENGTH.size + length])) == request
        assert isinstance(from_json(kind.answer, to_json(example(kind.answer))), kind.answer)


def example(kind: type) -> object:
    if kind is op.VmInfo:
        return op.VmInfo("web", "running", None, 1, 1 << 20, "now", ports=(example_port(),))
    if kind is op.PortForward:
        return example_port()
    return kind("x") if kind in (op.Ended, op.SnapshotInfo) else kind()


def example_port() -> op.PortForward:
    return op.PortForward("tcp", "127.0.0.1", 8080, 80)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_remote_error(data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        request_from(decode(data))


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=5) | st.none()))
def test_any_arguments_are_a_request_or_a_remote_error(arguments: dict[str, object]) -> None:
    for name in op.OPERATIONS:
        with contextlib.suppress(RemoteError):
            request_from({"operation": name, "arguments": arguments})


def test_a_length_that_cannot_be() -> None:
    with pytest.raises(RemoteError):
        decode_length(LENGTH.pack(MOST_BYTES + 1))


@pytest.mark.parametrize("problem", [ConfigError("a"), HostError("b"), RemoteError("c")])
def test_errors_come_back_as_they_were(problem: KasouError) -> None:
    back = error_from(describe(problem))
    assert type(back) is type(problem) and str(back) == str(problem)


def test_errors_of_others() -> None:
    assert str(error_from(describe(ZeroDivisionError("x")))).startswith(
        "the VM's process has a bug"
    )
    assert isinstance(error_from({"kind": "new", "message": 3}), RemoteError)
    assert isinstance(error_from(None), RemoteError)


@given(st.text())
def test_what_is_sanitised_obeys_no_one(text: str) -> None:
    assert all(c.isprintable() for c in sanitised(text))


# ---------------------------------------------------------------------- directories
def config(name: str = "web") -> VmConfig:
    return VmConfig(name=name, created="2026-01-01T00:00:00+00:00", ports=("8080:80",))


def test_a_directory_is_made_once(home: Path) -> None:
    vm = VmDirectory("web")
    vm.create(config())
    assert vm.read_config() == config() and vm.state() == VmState("stopped")
    with pytest.raises(ConfigError, match="there is a VM"):
        vm.create(config())
    with pytest.raises(ConfigError, match="did you mean web"):
        find("wbe")
    vm.remove()
    assert not vm.exists and os.listdir(vm.path.parent) == []


def test_the_lock_tells_who_runs_it(home: Path) -> None:
    vm = VmDirectory("web")
    vm.create(config())
    assert vm.holder() is None
    file = vm.lock()
    vm.write_state(VmState("running", os.getpid()))
    assert vm.holder() == os.getpid() and vm.state().state == "running"
    with pytest.raises(ConfigError, match="running already"):
        vm.lock()
    os.close(file)
    assert vm.state().state == "crashed"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "x" * 64, "a\n", "a b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)


def test_a_socket_at_a_long_path(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / "web.sock"
    path.parent.mkdir()
    with bound(path) as listener, connected(path) as client:
        peer, _ = socket.socket.accept(listener)
        with peer:
            client.sendall(b"x")
            assert peer.recv(1) == b"x"


# ---------------------------------------------------------------------- the serial port
def test_the_log_is_bounded_and_a_slow_reader_is_told(tmp_path: Path) -> None:
    async def work() -> None:
        log = SerialLog(tmp_path / "console.log")
        log.write(b"before")
        log.start(asyncio.get_running_loop())
        slow, quick = log.attach(replay=3), log.attach(replay=0)
        assert await slow.read() == b"ore"
        for _ in range(40):
            log.write(bytes(300_000))
            log.flush()
            assert len(await quick.read()) == 300_000
        data = await slow.read()
        assert b"bytes skipped" in data and len(data) < BACKLOG_BYTES + 100
        assert len(log.tail) == TAIL_BYTES
        log.write(b"end")
        log.end()
        assert (await quick.read(), await quick.read()) == (b"end", b"")
        sizes = [path.stat().st_size for path in tmp_path.iterdir()]
        assert len(sizes) == 2 and max(sizes) < LOG_BYTES + 400_000

    asyncio.run(work())


def test_a_log_that_cannot_be_written_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = SerialLog(tmp_path / "file" / "console.log")
    log.write(b"x")
    log.flush()


def test_state_files_that_are_damaged_count_as_stopped(home: Path) -> None:
    vm = VmDirectory("web")
    vm.create(config())
    for text in ("", "[]", json.dumps({"state": "flying"})):
        (vm.path / "state.json").write_text(text)
        assert vm.state().state == "stopped"
