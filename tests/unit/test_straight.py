"""Tests that the published files come straight into the one file that serves: the file that the merge makes, at once and on less disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import disks
import gguf
import pytest
import transfer.chain
import transfer.places
from ansible_collections.r1.prov.plugins.module_utils import (
    gguf_header,
    gguf_stream,
    merged_weights,
    mla,
    mla_form,
    piece_digests,
)
from ansible_collections.r1.prov.plugins.module_utils.weights_merge import Merge
from transfer.again import Again
from transfer.places import Final

from tests.faults import kinds
from tests.fixtures import tinymodel
from tests.fixtures.faulty import Faulty, Twist
from tests.fixtures.transferring import HOPELESS, Host, sha256, wait_for

MIB = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> kinds.Model:
    return kinds.publish(tmp_path_factory.mktemp("served") / "files")


@pytest.fixture
def host(tmp_path: Path, served: kinds.Model) -> Host:
    return straight(tmp_path / "host", served.folder)


@pytest.fixture
def server(served: kinds.Model) -> Iterator[Faulty]:
    with Faulty(served.folder) as running:
        yield running


def straight(root: Path, published: Path, attention: str = "mla") -> Host:
    host = Host(root, published)
    host.job |= {"merged": "m.gguf", "attention": attention}
    return host


def work(host: Host) -> Merge:
    """The step that makes the one file where the transfer has not."""
    state, run = host.root / "state" / "state.json", host.root / "run"
    attention = host.job["attention"]
    return Merge(host.folder, host.job["files"], name="m.gguf", attention=attention, state=state, run=run)


def test_the_merge_finds_it_made_and_the_next_run_finds_nothing_to_do(
    host: Host, server: Faulty, served: kinds.Model
) -> None:
    assert host.run(server.source)[0] == 0
    assert host.has_made(served.made)
    known = work(host).known
    assert known
    assert (known["attention"], known["sha256"]) == ("mla", sha256(served.made))
    assert server.sent == sum(path.stat().st_size for path in served.files)
    asked = len(server.requests)
    assert host.run(server.source) == (0, "")
    assert len(server.requests) == asked
    state = host.root / "state" / "state.json"
    assert merged_weights.replaced(host.folder, "m.gguf", host.job["files"], state) == []


def test_its_pieces_are_recorded_as_the_merge_records_them(host: Host, server: Faulty, served: kinds.Model) -> None:
    assert host.run(server.source)[0] == 0
    record = json.loads((host.folder / "m.gguf.json").read_text())
    for name, path in host.published.items():
        shutil.copy(path, host.folder / name)
    (host.folder / "m.gguf").unlink()
    assert host.run(server.source)[0] == 0
    assert sorted(host.published) == sorted(path.name for path in host.folder.glob("m-*"))
    work(host).complete()
    assert json.loads((host.folder / "m.gguf.json").read_text()) == record
    size, content = piece_digests.PIECE_BYTES, served.made.read_bytes()
    assert record["pieces"]["bytes"] == size
    digests = [piece_digests.hashlib.sha256(content[at : at + size]).hexdigest() for at in range(0, len(content), size)]
    assert record["pieces"]["sha256"] == digests
    assert len(digests) > 1


@pytest.mark.parametrize("form", ["legacy", "one file", "in MLA form"])
def test_so_it_is_in_each_form_and_with_one_file(
    served: kinds.Model, server: Faulty, tmp_path: Path, form: str
) -> None:
    published, source = served.folder, server.source
    if form != "legacy":
        published = tmp_path / "published"
        published.mkdir()
        legacy = gguf.GGMLQuantizationType.Q5_0 if form == "one file" else None
        tinymodel.write(published / "m.gguf", legacy=legacy)
        source = {"type": "folder", "path": str(published)}
    host = straight(tmp_path / "host", published, "legacy" if form == "legacy" else "mla")
    assert host.run(source)[0] == 0
    heads = [gguf_header.read(path) for path in host.published.values()]
    wanted = mla_form.wanted(heads, host.job["attention"])
    gguf_stream.write(tmp_path / "wanted", wanted.keys, mla.able(wanted), lambda *_: None)
    assert host.has_made(tmp_path / "wanted")
    assert work(host).known["attention"] == ("mla" if form == "one file" else "legacy")


def test_a_full_disk_is_told_before_anything_is_asked_for(tmp_path: Path, served: kinds.Model, server: Faulty) -> None:
    with disks.mounted(tmp_path / "small", 30 << 20) as place:
        host = straight(place, served.folder)
        code, log = host.run(server.source)
        assert code == HOPELESS
        assert "GiB are still to come" in log
        assert server.requests == []


def test_the_disk_is_reserved_before_the_tensors_come(host: Host, served: kinds.Model) -> None:
    with Faulty(served.folder, rate=1e6) as slow:
        process = host.start(slow.source)
        final = host.folder / ".incoming" / "m.gguf"
        wait_for(lambda: final.exists() and final.stat().st_size)
        assert final.stat().st_blocks * 512 >= served.layout.bytes
        assert host.arrived < sum(path.stat().st_size for path in served.files) / 2
        taken = sum(path.stat().st_blocks * 512 for path in final.parent.iterdir())
        # The model is small, so its attn_kv_b and the first bytes of its files are more of it than they are of R1.
        aside = sum(run.end - run.start for runs in served.layout.runs for run in runs if run.offset is None)
        assert taken < served.layout.bytes + aside + MIB
        process.kill()
        process.communicate()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_disk_that_cannot_reserve_still_gives_the_file_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    monkeypatch.setattr(transfer.places, "reserve", lambda *_: False)
    final = Final(tmp_path / "m.gguf", 10 * MIB)
    if is_there:
        final.path.write_bytes(b"x" * 10 * MIB)
        final.look()
    final.open()
    final.extend()
    final.write(5 * MIB, b"y")
    assert final.path.stat().st_size == 10 * MIB
    assert final.read(5 * MIB - 1, 3) == (b"xyx" if is_there else b"\0y\0")


def test_what_numpy_is_for_waits_for_it(host: Host, server: Faulty, served: kinds.Model) -> None:
    shim = host.root / "shim"
    shim.mkdir()
    lines = [
        "import importlib.abc, pathlib, sys",
        "class Without(importlib.abc.MetaPathFinder):",
        "    def find_spec(self, name, path, target=None):",
        f"        if name == 'numpy' and not pathlib.Path({str(host.root / 'installed')!r}).exists():",
        "            raise ImportError('no numpy yet')",
        "sys.meta_path.insert(0, Without())",
    ]
    (shim / "sitecustomize.py").write_text("\n".join(lines))
    process = host.start(server.source, PYTHONPATH=str(shim))
    wait_for(lambda: (host.root / "run/progress.json").exists() and "numpy" in host.progress["label"])
    assert "numpy, which the role weights installs, is waited for" in host.progress["label"]
    (host.root / "installed").touch()
    assert process.wait(timeout=60) == 0
    process.communicate()
    assert host.has_made(served.made)


def test_a_head_that_came_wrong_is_mended_without_the_file_s_coming_twice(tmp_path: Path, served: kinds.Model) -> None:
    """A source that lies in a text of the head of the second file, which changes no place of any byte."""
    wrong = tmp_path / "wrong"
    shutil.copytree(served.folder, wrong)
    path = wrong / served.files[1].name
    content = path.read_bytes()
    assert b"split.tensors.count" in content[:4096]
    path.write_bytes(content.replace(b"split.tensors.count", b"split.tensors.c0unt", 1))
    host = straight(tmp_path / "host", served.folder)
    host.job["patience_s"] = 30
    with Faulty(wrong) as liar, Faulty(served.folder) as right:
        code, log = host.run(liar.source, right.source)
        assert code == 0, log
        assert host.has_made(served.made)
        assert "its head came wrong" in log
        assert right.sent <= 1.2 * served.files[1].stat().st_size


def test_files_that_are_no_model_together_are_refused_after_their_heads(tmp_path: Path, served: kinds.Model) -> None:
    published = tmp_path / "published"
    published.mkdir()
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        shutil.copy(served.files[0], published / name)
    with (published / "m-00002-of-00002.gguf").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"?")
    host = straight(tmp_path / "host", published)
    host.job["patience_s"] = 60
    with Faulty(published) as server:
        code, log = host.run(server.source)
        assert code == HOPELESS
        assert "stands in m-00001-of-00002.gguf and again in m-00002-of-00002.gguf" in log
        assert server.sent < 3 * MIB
        assert len(server.requests) == 4  # The heads came once more, because a source may have sent wrong ones.


def test_what_is_no_model_is_named_and_costs_a_head(tmp_path: Path) -> None:
    published = tmp_path / "published"
    published.mkdir()
    (published / "m.gguf").write_bytes(b"\xffno model" * MIB)
    host = straight(tmp_path / "host", published)
    with Faulty(published) as server:
        code, log = host.run(server.source)
        assert code == HOPELESS
        assert "sends no part of a model: it is no GGUF file" in log
        assert server.sent < MIB


def test_a_value_that_mla_form_cannot_hold_is_named_when_the_source_did_not_lie(tmp_path: Path) -> None:
    published = tmp_path / "published"
    published.mkdir()
    path = tinymodel.write(published / "m.gguf", legacy=gguf.GGMLQuantizationType.F32)
    tensor = next(each for each in gguf_header.read(path).tensors if "attn_kv_b" in each.name)
    with path.open("r+b") as stream:
        stream.seek(tensor.start)
        stream.write(b"\0\0\xc0\x7f")  # not a number
    host = straight(tmp_path / "host", published)
    with Faulty(published) as server:
        code, log = host.run(server.source)
    assert code == HOPELESS
    assert f"its {tensor.name} holds values that are no numbers" in log
    assert not (host.folder / "m.gguf").exists()


def test_a_shard_that_lies_there_is_not_fetched_and_the_others_come_beside_it(
    host: Host, served: kinds.Model, server: Faulty
) -> None:
    shutil.copy(served.files[0], host.folder)
    assert host.run(server.source)[0] == 0
    assert server.sent == served.files[1].stat().st_size
    assert not (host.folder / "m.gguf").exists()
    work(host).complete()
    assert (host.folder / "m.gguf").read_bytes() == served.made.read_bytes()


def test_after_a_kill_what_is_there_is_read_while_the_rest_comes(host: Host, served: kinds.Model) -> None:
    with Faulty(served.folder, rate=4e6) as server:
        process = host.start(server.source)
        wait_for(lambda: host.arrived > 20 * MIB)
        process.kill()
        process.communicate()
        sent = server.sent
        code, log = host.run(server.source)
        assert (code, "Traceback" in log) == (0, False)
        assert host.has_made(served.made)
        assert server.sent - sent < sum(path.stat().st_size for path in served.files) - 18 * MIB


def test_the_chain_takes_a_shard_only_when_those_before_it_are_right(
    host: Host, served: kinds.Model, tmp_path: Path
) -> None:
    """The second file is right and there while the first one comes wrong again and again."""
    lies = threading.Event()

    def twist(number: int) -> Twist:
        return Twist(flips=not lies.is_set() and number > 1)

    host.job["patience_s"] = 60
    with Faulty(served.folder, twist=twist) as server:
        process = host.start(server.source)
        time.sleep(3)
        lies.set()
        _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert host.has_made(served.made)


def test_who_begins_straight_goes_on_so_though_a_published_file_is_laid_beside(host: Host, served: kinds.Model) -> None:
    with Faulty(served.folder, rate=4e6) as server:
        process = host.start(server.source)
        wait_for(lambda: host.arrived > 20 * MIB)
        process.kill()
        process.communicate()
        shutil.copy(served.files[1], host.folder)
        sent = server.sent
        assert host.run(server.source)[0] == 0
        assert server.sent - sent < sum(path.stat().st_size for path in served.files) - 18 * MIB
    assert (host.folder / "m.gguf").read_bytes() == served.made.read_bytes()
    assert not list((host.folder / ".incoming").iterdir())


def test_a_first_byte_that_flips_on_the_disk_is_no_source_s_fault(host: Host, served: kinds.Model) -> None:
    with Faulty(served.folder, rate=4e6) as server:
        process = host.start(server.source)
        wait_for(lambda: host.arrived > 10 * MIB)
        process.kill()
        process.communicate()
        head = next((host.folder / ".incoming").glob("*.head"))
        kinds.flip(head, 2)  # a byte of the magic
        code, log = host.run(server.source)
    assert code == 0, log
    assert "bytes have changed on the disk" in log
    assert "sends" not in log
    assert host.has_made(served.made)


@pytest.mark.parametrize("place", [0, piece_digests.PIECE_BYTES, 2 * piece_digests.PIECE_BYTES + 4])
def test_a_write_of_another_program_in_the_moment_of_ours_is_found(tmp_path: Path, place: int) -> None:
    """Pieces are read once more as they are verified: the first one while the others come."""
    content = os.urandom(2 * piece_digests.PIECE_BYTES + 5)
    cut = range(0, len(content), piece_digests.PIECE_BYTES)
    pieces = [hashlib.sha256(content[start : start + piece_digests.PIECE_BYTES]).hexdigest() for start in cut]
    final = Final(tmp_path / "m.gguf", len(content))
    final.open()
    final.write(0, content)
    for is_changed in (False, True):
        if is_changed:
            with final.path.open("r+b") as stream:
                stream.seek(place)
                stream.write(bytes([content[place] ^ 1]))
        again = Again(final, len(content))
        again.read(pieces[:1])
        again.read(pieces)
        assert again.agrees() is not is_changed
        again.close()
    final.close()


def test_only_what_is_right_is_read_once_more(tmp_path: Path) -> None:
    """The reader of the next shard goes on as soon as it may, and its shard may turn out wrong."""
    piece, begun = os.urandom(piece_digests.PIECE_BYTES), os.urandom(MIB)
    chain = transfer.chain.Chain(Final(tmp_path / "m.gguf", 3 * len(piece)), None, None)
    chain.digests.update(piece + begun)
    right = chain.advance()
    assert right == [hashlib.sha256(piece).hexdigest()]
    chain.digests.update(piece)
    assert len(chain.digests.pieces) == 2
    assert len(right) == 1
    chain.digests.close()
