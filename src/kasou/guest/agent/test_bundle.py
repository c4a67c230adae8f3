import ast
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from kasou.guest.agent.bundle import PARTS, SCRIPT_PATH, agent_script, systemd_unit

# What libpython3.13-minimal of Debian 13 brings, of what the agent imports.
MINIMAL = {
    "collections", "collections.abc", "contextlib", "errno", "fcntl", "functools", "json", "os",
    "pwd", "select", "signal", "socket", "struct", "sys", "time",
}  # fmt: skip


def test_script_imports_only_what_the_guest_has() -> None:
    imported = set()
    for node in ast.walk(ast.parse(agent_script())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported <= MINIMAL


def test_parts_do_not_hide_each_others_names() -> None:
    names = Counter(
        name
        for node in ast.parse(agent_script()).body
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [target.id for target in node.targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
    )
    assert [name for name, n in names.items() if n > 1] == []
    assert len(PARTS) == 6 and "Agent" in names and "frame" in names


def test_script_starts_quickly() -> None:
    """Nothing that is slow to load: the whole start is a second or two on the guest's processor."""
    shown = "import sys; sys.argv = ['']; __name__ = ''\n" + agent_script().decode()
    shown += "\nprint(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", shown], capture_output=True, check=True)
    loaded = run.stdout.decode().split()
    assert not {"typing", "dataclasses", "inspect", "subprocess", "logging", "threading"} & set(
        loaded
    )


def test_unit_starts_the_script(tmp_path: Path) -> None:
    (line,) = [line for line in systemd_unit().splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert words[:4] == ["/usr/bin/python3", "-I", "-S", "-c"]
    (tmp_path / "agent.py").write_bytes(agent_script())
    code = words[4].replace(str(Path(SCRIPT_PATH).parent), str(tmp_path))
    code = code.replace("main([])", f"main(['--unix', '{tmp_path}/socket'])")
    assert code != words[4]
    with subprocess.Popen([sys.executable, *words[1:4], code]) as process:
        deadline = time.monotonic() + 10
        while not (tmp_path / "socket").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None
        process.kill()
    assert list((tmp_path / "__pycache__").glob("agent.*.pyc"))
