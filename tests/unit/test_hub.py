from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.hub import Hub

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub" / "me" / "model" / "Q"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(CONTENT)
    (tmp_path / "secret").write_text("not for the hub to give")
    with Hub(tmp_path / "hub") as running:
        yield running


def ask(url: str, method: str = "GET", **headers: str) -> HTTPResponse:
    return urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers))


@pytest.mark.parametrize("prefix", ["", "/models"])
def test_a_file_comes_as_from_the_hub_and_from_modelscope(hub: Hub, prefix: str) -> None:
    with ask(f"{hub.url}{prefix}/me/model/resolve/main/Q/m.gguf") as answer:
        assert answer.read() == CONTENT


def test_head_tells_size_and_digest(hub: Hub) -> None:
    with ask(f"{hub.url}/me/model/resolve/main/Q/m.gguf", "HEAD") as answer:
        assert answer.headers["X-Linked-Size"] == str(len(CONTENT))
        assert answer.headers["X-Linked-Etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
        assert answer.read() == b""


@pytest.mark.parametrize(("wanted", "first", "last"), [("1000-", 1000, 2047), ("1000-1009", 1000, 1009)])
def test_a_part_of_a_file(hub: Hub, wanted: str, first: int, last: int) -> None:
    with ask(f"{hub.url}/me/model/resolve/main/Q/m.gguf", Range=f"bytes={wanted}") as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/2048"
        assert answer.read() == CONTENT[first : last + 1]


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("/me/model/resolve/main/Q/none.gguf", {}, 404),
        ("/me/model/resolve/main/%2e%2e/%2e%2e/%2e%2e/secret", {}, 404),
        ("/elsewhere", {}, 404),
        ("/me/model/resolve/main/Q/m.gguf", {"Range": "bytes=9999-"}, 416),
    ],
)
def test_what_it_does_not_give(hub: Hub, path: str, headers: dict[str, str], code: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(hub.url + path, **headers)
    assert caught.value.code == code


def test_the_listing_of_a_folder(hub: Hub) -> None:
    with ask(f"{hub.url}/api/models/me/model/tree/main/Q") as answer:
        (row,) = json.load(answer)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (row["path"], row["size"], row["lfs"]["oid"]) == ("Q/m.gguf", len(CONTENT), digest)


def test_a_token_is_asked_for(hub: Hub) -> None:
    hub.token = "secret"
    url = f"{hub.url}/me/model/resolve/main/Q/m.gguf"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(url)
    with ask(url, Authorization="Bearer secret") as answer:
        assert answer.read() == CONTENT
