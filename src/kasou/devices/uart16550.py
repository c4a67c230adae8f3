"""The serial port: a National Semiconductor 16550A.

    offset  DLAB=0 read  DLAB=0 write  DLAB=1
      0     RBR          THR           DLL
      1     IER          IER           DLM
      2     IIR          FCR           IIR / FCR
      3..7  LCR  MCR  LSR  MSR  SCR

Transmission takes no time: a byte written to THR is at the `output` sink before the next guest
instruction, so LSR always says THRE and TEMT. Reception never overruns: `receive` puts bytes into a
backlog on the host's side, which refills the FIFO of 16 as the guest empties it.

Where time matters on the real part:
- The character time-out (data below the trigger level for four character times) is treated as
  having passed at once.
- After the guest has cleared the receive FIFO nothing arrives before its ninth look at LSR (a
  character takes 87 us at 115200 baud), or before it enables the receive interrupt; bytes that were
  cleared unread go back to the backlog. So a driver that clears and drains the port while it starts
  does not eat what was typed ahead.

Source: PC16550D data sheet, section 8 "Registers".
"""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from kasou.devices.register import ANY_SIZE, DeviceState, Register, RegisterDevice
from kasou.ports import ByteSink, IrqLine

QUIET_LOOKS = 8
"""Looks at LSR after a FIFO clear that find nothing yet: a starting driver looks five times
(8250_port.c, serial8250_do_startup) and drains the port twice; one that polls looks on."""


class IER(IntFlag):
    """Interrupt enable."""

    RDI = 0x01  # received data, and character time-out
    THRI = 0x02  # transmitter holding register empty
    RLSI = 0x04  # receiver line status
    MSI = 0x08  # modem status


class IIR(IntEnum):
    """Interrupt identification, by falling priority from RLSI on."""

    MSI = 0x00
    NONE = 0x01
    THRI = 0x02
    RDI = 0x04
    RLSI = 0x06
    TIMEOUT = 0x0C


class FCR(IntFlag):
    """FIFO control."""

    ENABLE = 0x01
    CLEAR_RECEIVE = 0x02
    CLEAR_TRANSMIT = 0x04
    TRIGGER = 0xC0


class LSR(IntFlag):
    """Line status."""

    DR = 0x01
    OE = 0x02
    THRE = 0x20
    TEMT = 0x40


class MCR(IntFlag):
    """Modem control."""

    DTR = 0x01
    RTS = 0x02
    OUT1 = 0x04
    OUT2 = 0x08
    LOOP = 0x10


class MSR(IntFlag):
    """Modem status: the lines, and in the low half which of them changed."""

    DCTS = 0x01
    DDSR = 0x02
    TERI = 0x04
    DDCD = 0x08
    CTS = 0x10
    DSR = 0x20
    RI = 0x40
    DCD = 0x80


_DLAB = 0x80
_FIFOS_ON = 0xC0  # in IIR
_TRIGGER_LEVELS = (1, 4, 8, 14)
_CONNECTED = int(MSR.CTS | MSR.DSR | MSR.DCD)
_LOOPED = ((MCR.RTS, MSR.CTS), (MCR.DTR, MSR.DSR), (MCR.OUT1, MSR.RI), (MCR.OUT2, MSR.DCD))
_IDLE = int(LSR.THRE | LSR.TEMT)
# Plain ints beside the flags: an operation on an IntFlag costs as much as the rest of an access.
_LOOP, _RDI, _FIFO_ENABLE = int(MCR.LOOP), int(IER.RDI), int(FCR.ENABLE)
_DR, _OE = int(LSR.DR), int(LSR.OE)
_NONE = IIR.NONE
_BYTE = tuple(bytes((b,)) for b in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class UartState(DeviceState):
    """Besides the registers: received bytes, and the interrupt sources that are events."""

    fifo: bytes
    backlog: bytes
    thr_empty: bool
    overrun: bool
    quiet: int


class Uart16550(RegisterDevice[UartState]):
    """`ns16550a`. `output` takes what the guest sends, `irq` is the INTR pin."""

    # fmt: off
    registers = (
        Register("RBR", 0, size=1, sizes=ANY_SIZE, access="r", when="data"),
        Register("THR", 0, size=1, sizes=ANY_SIZE, access="w", when="data"),
        Register("IER", 1, size=1, sizes=ANY_SIZE, when="data"),
        Register("DLL", 0, size=1, sizes=ANY_SIZE, when="divisor", reset=0x0C),
        Register("DLM", 1, size=1, sizes=ANY_SIZE, when="divisor"),
        Register("IIR", 2, size=1, sizes=ANY_SIZE, access="r"),
        Register("FCR", 2, size=1, sizes=ANY_SIZE, access="w"),
        Register("LCR", 3, size=1, sizes=ANY_SIZE),
        Register("MCR", 4, size=1, sizes=ANY_SIZE, reset=int(MCR.OUT2)),
        Register("LSR", 5, size=1, sizes=ANY_SIZE, access="r"),
        Register("MSR", 6, size=1, sizes=ANY_SIZE, access="r", reset=_CONNECTED),
        Register("SCR", 7, size=1, sizes=ANY_SIZE),
    )
    # fmt: on
    lax = True

    def __init__(self, output: ByteSink, irq: IrqLine) -> None:
        super().__init__()
        self.bank = "data"
        self._output = output
        self._irq = irq
        self._fifo: deque[int] = deque()
        self._backlog: deque[int] = deque()
        self._thr_empty = False  # the THRE event has not been seen in IIR
        self._overrun = False
        self._quiet = 0
        self._level = False

    # ------------------------------------------------------------------ host side
    def receive(self, data: bytes) -> None:
        """Bytes arrive on the line; any number, they wait on the host's side."""
        self._backlog.extend(data)
        self._refill()
        self._update()

    @property
    def backlog(self) -> int:
        """How many received bytes the guest has not yet read."""
        return len(self._backlog) + len(self._fifo)

    # ------------------------------------------------------------------ guest side
    def read_rbr(self) -> int:
        """Take the oldest received byte, 0 if there is none."""
        byte = self._fifo.popleft() if self._fifo else 0
        self._refill()
        self._update()
        return byte

    def write_thr(self, value: int) -> None:
        """Send a byte; in loopback it is received."""
        if not self.value["MCR"] & _LOOP:
            self._output(_BYTE[value])
        elif len(self._fifo) < self._depth():
            self._fifo.append(value)
        else:
            self._overrun = True
        self._thr_empty = True
        self._update()

    def write_ier(self, value: int) -> None:
        """Enabling THRI while the transmitter is empty, as always here, interrupts at once."""
        self.value["IER"] = value & 0x0F
        self._thr_empty = bool(value & IER.THRI)
        if value & _RDI:
            self._quiet = 0
            self._refill()
        self._update()

    def read_iir(self) -> int:
        """The most urgent source; reading acknowledges THRI."""
        source = self._source()
        if source is IIR.THRI:
            self._thr_empty = False
            self._update()
        return source | (_FIFOS_ON if self.value["FCR"] & _FIFO_ENABLE else 0)

    def write_fcr(self, value: int) -> None:
        """Turn the FIFOs on or off, clear them, set the trigger level."""
        if (value ^ self.value["FCR"]) & FCR.ENABLE:
            value |= FCR.CLEAR_RECEIVE
        keep = FCR.ENABLE | FCR.TRIGGER if value & FCR.ENABLE else 0
        self.value["FCR"] = int(value & keep)
        if value & FCR.CLEAR_RECEIVE:
            self._clear_receive()
        self._update()

    def write_lcr(self, value: int) -> None:
        """DLAB chooses between data and divisor registers."""
        self.value["LCR"] = value
        self.bank = "divisor" if value & _DLAB else "data"

    def write_mcr(self, value: int) -> None:
        """In loopback the modem's output lines are its input lines."""
        self.value["MCR"] = value & 0x1F
        lines = _CONNECTED
        if value & _LOOP:
            lines = sum(int(line) for out, line in _LOOPED if value & out)
        changed = (self.value["MSR"] ^ lines) & 0xF0
        if lines & MSR.RI:
            changed &= ~MSR.RI  # TERI: trailing edge only
        self.value["MSR"] = int(lines) | self.value["MSR"] & 0x0F | changed >> 4
        self._refill()
        self._update()

    def read_lsr(self) -> int:
        """Line status; reading acknowledges an overrun."""
        if self._quiet:
            self._quiet -= 1
        elif self._backlog:
            self._refill()
        status = _IDLE
        if self._fifo:
            status |= _DR
        if self._overrun:
            status |= _OE
            self._overrun = False
        self._update()
        return status

    def read_msr(self) -> int:
        """Modem status; reading clears the change bits."""
        status = self.value["MSR"]
        self.value["MSR"] = status & 0xF0
        self._update()
        return status

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """Master reset; bytes that the host sent and the guest did not read stay."""
        super().reset()
        self.bank = "data"
        self._thr_empty = self._overrun = False
        self._clear_receive()
        self._quiet = 0
        self._update()

    def save(self) -> UartState:
        """Registers, received bytes, interrupt sources."""
        return UartState(
            registers=dict(self.value),
            fifo=bytes(self._fifo),
            backlog=bytes(self._backlog),
            thr_empty=self._thr_empty,
            overrun=self._overrun,
            quiet=self._quiet,
        )

    def restore(self, state: UartState) -> None:
        """Take over `state` and drive the interrupt line."""
        self._restore_values(state)
        self.bank = "divisor" if self.value["LCR"] & _DLAB else "data"
        self._fifo = deque(state.fifo)
        self._backlog = deque(state.backlog)
        self._thr_empty, self._overrun = state.thr_empty, state.overrun
        self._quiet = state.quiet
        self._level = self._source() is not _NONE
        self._irq(self._level)

    def _depth(self) -> int:
        return 16 if self.value["FCR"] & _FIFO_ENABLE else 1

    def _clear_receive(self) -> None:
        """Empty the FIFO; what it held counts as still on its way."""
        if not self.value["MCR"] & _LOOP:
            self._backlog.extendleft(reversed(self._fifo))
        self._fifo.clear()
        self._quiet = 0 if self.value["IER"] & _RDI else QUIET_LOOKS
        self._refill()

    def _refill(self) -> None:
        """Move bytes from the backlog into the FIFO, unless the line is quiet or looped back."""
        if self._backlog and not self._quiet and not self.value["MCR"] & _LOOP:
            while self._backlog and len(self._fifo) < self._depth():
                self._fifo.append(self._backlog.popleft())

    def _source(self) -> IIR:
        ier = self.value["IER"]
        if ier & 0x04 and self._overrun:
            return IIR.RLSI
        if ier & 0x01 and self._fifo:
            fcr = self.value["FCR"]
            level = _TRIGGER_LEVELS[fcr >> 6] if fcr & 0x01 else 1
            return IIR.RDI if len(self._fifo) >= level else IIR.TIMEOUT
        if ier & 0x02 and self._thr_empty:
            return IIR.THRI
        if ier & 0x08 and self.value["MSR"] & 0x0F:
            return IIR.MSI
        return IIR.NONE

    def _update(self) -> None:
        level = self.value["IER"] != 0 and self._source() is not _NONE
        if level != self._level:
            self._level = level
            self._irq(level)
