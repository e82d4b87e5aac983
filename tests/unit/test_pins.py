"""Tests that r1prov asks the package index once about versions it does not come with; the index is a small local one."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from r1prov import site
from r1prov.common.errors import SiteError
from r1prov.site import Site, pins

SHA256 = "5" * 64


class Index(SimpleHTTPRequestHandler):
    """Serves a package index from files. Pages below /newer/ are JSON (PEP 691), the others HTML (PEP 503)."""

    def guess_type(self, path: str) -> str:
        return "application/vnd.pypi.simple.v1+json" if "newer" in path else super().guess_type(path)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of a package index with one version of open-webui and one of llama-cpp-python.

    Below /newer/ it has only llama-cpp-python, in JSON.
    """
    wheel = tmp_path / "index" / "open-webui" / "open_webui-9.9.9-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as packed:
        about = "Metadata-Version: 2.1\nName: open-webui\nVersion: 9.9.9\n"
        for name, text in (("METADATA", about), ("WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"), ("RECORD", "")):
            packed.writestr(f"open_webui-9.9.9.dist-info/{name}", text)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    sdist = "llama_cpp_python-0.3.9.tar.gz"
    html = tmp_path / "index" / "llama-cpp-python" / "index.html"
    html.parent.mkdir()
    html.write_text(f'<a href="../../files/{sdist}#sha256={SHA256}">{sdist}</a>')
    newer = tmp_path / "index" / "newer" / "llama-cpp-python" / "index.html"
    newer.parent.mkdir(parents=True)
    files = [{"filename": sdist, "url": f"../../files/{sdist}", "hashes": {"sha256": SHA256}}]
    page = {"meta": {"api-version": "1.0"}, "name": "llama-cpp-python", "files": files}
    newer.write_text(json.dumps(page))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=tmp_path / "index")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def wanting(folder: Path, index: str, **versions: str) -> Site:
    (folder / "r1prov.yml").write_text(
        f"profile: demo\nhosts: [a]\nversions: {versions}\nsources: {{pypi: {{index: '{index}'}}}}\n"
    )
    return site.load(folder / "r1prov.yml")


def test_the_tested_versions_ask_nobody(tmp_path: Path) -> None:
    assert pins.keep(wanting(tmp_path, "http://nobody.invalid"), tmp_path / "pins") == []


def test_other_versions_are_pinned_once(index: str, tmp_path: Path) -> None:
    wanted = wanting(tmp_path, index, llama_cpp="0.3.9", open_webui="9.9.9")
    sdist, page = pins.keep(wanted, tmp_path / "pins")
    assert (sdist.name, sdist.read_text()) == (pins.llama_cpp(wanted), SHA256)
    assert page.name == pins.open_webui(wanted)
    assert page.read_text().startswith("open-webui==9.9.9 \\\n    --hash=sha256:")
    assert pins.keep(wanted, tmp_path / "pins") == []


def test_an_index_may_answer_in_json(index: str, tmp_path: Path) -> None:
    (sdist,) = pins.keep(wanting(tmp_path, f"{index}/newer", llama_cpp="0.3.9"), tmp_path / "pins")
    assert sdist.read_text() == SHA256


@pytest.mark.parametrize(
    ("versions", "says"),
    [({"llama_cpp": "0.3.8"}, "has no source archive of it"), ({"open_webui": "9.9.8"}, "cannot be pinned: ")],
)
def test_a_version_that_is_not_there_is_said(index: str, tmp_path: Path, versions: dict[str, str], says: str) -> None:
    with pytest.raises(SiteError, match=says) as error:
        pins.keep(wanting(tmp_path, index, **versions), tmp_path / "pins")
    assert "\n" not in error.value.problems[0].what


def test_an_index_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be asked"):
        pins.keep(wanting(tmp_path, "http://127.0.0.1:9", llama_cpp="0.3.9"), tmp_path / "pins")


def test_an_index_that_knows_no_such_project_is_said(index: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be asked for its sha256: it answers 404 File not found"):
        pins.keep(wanting(tmp_path, f"{index}/nothing", llama_cpp="0.3.9"), tmp_path / "pins")


@pytest.mark.parametrize("versions", [{"llama_cpp": "0.3.9"}, {"open_webui": "9.9.9"}])
def test_the_index_is_asked_through_the_sites_proxy(
    index: str, tmp_path: Path, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    sources = {"pypi": {"index": index}, "proxy": {"http": "http://127.0.0.1:9"}}
    keys = {"profile": "demo", "hosts": ["a"], "versions": versions, "sources": sources}
    (tmp_path / "r1prov.yml").write_text(json.dumps(keys))
    with pytest.raises(SiteError, match="Connection refused"):
        pins.keep(site.load(tmp_path / "r1prov.yml"), tmp_path / "pins")
