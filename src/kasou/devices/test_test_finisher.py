from kasou.devices.test_finisher import Finish, Finisher


def test_commands() -> None:
    seen: list[tuple[Finish, int]] = []
    finisher = Finisher(lambda kind, code: seen.append((kind, code)))
    finisher.write(0, 4, 0x5555)
    finisher.write(0, 4, 3 << 16 | 0x3333)
    finisher.write(0, 2, 0x7777)
    finisher.write(0, 4, 0x1234)
    finisher.write(4, 4, 0x5555)
    assert seen == [(Finish.PASS, 0), (Finish.FAIL, 3), (Finish.RESET, 0)]
    assert finisher.read(0, 4) == 0
