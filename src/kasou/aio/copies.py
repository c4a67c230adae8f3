"""Files and trees to and from a guest, as `VM.put` and `VM.get`.

Paths mean what they mean to `cp -r`: into a directory that is there, else under the new name. A
source that ends in a slash means a directory's contents, as with rsync.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kasou.aio.process import begin
from kasou.errors import ConfigError, HostError, KasouError
from kasou.guest.agent.client import GetClient, PutClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kasou.aio.process import Process
    from kasou.control.client import ControlClient

    Progress = Callable[[int], None]

PIECE = 1 << 18


async def put(
    control: ControlClient,
    source: str | os.PathLike[str],
    target: str,
    user: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy `source` of the host to `target` in the guest.

    Raises `ConfigError` when there is no source, `HostError` when it does not arrive whole.
    """
    from kasou.guest.agent.tree import pack

    contents = os.fspath(source).endswith("/")
    path = Path(source)
    if not os.path.lexists(path):
        raise ConfigError(f"{source}: no such file or directory")
    if contents and not path.is_dir():
        raise ConfigError(f"{source}: not a directory")
    name = path.name or path.resolve().name
    process = await begin(control, PutClient(target, name, contents=contents, user=user))
    errors = asyncio.create_task(process.stderr.read())
    try:
        stream = pack(path, str(process.info.get("name", name)))
        done = 0
        while data := await asyncio.to_thread(_some, stream):
            await process.write(data)
            done += len(data)
            if progress is not None:
                progress(done)
            if process.poll() is not None:
                break  # it has given up: it says why
        await process.close_stdin()
        await _finish(process, errors, target)
    finally:
        process.close()
        errors.cancel()


async def get(
    control: ControlClient,
    source: str,
    target: str | os.PathLike[str],
    user: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy `source` of the guest to `target` on the host; nothing is written outside of it.

    Raises `ConfigError` when there is no source, `RemoteError` when the guest sends nonsense.
    """
    from kasou.guest.agent.tree import Unpacker

    contents = source.endswith("/") and len(source) > 1
    process = await begin(control, GetClient(source, contents=contents, user=user))
    errors = asyncio.create_task(process.stderr.read())
    try:
        root = str(process.info.get("root", "."))
        directory, name = _destination(Path(target), os.fspath(target), process, contents)
        unpacker = Unpacker(directory, root, name)
        done = 0
        try:
            while data := await process.stdout.read(PIECE):
                await asyncio.to_thread(unpacker.feed, data)
                done += len(data)
                if progress is not None:
                    progress(done)
            await _finish(process, errors, source)
        except BaseException:
            with contextlib.suppress(KasouError):  # the first error is the one to tell
                unpacker.close()
            raise
        await asyncio.to_thread(unpacker.close)
    finally:
        process.close()
        errors.cancel()


def _destination(target: Path, written: str, process: Process, contents: bool) -> tuple[Path, str]:
    """The directory to unpack in, and what the root becomes there. Raises `ConfigError`."""
    if contents:
        try:
            target.mkdir(exist_ok=True)
        except OSError as problem:
            raise ConfigError(f"{target}: {problem.strerror}") from None
        return target, "."
    if target.is_dir():
        return target, os.path.basename(str(process.info.get("name"))) or "root"
    if written.endswith("/") or not target.parent.is_dir():
        raise ConfigError(f"{target}: no such directory")
    if process.info.get("is_directory") and target.exists():
        raise ConfigError(f"{target}: is a file, the guest's is a directory")
    return target.parent, target.name


async def _finish(process: Process, errors: asyncio.Task[bytes], what: str) -> None:
    status = await process.wait()
    if status != 0:
        said = (await errors).decode("utf-8", "replace").strip().splitlines()
        raise HostError(f"{what}: {said[-1] if said else f'tar ended with {status}'}")


def _some(stream: Iterator[bytes]) -> bytes:
    """About `PIECE` bytes of an iterator of pieces; empty at its end."""
    parts: list[bytes] = []
    size = 0
    for part in stream:
        parts.append(part)
        size += len(part)
        if size >= PIECE:
            break
    return b"".join(parts)
