"""Tests of the program that brings damaged pieces of files anew."""

from __future__ import annotations

import io
import json
import mmap
import os
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import mend
import pytest
from ansible_collections.r1.prov.plugins.module_utils import (
    gguf_header,
    piece_digests,
    pieces,
    weights_kept,
    weights_verify,
)
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.weights_merge import Merge

from tests.fixtures import shards, tinymodel
from tests.fixtures.hub import Hub

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 64 << 10


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of which even a tiny model has several."""
    for module in (piece_digests, pieces, mend):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(mend, "PAUSE_S", 0.01)
    monkeypatch.setattr(mend, "HEAD_BYTES", 4096)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the hub serves: a model with legacy attention, in shards."""
    whole = tinymodel.write(tmp_path / "tiny.gguf", legacy=gguf.GGMLQuantizationType.Q8_0)
    folder = tmp_path / "hub" / "me" / "model" / "Q"
    folder.mkdir(parents=True)
    shards.split(whole, folder / "t", 60)
    return tmp_path / "hub"


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as running:
        yield running


class Host:
    """A host that serves one file made of the shards, which are gone."""

    def __init__(self, root: Path, folder: Path, attention: str) -> None:
        self.folder, self.state, self.run = root / "models", root / "state.json", root / "run"
        (self.folder / ".incoming").mkdir(parents=True)
        self.files, verified = [], {}
        for path in sorted(folder.iterdir()):
            copy = self.folder / path.name
            copy.write_bytes(path.read_bytes())
            digest = sha256(path.read_bytes()).hexdigest()
            self.files.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest})
            verified[str(copy)] = weights_kept.seen(copy, digest)
        self.state.write_text(json.dumps({"verified": verified}))
        self.attention, self.file = attention, self.folder / "t.gguf"
        Merge(
            self.folder, self.files, name=self.file.name, attention=attention, state=self.state, run=self.run
        ).complete()
        for file in self.files:
            (self.folder / file["name"]).unlink()
        self.right = self.file.read_bytes()

    def rot(self, *places: int) -> None:
        times = self.file.stat()
        with self.file.open("r+b") as stream:
            for place in places:
                stream.seek(place)
                stream.write(bytes([self.right[place] ^ 1]))
        os.utime(self.file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def job(self, *sources: dict[str, Any]) -> dict[str, Any]:
        """What the module gives the program after a verification."""
        files = weights_verify.expected(self.folder, self.files, self.file.name)
        rows = weights_verify.verified(self.folder, files, Progress("weights", self.run), state=self.state)
        damaged = [
            {
                "name": Path(row["path"]).name,
                "bytes": row["bytes"],
                "places": row["places"],
                "pieces": pieces.recorded_pieces(Path(row["path"]), row["bytes"], row["sha256"], self.state),
            }
            for row in rows
            if row["why"]
        ]
        return {
            "folder": str(self.folder),
            "files": self.files,
            "merged": self.file.name,
            "attention": self.attention,
            "sources": list(sources),
            "token": "",
            "environment": {},
            "patience_s": 0.2,
            "rate_limit": {},
            "damaged": damaged,
        }


def source(hub: Hub) -> dict[str, str]:
    return {"type": "hub", "endpoint": hub.url, "repo": "me/model", "revision": "main", "folder": "Q"}


def told(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the program says of a job."""
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    mend.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("attention", ["legacy", "mla"])
@pytest.mark.parametrize("place", ["head", "copied", "made", "padding", "end"])
def test_a_damaged_piece_is_made_anew_of_what_it_came_from(
    root: Path,
    tmp_path: Path,
    hub: Hub,
    attention: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host = Host(tmp_path / "host", root / "me" / "model" / "Q", attention)
    tensors = gguf_header.read(host.file).tensors
    made = next((each for each in tensors if "attn_k_b" in each.name), tensors[3])
    gap = next(each.start + each.n_bytes for each in tensors if each.bytes > each.n_bytes)
    at = {
        "head": 5,
        "copied": tensors[0].start,
        "made": made.start + 7,
        "padding": gap,
        "end": len(host.right) - 1,
    }[place]
    with host.file.open("rb") as served, mmap.mmap(served.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        host.rot(at)
        job = host.job(source(hub))
        assert [(each["start"], each["end"] - each["start"] <= PIECE) for each in job["damaged"][0]["places"]] == [
            (at // PIECE * PIECE, True)
        ]
        found = told(job, monkeypatch, capsys)
        assert found["faults"] == {}
        assert host.file.read_bytes() == host.right
        assert mapped[:] == host.right  # Whoever serves it has the right bytes, too.
    assert 0 < found["fetched"] < len(host.right) // 2


def test_without_numpy_only_converted_tensors_cannot_be_mended(
    root: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(tmp_path / "host", root / "me" / "model" / "Q", "mla")
    monkeypatch.setattr(mend, "MLA", "no_such_module")
    tensors = gguf_header.read(host.file).tensors
    host.rot(tensors[0].start)
    assert told(host.job(source(hub)), monkeypatch, capsys)["faults"] == {}
    assert host.file.read_bytes() == host.right
    host.rot(next(each for each in tensors if "attn_k_b" in each.name).start)
    said = "a converted tensor lies there, and this host has no numpy, which `r1prov up` installs"
    assert told(host.job(source(hub)), monkeypatch, capsys)["faults"] == {host.file.name: said}


def test_only_damaged_pieces_of_a_published_file_come(
    root: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(tmp_path / "host", root / "me" / "model" / "Q", "legacy")
    published = root / "me" / "model" / "Q" / host.files[1]["name"]
    content = published.read_bytes()
    digests = [sha256(content[at : at + PIECE]).hexdigest() for at in range(0, len(content), PIECE)]
    broken = bytearray(content)
    broken[PIECE + 1] ^= 1
    (host.folder / published.name).write_bytes(broken)
    places = [{"start": PIECE, "end": min(2 * PIECE, len(content))}]
    damaged = [{"name": published.name, "bytes": len(content), "pieces": digests, "places": places}]
    found = told(host.job(source(hub)) | {"damaged": damaged}, monkeypatch, capsys)
    assert found == {"fetched": places[0]["end"] - PIECE, "faults": {}}
    assert (host.folder / published.name).read_bytes() == content


def test_wrong_bytes_are_never_written_and_the_next_source_is_asked(
    root: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(tmp_path / "host", root / "me" / "model" / "Q", "mla")
    other = tmp_path / "other" / "me" / "model" / "Q"
    other.mkdir(parents=True)
    for path in (root / "me" / "model" / "Q").iterdir():
        content = path.read_bytes()
        start = gguf_header.read(path).data
        (other / path.name).write_bytes(content[:start] + bytes(byte ^ 255 for byte in content[start:]))
    at = gguf_header.read(host.file).tensors[-1].start
    host.rot(at)
    before = host.file.read_bytes()
    with Hub(tmp_path / "other") as liar:
        alone = told(host.job(source(liar)), monkeypatch, capsys)
        assert alone["faults"] == {host.file.name: f"{liar.url.removeprefix('http://')} sends other bytes"}
        assert host.file.read_bytes() == before
        assert told(host.job(source(liar), source(hub)), monkeypatch, capsys)["faults"] == {}
    assert host.file.read_bytes() == host.right


def test_without_a_source_nothing_is_touched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(tmp_path / "host", root / "me" / "model" / "Q", "mla")
    host.rot(gguf_header.read(host.file).tensors[0].start)
    before = host.file.read_bytes()
    found = told(host.job({"type": "folder", "path": "/none"}), monkeypatch, capsys)
    assert found["faults"] == {host.file.name: "the folder /none does not have it; is its disk mounted?"}
    assert host.file.read_bytes() == before


def test_published_files_that_are_there_still_are_a_source(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(tmp_path / "host", root / "me" / "model" / "Q", "mla")
    for path in (root / "me" / "model" / "Q").iterdir():
        (host.folder / path.name).write_bytes(path.read_bytes())
    host.rot(gguf_header.read(host.file).tensors[0].start)
    job = host.job({"type": "folder", "path": "/none"})
    assert told(job, monkeypatch, capsys) == {"fetched": 0, "faults": {}}
    assert host.file.read_bytes() == host.right
