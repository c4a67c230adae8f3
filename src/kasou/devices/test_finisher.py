"""SiFive's test finisher: one register through which the guest ends or restarts the machine.

31            16 15             0
+---------------+----------------+   0x5555 pass: power off, success
|     code      |     command    |   0x3333 fail: power off, `code` is the exit code
+---------------+----------------+   0x7777 reset
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kasou.devices.register import DeviceState, Register, RegisterDevice


class Finish(Enum):
    """What the guest asked for, by the command it wrote."""

    FAIL = 0x3333
    PASS = 0x5555
    RESET = 0x7777


OnFinish = Callable[[Finish, int], None]
"""Called with the wish and its code (0 unless `Finish.FAIL`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinisherState(DeviceState):
    """The finisher remembers nothing."""


class Finisher(RegisterDevice[FinisherState]):
    """`sifive,test1`: calls `on_finish` and leaves the ending to the machine."""

    registers = (Register("FINISH", 0, size=4, access="w", sizes=(2, 4)),)
    lax = True

    def __init__(self, on_finish: OnFinish) -> None:
        super().__init__()
        self._on_finish = on_finish

    def write_finish(self, value: int) -> None:
        """Unknown commands are ignored."""
        command, code = value & 0xFFFF, value >> 16
        if command in (kind.value for kind in Finish):
            kind = Finish(command)
            self._on_finish(kind, code if kind is Finish.FAIL else 0)

    def save(self) -> FinisherState:
        """Nothing but the version."""
        return FinisherState(registers={})

    def restore(self, state: FinisherState) -> None:
        """Check the version."""
        self._restore_values(state)
