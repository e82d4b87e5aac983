from __future__ import annotations

import json
import mmap
import os
import random
import re
import time
from contextlib import closing
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disks
import gguf
import pytest
from ansible_collections.r1.prov.plugins.module_utils import (
    gguf_header,
    gguf_stream,
    merged_weights,
    piece_digests,
    pieces,
    weights_kept,
    weights_merge,
    weights_verify,
)
from ansible_collections.r1.prov.plugins.module_utils.digest import digests_of, sha256_of
from ansible_collections.r1.prov.plugins.module_utils.piece_digests import Digests
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.weights_merge import Merge, MergeError
from transfer.disk import DirectReader

from r1prov.models import convert as weights
from tests.fixtures import shards, tinymodel

if TYPE_CHECKING:
    from collections.abc import Iterator

Q8_0 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with legacy attention in one file."""
    return tinymodel.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", legacy=Q8_0)


@pytest.fixture(scope="module")
def converted(whole: Path) -> Path:
    """The same model in MLA form."""
    file = whole.with_name("converted.gguf")
    assert weights.convert(whole, file, "Q8_0", lambda *_: None)
    return file


class Host:
    """A host's folder with verified shards, and the state of the transfer."""

    def __init__(self, root: Path, whole: Path) -> None:
        self.folder, self.state, self.run, self.whole = root / "models", root / "state.json", root / "run", whole
        (self.folder / ".incoming").mkdir(parents=True)
        self.shards = shards.split(whole, self.folder / "t", 60)
        self.files = [{"name": p.name, "bytes": p.stat().st_size, "sha256": digest(p)} for p in self.shards]
        looks = {str(p): weights_kept.seen(p, digest(p)) for p in self.shards}
        self.state.write_text(json.dumps({"state": "done", "invocation": "1", "verified": {"/else": {}, **looks}}))

    def merge(self, attention: str) -> Merge:
        name = self.name(attention)
        return Merge(self.folder, self.files, name=name, attention=attention, state=self.state, run=self.run)

    def settle(self, keep: str) -> list[str]:
        """Settles on the file `keep`, and returns the names of the files that this removed."""
        found = merged_weights.replaced(self.folder, keep, self.files, self.state)
        if found:
            merged_weights.remove(found, self.state)
        return [path.name for path in found]

    @staticmethod
    def name(attention: str) -> str:
        return "t.mla.gguf" if attention == "mla" else "t.gguf"

    @property
    def names(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    @property
    def verified(self) -> dict[str, Any]:
        state = json.loads(self.state.read_text())
        assert state["invocation"] == "1"
        found: dict[str, Any] = state["verified"]
        return found

    def has(self, attention: str, content: Path) -> bool:
        """Whether the new file exists with the bytes of `content`, has a record, and counts as verified."""
        file = self.folder / self.name(attention)
        record = json.loads(merged_weights.record_of(file).read_text())
        return (
            file.read_bytes() == content.read_bytes()
            and record
            == {
                "name": file.name,
                "bytes": file.stat().st_size,
                "sha256": digest(file),
                "attention": attention,
                "shards": self.files,
                "pieces": in_pieces(file.read_bytes()),
            }
            and self.verified[str(file)] == weights_kept.seen(file, digest(file))
            and not list((self.folder / ".incoming").iterdir())
        )

    @property
    def progress(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "weights" / "progress.json").read_text())
        return found


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def in_pieces(content: bytes) -> dict[str, Any]:
    """The digests of the pieces of a file, as they are recorded."""
    size = pieces.PIECE_BYTES
    found = [sha256(content[start : start + size]).hexdigest() for start in range(0, len(content), size)]
    return {"bytes": size, "sha256": found}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of which even a tiny model has several."""
    for module in (piece_digests, pieces):
        monkeypatch.setattr(module, "PIECE_BYTES", 64 << 10)


@pytest.fixture
def host(tmp_path: Path, whole: Path) -> Host:
    return Host(tmp_path, whole)


@pytest.mark.parametrize("attention", ["legacy", "mla"])
def test_one_file_is_made_of_the_shards_which_stay_until_it_has_proved_itself(
    host: Host, attention: str, whole: Path, converted: Path
) -> None:
    merge = host.merge(attention)
    assert merge.known is None
    (host.folder / ".incoming" / host.name(attention)).write_text("what a killed run left")
    found = merge.complete()
    assert host.has(attention, converted if attention == "mla" else whole)
    assert merge.known == found | {"attention": attention}
    assert (host.progress["step"], host.progress["unit"], host.progress["state"]) == ("weights", "bytes", "done")
    assert host.progress["done"] == host.progress["total"] == found["bytes"]
    assert all(shard.exists() for shard in host.shards)
    assert host.settle(host.name(attention)) == [shard.name for shard in host.shards]
    assert host.names == {host.name(attention), f"{host.name(attention)}.json"}
    assert host.verified.keys() == {"/else", str(merge.file)}
    assert host.settle(host.name(attention)) == []
    assert host.merge(attention).known


def test_a_file_that_was_merged_as_published_is_brought_into_mla_form_and_kept_until_then(
    host: Host, converted: Path
) -> None:
    host.merge("legacy").complete()
    host.settle("t.gguf")
    stand_in = merged_weights.stand_in(host.folder, "t.mla.gguf", "mla", host.files)
    assert stand_in
    assert stand_in["name"] == "t.gguf"
    host.merge("mla").complete()
    assert host.has("mla", converted)
    assert host.merge("legacy").known  # the old file stays, so that the host can go back to it
    assert host.settle("t.mla.gguf") == ["t.gguf"]
    assert host.names == {"t.mla.gguf", "t.mla.gguf.json"}
    # A file in MLA form cannot be turned back into the published form.
    assert not merged_weights.stand_in(host.folder, "t.gguf", "legacy", host.files)
    with pytest.raises(MergeError, match="Let the role weights bring it"):
        host.merge("legacy").complete()


@pytest.mark.parametrize("kind", ["another architecture", "in MLA form"])
def test_what_has_no_legacy_attention_is_merged_as_it_is(tmp_path: Path, kind: str) -> None:
    file = tinymodel.write(tmp_path / "tiny.gguf", legacy=Q8_0 if kind == "another architecture" else None)
    if kind == "another architecture":
        file.write_bytes(file.read_bytes().replace(b"deepseek2", b"deepseek3"))
    host = Host(tmp_path, file)
    assert host.merge("mla").complete()["attention"] == "legacy"
    assert (host.folder / "t.mla.gguf").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("attention", ["legacy", "mla"])
def test_shards_that_together_are_not_the_model_are_not_merged(host: Host, attention: str) -> None:
    """One shard has a tensor of another in place of its own, under the digest that was published."""
    place = next(path for path in host.shards if b"blk.4.ffn_norm" in path.read_bytes())
    place.write_bytes(place.read_bytes().replace(b"blk.4.ffn_norm.weight", b"blk.5.ffn_norm.weight"))
    state = json.loads(host.state.read_text())
    host.files = [{"name": p.name, "bytes": p.stat().st_size, "sha256": digest(p)} for p in host.shards]
    looks = {str(p): weights_kept.seen(p, digest(p)) for p in host.shards}
    host.state.write_text(json.dumps({**state, "verified": looks}))
    before = host.names
    with pytest.raises(
        MergeError, match=r"`blk.5.ffn_norm.weight` stands .* none of its files has `blk.4.ffn_norm.weight`"
    ):
        host.merge(attention).complete()
    assert host.names == before


@pytest.mark.parametrize("step", ["record", "remember", "sync_folder"])
def test_a_run_that_was_cut_off_anywhere_is_taken_up(
    host: Host, converted: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(merged_weights if step == "record" else weights_merge, step, die)
        with pytest.raises(KeyboardInterrupt):
            host.merge("mla").complete()
    host.merge("mla").complete()
    assert host.has("mla", converted)


@pytest.mark.parametrize("step", ["unlink", "write_whole"])
def test_a_removal_that_was_cut_off_anywhere_is_taken_up(
    host: Host, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    host.merge("mla").complete()
    real = Path.unlink

    def die(*arguments: Any, **named: Any) -> None:
        if step == "unlink" and arguments[0].name != host.files[1]["name"]:
            real(*arguments, **named)  # the removal is cut off at the second shard
        else:
            raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(Path if step == "unlink" else weights_kept, step, die)
        with pytest.raises(KeyboardInterrupt):
            host.settle("t.mla.gguf")
    host.settle("t.mla.gguf")
    assert host.names == {"t.mla.gguf", "t.mla.gguf.json"}


@pytest.mark.parametrize("harm", ["lost", "touched", "shards lost"])
def test_nothing_is_removed_where_what_is_served_is_not_as_it_was_verified(host: Host, harm: str) -> None:
    host.merge("mla").complete()
    if harm == "lost":
        (host.folder / "t.mla.gguf").unlink()
    elif harm == "touched":
        (host.folder / "t.mla.gguf").touch()
    else:
        host.shards[0].unlink()
    before = host.names
    with pytest.raises(merged_weights.NotThereError, match="so nothing is removed"):
        host.settle("" if harm == "shards lost" else "t.mla.gguf")
    assert host.names == before


def test_the_published_files_replace_what_was_made_of_them(host: Host) -> None:
    host.merge("mla").complete()
    assert host.settle("") == ["t.mla.gguf"]
    assert host.names == {shard.name for shard in host.shards}


def test_a_state_that_was_lost_is_found_again_by_reading(host: Host, converted: Path) -> None:
    host.merge("mla").complete()
    host.settle("t.mla.gguf")
    host.state.write_text(json.dumps({"invocation": "1", "verified": {"/else": {}}}))
    assert host.merge("mla").known is None
    host.merge("mla").complete()
    assert host.has("mla", converted)


def test_what_is_needed_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.shards[1].touch()
    with pytest.raises(MergeError, match="changed since it was verified"):
        host.merge("mla").complete()
    monkeypatch.setattr(weights_merge, "is_as_verified", lambda *_: True)
    with monkeypatch.context() as small:
        small.setattr(gguf_stream, "_check_room", _no_room)
        with pytest.raises(gguf_stream.StreamError, match="no room"):
            host.merge("mla").complete()
    assert host.progress["state"] == "failed"
    assert host.names == {shard.name for shard in host.shards}
    with monkeypatch.context() as bare:
        bare.setattr(weights_merge, "mla", None)
        with pytest.raises(MergeError, match="MLA form takes numpy"):
            host.merge("mla").complete()
    host.shards[2].unlink()
    host.files.pop()
    with pytest.raises(
        MergeError, match=r"a set of 3 shards, and 2 are here.* With `attention: legacy` it is served as it is"
    ):
        host.merge("mla").complete()


def _no_room(*_: Any) -> None:
    raise gguf_stream.StreamError("no room")


def test_a_bad_file_without_its_shards_is_made_anew_or_not_at_all(host: Host) -> None:
    host.merge("mla").complete()
    host.settle("t.mla.gguf")
    file = host.folder / "t.mla.gguf"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(MergeError, match="Let the role weights bring it"):
        host.merge("mla").complete()


def test_a_file_s_head(whole: Path, tmp_path: Path) -> None:
    read = gguf_header.read(whole)
    assert read.text("general.architecture") == "deepseek2"
    assert read.text("general.alignment") == read.text("none") == ""
    assert read.tensors[-1].start + read.tensors[-1].bytes == whole.stat().st_size
    bad = tmp_path / "bad.gguf"
    with pytest.raises(gguf_header.GgufError, match=r"bad\.gguf cannot be read: No such file"):
        gguf_header.read(bad)
    for content, says in (
        (b"", r"bad\.gguf cannot be used: it is no GGUF file"),
        (b"vers", "pointer of Git LFS"),
        (whole.read_bytes()[:200], "cut short"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(16), "version is 9"),
        (b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + b"\xff" * 8, "damaged"),
    ):
        bad.write_bytes(content)
        with pytest.raises(gguf_header.GgufError, match=says):
            gguf_header.read(bad)


def rot(file: Path, at: int) -> None:
    """Changes a bit and keeps size and time, as a disk does."""
    times = file.stat()
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def places(file: Path) -> list[int]:
    """Places in a file's head, in its first tensor, in the padding behind a tensor, and at its end."""
    read = gguf_header.read(file)
    gaps = [
        before.start + before.n_bytes
        for before, behind in pairwise(read.tensors)
        if before.start + before.n_bytes < behind.start
    ]
    first = read.tensors[0].start
    return [60, first // 2, first + 3, *gaps[:1], file.stat().st_size - 1]


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("attention", ["legacy", "mla"])
def test_a_shard_that_rotted_since_it_was_verified_is_not_sealed(host: Host, attention: str, number: int) -> None:
    shard = host.shards[number]
    before = host.names
    for place in places(shard):
        rot(shard, place)
        with pytest.raises(gguf_stream.DamagedError, match=re.escape(str(shard))):
            host.merge(attention).complete()
        assert host.names == before
        assert str(shard) not in host.verified  # So the transfer reads it, and fetches it anew.
        assert len(host.verified) == len(host.shards)
        rot(shard, place)
        weights_kept.remember(shard, digest(shard), host.state)
    host.merge(attention).complete()


def test_a_published_file_that_rotted_before_its_conversion_is_not_sealed(host: Host) -> None:
    host.merge("legacy").complete()
    host.settle("t.gguf")
    for place in places(host.folder / "t.gguf"):
        rot(host.folder / "t.gguf", place)
        with pytest.raises(gguf_stream.DamagedError, match=r"t\.gguf is damaged"):
            host.merge("mla").complete()
        assert host.names == {"t.gguf", "t.gguf.json"}
        assert str(host.folder / "t.gguf") not in host.verified
        rot(host.folder / "t.gguf", place)
        weights_kept.remember(host.folder / "t.gguf", digest(host.folder / "t.gguf"), host.state)
    host.merge("mla").complete()


def damaged(host: Host, attention: str) -> Path:
    """The merged file, damaged in several places, as the transfer leaves it: its shards are there again."""
    host.merge(attention).complete()
    file = host.folder / host.name(attention)
    for place in places(file):
        rot(file, place)
    weights_kept.forget([file], host.state)
    return file


@pytest.mark.parametrize("attention", ["legacy", "mla"])
def test_a_damaged_file_is_there_until_its_successor_is(
    host: Host, attention: str, whole: Path, converted: Path
) -> None:
    file = damaged(host, attention)
    with file.open("rb") as served:
        bad = file.read_bytes()
        host.merge(attention).complete()
        assert host.has(attention, converted if attention == "mla" else whole)
        assert served.read() == bad  # The engine keeps what it has mapped.


@pytest.fixture
def small(tmp_path: Path, whole: Path) -> Iterator[Host]:
    """A host whose disk can be filled."""
    with disks.mounted(tmp_path / "disk", 60 << 20) as place:
        yield Host(place, whole)


@pytest.mark.parametrize("harm", ["bits", "truncated", "no record"])
@pytest.mark.parametrize("attention", ["legacy", "mla"])
def test_without_room_for_a_successor_wrong_bytes_are_written_anew_in_place(
    small: Host, attention: str, harm: str, whole: Path, converted: Path
) -> None:
    file = damaged(small, attention)
    room = 512 << 10
    if harm == "truncated":
        os.truncate(file, file.stat().st_size // 2)
        room += file.stat().st_size
    elif harm == "no record":
        merged_weights.record_of(file).write_text("{")
    disks.fill(small.folder.parent, leave=room)
    inode, bad, shard = file.stat().st_ino, file.read_bytes(), small.shards[1]
    rot(shard, shard.stat().st_size // 2)
    with pytest.raises(gguf_stream.DamagedError, match=re.escape(str(shard))):
        small.merge(attention).complete()
    assert file.read_bytes() == bad  # Nothing but right bytes is written over a served file.
    rot(shard, shard.stat().st_size // 2)
    weights_kept.remember(shard, digest(shard), small.state)
    with file.open("rb") as served:
        small.merge(attention).complete()
        assert small.has(attention, converted if attention == "mla" else whole)
        assert served.read() == file.read_bytes()
    assert file.stat().st_ino == inode
    assert small.merge(attention).known


def test_without_room_a_damaged_published_file_is_mended_and_takes_the_place_of_the_shards(
    small: Host, converted: Path
) -> None:
    file = damaged(small, "legacy")
    disks.fill(small.folder.parent, leave=1 << 20)
    inode = file.stat().st_ino
    small.merge("mla").complete()
    assert small.has("mla", converted)
    assert file.stat().st_ino == inode
    assert small.settle("t.mla.gguf") == ["t.gguf"]


def faults(host: Host, name: str = "t.mla.gguf") -> list[str]:
    """What a verification finds wrong, by file."""
    files = weights_verify.expected(host.folder, host.files, name)
    rows = weights_verify.verified(host.folder, files, Progress("weights", host.run), state=host.state)
    assert all((row["state"] == "damaged") is bool(row["why"]) for row in rows)
    return [f"{Path(row['path']).name}: {row['why']}" for row in rows if row["why"]]


def test_verifying_names_what_is_damaged_by_place_and_lets_the_transfer_read_it_again(host: Host) -> None:
    host.merge("mla").complete()
    host.settle("t.mla.gguf")
    file = host.folder / "t.mla.gguf"
    assert faults(host) == []
    assert (host.progress["done"], host.progress["total"]) == (file.stat().st_size, file.stat().st_size)
    for place in places(file):
        rot(file, place)
        assert host.merge("mla").known  # Whoever only looks at size and time sees nothing.
        start = place // pieces.PIECE_BYTES * pieces.PIECE_BYTES
        last = min(start + pieces.PIECE_BYTES, file.stat().st_size) - 1
        (said,) = faults(host)
        assert said.startswith(f"t.mla.gguf: 1 piece is not what it was: bytes {start}-{last}")
        rot(file, place)
    os.truncate(file, 100)
    assert faults(host) == [f"t.mla.gguf: it has 100 bytes, not {host.verified[str(file)]['bytes']}"]
    merged_weights.record_of(file).write_text("{")
    assert faults(host) == ["t.mla.gguf: nothing says what it should be: t.mla.gguf.json is lost or damaged"]
    file.unlink()
    assert faults(host) == ["t.mla.gguf: it is not there"]
    before = host.verified
    weights_kept.forget([file], host.state)
    assert host.verified == {path: looks for path, looks in before.items() if path != str(file)}


def test_a_damaged_place_is_named_with_the_tensors_that_lie_there(host: Host) -> None:
    host.merge("mla").complete()
    file = host.folder / "t.mla.gguf"
    tensors = [each for each in gguf_header.read(file).tensors if each.n_bytes > 1]
    hit = next(each for each in tensors if each.start > 3 * pieces.PIECE_BYTES)
    rot(file, hit.start)
    rot(file, len(file.read_bytes()) - 1)
    (row,) = [
        row
        for row in weights_verify.verified(
            host.folder,
            weights_verify.expected(host.folder, host.files, file.name),
            Progress("weights", host.run),
            state=host.state,
        )
        if row["why"]
    ]
    start = hit.start // pieces.PIECE_BYTES * pieces.PIECE_BYTES
    assert (row["places"][0]["start"], row["places"][0]["end"]) == (start, start + pieces.PIECE_BYTES)
    assert hit.name in row["places"][0]["holds"]
    assert tensors[-1].name in row["places"][1]["holds"]
    assert row["why"].startswith("2 pieces are not what they were: ")
    rot(file, 0)  # Whoever cannot read the header any more still says where the damage is.
    assert "bytes 0-" in faults(host)[0]


def test_the_digests_of_pieces_are_recorded_when_a_file_is_found_whole(host: Host) -> None:
    """Files that earlier versions made, and published ones, have none yet."""
    host.merge("legacy").complete()
    file = host.folder / "t.gguf"
    record = json.loads(merged_weights.record_of(file).read_text())
    made = record.pop("pieces")
    merged_weights.record_of(file).write_text(json.dumps(record))
    for path in (file, *host.shards):
        assert pieces.recorded_pieces(path, path.stat().st_size, digest(path), host.state) == []
    assert faults(host, "t.gguf") == []
    assert json.loads(merged_weights.record_of(file).read_text()) == {**record, "pieces": made}
    for path in (file, *host.shards):
        known = pieces.recorded_pieces(path, path.stat().st_size, digest(path), host.state)
        assert known == in_pieces(path.read_bytes())["sha256"]
    rot(host.shards[1], 70_000)
    (said,) = faults(host, "t.gguf")
    assert said.startswith(f"{host.shards[1].name}: 1 piece is not what it was: bytes 65536-")
    host.settle("t.gguf")
    assert list((host.state.parent / "pieces").iterdir()) == []


def test_digests_of_pieces_that_rotted_themselves_are_no_damage_of_the_file(host: Host) -> None:
    host.merge("mla").complete()
    file = host.folder / "t.mla.gguf"
    record = json.loads(merged_weights.record_of(file).read_text())
    right = list(record["pieces"]["sha256"])
    record["pieces"]["sha256"][1] = "0" * 64
    merged_weights.record_of(file).write_text(json.dumps(record))
    assert faults(host) == []
    assert json.loads(merged_weights.record_of(file).read_text())["pieces"]["sha256"] == right


def test_what_a_reading_has_found_is_kept_for_each_file_until_that_is_gone(tmp_path: Path) -> None:
    kept, first, second = tmp_path / "read.json", tmp_path / "a", tmp_path / "b"
    for file in (first, second):
        file.touch()

    def row(path: Path, state: str) -> dict[str, Any]:
        return {"path": str(path), "bytes": 0, "sha256": "s", "state": state, "why": "", "places": []}

    weights_kept.remember_reading([row(first, "whole")], "timer", kept)
    weights_kept.remember_reading([row(second, "damaged")], "run", kept)
    found = json.loads(kept.read_text())
    assert {path: each["state"] for path, each in found["files"].items()} == {
        str(first): "whole",
        str(second): "damaged",
    }
    assert found["by"] == "run"
    first.unlink()
    weights_kept.remember_reading([], "timer", kept)
    assert list(json.loads(kept.read_text())["files"]) == [str(second)]


def test_verifying_reads_all_that_is_there(host: Host) -> None:
    """Before the benchmark has passed, published files and the file made of them lie side by side."""
    host.merge("legacy").complete()
    host.merge("mla").complete()
    names = [file["name"] for file in weights_verify.expected(host.folder, host.files, "t.mla.gguf")]
    assert sorted(names) == sorted([*(shard.name for shard in host.shards), "t.gguf", "t.mla.gguf"])
    host.shards[1].unlink()
    missing = weights_verify.expected(host.folder, host.files, "")
    rows = weights_verify.verified(host.folder, missing, Progress("weights", host.run), state=host.state)
    assert [row["why"] for row in rows if row["path"] == str(host.shards[1])] == ["it is not there"]
    assert len(rows) == 5


def test_who_waited_for_another_run_takes_what_that_found(tmp_path: Path) -> None:
    files, rows = [{"name": "a", "bytes": 1, "sha256": "b"}], [{"path": "/a", "why": ""}]
    kept = tmp_path / "verify.json"
    began = time.time()
    assert weights_verify.joined(began, kept, files) == []
    weights_verify.keep(kept, files, rows)
    assert weights_verify.joined(began, kept, files) == rows
    assert weights_verify.joined(time.time() + 1, kept, files) == []  # That one was over before.
    assert weights_verify.joined(began, kept, []) == []  # That one read other files.


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (9 << 20) + 513])
def test_the_digest_of_a_file_of_any_size(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(random.Random(size).randbytes(size))
    told: list[int] = []
    assert sha256_of(file, told.append) == digest(file)
    assert told[-1:] == ([size] if size else [])


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 8191, 8192, 8193, 50_000])
def test_the_digests_of_pieces_of_a_file_of_any_size(tmp_path: Path, size: int, cores: int) -> None:
    file = tmp_path / "file"
    content = random.Random(size).randbytes(size)
    file.write_bytes(content)
    told: list[int] = []
    found = digests_of(file, 8192, whole=True, cores=cores, report=told.append)
    assert found.whole == digest(file)
    assert found.pieces == [sha256(content[at : at + 8192]).hexdigest() for at in range(0, size, 8192)]
    assert told[-1:] == ([size] if size else [])
    with Digests() as along:
        for at in range(0, size, 777):
            along.update(content[at : at + 777])
        assert along.sums().pieces == in_pieces(content)


@pytest.mark.parametrize("room", [True, False])
def test_what_rotted_on_the_disk_is_found_and_mended_while_an_engine_has_it_mapped(
    tmp_path: Path, whole: Path, converted: Path, room: bool
) -> None:
    """The kernel still has the right bytes in memory, so whoever reads as usual sees nothing wrong."""
    with disks.imaged(tmp_path / "disk", 60 << 20) as place:
        host = Host(place, whole)
        host.merge("mla").complete()
        file, right = host.folder / "t.mla.gguf", converted.read_bytes()
        with file.open("rb") as served, mmap.mmap(served.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == right
            made = next(tensor for tensor in gguf_header.read(file).tensors if "k_b" in tensor.name)  # no shard has it
            disks.rot(place.with_suffix(".img"), right[made.start : made.start + 64])
            assert mapped[:] == right
            assert file.read_bytes() == right
            files = weights_verify.expected(host.folder, host.files, file.name)
            rows = weights_verify.verified(host.folder, files, Progress("weights", host.run), state=host.state)
            assert [row["path"] for row in rows if row["why"]] == [str(file)]
            weights_kept.forget([file], host.state)
            if not room:
                disks.fill(place, leave=1 << 20)
            host.merge("mla").complete()
            assert sha256_of(file) == digest(converted)
            assert mapped[:] == right


def test_the_transfer_sees_what_rotted_on_the_disk(tmp_path: Path) -> None:
    with disks.imaged(tmp_path / "disk", 20 << 20) as place:
        file = place / "file"
        content = random.Random(1).randbytes(2 << 20)
        file.write_bytes(content)
        with file.open("rb") as served, mmap.mmap(served.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == content
            assert on_disk(file) == content
            disks.rot(place.with_suffix(".img"), content[5000:5064])
            assert file.read_bytes() == content
            assert on_disk(file) != content


def on_disk(file: Path) -> bytes:
    with closing(DirectReader(file)) as reader:
        return b"".join(map(bytes, iter(reader.next, b"")))
