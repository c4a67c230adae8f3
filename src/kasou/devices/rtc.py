"""The Goldfish real-time clock: nanoseconds since 1970 in two halves, and one alarm.

A read of TIME_LOW latches TIME_HIGH, so low-then-high is one consistent time. The guest may set the
clock: the difference to the host's time is kept as `offset_ns`. Writing ALARM_LOW arms the alarm
(write ALARM_HIGH first); it fires once. (Goldfish virtual hardware, "goldfish RTC".)
"""

from collections.abc import Callable
from dataclasses import dataclass

from kasou.devices.register import DeviceState, Register, RegisterDevice
from kasou.ports import IrqLine

_U32 = 0xFFFF_FFFF
_U64 = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class RtcState(DeviceState):
    """Besides the registers: the guest's setting of the clock, the alarm (ns) and its interrupt."""

    offset_ns: int
    alarm_ns: int
    running: bool
    pending: bool


class GoldfishRtc(RegisterDevice[RtcState]):
    """`google,goldfish-rtc`. `now_ns` gives the host's time in ns since 1970.

    `on_alarm` is called when an alarm was armed: `deadline` has something to say.
    """

    # fmt: off
    registers = (
        Register("TIME_LOW",        0x00),
        Register("TIME_HIGH",       0x04),
        Register("ALARM_LOW",       0x08),
        Register("ALARM_HIGH",      0x0C),
        Register("IRQ_ENABLED",     0x10),
        Register("CLEAR_ALARM",     0x14, access="w"),
        Register("ALARM_STATUS",    0x18, access="r"),
        Register("CLEAR_INTERRUPT", 0x1C, access="w"),
    )
    # fmt: on
    lax = True

    def __init__(
        self,
        now_ns: Callable[[], int],
        irq: IrqLine,
        on_alarm: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._on_alarm = on_alarm
        self._now_ns = now_ns
        self._irq = irq
        self._offset_ns = 0
        self._alarm_ns = 0
        self._running = False
        self._pending = False

    # ------------------------------------------------------------------ host side
    def deadline(self) -> int | None:
        """When `handle_timer` is due, in the ns of `now_ns`; None while no alarm is armed."""
        return self._alarm_ns - self._offset_ns if self._running else None

    def handle_timer(self) -> None:
        """Fire the alarm if it is due."""
        if self._running and self._alarm_ns <= self._time():
            self._running = False
            self._pending = True
            self._update()

    # ------------------------------------------------------------------ guest side
    def read_time_low(self) -> int:
        """Also latches TIME_HIGH."""
        now = self._time()
        self.value["TIME_HIGH"] = now >> 32
        return now & _U32

    def write_time_low(self, value: int) -> None:
        """Set the low half of the clock."""
        self._set_time(self._time() & ~_U32 | value)

    def write_time_high(self, value: int) -> None:
        """Set the high half of the clock."""
        self._set_time(value << 32 | self._time() & _U32)

    def read_alarm_low(self) -> int:
        """The alarm's low half."""
        return self._alarm_ns & _U32

    def read_alarm_high(self) -> int:
        """The alarm's high half."""
        return self._alarm_ns >> 32

    def write_alarm_high(self, value: int) -> None:
        """Kept until ALARM_LOW arms."""
        self._alarm_ns = value << 32 | self._alarm_ns & _U32

    def write_alarm_low(self, value: int) -> None:
        """Arm; an alarm in the past fires at once."""
        self._alarm_ns = self._alarm_ns & ~_U32 | value
        self._running = True
        self.handle_timer()
        self._on_alarm()

    def read_alarm_status(self) -> int:
        """Whether an alarm is armed."""
        return int(self._running)

    def write_irq_enabled(self, value: int) -> None:
        """Bit 0 lets the alarm interrupt."""
        self.value["IRQ_ENABLED"] = value & 1
        self._update()

    def write_clear_alarm(self, _: int) -> None:
        """Disarm."""
        self._running = False

    def write_clear_interrupt(self, _: int) -> None:
        """Acknowledge the alarm's interrupt."""
        self._pending = False
        self._update()

    # ------------------------------------------------------------------ rest
    def reset(self) -> None:
        """Disarm; the guest's setting of the clock survives, as on a battery-backed part."""
        super().reset()
        self._alarm_ns = 0
        self._running = self._pending = False
        self._update()

    def save(self) -> RtcState:
        """All but the host's time itself."""
        return RtcState(
            registers=dict(self.value),
            offset_ns=self._offset_ns,
            alarm_ns=self._alarm_ns,
            running=self._running,
            pending=self._pending,
        )

    def restore(self, state: RtcState) -> None:
        """An alarm that came due in between fires at the next `handle_timer`."""
        self._restore_values(state)
        self._offset_ns, self._alarm_ns = state.offset_ns, state.alarm_ns
        self._running, self._pending = state.running, state.pending
        self._update()
        self._on_alarm()

    def _time(self) -> int:
        return (self._now_ns() + self._offset_ns) & _U64

    def _set_time(self, value: int) -> None:
        self._offset_ns += value - self._time()

    def _update(self) -> None:
        self._irq(self._pending and bool(self.value["IRQ_ENABLED"]))
