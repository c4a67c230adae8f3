"""What an image needs to have the agent: one script, one systemd unit.

The script is the guest-side files of this package, one after the other, without the imports by
which they see each other here. It needs Debian's python3-minimal and nothing else.
"""

import ast
from importlib import resources

from kasou.guest.agent.protocol import PORT

SCRIPT_PATH = "/usr/lib/kasou/agent.py"
UNIT_PATH = "/etc/systemd/system/kasou-agent.service"
UNIT_NAME = "kasou-agent.service"
PARTS = ("protocol", "spawn", "trees", "facts", "renew", "serve")
MODULE = "vmw_vsock_virtio_transport"
"""The kernel's driver for the agent's socket."""
# Imported, not run: so Python keeps the compiled script, and a start is half a second shorter.
_START = f"import sys; sys.path.insert(0, '{SCRIPT_PATH.rpartition('/')[0]}'); import agent; agent.main([])"


def agent_script() -> bytes:
    """The script for `SCRIPT_PATH`: deterministic, about 40 KB."""
    parts = [f'"""kasou\'s agent: runs what the host asks for, on vsock port {PORT}."""\n']
    for name in PARTS:
        source = resources.files("kasou.guest.agent").joinpath(f"{name}.py").read_text("utf-8")
        parts.append(_without_own_imports(source))
    return "\n".join(parts).encode()


def systemd_unit() -> str:
    """The unit for `UNIT_PATH`; enable it for multi-user.target."""
    return f"""\
[Unit]
Description=kasou guest agent
DefaultDependencies=no
After=local-fs.target systemd-remount-fs.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStartPre=-/sbin/modprobe {MODULE}
ExecStart=/usr/bin/python3 -I -S -c "{_START}"
Restart=always
RestartSec=1
KillMode=process
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""


def _without_own_imports(source: str) -> str:
    lines = source.split("\n")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kasou"):
            for i in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[i] = ""
    return "\n".join(line for line in lines if line is not None)
