"""Software interrupts and timers of the harts, in SiFive's CLINT layout plus the ACLINT's SSWI.

    clint + 0x0000  MSIP[hart]      4 bytes each, bit 0
    clint + 0x4000  MTIMECMP[hart]  8 bytes each
    clint + 0xbff8  MTIME           8 bytes
    sswi  + 0x0000  SETSSIP[hart]   4 bytes each; writing 1 sets SSIP, reads are 0

The registers live with the harts, where compiled code reaches them; this is their face on the bus.
(RISC-V ACLINT specification 1.0-rc4; it keeps the CLINT's addresses for mswi and mtimer.)
"""

from dataclasses import dataclass
from typing import Protocol

from kasou.devices.register import DeviceState, Register, RegisterDevice

MTIMECMP = 0x4000
MTIME = 0xBFF8


class TimerHost(Protocol):
    """The harts as timers and software interrupts see them; times are in ticks of `mtime`."""

    def set_msip(self, hart: int, on: bool) -> None:
        """Drive the machine software interrupt of `hart`."""
        ...

    def set_ssip(self, hart: int) -> None:
        """Set (an edge; the hart clears it) the supervisor software interrupt of `hart`."""
        ...

    def mtime(self) -> int:
        """The time now."""
        ...

    def set_mtime(self, value: int) -> None:
        """Set the time; timers are compared anew."""
        ...

    def mtimecmp(self, hart: int) -> int:
        """When the machine timer of `hart` interrupts."""
        ...

    def set_mtimecmp(self, hart: int, value: int) -> None:
        """Set when the machine timer of `hart` interrupts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClintState(DeviceState):
    """The software interrupts by hart; times belong to the harts' state."""

    msip: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SswiState(DeviceState):
    """The SSWI remembers nothing."""


class Clint(RegisterDevice[ClintState]):
    """`sifive,clint0`: mswi and mtimer of `harts` harts."""

    lax = True

    def __init__(self, harts: int, host: TimerHost) -> None:
        # fmt: off
        super().__init__((
            Register("MSIP",     0x0000,   count=harts),
            Register("MTIMECMP", MTIMECMP, count=harts, size=8, sizes=(4, 8)),
            Register("MTIME",    MTIME,                 size=8, sizes=(4, 8)),
        ))
        # fmt: on
        self._host = host
        self._msip = [False] * harts

    def read_msip(self, hart: int) -> int:
        """Bit 0."""
        return int(self._msip[hart])

    def write_msip(self, hart: int, value: int) -> None:
        """Bit 0 drives the interrupt."""
        self._msip[hart] = bool(value & 1)
        self._host.set_msip(hart, self._msip[hart])

    def read_mtimecmp(self, hart: int) -> int:
        """Ticks."""
        return self._host.mtimecmp(hart)

    def write_mtimecmp(self, hart: int, value: int) -> None:
        """Ticks."""
        self._host.set_mtimecmp(hart, value)

    def read_mtime(self) -> int:
        """Ticks."""
        return self._host.mtime()

    def write_mtime(self, value: int) -> None:
        """Ticks."""
        self._host.set_mtime(value)

    def reset(self) -> None:
        """Drop the software interrupts; the harts reset their own timers."""
        super().reset()
        for hart in range(len(self._msip)):
            self.write_msip(hart, 0)

    def save(self) -> ClintState:
        """The software interrupts."""
        return ClintState(registers={}, msip=tuple(self._msip))

    def restore(self, state: ClintState) -> None:
        """Take over `state` and drive every software interrupt."""
        self._restore_values(state)
        for hart, on in enumerate(state.msip):
            self.write_msip(hart, int(on))


class Sswi(RegisterDevice[SswiState]):
    """`riscv,aclint-sswi`: supervisor software interrupts between harts without the firmware."""

    lax = True

    def __init__(self, harts: int, host: TimerHost) -> None:
        super().__init__((Register("SETSSIP", 0, count=harts),))
        self._host = host

    def read_setssip(self, _: int) -> int:
        """Always 0."""
        return 0

    def write_setssip(self, hart: int, value: int) -> None:
        """Bit 0 sets SSIP."""
        if value & 1:
            self._host.set_ssip(hart)

    def save(self) -> SswiState:
        """Nothing but the version."""
        return SswiState(registers={})

    def restore(self, state: SswiState) -> None:
        """Check the version."""
        self._restore_values(state)
