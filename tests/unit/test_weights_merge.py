from __future__ import annotations

import json
import shlex
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import gguf_header
from ansible_collections.r1.prov.plugins.modules import weights_folder, weights_merge
from ansible_collections.r1.prov.plugins.modules.weights_merge import Merge, MergeError

from r1prov.lab import shards, tinymodel


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodel.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


class Host:
    """A folder with verified shards, the transfer's state, and a tool that merges: the file before the split is what must come out."""

    def __init__(self, root: Path, whole: Path) -> None:
        self.folder, self.state, self.whole = root / "models", root / "state.json", whole
        (self.folder / ".incoming").mkdir(parents=True)
        made = shards.split(whole, self.folder / "t", 60)
        self.files = [{"name": p.name, "bytes": p.stat().st_size, "sha256": digest(p)} for p in made]
        self.wanted = {"path": str(self.folder), "name": "t.gguf", "files": self.files, "program": str(root / "tool")}
        looks = {str(p): weights_merge.seen(p, digest(p)) for p in made}
        self.state.write_text(json.dumps({"state": "done", "invocation": "1", "verified": {"/else": {}, **looks}}))
        self.merge = Merge(self.wanted, self.state, root / "run")
        self.tool('cp "$whole" "$3"')

    def tool(self, script: str) -> None:
        self.merge.program.write_text(f"#!/bin/sh -e\nwhole={shlex.quote(str(self.whole))}\n{script}\n")
        self.merge.program.chmod(0o755)

    @property
    def names(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    def is_merged(self) -> bool:
        merged = self.folder / "t.gguf"
        record = json.loads((self.folder / "merged.json").read_text())
        state = json.loads(self.state.read_text())
        return (
            self.names == {"t.gguf", "merged.json"}
            and merged.read_bytes() == self.whole.read_bytes()
            and record
            == {"name": "t.gguf", "bytes": merged.stat().st_size, "sha256": digest(merged), "shards": self.files}
            and state["verified"] == {"/else": {}, str(merged): weights_merge.seen(merged, digest(merged))}
            and state["invocation"] == "1"
        )


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def host(tmp_path: Path, whole: Path) -> Host:
    return Host(tmp_path, whole)


def test_the_merged_file_takes_the_place_of_the_shards(host: Host) -> None:
    assert host.merge.known is None
    (host.folder / ".incoming" / "t.gguf").write_text("what a killed run left")
    found = host.merge.complete()
    assert host.is_merged()
    assert host.merge.known == found
    assert found["sha256"] == digest(host.whole)
    progress = json.loads((host.merge.run / "weights" / "progress.json").read_text())
    assert (progress["step"], progress["unit"], progress["state"]) == ("weights", "bytes", "done")
    assert progress["done"] == progress["total"] == found["bytes"]
    assert weights_folder.merged_file(host.folder, "t.gguf", host.files) == found
    assert not weights_folder.merged_file(host.folder, "t.gguf", host.files[:2])
    assert not weights_folder.merged_file(host.folder, "", host.files)


@pytest.mark.parametrize("step", ["write_whole", "_remember", "sync_folder", "unlink"])
def test_a_run_that_was_cut_off_anywhere_is_taken_up(host: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    owner = {"write_whole": weights_merge, "sync_folder": weights_merge, "_remember": Merge, "unlink": Path}[step]
    real = getattr(owner, step)

    def die(*arguments: Any, **named: Any) -> None:
        if step == "unlink" and arguments[0].name != host.files[1]["name"]:
            real(*arguments, **named)  # the second shard is the one where it ends
        else:
            raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(owner, step, die)
        with pytest.raises(KeyboardInterrupt):
            host.merge.complete()
    host.merge.complete()
    assert host.is_merged()


def test_a_state_that_was_lost_is_found_again_by_reading(host: Host) -> None:
    host.merge.complete()
    host.state.write_text(json.dumps({"invocation": "1", "verified": {"/else": {}}}))
    host.tool("exit 1")
    assert host.merge.known is None
    host.merge.complete()
    assert host.is_merged()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('cp "$whole" "$3"; truncate -s -32 "$3"', "differs"),
        # A byte in the last tensor's data, in a key, in a tensor's name.
        ('head -c -64 "$whole" > "$3"; head -c 64 /dev/zero >> "$3"', "differs from t-00003-of-00003.gguf"),
        ('sed "s/general.name/general.nome/" "$whole" > "$3"', "the key general.name differs"),
        ('sed "s/blk.7.ffn_norm/blk.7.ffn_mron/" "$whole" > "$3"', "the tensor blk.7.ffn_mron.weight differs"),
        ('cp "$2" "$3"', "the tensor .* differs"),
        ('echo none > "$3"', "is not a GGUF file"),
        ('head -c 2000 "$whole" > "$3"', "damaged or not whole"),
        ("echo some talk; echo no room; exit 3", r"tool failed \(status 3\): some talk; no room"),
    ],
)
def test_what_is_not_the_shards_is_not_taken(host: Host, script: str, says: str) -> None:
    host.tool(script)
    with pytest.raises((MergeError, gguf_header.GgufError), match=says):
        host.merge.complete()
    assert host.names == {file["name"] for file in host.files}
    progress = json.loads((host.merge.run / "weights" / "progress.json").read_text())
    assert progress["state"] == "failed"


def test_what_is_needed_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.merge.program.unlink()
    with pytest.raises(MergeError, match="The role llama_cpp builds it"):
        host.merge.complete()
    (host.folder / host.files[1]["name"]).touch()
    with pytest.raises(MergeError, match="changed since they were verified"):
        host.merge.complete()
    monkeypatch.setattr(weights_merge, "is_as_verified", lambda *_: True)
    host.merge.total = 1 << 60
    with pytest.raises(MergeError, match=r"GiB free, and merging needs 1073741824\.0 GiB"):
        host.merge.complete()


def test_a_bad_merged_file_without_its_shards_is_no_merged_file(host: Host) -> None:
    host.merge.complete()
    merged = host.folder / "t.gguf"
    content = bytearray(merged.read_bytes())
    content[-100] ^= 1
    merged.write_bytes(content)
    with pytest.raises(MergeError, match="Let the role weights bring them"):
        host.merge.complete()


def test_a_file_s_head(whole: Path, tmp_path: Path) -> None:
    read = gguf_header.read(whole)
    assert read.text("general.architecture") == "deepseek2"
    assert read.text("general.alignment") == read.text("none") == ""
    assert read.tensors[-1].start + read.tensors[-1].bytes == whole.stat().st_size
    bad = tmp_path / "bad.gguf"
    for content, says in (
        (b"", "not whole"),
        (b"vers", "not a GGUF file"),
        (whole.read_bytes()[:200], "not whole"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(16), "version 9"),
        (b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + b"\xff" * 8, "not whole"),
    ):
        bad.write_bytes(content)
        with pytest.raises(gguf_header.GgufError, match=says):
            gguf_header.read(bad)
