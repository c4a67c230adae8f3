from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.cli import app, main, run
from kasou.cli.options import RunOptions, UsageError, parse_drive, parse_plainly, parse_size
from kasou.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("64k", 64 << 10),
        ("128", 128 << 20),
        ("1GiB", 1 << 30),
    ],
)
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "0", "12X", "１２M"])
def test_bad_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_drive() -> None:
    assert parse_drive("a,b.img,ro") == ("a,b.img", True)
    assert parse_drive("a,b.img") == ("a,b.img", False)
    with pytest.raises(UsageError):
        parse_drive(",ro")


WORDS = """
    tiny x --smp 2 --smp=3 --lockstep --lockstep=1 --memory 1G --drive a.img --drive=b,ro --json
    --append --append=console=ttyS0 --append= --timeout 1.5 --no-reboot --no_reboot --help -h --
    --seed 7 --seed=x --seed=-1 --smp=1_0 --timeout=inf --clock icount --bios none --unknown
    --max-instructions 100
"""
ARGUMENTS = st.lists(st.sampled_from(WORDS.split()), max_size=6)


@given(ARGUMENTS)
def test_the_fast_reader_agrees_with_typer(arguments: list[str]) -> None:
    fast = parse_plainly(arguments)
    if fast is None:
        return
    seen: list[RunOptions] = []
    execute, run.execute = run.execute, lambda options: seen.append(options) or 0  # type: ignore
    try:
        assert app.invoke(["run", *arguments]) == 0
    finally:
        run.execute = execute
    assert seen == [fast]


def test_every_option_is_read_fast() -> None:
    assert parse_plainly([]) == RunOptions()
    for name in RunOptions._fields[1:]:
        flag = f"--{name.replace('_', '-')}"
        assert parse_plainly([flag]) or parse_plainly([flag, "1"]), name


@dataclass(frozen=True)
class Drive:
    path: Path
    read_only: bool


@dataclass(frozen=True)
class Outcome:
    kind: str
    code: int


@dataclass
class Board:
    """Stands for `kasou.machine.machine`."""

    outcome: Outcome | BaseException = Outcome("poweroff", 0)
    config: Any = None


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    made = Board()
    fake: Any = types.ModuleType("kasou.machine.machine")

    class Machine:
        def __init__(self, config: Any, console_output: Callable[[bytes], None]) -> None:
            made.config, self.write = config, console_output

        def console_input(self, data: bytes) -> None: ...

        def run(self, timeout: float | None) -> Outcome:
            if isinstance(made.outcome, BaseException):
                raise made.outcome
            self.write(b"hello\n")
            return made.outcome

        def stop(self) -> None: ...

        def statistics(self) -> dict[str, object]:
            return {"instructions": 7}

    fake.Machine, fake.Drive = Machine, Drive
    fake.MachineConfig = lambda **settings: types.SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "kasou.machine.machine", fake)
    yield made


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome("poweroff", 0), 0),
        (Outcome("exit", 7), 7),
        (Outcome("exit", 0x100), 1),
        (Outcome("exit", -1), 255),
        (Outcome("reset", 0), 0),
        (Outcome("budget", 0), 0),
        (Outcome("timeout", 0), 124),
        (Outcome("stopped", 0), 130),
        (ConfigError("prog: not for RISC-V"), 125),
        (RuntimeError("a bug"), 125),
        (MemoryError(), 125),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    board: Board, outcome: Any, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    board.outcome = outcome
    (tmp_path / "k").write_bytes(b"")
    assert command("run", "--kernel", str(tmp_path / "k"), "--timeout", "5") == code
    error = capfd.readouterr().err
    assert "Traceback" not in error and error.count("\n") == (code in (124, 125))


def test_configuration(board: Board, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kernel = tmp_path / "k"
    kernel.write_bytes(b"")
    line = f"--kernel {kernel} --initrd {kernel} --memory 1G --smp 2 --drive {kernel},ro"
    line += " --bios none --clock icount --seed 5 --no-reboot --json --append a=b"
    assert command("run", *line.split()) == 0
    assert board.config == types.SimpleNamespace(
        memory=1 << 30, harts=2, engine="interpreter", clock="icount", seed=5, bios="none",
        kernel=kernel, initrd=kernel, append="a=b", drives=(Drive(kernel, True),),
        reboot=False, max_instructions=None,
    )  # fmt: skip
    out, error = capfd.readouterr()
    assert out == "hello\n"
    assert json.loads(error)["statistics"] == {"instructions": 7}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("run --smp 0", 2),
        ("run --smp 9", 2),
        ("run --smp many", 2),
        ("run --engine fast", 2),
        ("run --clock sun", 2),
        ("run --memory lots", 2),
        ("run --timeout 0", 2),
        ("run --bios none", 2),
        ("run tiny --kernel x", 2),
        ("run --wat", 2),
        ("run a b", 2),
        ("wat", 2),
        ("explain adi", 2),
        ("run --kernel /nonexistent/kernel", 125),
        ("run --kernel /", 125),
        ("run --drive /nonexistent/disk", 125),
    ],
)
def test_bad_input_is_one_line(
    board: Board, line: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(*line.split()) == code
    out, error = capfd.readouterr()
    assert error.startswith("kasou: ") and error.count("\n") == 1 and not out


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("explain", "addi") == 0
    text = capsys.readouterr().out
    assert "| imm[11:0] |" in text and "addi rd, rs1, imm" in text and "rv64/i.py" in text
    assert command("explain", "LUI", "--json") == 0
    assert json.loads(capsys.readouterr().out)["match"] == 0b0110111


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    command("doctor", "--json")
    found = {one["what"]: one["state"] for one in json.loads(capsys.readouterr().out)}
    assert found["python"] == "ok" and set(found.values()) <= {"ok", "missing", "bad"}


def test_the_fast_way_imports_nothing_slow() -> None:
    code = (
        "import sys, kasou.cli.main, kasou.cli.run; "
        "print(*{'typer', 'rich', 'click', 'llvmlite', 'argparse', 'kasou.isa'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""
