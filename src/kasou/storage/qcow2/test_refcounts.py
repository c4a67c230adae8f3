import pytest

from kasou.storage.qcow2.refcounts import Block


@pytest.mark.parametrize("order", range(7))
def test_counts_of_every_width(order: int) -> None:
    block = Block(4096, bytes(512), order, is_new=False)
    n, most = 4096 >> order, (1 << (1 << order)) - 1
    assert block.find_free(3) == 3
    for index in (0, 1, 9, n - 1):
        block.set(index, most)
    assert [block.get(index) for index in (0, 1, 2, 8, 9, 10, n - 1)] == [
        most, most, 0, 0, most, 0, most,
    ]  # fmt: skip
    assert (block.find_free(0), block.find_free(9), block.find_free(n - 1)) == (2, 10, -1)
    again = Block(4096, block.emit(), order, is_new=False)
    assert again.counts == block.counts
    block.set(0, 0)
    assert block.get(1) == most


def test_entries_are_big_endian_and_packed_from_the_low_bit() -> None:
    wide, narrow = Block(0, bytes(512), 4, True), Block(0, bytes(512), 1, True)
    wide.set(1, 0x1234)
    narrow.set(1, 3)
    narrow.set(4, 1)
    assert wide.emit()[:4] == b"\0\0\x12\x34"
    assert narrow.emit()[:2] == b"\x0c\x01"


@pytest.mark.parametrize("order", range(7))
def test_only_what_changed_is_written(order: int) -> None:
    block = Block(4096, bytes(512), order, is_new=False)
    block.set(17, 1)
    block.set(20, 1)
    at, data = block.emit_changed()
    start = at - 4096
    assert len(data) <= 4 << max(order - 3, 0)
    assert block.emit() == bytes(start) + data + bytes(512 - start - len(data))
