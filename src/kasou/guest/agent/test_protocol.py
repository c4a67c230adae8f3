import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.guest.agent.protocol import (
    MAX_PAYLOAD,
    BadFrame,
    FrameReader,
    Kind,
    exit_frame,
    frame,
    json_frame,
    parse_count,
    parse_exit,
    parse_json,
    parse_size,
    resize_frame,
    taken_frame,
)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300))), st.data())
def test_frames_survive_any_cut(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    reader, got = FrameReader(), []
    while stream:
        n = data.draw(st.integers(1, len(stream)))
        got += reader.receive(stream[:n])
        stream = stream[n:]
    assert got == frames


def test_fields_come_back() -> None:
    frames = exit_frame(143, 15) + taken_frame(70_000) + resize_frame(132, 1 << 20)
    (_, leave), (_, taken), (_, size) = FrameReader().receive(frames)
    assert parse_exit(leave) == (143, 15)
    assert parse_count(taken) == 70_000
    assert parse_size(size) == (132, 0xFFFF)


def test_bytes_of_names_that_are_not_utf8_survive() -> None:
    name = b"caf\xe9/\xff".decode("utf-8", "surrogateescape")
    ((_, payload),) = FrameReader().receive(json_frame(Kind.REQUEST, {"path": name}))
    assert parse_json(payload) == {"path": name}


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_bad_json(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        parse_json(payload)


def test_lengths_are_checked() -> None:
    with pytest.raises(BadFrame):
        FrameReader().receive(b"\x02" + (MAX_PAYLOAD + 1).to_bytes(4, "big"))
    with pytest.raises(BadFrame):
        parse_exit(b"\x00")
