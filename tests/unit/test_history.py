"""Tests of the history: the records on a host and here, how they are merged, and what `r1prov history` shows.

tests/unit/test_stopped.py has it with real runs that are killed, stopped and done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import run_history

from r1prov import cli
from r1prov.cli import history as shown
from r1prov.common.errors import Exit, Problem
from r1prov.runs.history import History, Record, merged

if TYPE_CHECKING:
    from pathlib import Path


def record(number: int, **more: Any) -> dict[str, Any]:
    told = {"run": f"20261129T08{number:04}.0-abc", "command": "r1prov up", "user": "ann", "controller": "laptop"}
    return told | {"begun": "2026-11-29T08:00:00+00:00"} | more


OK: dict[str, Any] = {
    "ended": "2026-11-29T08:02:05+00:00",
    "exit": 0,
    "result": "ok",
    "after": {"engine": "llama-server", "quant": "UD-IQ1_S", "llama_cpp": "b2"},
    "differences": ["/etc/r1prov/network has the mode 0777, and should have 0755"],
    "changed": 41,
    "changes": ["service: Make the folder", "a: b", "c: d", "e: f"],
}


def test_a_run_begins_and_ends_and_the_next_one_knows_what_it_left(tmp_path: Path) -> None:
    folder = tmp_path / "r1prov" / "history"
    run_history.begin(folder, record(1))
    run_history.begin(folder, record(1))  # A run that takes its lock twice has begun once.
    run_history.end(folder, record(1)["run"], OK)
    run_history.begin(folder, record(2))
    first, second = run_history.read(folder)
    assert first == record(1) | OK | {"before": {}}
    assert second == record(2, before=OK["after"])
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o755)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_run_without_a_record_gets_none_at_its_end(tmp_path: Path) -> None:
    run_history.end(tmp_path / "history", "none", OK)
    run_history.end(tmp_path / "history", "", OK)
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_run_leads_nowhere_else(tmp_path: Path) -> None:
    run_history.begin(tmp_path / "history", record(1, run="../../evil"))
    assert [path.name for path in tmp_path.rglob("*.json")] == ["evil.json"]
    assert not (tmp_path.parent / "evil.json").exists()


def test_records_are_bounded_in_number_and_size(tmp_path: Path) -> None:
    for number in range(run_history.KEPT + 5):
        run_history.begin(tmp_path, record(number))
    kept = run_history.read(tmp_path)
    assert [each["run"] for each in kept] == [record(number)["run"] for number in range(5, run_history.KEPT + 5)]
    long = {"message": "x" * 10**6, "changes": ["y" * 10**5] * 1000, "differences": ["ü" * 10**5] * 1000}
    run_history.end(tmp_path, kept[-1]["run"], long)
    path = max(tmp_path.glob("*.json"))
    assert path.stat().st_size < 256 * 1024
    assert json.loads(path.read_text())["changes"][-1] == "and 960 more"


def test_a_disk_that_is_full_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    """A real one: the process may not write files of more than 1 KiB."""
    run_history.begin(tmp_path, record(1))
    before = run_history.read(tmp_path)
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        f"exec(compile(open({run_history.__file__!r}).read(), 'history', 'exec'))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        f"end(Path({str(tmp_path)!r}), {record(1)['run']!r}, {{'changes': ['z' * 300] * 30}})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "OSError" in done.stderr
    assert run_history.read(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_record_is_left_out(tmp_path: Path) -> None:
    run_history.begin(tmp_path, record(1))
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"run": 1}'), ("d", '{"run": "d", "user": []}')):
        (tmp_path / f"{name}.json").write_text(text)
    assert [each.run for each in merged(run_history.read(tmp_path))] == [record(1)["run"]]


def test_records_of_two_places_become_one() -> None:
    """Another controller began the second run, and this machine does not know how it ended on the host."""
    ours = [record(1, before={}, log="/here/stdout", **OK), record(3)]
    theirs = [record(1, before={"quant": "UD-Q2"}), record(2, user="eve", exit=6, result="failed")]
    found = merged(ours, theirs)
    assert [(each.run, each.user, each.exit) for each in found] == [
        (record(1)["run"], "ann", 0),
        (record(2)["run"], "eve", 6),
        (record(3)["run"], "ann", None),
    ]
    assert (found[0].before, found[0].log) == ({"quant": "UD-Q2"}, "/here/stdout")


@pytest.mark.parametrize(
    ("told", "history", "state"),
    [
        (OK, {}, "ok"),
        ({}, {}, "did not end"),
        ({}, {"holder": record(1)["run"]}, "under way"),
        ({"ended": OK["ended"]}, {}, "ended"),
        ({}, {"away": (Problem("gpu1", "is away", "wait"),)}, "no end known"),
    ],
)
def test_how_a_run_ended(told: dict[str, Any], history: dict[str, Any], state: str) -> None:
    run = Record.model_validate(record(1, **told))
    assert History([run], **history).state(run) == state


SHOWN = """\
gpu1  2026-11-29 08:00  ann@laptop  r1prov up: ok after 2:05
  engine llama-server, quant UD-IQ1_S, llama_cpp b1 -> b2
  put right: /etc/r1prov/network has the mode 0777, and should have 0755
  41 changes: service: Make the folder; a: b; c: d; …
gpu1  2026-11-29 08:00  eve@desk  r1prov upgrade: failed (exit code 6)
  Build llama.cpp: ]0; failed
gpu1  2026-11-29 08:00  ann@laptop  r1prov up: no end known
"""


def test_what_is_shown_where_a_host_is_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def r1prov(*words: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        return end.value.code, *capsys.readouterr()

    runs = [
        record(1, before={"llama_cpp": "b1"}, **OK),
        record(2, user="eve", controller="desk", command="r1prov upgrade", exit=6, result="failed")
        | {"message": "Build llama.cpp:\x1b]0;\nfailed"},
        record(3),
    ]
    away = (Problem("gpu1", "cannot be reached", "see whether it runs"),)
    monkeypatch.setattr(shown, "histories", lambda *_: {"gpu1": History(merged(runs), away)})
    monkeypatch.setitem(os.environ, "TZ", "UTC")
    code, out, err = r1prov("history", "gpu1")
    assert (code, out) == (Exit.UNREACHABLE, SHOWN)
    assert "gpu1: only what is kept here is shown" in err
    assert "cannot be reached" in err
    code, out, _ = r1prov("history", "--json", "--last", "1")
    told = json.loads(out)
    assert (code, told["exit"], told["hosts"]["gpu1"]["complete"]) == (4, 4, False)
    assert [(run["run"], run["verb"]) for run in told["hosts"]["gpu1"]["runs"]] == [(record(3)["run"], "up")]
