from kasou.devices.aclint import Clint, Sswi


class Host:
    def __init__(self) -> None:
        self.msip: dict[int, bool] = {}
        self.ssip: list[int] = []
        self.time = 0x1_0000_0002
        self.compare = [0, 0]

    def set_msip(self, hart: int, on: bool) -> None:
        self.msip[hart] = on

    def set_ssip(self, hart: int) -> None:
        self.ssip.append(hart)

    def mtime(self) -> int:
        return self.time

    def set_mtime(self, value: int) -> None:
        self.time = value

    def mtimecmp(self, hart: int) -> int:
        return self.compare[hart]

    def set_mtimecmp(self, hart: int, value: int) -> None:
        self.compare[hart] = value


def test_clint() -> None:
    host = Host()
    clint = Clint(2, host)
    clint.write(4, 4, 3)
    assert host.msip == {1: True}
    assert clint.read(4, 4) == 1
    clint.write(0x4008, 8, 1 << 40)
    clint.write(0x4008, 4, 7)
    assert host.compare == [0, 1 << 40 | 7]
    assert clint.read(0x400C, 4) == 1 << 8
    assert clint.read(0xBFF8, 8) == 0x1_0000_0002
    assert clint.read(0xBFFC, 4) == 1
    clint.write(0xBFF8, 8, 5)
    assert host.time == 5
    assert clint.read(0x20, 4) == 0
    other = Host()
    Clint(2, other).restore(clint.save())
    assert other.msip == {0: False, 1: True}
    Clint(1, other).write(0, 4, 1)
    assert other.msip[0]


def test_sswi() -> None:
    host = Host()
    sswi = Sswi(2, host)
    sswi.write(4, 4, 1)
    sswi.write(0, 4, 0)
    assert host.ssip == [1]
    assert sswi.read(4, 4) == 0
