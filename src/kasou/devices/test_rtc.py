from kasou.devices.rtc import GoldfishRtc

TIME_LOW, TIME_HIGH, ALARM_LOW, ALARM_HIGH = 0, 4, 8, 12
IRQ_ENABLED, CLEAR_ALARM, ALARM_STATUS, CLEAR_INTERRUPT = 0x10, 0x14, 0x18, 0x1C


def test_time_alarm_and_interrupt() -> None:
    now = [0x5_0000_0001]
    irq: list[bool] = []
    rtc = GoldfishRtc(lambda: now[0], irq.append)
    assert rtc.read(TIME_LOW, 4) == 1
    now[0] = 0x6_0000_0000
    assert rtc.read(TIME_HIGH, 4) == 5
    rtc.write(IRQ_ENABLED, 4, 1)
    rtc.write(ALARM_HIGH, 4, 6)
    assert rtc.deadline() is None
    rtc.write(ALARM_LOW, 4, 100)
    assert rtc.deadline() == 0x6_0000_0064
    rtc.handle_timer()
    assert rtc.read(ALARM_STATUS, 4) == 1
    now[0] += 100
    rtc.handle_timer()
    assert irq[-1]
    assert rtc.deadline() is None
    rtc.write(CLEAR_INTERRUPT, 4, 1)
    assert not irq[-1]
    rtc.write(ALARM_LOW, 4, 0)
    assert irq[-1], "an alarm in the past"


def test_setting_the_clock_moves_the_deadline() -> None:
    now = [1000]
    rtc = GoldfishRtc(lambda: now[0], lambda on: None)
    rtc.write(TIME_HIGH, 4, 7)
    rtc.write(TIME_LOW, 4, 0)
    assert (rtc.read(TIME_LOW, 4), rtc.read(TIME_HIGH, 4)) == (0, 7)
    rtc.write(ALARM_HIGH, 4, 7)
    rtc.write(ALARM_LOW, 4, 50)
    assert rtc.deadline() == 1050
    other = GoldfishRtc(lambda: now[0], lambda on: None)
    other.restore(rtc.save())
    assert other.deadline() == 1050
    other.write(CLEAR_ALARM, 4, 1)
    assert other.deadline() is None
