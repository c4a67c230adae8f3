"""A VM's live copy: what passes from one process to another to go on as a second machine.

Memory passes as the open files that hold it, so a fork of any size costs the same and shares every
page until one side writes it. The rest, some tens of kilobytes, passes as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kasou.engine.frozen_memory import Backing, Extent, FrozenMemory
from kasou.errors import RemoteError
from kasou.json_values import from_json, to_json
from kasou.machine.state import MachineState


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A machine on its way. `extents` are (start, end, which file, offset in it)."""

    memory_bytes: int
    extents: tuple[tuple[int, int, int, int], ...]
    state: MachineState
    settings: dict[str, Any] = field(default_factory=dict)


def pack(
    memory: FrozenMemory, state: MachineState, settings: dict[str, Any]
) -> tuple[bytes, list[int]]:
    """Payload and open files for `Zygote.spawn`; the files stay the caller's."""
    files: list[int] = []
    extents = []
    for extent in memory.extents:
        if extent.backing.fd not in files:
            files.append(extent.backing.fd)
        extents.append((extent.start, extent.end, files.index(extent.backing.fd), extent.at))
    passed = Passed(
        memory_bytes=memory.size, extents=tuple(extents), state=state, settings=settings
    )
    return json.dumps(to_json(passed), separators=(",", ":")).encode(), files


def unpack(
    payload: bytes, files: Sequence[int]
) -> tuple[FrozenMemory, MachineState, dict[str, Any]]:
    """What `pack` packed, in the other process; `files` belong to the memory from here on.

    Raises `RemoteError` when it does not fit together.
    """
    try:
        passed = from_json(Passed, json.loads(payload), "fork")
    except ValueError:
        raise RemoteError("fork: its description is not JSON") from None
    backings = [Backing(fd) for fd in files]
    last = 0
    for start, end, which, at in passed.extents:
        if not (last <= start < end <= passed.memory_bytes and 0 <= which < len(files) and at >= 0):
            raise RemoteError(f"fork: an extent {start:#x} to {end:#x} that cannot be")
        last = end
    memory = FrozenMemory(
        passed.memory_bytes,
        [Extent(start, end, backings[which], at) for start, end, which, at in passed.extents],
    )
    return memory, passed.state, passed.settings
