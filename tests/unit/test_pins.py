"""Tests that r1prov asks once about versions it does not come with: a package index, a web server and a repository on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from r1prov import inventory, site
from r1prov.common import paths
from r1prov.common.errors import SiteError
from r1prov.decision import decide
from r1prov.site import TESTED_OLLAMA_SHA256, Site, pins

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


def wanting(folder: Path, index: str, *, with_ollama: bool = False, **versions: str) -> Site:
    sources = {"pypi": {"index": index}, "ollama": {"releases": f"{index}/releases/"}}
    keys = {"profile": "demo", "hosts": ["a"], "versions": versions, "sources": sources}
    keys["ollama"] = {"enabled": with_ollama}
    (folder / "r1prov.yml").write_text(json.dumps(keys))
    return site.load(folder / "r1prov.yml")


def test_the_tested_versions_ask_nobody(tmp_path: Path) -> None:
    wanted = wanting(tmp_path, "http://nobody.invalid", with_ollama=True)
    (ollama,) = pins.keep(wanted, tmp_path / "pins")
    assert (ollama.name, ollama.read_text()) == ("ollama-0.12.11.sha256", TESTED_OLLAMA_SHA256)
    defaults = yaml.safe_load((paths.collection() / "roles/ollama/defaults/main.yml").read_text())
    assert defaults["ollama_version"] == wanted.file.versions.ollama
    assert defaults["ollama_archive_sha256"] == TESTED_OLLAMA_SHA256


def published(tmp_path: Path, sums: str) -> None:
    """Lets the releases of Ollama have this list of digests for 0.17.4."""
    folder = tmp_path / "index" / "releases" / "v0.17.4"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sha256sum.txt").write_text(sums)


def test_the_digest_of_an_ollama_is_the_one_that_was_seen_first(index: str, tmp_path: Path) -> None:
    wanted = wanting(tmp_path, index, with_ollama=True, ollama="0.17.4")
    with pytest.raises(
        SiteError,
        match=r"cannot be read from http://127\.0\.0\.1:\d+/releases/v0\.17\.4/sha256sum\.txt: it answers 404",
    ):
        pins.keep(wanted, tmp_path / "pins")
    published(tmp_path, f"{'0' * 64}  ./ollama-linux-arm64.tar.zst\n")
    with pytest.raises(SiteError, match=r"names no ollama-linux-amd64\.tar\.zst"):
        pins.keep(wanted, tmp_path / "pins")
    published(tmp_path, f"{'0' * 64}  ./ollama-linux-arm64.tar.zst\n{SHA256}  ./ollama-linux-amd64.tar.zst\n")
    (pin,) = pins.keep(wanted, tmp_path / "pins")
    assert (pin.name, pin.read_text()) == (pins.ollama(wanted), SHA256)
    published(tmp_path, f"{'6' * 64}  ./ollama-linux-amd64.tar.zst\n")
    assert pins.keep(wanted, tmp_path / "pins") == []
    assert pin.read_text() == SHA256
    told = inventory.rendered(decide(wanted))["group_vars/all.yml"]
    assert (
        "ollama_archive_sha256: \"{{ lookup('ansible.builtin.file', r1prov_site_dir ~ '/pins/ollama-0.17.4.sha256') }}\""
        in told
    )


def from_git(folder: Path, url: str, tag: str, **sources: object) -> Site:
    keys = {"profile": "demo", "hosts": ["a"], "ollama": {"enabled": False}, "versions": {"llama_cpp": tag}}
    keys["sources"] = {"llama_cpp": {"type": "git", "git_url": url}, **sources}
    (folder / "r1prov.yml").write_text(json.dumps(keys))
    return site.load(folder / "r1prov.yml")


def test_the_commit_of_a_tag_is_the_one_that_was_seen_first(tmp_path: Path) -> None:
    url = (tmp_path / "repository").as_uri()
    first = committed(tmp_path / "repository", "b1")
    wanted = from_git(tmp_path, url, "b1")
    with pytest.raises(SiteError, match="has no such tag"):
        pins.keep(from_git(tmp_path, url, "b2"), tmp_path / "pins")
    with pytest.raises(SiteError, match="cannot be asked for its commit"):
        pins.keep(from_git(tmp_path, f"{url}-lost", "b1"), tmp_path / "pins")
    (pin,) = pins.keep(wanted, tmp_path / "pins")
    assert (pin.name, pin.read_text()) == ("llama.cpp-b1.commit", first)
    assert committed(tmp_path / "repository", "b1", "--annotate", "--message=b1") != first
    assert pins.keep(wanted, tmp_path / "pins") == []
    assert pin.read_text() == first
    told = inventory.rendered(decide(wanted))["group_vars/all.yml"]
    assert (
        "llama_cpp_git_commit: \"{{ lookup('ansible.builtin.file', r1prov_site_dir ~ '/pins/llama.cpp-b1.commit') }}\""
        in told
    )
    assert pins.keep(from_git(tmp_path, url, first), tmp_path / "pins") == []
    assert "git_commit" not in inventory.rendered(decide(from_git(tmp_path, url, first)))["group_vars/all.yml"]


def test_the_commit_of_an_annotated_tag_is_the_one_behind_it(tmp_path: Path) -> None:
    commit = committed(tmp_path / "repository", "b1", "--annotate", "--message=b1")
    (pin,) = pins.keep(from_git(tmp_path, (tmp_path / "repository").as_uri(), "b1"), tmp_path / "pins")
    assert pin.read_text() == commit


def committed(repository: Path, tag: str, *how: str) -> str:
    """Commits to a repository, which is made where there is none, moves the tag there, and returns the commit."""
    author = {f"GIT_{who}_{what}": "t@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", repository, *arguments]
        return subprocess.run(command, env=os.environ | author, capture_output=True, text=True, check=True).stdout

    if not repository.exists():
        repository.mkdir()
        git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=more")
    git("tag", "--force", *how, tag)
    return git("rev-parse", "HEAD").strip()


class GitServer(BaseHTTPRequestHandler):
    """A web server that wants a login for a repository, and sends whoever has it on to another."""

    shown: ClassVar[list[tuple[str, str]]]
    onward: ClassVar[str]

    def do_GET(self) -> None:
        host, authorization = self.headers["Host"], self.headers.get("Authorization", "")
        type(self).shown.append((host, base64.b64decode(authorization.removeprefix("Basic ")).decode()))
        moved = authorization and not self.onward.endswith(host)
        self.send_response(302 if moved else 401)
        self.send_header(*("Location", f"{self.onward}{self.path}") if moved else ("WWW-Authenticate", "Basic"))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_login_of_a_repository_is_shown_to_its_server_alone_and_on_no_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), GitServer) as server,
        ThreadingHTTPServer(("127.0.0.1", 0), GitServer) as other,
    ):
        for each in (server, other):
            threading.Thread(target=each.serve_forever, daemon=True).start()
        GitServer.shown, GitServer.onward = [], f"http://127.0.0.1:{other.server_port}"
        url = f"http://ann:p%40ss@127.0.0.1:{server.server_port}/x.git"
        real = subprocess.run
        commands: list[str] = []
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: commands.append(str(a)) or real(*a, **k))
        with pytest.raises(SiteError, match="cannot be asked for its commit") as refused:
            pins.keep(from_git(tmp_path, url, "b1"), tmp_path / "pins")
        server.shutdown()
        other.shutdown()
    assert (f"127.0.0.1:{server.server_port}", "ann:p@ss") in GitServer.shown
    onward = [shown for host, shown in GitServer.shown if host.endswith(str(other.server_port))]
    assert onward
    assert set(onward) == {""}
    assert commands
    assert not [text for text in (*commands, str(refused.value)) if "ss@" in text or "p@ss" in text or "%40ss" in text]


def test_other_versions_are_pinned_once(index: str, tmp_path: Path) -> None:
    wanted = wanting(tmp_path, index, llama_cpp="0.3.9", open_webui="9.9.9")
    sdist, page = pins.keep(wanted, tmp_path / "pins")
    assert (sdist.name, sdist.read_text()) == (pins.llama_cpp(wanted), SHA256)
    assert page.name == pins.open_webui(wanted)
    assert page.read_text().startswith("open-webui==9.9.9 \\\n    --hash=sha256:")
    assert pins.keep(wanted, tmp_path / "pins") == []


def test_what_single_hosts_have_is_pinned_too(index: str, tmp_path: Path) -> None:
    wanted = wanting(tmp_path, index)
    chosen = {wanted.hosts[0].name: {"llama_cpp": "0.3.9"}}
    (pin,) = pins.keep(wanted.model_copy(update={"chosen": chosen}), tmp_path / "pins")
    assert (pin.name, pin.read_text()) == ("llama-cpp-python-0.3.9.sha256", SHA256)
    assert pins.keep(wanted, tmp_path / "pins") == []


def test_nobody_is_asked_about_a_program_that_a_host_does_not_have(index: str, tmp_path: Path) -> None:
    """As where only the engines' versions are there from the index, and a door's host has no engine."""
    hosts = [
        {"name": "front", "does": ["door"]},
        {"name": "gpu1", "does": ["engine"], "private": "10.0.0.1"},
    ]
    keys = {
        "profile": "cpu",
        "hosts": hosts,
        "sources": {"pypi": {"index": index}},
        "ollama": {"enabled": False},
        "versions": {"llama_cpp": "nowhere", "open_webui": "0.0.0"},
        "gateway": {"server_name": "chat.example.com", "tls": {"type": "local-authority"}},
    }
    path = tmp_path / "r1prov.yml"
    path.write_text(yaml.safe_dump(keys))
    chosen = site.load(path).model_copy(update={"chosen": {"gpu1": {"llama_cpp": "0.3.9"}}})
    assert [made.name for made in pins.keep(chosen, tmp_path / "pins")] == ["llama-cpp-python-0.3.9.sha256"]


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
