"""Tests of artefacts from a package index, from this machine, and from a real HTTP server.

The server drops connections, ignores ranges, or sends wrong content.
"""

from __future__ import annotations

import hashlib
import http.server
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.r1.prov.plugins.module_utils import artefact as module
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAMES = (
    "tool-1.0.tar.gz",
    "tool-1.0-py3-none-macosx_11_0_x86_64.whl",
    "tool-1.0-py3-none-musllinux_1_1_x86_64.whl",
    "tool-1.0-py3-none-manylinux_2_17_aarch64.whl",
    "tool-1.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "tool-1.0.1-py3-none-any.whl",
)
PAGE = "".join(f'<a href="../../files/{name}#sha256=00" data-requires-python="&gt;=3.8">x</a>' for name in NAMES)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT. Under `/drop` the first answer breaks halfway; under `/whole` ranges are ignored."""

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
    module.download(f"{server}/drop", tmp_path / "file", SHA256, progress)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert Handler.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_partial_file_of_an_earlier_run_is_continued(server: str, progress: Progress, tmp_path: Path) -> None:
    (tmp_path / f"file.{SHA256[:12]}.part").write_bytes(CONTENT[:1000])
    module.download(f"{server}/file", tmp_path / "file", SHA256, progress)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert Handler.asked == ["bytes=1000-"]


def test_two_at_once_are_one_after_the_other(server: str, progress: Progress, tmp_path: Path) -> None:
    target = tmp_path / "f"
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(module.download, f"{server}/drop", target, SHA256, progress) for _ in range(3)]:
            done.result()
    assert target.read_bytes() == CONTENT
    assert Handler.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_server_without_ranges_sends_all_again(server: str, progress: Progress, tmp_path: Path) -> None:
    (tmp_path / f"file.{SHA256[:12]}.part").write_bytes(b"old")
    module.download(f"{server}/whole", tmp_path / "file", SHA256, progress)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_wrong_content_is_deleted_and_named(server: str, progress: Progress, tmp_path: Path) -> None:
    with pytest.raises(module.ArtefactError, match=f"has sha256 {SHA256}, expected 000"):
        module.download(f"{server}/file", tmp_path / "file", "0" * 64, progress)
    assert not list(tmp_path.glob("file*"))


def test_a_missing_file_is_not_asked_for_again(server: str, progress: Progress, tmp_path: Path) -> None:
    with pytest.raises(module.ArtefactError, match="answers 404"):
        module.download(f"{server}/missing", tmp_path / "file", SHA256, progress)
    assert Handler.asked == [None]


def test_an_index_page_names_the_files(server: str) -> None:
    links = module.index_links(f"{server}/simple", "tool")
    assert links == {name: f"{server}/files/{name}" for name in NAMES}


@pytest.mark.parametrize(("suffix", "name"), [(".tar.gz", NAMES[0]), (".whl", NAMES[4])])
def test_an_index_is_asked_for_what_fits_and_only_once(
    server: str, progress: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, name: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{server}/simple")
    wanted = module.Artefact("pypi:tool==1.0", SHA256, "x", suffix)
    assert wanted.fetch(tmp_path / "kept", progress) == tmp_path / "kept" / name
    asked = len(Handler.asked)
    assert wanted.fetch(tmp_path / "kept", progress).read_bytes() == CONTENT
    assert len(Handler.asked) == asked


def test_what_no_index_has_is_named(
    server: str, progress: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{server}/simple".replace("//", "//me:secret@"))
    with pytest.raises(module.ArtefactError, match=r"has no tool-2\.0-\*\.whl.*correct the_source") as caught:
        module.Artefact("pypi:tool==2.0", SHA256, "the_source").fetch(tmp_path, progress)
    assert "secret" not in str(caught.value)


def test_a_file_of_this_machine_is_taken_where_it_lies(progress: Progress, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert module.Artefact(f"{tmp_path}/file", SHA256, "x").fetch(tmp_path / "kept", progress) == tmp_path / "file"
    with pytest.raises(module.ArtefactError, match=r"expected 000.*it is not whole.*correct x_sha256"):
        module.Artefact(f"{tmp_path}/file", "0" * 64, "x").fetch(tmp_path, progress)
    with pytest.raises(module.ArtefactError, match=r"neither here nor on the controller\. Correct x"):
        module.Artefact("/none.tgz", SHA256, "x").fetch(tmp_path, progress)


def test_an_archive_makes_no_files_that_others_may_write_to(tmp_path: Path) -> None:
    (tmp_path / "packed").touch()
    (tmp_path / "packed").chmod(0o4777)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "packed", "unpacked")
    module.unpack(tmp_path / "a.tar", tmp_path)
    assert (tmp_path / "unpacked").stat().st_mode & 0o7022 == 0


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(CONTENT)
    with pytest.raises(module.ArtefactError, match=r"a\.tgz is not a whole tar archive"):
        module.unpack(tmp_path / "a.tgz", tmp_path)


def test_an_index_that_cannot_be_read_is_named(server: str) -> None:
    with pytest.raises(module.ArtefactError, match="missing/x/ cannot be read"):
        module.index_links(f"{server}/missing", "x")


def test_the_index_is_the_one_that_pip_uses(tmp_path: Path) -> None:
    conf = tmp_path / "pip.conf"
    assert module.index_url({}, conf) == "https://pypi.org/simple"
    conf.write_text("[global]\nindex-url = http://mirror.test/simple\n")
    assert module.index_url({}, conf) == "http://mirror.test/simple"
    assert module.index_url({"PIP_INDEX_URL": "http://other.test/simple"}, conf) == "http://other.test/simple"


def test_messages_show_no_password() -> None:
    assert str(module.ArtefactError("http://me:secret@mirror.test/x answers 404")) == "http://mirror.test/x answers 404"
