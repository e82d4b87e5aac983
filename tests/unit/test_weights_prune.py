"""Tests of `r1prov weights prune`: what goes, what stays, and what is said and asked before."""

from __future__ import annotations

import getpass
import json
import mmap
from typing import TYPE_CHECKING, Any

import pytest
import typer
from ansible_collections.r1.prov.plugins.module_utils import weights_kept, weights_prune, weights_there
from test_weights_there import FOUND, A, Host

from r1prov.cli import prune
from r1prov.runs.report import HostReport, RunReport

if TYPE_CHECKING:
    from pathlib import Path


class Pruned(Host):
    """A host with what is served and more."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        monkeypatch.setattr(weights_there.there, "__defaults__", (self.state, self.read, ()))
        monkeypatch.setattr(weights_kept.forget, "__defaults__", (self.state,))
        self.record("m.mla.gguf")
        self.verified("m/m.mla.gguf", "c" * 64)
        for name in (f"m/.incoming/{A}", f"m/.incoming/{A}.journal", "m/old.gguf", "m/old.gguf.json", "q/q.gguf"):
            self.file(name)
        self.verified("q/q.gguf", A)
        self.file("q/.incoming/x")
        self.state.write_text(json.dumps(self.kept))

    def surplus(self, *only: str) -> list[dict[str, Any]]:
        job = self.job["wanted"][0]
        return weights_prune.surplus(self.folder, job["files"], job["merged"], only)

    @property
    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.models)) for path in self.models.rglob("*"))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pruned:
    return Pruned(tmp_path, monkeypatch)


def test_what_nobody_needs_goes_and_what_is_served_stays(host: Pruned) -> None:
    rows = host.surplus()
    assert {row["path"].removeprefix(f"{host.models}/"): row["state"] for row in rows} == {
        f"m/.incoming/{A}": "orphan",
        "m/old.gguf": "orphan",
        "q/q.gguf": "other quant",
        "q/.incoming/x": "other quant",
    }
    weights_prune.remove(host.folder, rows, getpass.getuser())
    assert host.names == ["m", "m/.incoming", "m/m.mla.gguf", "m/m.mla.gguf.json"]
    assert list(json.loads(host.state.read_text())["verified"]) == [str(host.folder / "m.mla.gguf")]
    assert host.surplus() == []


def test_only_what_was_shown_goes(host: Pruned) -> None:
    shown = str(host.models / "q" / "q.gguf")
    rows = host.surplus(shown, str(host.folder / "m.mla.gguf"))  # The latter is served.
    assert [row["path"] for row in rows] == [shown]
    weights_prune.remove(host.folder, rows, getpass.getuser())
    assert "q/.incoming/x" in host.names
    assert "m/old.gguf" in host.names


def test_somebody_s_own_file_keeps_its_folder(host: Pruned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_there, "USER", "nobody")
    host.file("q/notes.txt")
    weights_prune.remove(host.folder, host.surplus(), getpass.getuser())
    assert [name for name in host.names if name.startswith("q")] == ["q", "q/notes.txt"]


def test_a_file_with_another_name_frees_nothing(host: Pruned) -> None:
    file = host.file("q/q.gguf", 8192)
    (host.models.parent / "blob").hardlink_to(file)
    assert {row["path"]: row["frees"] for row in host.surplus()}[str(file)] == 0


def test_what_a_process_has_mapped_is_found(host: Pruned) -> None:
    file = host.models / "q" / "q.gguf"
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ):
        used = weights_prune.in_use([str(file), str(host.models / "m" / "old.gguf")])
    assert list(used) == [str(file)]
    assert "(process " in used[str(file)]
    assert weights_prune.in_use([str(file)]) == {}
    assert weights_prune.in_use([]) == {}


SURPLUS = {"gpu1": prune.of_host(FOUND["gpu1"])}


def test_it_says_what_and_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    prune._show(SURPLUS, talk=False)
    out, err = capsys.readouterr()
    assert "/srv/r1prov/models/DeepSeek-R1-Q4_K_M/.incoming/" in out
    assert ".mla.gguf" not in out
    assert err == "gpu1: 953.7 MiB would be freed\n"
    prune._show({}, talk=False)
    assert capsys.readouterr().err == "There is nothing that nobody needs.\n"


def test_it_asks_and_takes_no_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(typer.BadParameter, match="nobody is there to ask"):
        prune._ask(SURPLUS)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr(typer, "confirm", confirm)
    with pytest.raises(typer.Exit):
        prune._ask(SURPLUS)
    assert asked == ["Remove this file from gpu1?"]


def test_the_document_for_programs() -> None:
    row = SURPLUS["gpu1"][0]
    host = HostReport("ok", pruned={"removed": [row], "in_use": []})
    report = RunReport("r1prov weights prune", "default", "4x4090", "UD-IQ1_S", "", {"gpu1": host})
    found = prune.document(SURPLUS, report, [])
    assert found["hosts"]["gpu1"] == {
        "surplus": [row],
        "result": "ok",
        "removed": [row],
        "in_use": [],
        "problems": [],
    }
    assert prune.document(SURPLUS, None, [])["hosts"]["gpu1"]["removed"] == []
