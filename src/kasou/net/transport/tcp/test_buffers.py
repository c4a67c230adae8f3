"""Both buffers against what they mean: one long string of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from kasou.net.transport.tcp.receive_buffer import ReceiveBuffer
from kasou.net.transport.tcp.send_buffer import SendBuffer

TEXT = bytes(i * 7 & 0xFF for i in range(3000))


@given(st.data())
def test_the_send_buffer_is_a_moving_stretch_of_the_stream(data: st.DataObject) -> None:
    buffer = SendBuffer(1000)
    written, acknowledged = b"", 0
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from("was")):
            case "w":
                piece = data.draw(st.binary(max_size=20)) * data.draw(st.sampled_from((1, 300)))
                if piece:
                    buffer.append(piece)
                written += piece
            case "a":
                acknowledged += data.draw(st.integers(0, len(written) - acknowledged))
                buffer.acknowledge(1000 + acknowledged)
            case "s":
                start = data.draw(st.integers(acknowledged, len(written)))
                n = data.draw(st.integers(0, len(written) - start))
                assert b"".join(buffer.slice(1000 + start, n)) == written[start : start + n]
        assert buffer.length == len(written) - acknowledged
        assert buffer.end == 1000 + len(written)


@given(st.data())
def test_the_receive_buffer_puts_pieces_in_order_once(data: st.DataObject) -> None:
    buffer = ReceiveBuffer(0)
    have: set[int] = set()
    read = b""
    for _ in range(data.draw(st.integers(1, 40))):
        start = data.draw(st.integers(0, 200))
        n = data.draw(st.integers(1, 60))
        before = buffer.next
        arrived = buffer.insert(start, memoryview(TEXT[start : start + n]))
        have |= set(range(start, start + n))
        expected = next(i for i in range(300) if i not in have)
        assert buffer.next == expected and arrived == (expected > before)
        blocks = buffer.sack_blocks(100)
        if blocks and buffer.duplicate is None and blocks[0][0] < buffer.next:
            blocks = blocks[1:]  # the D-SACK
        beyond = {i for i in have if i >= buffer.next}
        assert {i for a, b in blocks for i in range(a, b)} == beyond or not beyond
        assert buffer.has_gap == bool(beyond)
        if data.draw(st.booleans()):
            piece = buffer.read(data.draw(st.none() | st.integers(1, 50)))
            read += bytes(piece)
        assert buffer.readable == buffer.next - len(read)
    n = buffer.readable
    rest = b"".join(buffer.peek(n))
    buffer.consume(n)
    assert read + rest == TEXT[: buffer.next] and buffer.readable == 0


def test_the_latest_block_comes_first_and_a_duplicate_before_it() -> None:
    buffer = ReceiveBuffer(0)
    for start in (10, 30, 50, 20):
        buffer.insert(start, memoryview(TEXT[start : start + 10]))
    assert buffer.sack_blocks(3) == [(10, 40), (50, 60)]
    buffer.insert(52, memoryview(TEXT[52:55]))
    assert buffer.sack_blocks(3) == [(52, 55), (50, 60), (10, 40)]
    assert buffer.sack_blocks(1) == [(50, 60)]
