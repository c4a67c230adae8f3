"""kasou from Python: `kasou.VM`, and the same in `kasou.aio` for asyncio.

Reading order: `loop` (how the blocking names are made of the asynchronous ones), `vm`.
"""

from kasou.aio.result import CommandError, Result, TimedOut
from kasou.api.vm import VM, Console, Snapshot

__all__ = ["VM", "CommandError", "Console", "Result", "Snapshot", "TimedOut"]
