"""kasou: a virtual machine monitor that `pip install` brings.

    import kasou

    with kasou.VM("debian:trixie") as vm:
        print(vm.run("uname -a").stdout)

`kasou.aio` has the same names for asyncio. Names below are imported when they are first used: a
start from the command line needs none of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kasou.api import VM as VM
    from kasou.api import CommandError as CommandError
    from kasou.api import Result as Result
    from kasou.api import Snapshot as Snapshot
    from kasou.api import TimedOut as TimedOut
    from kasou.errors import ConfigError as ConfigError
    from kasou.errors import GuestError as GuestError
    from kasou.errors import HostError as HostError
    from kasou.errors import KasouError as KasouError

__version__ = "0.1.0"

_NAMES = {
    **dict.fromkeys(("VM", "CommandError", "Result", "Snapshot", "TimedOut"), "kasou.api"),
    **dict.fromkeys(("ConfigError", "GuestError", "HostError", "KasouError"), "kasou.errors"),
}
__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        import importlib

        return getattr(importlib.import_module(_NAMES[name]), name)
    if name == "aio":
        import importlib

        return importlib.import_module("kasou.aio")
    raise AttributeError(f"module 'kasou' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES, "aio"])
