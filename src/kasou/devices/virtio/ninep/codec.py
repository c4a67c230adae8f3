"""The bytes of the messages.

| size u32 | type u8 | tag u16 | fields ... |      little-endian; size counts itself
"""

import struct
from typing import cast, get_type_hints

from kasou.devices.virtio.ninep.messages import NO_TAG, TYPES, BadMessage, Message, Qid

HEADER = struct.Struct("<IBH")
QID = struct.Struct("<BIQ")
READ_OVERHEAD = HEADER.size + 4
"""What an Rread or Rreaddir has besides its data."""
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")

Packing = struct.Struct | str
_NUMBERS = {kind: number for number, kind in TYPES.items()}


def _layout(kind: type[Message]) -> tuple[tuple[tuple[str, ...], Packing], ...]:
    """Names and packing of the fields; neighbours that are numbers are packed as one."""
    parts: list[tuple[tuple[str, ...], Packing]] = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        packing: Packing = "qid" if hint is Qid else cast(Packing, hint.__metadata__[0])
        if isinstance(packing, struct.Struct) and parts:
            names, before = parts[-1]
            if isinstance(before, struct.Struct):
                parts[-1] = (*names, name), struct.Struct(before.format + packing.format[1:])
                continue
        parts.append(((name,), packing))
    return tuple(parts)


_LAYOUTS = {kind: _layout(kind) for kind in _NUMBERS}


def encode(tag: int, message: Message) -> bytes:
    """A whole message."""
    parts = [b""]
    for names, packing in _LAYOUTS[type(message)]:
        if isinstance(packing, struct.Struct):
            parts.append(packing.pack(*[getattr(message, name) for name in names]))
            continue
        value = getattr(message, names[0])
        if packing == "qid":
            parts.append(QID.pack(*value))
        elif packing == "text":
            parts += (_U16.pack(len(value)), value)
        elif packing == "data":
            parts += (_U32.pack(len(value)), value)
        elif packing == "texts":
            parts.append(_U16.pack(len(value)))
            for text in value:
                parts += (_U16.pack(len(text)), text)
        else:  # qids
            parts.append(_U16.pack(len(value)))
            parts += (QID.pack(*qid) for qid in value)
    size = HEADER.size + sum(map(len, parts))
    parts[0] = HEADER.pack(size, _NUMBERS[type(message)], tag)
    return b"".join(parts)


def decode(raw: bytes) -> tuple[int, Message]:
    """Tag and message. Raises `BadMessage`; bytes behind the last field are let pass."""
    if len(raw) < HEADER.size:
        raise BadMessage(NO_TAG, f"9P: a message of {len(raw)} bytes has no header")
    size, number, tag = HEADER.unpack_from(raw)
    kind = TYPES.get(number)
    if size != len(raw):
        raise BadMessage(tag, f"9P: {len(raw)} bytes that say they are {size}")
    if kind is None:
        raise BadMessage(tag, f"9P: there is no message of type {number}")
    fields: list[object] = []
    at = HEADER.size
    try:
        for _, packing in _LAYOUTS[kind]:
            if isinstance(packing, struct.Struct):
                fields += packing.unpack_from(raw, at)
                at += packing.size
            elif packing == "qid":
                fields.append(Qid(*QID.unpack_from(raw, at)))
                at += QID.size
            elif packing in ("text", "data"):
                value, at = _counted(raw, at, _U16 if packing == "text" else _U32)
                fields.append(value)
            elif packing == "texts":
                count, at = _U16.unpack_from(raw, at)[0], at + 2
                texts = []
                for _ in range(count):
                    value, at = _counted(raw, at, _U16)
                    texts.append(value)
                fields.append(tuple(texts))
            else:  # qids
                count, at = _U16.unpack_from(raw, at)[0], at + 2
                if len(raw) - at < count * QID.size:
                    raise BadMessage(tag, f"9P: {kind.__name__} is cut short")
                pieces = range(at, at + count * QID.size, QID.size)
                fields.append(tuple(Qid(*QID.unpack_from(raw, piece)) for piece in pieces))
                at += count * QID.size
    except (struct.error, IndexError):
        raise BadMessage(tag, f"9P: {kind.__name__} is cut short") from None
    return tag, kind(*fields)


def _counted(raw: bytes, at: int, count: struct.Struct) -> tuple[bytes, int]:
    """A count and as many bytes; the position behind them."""
    start = at + count.size
    end = start + count.unpack_from(raw, at)[0]
    if end > len(raw):
        raise IndexError
    return raw[start:end], end
