import struct
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasou.devices.virtio.ninep.codec import HEADER, decode, encode
from kasou.devices.virtio.ninep.messages import TYPES, BadMessage, Message, Qid, Rwalk, Twalk

_QIDS = st.builds(Qid, st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
_BYTES = st.binary(max_size=40)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if hint is Qid:
        return _QIDS
    (packing,) = hint.__metadata__
    if isinstance(packing, struct.Struct):
        return st.integers(0, 256**packing.size - 1)
    if packing in ("text", "data"):
        return _BYTES
    return st.lists(_BYTES if packing == "texts" else _QIDS, max_size=4).map(tuple)


def _messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{f.name: _values(hints[f.name]) for f in fields(kind)})  # type: ignore[arg-type]


@given(st.sampled_from(list(TYPES.values())).flatmap(_messages), st.integers(0, 0xFFFF))
def test_decode_of_encode(message: Message, tag: int) -> None:
    assert decode(encode(tag, message)) == (tag, message)


@given(st.sampled_from(list(TYPES.values())).flatmap(_messages), st.data())
def test_cut_short(message: Message, data: st.DataObject) -> None:
    raw = encode(5, message)
    n = data.draw(st.integers(0, len(raw) - 1))
    cut = bytearray(raw[:n])
    if n >= HEADER.size:
        cut[:4] = n.to_bytes(4, "little")
    with pytest.raises(BadMessage) as caught:
        decode(bytes(cut))
    assert caught.value.tag == (5 if n >= HEADER.size else 0xFFFF)


@given(st.binary(max_size=200))
def test_noise(raw: bytes) -> None:
    try:
        decode(raw)
        decode(len(raw).to_bytes(4, "little") + raw[4:])
    except BadMessage:
        pass


def test_bytes_are_the_manuals() -> None:
    """Twalk: size[4] Twalk tag[2] fid[4] newfid[4] nwname[2] nwname*(wname[s])."""
    raw = bytes.fromhex(
        "1a0000006e0100 02000000 03000000 0200 0300757372 0200 6c62".replace(" ", "")
    )
    raw = len(raw).to_bytes(4, "little") + raw[4:]
    assert decode(raw) == (1, Twalk(2, 3, (b"usr", b"lb")))
    qid = Qid(0x80, 1, 2)
    assert (
        encode(1, Rwalk((qid,))).hex()
        == "16000000" + "6f" + "0100" + "0100" + "80" + "01000000" + "0200000000000000"
    )
