"""kasou for asyncio: the names of `kasou.api`, to be awaited.

Reading order: `definition` (what is asked for), `vm`, `commands` (what one does in the guest),
`process`, `console`, `result`. Names are imported when they are first used: `kasou run` needs
`definition` and does without asyncio.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kasou.aio.console import Console as Console
    from kasou.aio.process import Process as Process
    from kasou.aio.result import CommandError as CommandError
    from kasou.aio.result import Result as Result
    from kasou.aio.result import TimedOut as TimedOut
    from kasou.aio.vm import VM as VM
    from kasou.control.operations import SnapshotInfo as Snapshot

_NAMES = {
    "VM": "kasou.aio.vm",
    "Console": "kasou.aio.console",
    "Process": "kasou.aio.process",
    **dict.fromkeys(("CommandError", "Result", "TimedOut"), "kasou.aio.result"),
}
__all__ = ["VM", "CommandError", "Console", "Process", "Result", "Snapshot", "TimedOut"]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "Snapshot":
        return importlib.import_module("kasou.control.operations").SnapshotInfo
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'kasou.aio' has no attribute {name!r}")
