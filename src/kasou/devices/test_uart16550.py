from kasou.devices.uart16550 import IER, IIR, LSR, MCR, MSR, Uart16550

RBR = THR = DLL = 0
IER_, IIR_, LCR_, MCR_, LSR_, MSR_, SCR_ = 1, 2, 3, 4, 5, 6, 7


class Bench:
    def __init__(self) -> None:
        self.sent = bytearray()
        self.irq = False
        self.uart = Uart16550(self.sent.extend, self.wire)

    def wire(self, on: bool) -> None:
        self.irq = on

    def r(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def w(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    def drain(self) -> bytes:
        out = bytearray()
        while self.r(LSR_) & LSR.DR:
            out.append(self.r(RBR))
        return bytes(out)


def test_sends_bytes() -> None:
    b = Bench()
    assert b.r(LSR_) == LSR.THRE | LSR.TEMT
    b.w(THR, 0x41)
    b.uart.write(THR, 4, 0x142)
    assert b.sent == b"AB"


def test_divisor_is_behind_dlab() -> None:
    b = Bench()
    b.w(LCR_, 0x80)
    b.w(DLL, 2)
    b.w(1, 1)
    assert (b.r(DLL), b.r(1)) == (2, 1)
    b.w(LCR_, 3)
    assert (b.r(RBR), b.r(IER_)) == (0, 0)
    assert b.sent == b""


def test_receive_interrupt_and_trigger_levels() -> None:
    b = Bench()
    b.w(2, 0xC1)  # FIFOs on, trigger at 14
    b.w(IER_, IER.RDI)
    b.uart.receive(b"x" * 13)
    assert b.irq
    assert b.r(IIR_) == 0xC0 | IIR.TIMEOUT
    b.uart.receive(b"x")
    assert b.r(IIR_) == 0xC0 | IIR.RDI
    assert b.drain() == b"x" * 14
    assert not b.irq
    assert b.r(IIR_) == 0xC0 | IIR.NONE


def test_backlog_never_overruns() -> None:
    b = Bench()
    data = bytes(range(256)) * 40
    b.uart.receive(data)
    assert b.uart.backlog == len(data)
    assert b.drain() == data


def test_without_fifo_every_byte_is_alone() -> None:
    b = Bench()
    b.w(IER_, IER.RDI)
    b.uart.receive(b"ab")
    assert b.r(IIR_) == IIR.RDI
    assert b.r(RBR) == ord("a")
    assert b.irq
    assert b.r(RBR) == ord("b")
    assert not b.irq


def test_thre_interrupt_is_an_event() -> None:
    b = Bench()
    b.w(IER_, IER.THRI)
    assert b.irq
    assert b.r(IIR_) == IIR.THRI
    assert not b.irq
    assert b.r(IIR_) == IIR.NONE
    b.w(THR, 1)
    assert b.irq
    b.w(IER_, 0)
    assert not b.irq


def test_loopback_as_linux_probes_it() -> None:
    b = Bench()
    assert b.r(MSR_) & 0xF0 == MSR.DCD | MSR.DSR | MSR.CTS
    b.w(MCR_, MCR.LOOP | MCR.OUT2 | MCR.RTS)
    assert b.r(MSR_) & 0xF0 == 0x90
    b.w(THR, 0x55)
    assert b.sent == b""
    assert b.r(LSR_) & LSR.DR
    b.w(THR, 0x66)
    assert b.r(LSR_) & LSR.OE
    assert not b.r(LSR_) & LSR.OE
    assert b.r(RBR) == 0x55


def test_identifies_as_16550a() -> None:
    b = Bench()
    assert b.r(IIR_) >> 6 == 0
    b.w(2, 1)
    assert b.r(IIR_) >> 6 == 3
    b.w(SCR_, 0xAE)
    assert b.r(SCR_) == 0xAE


def test_typing_ahead_survives_a_driver_that_clears_and_drains() -> None:
    b = Bench()
    b.w(2, 1)
    b.uart.receive(b"ls\n")
    for value in (1, 7, 0):  # Linux: serial8250_clear_fifos
        b.w(2, value)
    b.r(LSR_), b.r(RBR), b.r(IIR_), b.r(MSR_)
    b.w(2, 1)
    b.w(IER_, IER.RDI)
    assert b.irq
    assert b.drain() == b"ls\n"


def test_holes_read_zero_and_state_comes_back() -> None:
    b = Bench()
    assert b.uart.read(0x20, 4) == 0
    b.w(2, 1)
    b.w(IER_, IER.RDI)
    b.uart.receive(b"y" * 20)
    c = Bench()
    c.uart.restore(b.uart.save())
    assert c.irq
    assert c.drain() == b"y" * 20
    assert c.uart.save().registers == b.uart.save().registers
    b.uart.reset()
    assert not b.irq
