"""Tests of what `r1prov weights status` finds on a host, and of how it shows that."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from ansible_collections.r1.prov.plugins.module_utils import carried, weights_kept, weights_there
from rich.console import Console

from r1prov.cli import weights_status
from r1prov.common.errors import Problem, UnreachableError
from r1prov.hosts import Contact, Meeting, Result, visit
from r1prov.output import console as consoles
from r1prov.site import load
from tests import golden

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from r1prov.hosts import HostConnection, Login
    from r1prov.site import Host as SiteHost

A, B, C = (letter * 64 for letter in "abc")
SHARDS = [{"name": f"m-0000{number}-of-00002.gguf", "bytes": 10, "sha256": sha} for number, sha in ((1, A), (2, B))]


class Host:
    """The folders of models on a host. What r1prov keeps of them lies beside."""

    def __init__(self, root: Path) -> None:
        self.models, self.state, self.read = root / "models", root / "state.json", root / "read.json"
        self.progress = root / "progress.json"
        self.folder = self.models / "m"
        (self.folder / ".incoming").mkdir(parents=True)
        self.merged = "m.mla.gguf"
        self.kept: dict[str, Any] = {"verified": {}, "when": {}, "came": {}}

    def file(self, name: str, n_bytes: int = 10) -> Path:
        path = self.models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(n_bytes))
        return path

    def verified(self, name: str, sha256: str, at: float | None = None) -> Path:
        """A file that was verified."""
        path = self.models / name
        if not path.exists():
            self.file(name)
        self.kept["verified"][str(path)] = weights_kept.seen(path, sha256)
        if at:
            self.kept["when"][str(path)] = at
        return path

    def record(self, name: str, sha256: str = C, shards: list[dict[str, Any]] = SHARDS) -> None:
        content = {"name": name, "bytes": 10, "sha256": sha256, "attention": "mla", "shards": shards}
        (self.folder / f"{name}.json").write_text(json.dumps(content))

    @property
    def job(self) -> dict[str, Any]:
        served = {"folder": str(self.folder), "files": SHARDS, "merged": self.merged}
        return {"models": str(self.models), "wanted": [served]}

    def found(self) -> dict[str, Any]:
        self.state.write_text(json.dumps(self.kept))
        return weights_there.there(self.job, self.state, self.read, (self.progress,))

    def states(self) -> dict[str, str]:
        return {f"{row['model']}/{row['name']}": row["state"] for row in self.found()["files"]}

    def row(self, name: str) -> dict[str, Any]:
        (found,) = [row for row in self.found()["files"] if f"{row['model']}/{row['name']}" == name]
        return dict(found)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_lies_there_before_a_first_run(tmp_path: Path) -> None:
    job = {"models": str(tmp_path / "none" / "models"), "wanted": []}
    found = weights_there.there(job, tmp_path / "state.json", tmp_path / "read.json", ())
    assert (found["files"], found["progress"]) == ([], None)
    assert 0 < found["free_bytes"] < found["bytes"]


def test_files_on_their_way_are_told_from_what_was_left_over(host: Host) -> None:
    host.verified("m/m-00001-of-00002.gguf", A)
    for name in (B, f"{B}.journal", C, f"{C}.journal", f"{'d' * 64}.journal", "lock"):
        host.file(f"m/.incoming/{name}")
    assert host.states() == {
        "m/m-00001-of-00002.gguf": "waiting",
        f"m/.incoming/{B}": "fetching",
        f"m/.incoming/{C}": "orphan",
        f"m/.incoming/{'d' * 64}.journal": "orphan",
    }
    assert host.row(f"m/.incoming/{C}")["also"] == [str(host.folder / ".incoming" / f"{C}.journal")]
    host.record("m.mla.gguf")
    host.verified("m/m.mla.gguf", C)
    assert host.states()[f"m/.incoming/{B}"] == "orphan"
    assert host.states()["m/m.mla.gguf"] == "served"
    assert host.states()["m/m-00001-of-00002.gguf"] == "waiting"


def test_a_file_that_changed_since_it_was_verified_is_unverified(host: Host) -> None:
    host.record("m.mla.gguf")
    file = host.verified("m/m.mla.gguf", C)
    host.file("m/m-00002-of-00002.gguf")
    assert host.states() == {"m/m.mla.gguf": "served", "m/m-00002-of-00002.gguf": "unverified"}
    file.touch()
    assert host.states()["m/m.mla.gguf"] == "unverified"


def test_published_files_may_be_what_is_served(host: Host) -> None:
    host.merged = ""
    for shard in SHARDS:
        host.verified(f"m/{shard['name']}", shard["sha256"])
    host.record("m.mla.gguf")  # It was made by an earlier wish.
    host.verified("m/m.mla.gguf", C)
    assert host.states() == {
        "m/m-00001-of-00002.gguf": "served",
        "m/m-00002-of-00002.gguf": "served",
        "m/m.mla.gguf": "waiting",
    }


def test_what_nobody_needs_and_what_is_somebody_s_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_there, "USER", "nobody")
    host.record("m.mla.gguf")
    host.verified("m/m.mla.gguf", C)
    host.file("m/old.gguf")
    host.file("m/old.gguf.json")
    host.file("m/gone.gguf.json")  # The record of a file that is gone.
    host.file("m/notes.txt")
    host.file("q/q.gguf")
    host.file("q/.incoming/" + A)
    host.file("q/notes.txt")
    host.file("mine/model.gguf")
    host.file("e/e.gguf")
    (host.models / "e/e.gguf.json").write_text(json.dumps({"source": A, "sha256": B}))
    assert host.states() == {
        "m/m.mla.gguf": "served",
        "m/old.gguf": "orphan",
        "m/gone.gguf.json": "orphan",
        "m/notes.txt": "not ours",
        "q/q.gguf": "other quant",
        "q/notes.txt": "not ours",
        f"q/.incoming/{A}": "other quant",
        "mine/model.gguf": "not ours",
        "e/e.gguf": "embeddings",
    }
    assert {row["name"] for row in weights_there.surplus(host.found())} == {
        "old.gguf",
        "gone.gguf.json",
        "q.gguf",
        f".incoming/{A}",
    }
    (host.models / "link").symlink_to(host.models / "q")
    assert not [name for name in host.states() if name.startswith("link")]


def test_where_a_file_came_from_outlives_the_files_that_it_was_made_of(host: Host) -> None:
    host.record("m.mla.gguf")
    host.verified("m/m.mla.gguf", C, at=300.0)
    host.kept["came"] = {A: {"from": {"hub": 6, "mirror": 4}, "at": 100.0}, B: {"from": {"mirror": 10}, "at": 200.0}}
    row = host.row("m/m.mla.gguf")
    assert row["came"] == {"from": {"hub": 6, "mirror": 14}, "made_of": [each["name"] for each in SHARDS], "at": None}
    assert row["verified"] == {"at": 300.0, "result": "whole", "why": ""}


def test_the_last_reading_counts_until_the_file_is_brought_anew(host: Host) -> None:
    host.record("m.mla.gguf")
    file = host.file("m/m.mla.gguf")
    reading = {"sha256": C, "state": "damaged", "why": "1 piece", "places": [], "at": 400.0}
    host.read.write_text(json.dumps({"files": {str(file): reading}}))
    # The transfer was made to forget it, and it is served still.
    assert host.row("m/m.mla.gguf")["state"] == "served"
    assert host.row("m/m.mla.gguf")["verified"] == {"at": 400.0, "result": "damaged", "why": "1 piece"}
    host.verified("m/m.mla.gguf", C, at=500.0)
    assert host.row("m/m.mla.gguf")["verified"] == {"at": 500.0, "result": "whole", "why": ""}


def test_what_goes_on_is_told_and_what_a_dead_run_has_left_is_not(host: Host) -> None:
    told = {"step": "weights", "label": "fetching", "done": 1, "total": 2, "state": "running", "updated": time.time()}
    host.progress.write_text(json.dumps(told))
    assert host.found()["progress"] == told
    host.progress.write_text(json.dumps(told | {"updated": time.time() - 600}))
    assert host.found()["progress"] is None


def test_it_runs_alone_as_it_is_sent(host: Host) -> None:
    host.verified("m/m-00001-of-00002.gguf", A)
    text = carried.alone((carried.FOLDER / "weights_there.py").read_text())
    script = f"{text}\n\nmain(json.loads({json.dumps(host.job)!r}))\n"
    done = subprocess.run([sys.executable, "-I", "-"], input=script, capture_output=True, text=True, check=True)
    assert [row["name"] for row in json.loads(done.stdout)["files"]] == ["m-00001-of-00002.gguf"]


class Here:
    """A connection to this machine, which has the name of a host of the site."""

    def __init__(self, host: SiteHost) -> None:
        self.host = host

    def run(self, argv: list[str], stdin: str, *, root: bool, timeout_s: float) -> Result:
        assert root
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s)
        return Result(done.returncode, done.stdout, done.stderr)


def test_hosts_are_asked_for_what_the_site_serves_and_for_what_it_wants_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    site = tmp_path / "r1prov.yml"
    text = f"profile: 4x4090\nhosts: [gpu1, gpu2]\ndata_dir: {data}\n"
    site.write_text(text)
    for name in ("DeepSeek-R1-UD-IQ1_S", "DeepSeek-R1-UD-IQ1_M", "DeepSeek-R1-Q4_K_M"):
        (data / "models" / name / ".incoming").mkdir(parents=True)
        (data / "models" / name / f"{name}.mla.gguf").write_bytes(b"x")
    applied = load(site)
    gone = UnreachableError(Problem("gpu2", "no answer", "see whether it runs"))

    @contextlib.contextmanager
    def met(*_: Any) -> Iterator[Meeting]:
        yield Meeting({"gpu1": Contact(cast("HostConnection", Here(applied.hosts[0])), {}, [])}, {"gpu2": gone})

    monkeypatch.setattr(visit, "met", met)
    monkeypatch.setattr(visit, "last_applied", lambda *_, **__: (applied, applied.hosts))
    site.write_text(f"{text}quant: UD-IQ1_M\n")
    found = visit.weights(site, (), cast("Login", None))
    assert {row["name"]: row["state"] for row in found["gpu1"]["files"]} == {
        "DeepSeek-R1-UD-IQ1_S.mla.gguf": "unverified",
        "DeepSeek-R1-UD-IQ1_M.mla.gguf": "unverified",
        "DeepSeek-R1-Q4_K_M.mla.gguf": "other quant",
    }
    assert (found["gpu2"]["reachable"], found["gpu2"]["problems"][0]["what"]) == (False, "no answer")


FOUND = {
    "gpu1": {
        "reachable": True,
        "files": [
            {
                "path": "/srv/r1prov/models/DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S.mla.gguf",
                "model": "DeepSeek-R1-UD-IQ1_S",
                "name": "DeepSeek-R1-UD-IQ1_S.mla.gguf",
                "bytes": 140_000_000_000,
                "disk_bytes": 140_000_000_000,
                "links": 2,
                "state": "served",
                "came": {"from": {"huggingface.co": 90, "hf-mirror.com": 50}, "made_of": ["a", "b", "c"], "at": None},
                "verified": {
                    "at": 1_795_000_000.0,
                    "result": "damaged",
                    "why": "1 piece is not what it was: bytes 16777216-33554431 (blk.3.ffn_down_exps.weight)",
                },
                "also": [],
            },
            {
                "path": "/srv/r1prov/models/DeepSeek-R1-Q4_K_M/.incoming/" + A,
                "model": "DeepSeek-R1-Q4_K_M",
                "name": ".incoming/" + A,
                "bytes": 48_000_000_000,
                "disk_bytes": 1_000_000_000,
                "links": 1,
                "state": "other quant",
                "came": {"from": {}, "made_of": [], "at": None},
                "verified": {"at": None, "result": None, "why": ""},
                "also": [],
            },
        ],
        "bytes": 500 << 30,
        "free_bytes": 200 << 30,
        "progress": {"label": "verifying the weights", "done": 1, "total": 2},
    },
    "gpu2": {"reachable": True, "files": [], "bytes": 500 << 30, "free_bytes": 400 << 30, "progress": None},
    "gpu3": {
        "reachable": False,
        "health": "unreachable",
        "problems": [{"where": "gpu3", "what": "no answer", "remedy": "see whether it runs"}],
    },
}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_people_see(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """The golden files are what a person sees. `make golden` writes the files again."""
    paper = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False, _environ={})
    monkeypatch.setattr(consoles, "out", paper)
    monkeypatch.setattr(consoles, "err", paper)
    weights_status.show(FOUND)
    text = "".join(f"{line.rstrip()}\n" for line in paper.file.getvalue().splitlines())  # type: ignore[attr-defined] # a StringIO
    golden.assert_golden({"status.txt": text}, f"weights/{width}")
    if width >= 80:
        assert all(len(line) <= width for line in text.splitlines() if "/srv/" not in line)


def test_the_document_for_programs() -> None:
    found = weights_status.document(FOUND)["hosts"]
    file = found["gpu1"]["files"][0]
    assert set(file) == {"path", "model", "name", "bytes", "disk_bytes", "links", "state", "came", "verified"}
    assert file["verified"] == {**FOUND["gpu1"]["files"][0]["verified"], "at": "2026-11-18T11:06:40+00:00"}  # type: ignore[index]
    assert file["came"]["at"] is None
    assert (found["gpu3"]["reachable"], found["gpu3"]["files"]) == (False, [])
    assert found["gpu3"]["problems"][0]["what"] == "no answer"
    assert {frozenset(each) for each in found.values()} == {
        frozenset({"reachable", "files", "bytes", "free_bytes", "progress", "problems"})
    }
