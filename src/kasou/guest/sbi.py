"""The built-in SBI: the firmware interface that a supervisor calls with `ecall`.

Rules (RISC-V Supervisor Binary Interface Specification 2.0):

* a7 is the extension, a6 the function, a0 to a5 the arguments; a0 returns the error, a1 the value.
  Every other register is preserved. (section 3, "Binary Encoding")
* Extensions 0 to 8 are the legacy ones: a7 alone names the function, a0 alone returns, and a1 is
  preserved too. (section 5)
* A call for an extension or function that is not here returns `NOT_SUPPORTED` and does nothing.
* A set of harts is a mask and a base; base -1 is every hart, and naming a hart that does not
  exist is `INVALID_PARAM`. (section 3.1, "Hart list parameter")

Nothing here knows an engine or a device: `SbiHost` is what the machine does for its firmware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

from kasou.errors import BusError, GuestError

MASK64 = (1 << 64) - 1
ALL_ADDRESSES = MASK64
"""The `size` of a remote fence that names the whole address space."""


class Error(IntEnum):
    """Standard error codes. (section 3, table 1)"""

    SUCCESS = 0
    FAILED = -1
    NOT_SUPPORTED = -2
    INVALID_PARAM = -3
    DENIED = -4
    INVALID_ADDRESS = -5
    ALREADY_AVAILABLE = -6
    ALREADY_STARTED = -7
    ALREADY_STOPPED = -8
    NO_SHMEM = -9


class Extension(IntEnum):
    """Extension ids above the legacy ones."""

    BASE = 0x10
    DBCN = 0x4442434E
    HSM = 0x48534D
    IPI = 0x735049
    PMU = 0x504D55
    RFENCE = 0x52464E43
    SRST = 0x53525354
    TIME = 0x54494D45


class HartStatus(IntEnum):
    """States of a hart. (section 9, table 1)"""

    STARTED = 0
    STOPPED = 1
    START_PENDING = 2
    STOP_PENDING = 3
    SUSPENDED = 4
    SUSPEND_PENDING = 5
    RESUME_PENDING = 6


class ResetType(IntEnum):
    """Types of system reset. (section 10, table 1)"""

    SHUTDOWN = 0
    COLD_REBOOT = 1
    WARM_REBOOT = 2


SPEC_VERSION = 2 << 24
IMPLEMENTATION_ID = 0x6B61736F
"""Not among the registered ids: the letters "kaso". (section 4.9)"""
IMPLEMENTATION_VERSION = 0x00000100
LEGACY_EXTENSIONS = range(9)
CONSOLE_LIMIT = 4096
"""Most bytes one console call moves: the caller is told how many and calls again. (section 12)"""

Result = tuple[int, int]
"""What becomes of a0 (error) and a1 (value)."""


class SbiHost(Protocol):
    """What the machine does for its firmware."""

    @property
    def harts(self) -> int:
        """How many harts the board has; their ids are 0 to harts - 1."""
        ...

    def set_timer(self, hart: int, ticks: int) -> None:
        """Clear the hart's supervisor timer interrupt; raise it when `mtime` reaches `ticks`."""
        ...

    def send_ipi(self, hart: int) -> None:
        """Make the hart's supervisor software interrupt pending."""
        ...

    def remote_fence_i(self, hart: int) -> None:
        """Have the hart execute `fence.i` before its next instruction."""
        ...

    def remote_sfence(self, hart: int, start: int, size: int, asid: int | None) -> None:
        """Have the hart execute `sfence.vma`: `size` bytes at gva `start`, or `ALL_ADDRESSES`."""
        ...

    def hart_start(self, hart: int, address: int, opaque: int) -> None:
        """Start a stopped hart: S-mode, satp 0, pc = `address`, a0 = its id, a1 = `opaque`."""
        ...

    def hart_stop(self, hart: int) -> None:
        """Stop the calling hart; the call does not return to it."""
        ...

    def hart_suspend(self, hart: int) -> None:
        """Let the hart sleep until an interrupt is pending, as `wfi` does."""
        ...

    def hart_status(self, hart: int) -> int:
        """The hart's `HartStatus`."""
        ...

    def system_reset(self, type: int, reason: int) -> None:
        """End or restart the machine; the call does not return to the guest."""
        ...

    def console_write(self, data: bytes) -> None:
        """Write bytes to the console."""
        ...

    def console_read(self) -> int:
        """The next byte typed at the console, or -1."""
        ...

    def read_memory(self, gpa: int, n: int) -> bytes:
        """`n` bytes of RAM. Raises `GuestError` or `BusError` outside it."""
        ...

    def write_memory(self, gpa: int, data: bytes) -> None:
        """Store bytes in RAM. Raises `GuestError` or `BusError` outside it."""
        ...


class InvalidCall(Exception):
    """Ends a call with an error code."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.name)
        self.error = error


class Sbi:
    """Answers `ecall` from S-mode.

    `read_virtual(hart, gva, n)` reads through the hart's translation: only the legacy calls that
    pass a pointer to a hart mask need it. Without it the pointer is taken as physical.
    """

    def __init__(
        self, host: SbiHost, read_virtual: Callable[[int, int, int], bytes] | None = None
    ) -> None:
        self.host = host
        self.read_virtual = read_virtual or (lambda _hart, gva, n: host.read_memory(gva, n))
        self.extensions: dict[int, Callable[[int, int, Sequence[int]], Result | None]] = {
            Extension.BASE: self.base,
            Extension.TIME: self.time,
            Extension.IPI: self.ipi,
            Extension.RFENCE: self.rfence,
            Extension.HSM: self.hsm,
            Extension.SRST: self.srst,
            Extension.DBCN: self.dbcn,
            Extension.PMU: self.pmu,
        }

    def call(self, hart: int, registers: Sequence[int]) -> Result | None:
        """Carry out the call in `registers` (a0 to a7, each 64 bits, signed or not).

        Returns (a0, a1) as signed numbers, or None where nothing is to be written because the
        call does not return (a hart stopped, the system is being reset).
        """
        a = [value & MASK64 for value in registers]
        extension, function = a[7], a[6]
        if extension in LEGACY_EXTENSIONS:
            result = self.legacy(hart, extension, a)
            return None if result is None else (result, registers[1])
        serve = self.extensions.get(extension)
        if serve is None:
            return Error.NOT_SUPPORTED, 0
        try:
            return serve(hart, function, a)
        except InvalidCall as problem:
            return problem.error, 0

    # -- 4: base -------------------------------------------------------------------------------

    def base(self, hart: int, function: int, a: Sequence[int]) -> Result:
        """Which SBI this is, and what it has."""
        match function:
            case 0:
                return Error.SUCCESS, SPEC_VERSION
            case 1:
                return Error.SUCCESS, IMPLEMENTATION_ID
            case 2:
                return Error.SUCCESS, IMPLEMENTATION_VERSION
            case 3:
                return Error.SUCCESS, int(a[0] in self.extensions or a[0] in LEGACY_EXTENSIONS)
            case 4 | 5 | 6:  # mvendorid, marchid, mimpid: "0 is always a legal value"
                return Error.SUCCESS, 0
        return Error.NOT_SUPPORTED, 0

    # -- 5: legacy -----------------------------------------------------------------------------

    def legacy(self, hart: int, extension: int, a: Sequence[int]) -> int | None:
        """The calls of SBI 0.1: returns a0, or None for the shutdown."""
        match extension:
            case 0:
                self.host.set_timer(hart, a[0])
            case 1:
                self.host.console_write(bytes([a[0] & 0xFF]))
            case 2:
                return self.host.console_read()
            case 3:
                # clear_ipi: S-mode clears sip.SSIP itself since privileged 1.10.
                return 0
            case 8:
                self.host.system_reset(ResetType.SHUTDOWN, 0)
                return None
            case _:
                try:
                    harts = self.legacy_harts(hart, a[0])
                except InvalidCall as problem:
                    return problem.error
                for target in harts:
                    if extension == 4:
                        self.host.send_ipi(target)
                    elif extension == 5:
                        self.host.remote_fence_i(target)
                    else:
                        start, size = address_range(a[1], a[2])
                        asid = a[3] & 0xFFFF if extension == 7 else None
                        self.host.remote_sfence(target, start, size, asid)
        return Error.SUCCESS

    def legacy_harts(self, hart: int, gva: int) -> list[int]:
        """The harts of the bit vector at `gva`; a null pointer is every hart."""
        if gva == 0:
            return list(range(self.host.harts))
        try:
            mask = int.from_bytes(self.read_virtual(hart, gva, 8), "little")
        except (GuestError, BusError):
            raise InvalidCall(Error.INVALID_ADDRESS) from None
        return [one for one in range(self.host.harts) if mask >> one & 1]

    # -- 6: timer ------------------------------------------------------------------------------

    def time(self, hart: int, function: int, a: Sequence[int]) -> Result:
        """Program the clock for the next event."""
        if function != 0:
            return Error.NOT_SUPPORTED, 0
        self.host.set_timer(hart, a[0])
        return Error.SUCCESS, 0

    # -- 7: inter-processor interrupts ---------------------------------------------------------

    def ipi(self, hart: int, function: int, a: Sequence[int]) -> Result:
        """Send a software interrupt to a set of harts."""
        if function != 0:
            return Error.NOT_SUPPORTED, 0
        for target in self.hart_list(a[0], a[1]):
            self.host.send_ipi(target)
        return Error.SUCCESS, 0

    def hart_list(self, mask: int, base: int) -> list[int]:
        """The harts that `mask` and `base` name; `INVALID_PARAM` if one of them is not there."""
        if base == MASK64:
            return list(range(self.host.harts))
        if base >= self.host.harts or mask.bit_length() + base > self.host.harts:
            raise InvalidCall(Error.INVALID_PARAM)
        return [base + bit for bit in range(mask.bit_length()) if mask >> bit & 1]

    # -- 8: remote fences ----------------------------------------------------------------------

    def rfence(self, hart: int, function: int, a: Sequence[int]) -> Result:
        """Have other harts execute `fence.i` or `sfence.vma`; the H extension's are not here."""
        if function > 2:
            return Error.NOT_SUPPORTED, 0
        harts = self.hart_list(a[0], a[1])
        if function == 0:
            for target in harts:
                self.host.remote_fence_i(target)
            return Error.SUCCESS, 0
        start, size = address_range(a[2], a[3])
        for target in harts:
            self.host.remote_sfence(target, start, size, a[4] & 0xFFFF if function == 2 else None)
        return Error.SUCCESS, 0

    # -- 9: hart state -------------------------------------------------------------------------

    def hsm(self, hart: int, function: int, a: Sequence[int]) -> Result | None:
        """Start, stop, ask after and suspend harts."""
        match function:
            case 0:
                return self.start(target=a[0], address=a[1], opaque=a[2]), 0
            case 1:
                self.host.hart_stop(hart)
                return None
            case 2:
                if a[0] >= self.host.harts:
                    return Error.INVALID_PARAM, 0
                return Error.SUCCESS, self.host.hart_status(a[0])
            case 3:
                return self.suspend(hart, a[0] & 0xFFFFFFFF), 0
        return Error.NOT_SUPPORTED, 0

    def start(self, target: int, address: int, opaque: int) -> Error:
        """`sbi_hart_start`. (section 9.1)"""
        if target >= self.host.harts:
            return Error.INVALID_PARAM
        if self.host.hart_status(target) != HartStatus.STOPPED:
            return Error.ALREADY_AVAILABLE
        try:
            self.host.read_memory(address, 2)
        except (GuestError, BusError):
            return Error.INVALID_ADDRESS
        if address & 1:
            return Error.INVALID_ADDRESS
        self.host.hart_start(target, address, opaque)
        return Error.SUCCESS

    def suspend(self, hart: int, type: int) -> Error:
        """`sbi_hart_suspend`: only the default retentive state is here. (section 9.4)"""
        if type == 0:
            self.host.hart_suspend(hart)
            return Error.SUCCESS
        if type & 0x7FFFFFFF == 0 or type & 0x7FFFFFFF >= 0x10000000:
            return Error.NOT_SUPPORTED
        return Error.INVALID_PARAM

    # -- 10: system reset ----------------------------------------------------------------------

    def srst(self, hart: int, function: int, a: Sequence[int]) -> Result | None:
        """Power off or reboot."""
        if function != 0:
            return Error.NOT_SUPPORTED, 0
        type, reason = a[0] & 0xFFFFFFFF, a[1] & 0xFFFFFFFF
        if ResetType.WARM_REBOOT < type < 0xF0000000 or 1 < reason < 0xE0000000:
            return Error.INVALID_PARAM, 0
        if type > ResetType.WARM_REBOOT:
            return Error.NOT_SUPPORTED, 0
        self.host.system_reset(type, reason)
        return None

    # -- 11: performance monitoring ------------------------------------------------------------

    def pmu(self, hart: int, function: int, a: Sequence[int]) -> Result:
        """No counters: their number is zero, and every counter named is invalid."""
        if function == 0:
            return Error.SUCCESS, 0
        return (Error.INVALID_PARAM if function in (1, 3, 4, 5, 6) else Error.NOT_SUPPORTED), 0

    # -- 12: debug console ---------------------------------------------------------------------

    def dbcn(self, hart: int, function: int, a: Sequence[int]) -> Result:
        """Move bytes between memory and the console; may move fewer than asked for."""
        if function == 2:
            self.host.console_write(bytes([a[0] & 0xFF]))
            return Error.SUCCESS, 0
        if function > 2:
            return Error.NOT_SUPPORTED, 0
        if a[2] != 0:  # base_addr_hi: no board has memory above 2**64
            return Error.INVALID_PARAM, 0
        n = min(a[0], CONSOLE_LIMIT)
        if n == 0:
            return Error.SUCCESS, 0
        try:
            held = self.host.read_memory(a[1], n)
            if function == 0:
                self.host.console_write(held)
                return Error.SUCCESS, n
            self.host.write_memory(a[1], held)  # refuses before a typed byte is taken and lost
            typed = bytearray()
            while len(typed) < n and (byte := self.host.console_read()) >= 0:
                typed.append(byte)
            if typed:
                self.host.write_memory(a[1], bytes(typed))
        except (GuestError, BusError):
            return Error.INVALID_PARAM, 0
        return Error.SUCCESS, len(typed)


def address_range(start: int, size: int) -> tuple[int, int]:
    """The range of a remote fence; 0 and 0, or size -1, is all addresses. (section 8)"""
    if size == ALL_ADDRESSES or (start == 0 and size == 0):
        return 0, ALL_ADDRESSES
    if start + size > 1 << 64:
        raise InvalidCall(Error.INVALID_ADDRESS)
    return start, size
