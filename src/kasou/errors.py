"""Errors, named for who broke the rule.

`Trap` (in `kasou.isa.trap`) is not among them: a guest's program that meets the architecture is
normal. A bug of ours is an `AssertionError`.
"""


class KasouError(Exception):
    """Base of every error that kasou reports to a person: one line saying what, where, what to do."""


class ConfigError(KasouError):
    """The user's input (a flag, a file, an image) cannot work as given."""


class HostError(KasouError):
    """The outside (file system, network, host kernel) refused something.

    `errno` is the host's error number, None where it gave none.
    """

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class GuestError(KasouError):
    """The guest's driver broke a device's contract; the VM goes on, the device asks for reset."""


class BusError(KasouError):
    """No device answers a guest-physical address with this access; the hart takes an access fault."""


class LocalError(KasouError):
    """We used a protocol wrongly."""


class RemoteError(KasouError):
    """The peer broke a protocol."""
