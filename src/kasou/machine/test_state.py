import hashlib
import json
import threading
import time
from dataclasses import replace

import pytest

from kasou.errors import ConfigError
from kasou.guest.kernels import assembled
from kasou.json_values import from_json, to_json
from kasou.machine.machine import Machine, MachineConfig
from kasou.machine.state import MachineState, restore, save

CONFIG = MachineConfig(memory=32 << 20, clock="icount", seed=5)


def digest(machine: Machine) -> str:
    return hashlib.sha256(machine.memory.read(machine.memory.base, machine.memory.size)).hexdigest()


def tiny(limit: int | None, engine: str = "interpreter") -> MachineConfig:
    return replace(CONFIG, kernel=assembled("tiny"), max_instructions=limit, engine=engine)


def through_json(state: MachineState) -> MachineState:
    return from_json(MachineState, json.loads(json.dumps(to_json(state))))


@pytest.mark.parametrize(
    ("first", "second"),
    [("interpreter", "interpreter"), ("interpreter", "reference"), ("reference", "interpreter")],
)
def test_a_run_in_two_halves_is_the_whole_run(first: str, second: str) -> None:
    """Saved after 1,500 instructions and gone on with elsewhere: the same memory and output."""
    output = bytearray()
    whole = Machine(tiny(9000), output.extend)
    whole.console_input(b"hart\n")
    whole.run(60)
    halves = bytearray()
    half = Machine(tiny(1500, first), halves.extend)
    half.console_input(b"hart\n")
    half.run(60)
    ram, state = half.memory.freeze(), through_json(save(half))
    rest = Machine(tiny(9000, second), halves.extend, ram=ram)
    restore(rest, state)
    rest.run(60)
    assert rest.statistics()["instructions"] == whole.statistics()["instructions"] == 9000
    assert halves == output and b"tiny" in output
    assert digest(rest) == digest(whole)
    assert to_json(save(rest)) == to_json(save(whole))


def test_another_board_refuses_it() -> None:
    machine = Machine(tiny(100), lambda _: None)
    machine.run(60)
    state = save(machine)
    other = Machine(replace(tiny(100), harts=2), lambda _: None)
    with pytest.raises(ConfigError, match="1 harts, the machine 2"):
        restore(other, state)
    with pytest.raises(ConfigError, match="bytes of state"):
        restore(machine, replace(state, cores=(replace(state.cores[0], cells=b""),)))
    with pytest.raises(ConfigError, match="version 9"):
        restore(machine, replace(state, version=9))


@pytest.mark.parametrize("harts", [1, 3])
def test_parked_harts_stand_still(harts: int) -> None:
    """Busy, idle and stopped harts park; the guest's clock stands while it is paused."""
    config = MachineConfig(memory=32 << 20, kernel=assembled("tiny"), harts=harts)
    output = bytearray()
    machine = Machine(config, output.extend)
    thread = threading.Thread(target=machine.run, args=(60,), daemon=True)
    thread.start()
    for _ in range(50):
        machine.pause()
        counts = [core.count for core in machine.cores]
        with machine.parked():
            save(machine)
        time.sleep(0.001)
        assert [core.count for core in machine.cores] == counts
        machine.resume()
        machine.console_input(b"hart\n")
    before = machine.cores[0].time()
    machine.pause()
    time.sleep(0.2)
    machine.resume()
    assert machine.cores[0].time() - before < 1_500_000
    machine.console_input(b"poweroff\n")
    thread.join(20)
    assert not thread.is_alive() and machine.outcome is not None
    assert machine.outcome.kind == "poweroff"


def test_stopped_while_parked() -> None:
    machine = Machine(MachineConfig(memory=32 << 20, kernel=assembled("tiny")), lambda _: None)
    machine.pause()
    thread = threading.Thread(target=machine.run, args=(60,), daemon=True)
    thread.start()
    machine.stop()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("clock", ["host", "icount"])
def test_the_clock_on_the_board_wakes_by_itself(clock: str) -> None:
    """An alarm set on the real-time clock fires though no hart touches the board."""
    config = MachineConfig(memory=32 << 20, kernel=assembled("tiny"), clock=clock)
    machine = Machine(config, lambda _: None)
    with machine.lock:
        rtc = machine.board.rtc
        now = rtc.read_time_low() | rtc.read(4, 4) << 32
        alarm = now + 50_000_000
        rtc.write(0xC, 4, alarm >> 32)
        rtc.write(0x8, 4, alarm & 0xFFFF_FFFF)
    thread = threading.Thread(target=machine.run, args=(60,), daemon=True)
    thread.start()
    for _ in range(500):
        if rtc.save().pending:
            break
        time.sleep(0.01)
    assert rtc.save().pending and not rtc.read_alarm_status()
    machine.stop()
    thread.join(20)
