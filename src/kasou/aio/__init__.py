"""kasou for asyncio: the names of `kasou.api`, to be awaited.

Reading order: `definition` (what is asked for), `vm`, `commands` (what one does in the guest),
`process`, `console`, `result`.
"""

from kasou.aio.console import Console
from kasou.aio.process import Process
from kasou.aio.result import CommandError, Result, TimedOut
from kasou.aio.vm import VM

__all__ = ["VM", "CommandError", "Console", "Process", "Result", "TimedOut"]
