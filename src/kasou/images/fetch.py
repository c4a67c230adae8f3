"""Downloads: resumable, verified, and in place only when whole.

Bytes arrive in `NAME.part` beside the target; a later call goes on from there with a Range request.
Only a file with the expected SHA-256 is renamed to its name. Proxies are taken from the environment
as `urllib` does.
"""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeGuard

from kasou.errors import HostError
from kasou.images.progress import Report, Silent

TIMEOUT_SECONDS = 20.0
"""Without a byte for this long a connection counts as dead."""
ATTEMPTS = 4
PIECE = 1 << 18
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


def read_url(url: str, limit: int, *, timeout: float = TIMEOUT_SECONDS) -> bytes:
    """A small document, fresh from the server, of at most `limit` bytes. Raises `HostError`."""
    try:
        with urllib.request.urlopen(_request(url), timeout=timeout) as response:
            body: bytes = response.read(limit + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise HostError(f"{url}: {_reason(error)}") from None
    if len(body) > limit:
        raise HostError(f"{url}: longer than {limit} bytes; is it what it should be?")
    return body


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str,
    size: int,
    report: Report | None = None,
    sleep: Callable[[float], None] | None = None,
) -> Path:
    """Bring `url` to `target`, `size` bytes with this hash, and return `target`.

    A target that is already right is left alone. Raises `HostError` when the server refuses, stays
    silent, sends something else, or the file cannot be written.
    """
    report = report or Silent()
    part = target.with_name(target.name + ".part")
    problem = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and hash_file(target) == sha256:
            return target
        for attempt in range(ATTEMPTS):
            if attempt:
                (sleep or time.sleep)(2.0 ** (attempt - 1))
            problem = _go_on(url, part, size, target.name, report)
            if problem:
                continue
            if hash_file(part) == sha256:
                os.replace(part, target)
                return target
            problem = "its SHA-256 is not the expected one"
            part.unlink()
    except OSError as error:
        raise HostError(
            f"{error.filename or target}: cannot be written ({error.strerror});"
            " KASOU_HOME chooses another place"
        ) from None
    raise HostError(f"{url}: {problem} (after {ATTEMPTS} attempts)")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _go_on(url: str, part: Path, size: int, label: str, report: Report) -> str:
    """One connection's worth of a download; the reason why it is not complete, or nothing."""
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    if have == size:
        return ""
    request = _request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what we have does not begin what the server has
            part.unlink(missing_ok=True)
        elif error.code not in TRY_AGAIN:
            raise HostError(f"{url}: {_reason(error)}") from None
        return _reason(error)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)
    with response:
        goes_on = have > 0 and _is_continuation(response, have)
        announced = response.getheader("Content-Length") if _is_http(response) else None
        whole = (have if goes_on else 0) + int(announced) if announced else size
        if whole != size:
            part.unlink(missing_ok=True)
            raise HostError(f"{url}: the server has {whole} bytes, expected {size}")
        with part.open("ab" if goes_on else "wb") as file:
            return _receive(response, file, have if goes_on else 0, size, label, report)


def _receive(
    response: IO[bytes], file: IO[bytes], done: int, size: int, label: str, report: Report
) -> str:
    """Copy until the end; a disk's error is raised, a network's is returned."""
    while True:
        report.advance(label, done, size)
        try:
            piece = response.read(PIECE)
        except (OSError, http.client.HTTPException) as error:
            return _reason(error)
        if not piece:
            break
        file.write(piece)
        done += len(piece)
        if done > size:
            file.truncate(0)
            return f"more than the expected {size} bytes"
    return "" if done == size else f"ended after {done} of {size} bytes"


def _is_http(response: object) -> TypeGuard[http.client.HTTPResponse]:
    return isinstance(response, http.client.HTTPResponse)


def _is_continuation(response: object, have: int) -> bool:
    """Whether the server took up the Range; a plain 200 sends the file from its beginning."""
    if not _is_http(response) or response.status != 206:
        return False
    return (response.getheader("Content-Range") or "").startswith(f"bytes {have}-")


def _request(url: str) -> urllib.request.Request:
    headers = {"User-Agent": "kasou", "Cache-Control": "max-age=0"}
    return urllib.request.Request(url, headers=headers)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, urllib.error.URLError):
        inner = error.reason
        return _reason(inner) if isinstance(inner, Exception) else str(inner)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
