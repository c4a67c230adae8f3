import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kasou.errors import HostError
from kasou.images.fetch import fetch, read_url

DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients go away in the middle here."""


class Server:
    """A web server on the loopback interface; `answer` decides what it does with a request."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = serve
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.ranges.append(self.headers["Range"])
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/file"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def serve(request: BaseHTTPRequestHandler, data: bytes = DATA, stop_after: int = 1 << 30) -> None:
    start = int((request.headers["Range"] or "bytes=0-")[6:-1])
    if start >= len(data):
        request.send_error(416)
        return
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    request.send_header("Content-Length", str(len(data) - start))
    request.end_headers()
    request.wfile.write(data[start : start + stop_after])


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def get(server: Server, target: Path) -> Path:
    return fetch(server.url, target, sha256=SHA256, size=len(DATA), sleep=lambda _: None)


def test_a_file_arrives_and_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    assert get(server, target).read_bytes() == DATA
    assert get(server, target).read_bytes() == DATA
    assert server.ranges == [None]
    assert list(target.parent.iterdir()) == [target]


def test_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: serve(request, stop_after=300_000)
    assert get(server, tmp_path / "file").read_bytes() == DATA
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_an_earlier_part_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA[:5000])
    assert get(server, tmp_path / "file").read_bytes() == DATA
    assert server.ranges == ["bytes=5000-"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    def whole(request: BaseHTTPRequestHandler) -> None:
        del request.headers["Range"]
        serve(request)

    server.answer = whole
    (tmp_path / "file.part").write_bytes(b"x" * 5000)
    assert get(server, tmp_path / "file").read_bytes() == DATA


def test_a_bad_part_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 5000)
    assert get(server, tmp_path / "file").read_bytes() == DATA
    assert server.ranges == ["bytes=5000-", None]


def test_trouble_that_passes(server: Server, tmp_path: Path) -> None:
    def at_first(request: BaseHTTPRequestHandler) -> None:
        if len(server.ranges) < 3:
            request.send_error(503)
        else:
            serve(request)

    server.answer = at_first
    assert get(server, tmp_path / "file").read_bytes() == DATA


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda request: request.send_error(404), "answers 404"),
        (lambda request: request.send_error(503), r"answers 503 .*4 attempts"),
        (lambda request: serve(request, DATA[::-1]), "SHA-256"),
        (lambda request: serve(request, DATA + b"more"), "has 1024004 bytes"),
        (lambda request: serve(request, stop_after=0), "ended after 0"),
    ],
    ids=["missing", "down", "wrong", "longer", "silent"],
)
def test_what_cannot_be_had(
    server: Server, tmp_path: Path, answer: Callable[[BaseHTTPRequestHandler], None], says: str
) -> None:
    server.answer = answer
    with pytest.raises(HostError, match=says):
        get(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_an_unwritable_place(server: Server, tmp_path: Path) -> None:
    (tmp_path / "in the way").write_bytes(b"")
    with pytest.raises(HostError, match=r"cannot be written .* KASOU_HOME"):
        get(server, tmp_path / "in the way" / "file")


def test_small_documents(server: Server) -> None:
    assert read_url(server.url, len(DATA)) == DATA
    with pytest.raises(HostError, match="longer than 10"):
        read_url(server.url, 10)
    with pytest.raises(HostError, match="refused"):
        read_url("http://127.0.0.1:9/", 10)
