"""Downloads from a real HTTP server that drops connections, ignores ranges or sends the wrong thing."""

from __future__ import annotations

import hashlib
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.r1.prov.plugins.module_utils import download as module
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = '<a href="../../files/llama_cpp_python-0.3.36.tar.gz#sha256=00" data-requires-python="&gt;=3.8">x</a>'


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `/drop` breaks the first answer half way, `/whole` ignores ranges."""

    asked: list[str | None]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        begins = self.headers.get("Range")
        type(self).asked.append(begins)
        if self.path.startswith("/simple/"):
            return self._send(200, PAGE.encode())
        if self.path.startswith("/missing"):
            return self._send(404, b"")
        if begins and self.path != "/whole":
            return self._send(206, CONTENT[int(begins[6:-1]) :])
        return self._send(200, CONTENT, half=self.path == "/drop")

    def _send(self, status: int, body: bytes, *, half: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = half

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress("llama_cpp", tmp_path / "run")


def test_a_dropped_connection_goes_on_where_it_broke(server: str, progress: Progress, tmp_path: Path) -> None:
    module.download(f"{server}/drop", tmp_path / "file", [SHA256], progress)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert Handler.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_partial_file_of_an_earlier_run_is_continued(server: str, progress: Progress, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    module.download(f"{server}/file", tmp_path / "file", [SHA256], progress)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert Handler.asked == ["bytes=1000-"]


def test_two_at_once_are_one_after_the_other(server: str, progress: Progress, tmp_path: Path) -> None:
    target = tmp_path / "f"
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(module.download, f"{server}/drop", target, [SHA256], progress) for _ in range(3)]:
            done.result()
    assert target.read_bytes() == CONTENT
    assert Handler.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_server_without_ranges_sends_all_again(server: str, progress: Progress, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"old")
    module.download(f"{server}/whole", tmp_path / "file", [SHA256], progress)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_wrong_content_is_deleted_and_named(server: str, progress: Progress, tmp_path: Path) -> None:
    with pytest.raises(module.DownloadError, match=f"has sha256 {SHA256}, expected 00"):
        module.download(f"{server}/file", tmp_path / "file", ["00"], progress)
    assert not list(tmp_path.glob("file*"))


def test_a_missing_file_is_not_asked_for_again(server: str, progress: Progress, tmp_path: Path) -> None:
    with pytest.raises(module.DownloadError, match="answers 404"):
        module.download(f"{server}/missing", tmp_path / "file", [SHA256], progress)
    assert Handler.asked == [None]


def test_an_index_page_names_the_files(server: str) -> None:
    links = module.index_links(f"{server}/simple", "llama-cpp-python")
    assert links == {"llama_cpp_python-0.3.36.tar.gz": f"{server}/files/llama_cpp_python-0.3.36.tar.gz"}


def test_an_index_that_cannot_be_read_is_named(server: str) -> None:
    with pytest.raises(module.DownloadError, match="missing/x/ cannot be read"):
        module.index_links(f"{server}/missing", "x")


def test_the_index_is_the_one_that_pip_uses(tmp_path: Path) -> None:
    conf = tmp_path / "pip.conf"
    assert module.index_url({}, conf) == "https://pypi.org/simple"
    conf.write_text("[global]\nindex-url = http://mirror.test/simple\n")
    assert module.index_url({}, conf) == "http://mirror.test/simple"
    assert module.index_url({"PIP_INDEX_URL": "http://other.test/simple"}, conf) == "http://other.test/simple"


def test_messages_show_no_password() -> None:
    assert str(module.DownloadError("http://me:secret@mirror.test/x answers 404")) == "http://mirror.test/x answers 404"
