"""What `make cuts` tries, how it reads what a run says, and how it ends one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from r1prov.lab.hosts import LabHost
from tests.cuts import torn
from tests.cuts.cut import Run, kill
from tests.cuts.proof import FIRST, Kept, Outcome, Proof, cases
from tests.e2e.people import Operator

SAYS = """
TASK [r1.prov.weights : Start it] ***
skipping: [gpu1]
TASK [r1.prov.weights : Make folders] ***
changed: [gpu2] => (item=a)
TASK [r1.prov.weights : Make folders] ***
ok: [gpu1] => (item=a)
changed: [gpu1] => (item=b)
RUNNING HANDLER [r1.prov.service : Restart] ***
changed: [gpu1]
TASK [r1.prov.weights : Make folders] ***
ok: [gpu1]
"""


class Scripted(Operator):
    """An operator whose r1prov is a line of shell."""

    def start(self, *_: str, **pipes: int) -> subprocess.Popen[str]:
        return subprocess.Popen(["sh", "-c", self.environment["does"]], text=True, **pipes)


def running(folder: Path, does: str) -> Run:
    host = LabHost("gpu1", "10.209.0.9", "bookworm", "", folder)
    return Run(Scripted(folder, {"does": does}), host, "up")


def test_thirty_of_each_are_tried_and_all_kinds_come_soon() -> None:
    counted = Counter(tuple(name.split()[:2]) for name in cases())
    assert {action: counted[action, "kill"] for action in ("upgrade", "switch", "removal")} == dict.fromkeys(
        ("upgrade", "switch", "removal"), 30
    )
    for kind in ("connection", "reboot", "power"):
        assert sum(count for (_, each), count in counted.items() if each == kind) == 30
    assert {name.split()[1] for name in cases()[:6]} == {"kill", "connection", "reboot", "power"}


def test_a_task_counts_once_where_it_was_not_skipped_on_the_host(tmp_path: Path) -> None:
    run = running(tmp_path, f"cat >&2 << 'END'{SAYS}END")
    folders = "r1.prov.weights : Make folders"
    assert [(task.name, task.changed) for task in run.tasks()] == [
        (folders, False), ("r1.prov.service : Restart", True), (f"{folders} (2)", False)
    ]  # fmt: skip
    assert run.end() == 0


class Steady(Proof):
    """A proof on a host that is always well."""

    def __init__(self, folder: Path, does: str, kept: Kept) -> None:
        run = running(folder, "true")
        run.end()
        super().__init__(Scripted(folder, {"does": does}), run.host, kept)
        self.files.see = lambda *_, **__: []  # type: ignore[method-assign]

    def well(self) -> list[str]:
        return []


def test_a_first_up_is_killed_at_each_boundary_and_a_run_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    folders = "r1.prov.weights : Make folders"
    kept = Kept(tmp_path / "result.json")
    kept.add(Outcome(f"{FIRST}: {folders}", "", "at 1 s", -9, "up", [], 1))
    # A real run does something between what it says.
    slow = SAYS.strip().replace("\n", "' >&2; sleep 0.05; echo '")
    Steady(tmp_path, f"echo '{slow}' >&2; sleep 0.2", Kept(kept.path)).first()
    found = Kept(kept.path).outcomes
    assert [(each.name.removeprefix(f"{FIRST}: "), each.ended) for each in found] == [
        (folders, -9), ("r1.prov.service : Restart", -9), (f"{folders} (2)", -9), ("the last", 0)
    ]  # fmt: skip
    assert [bool(each.place) for each in found] == [True, True, True, False]
    assert json.loads(kept.path.read_text())["whole"] is False


def test_a_seed_says_where_a_run_is_cut(tmp_path: Path) -> None:
    """The first task counts as an effect, because with it the run has the host."""
    proof = Steady(tmp_path, "", Kept(tmp_path / "result.json"))
    slow = SAYS.strip().replace("\n", "' >&2; sleep 0.05; echo '")
    places = set()
    for seed in range(8):
        with running(tmp_path, f"echo '{slow}' >&2; sleep 2") as run:
            places.add(proof.cut(run, "kill", [0.1, 0.2, 0.3], random.Random(seed)))
        assert run.end() == -9
    assert {place.partition(" after ")[2] for place in places} == {
        "'r1.prov.weights : Make folders'", "'r1.prov.service : Restart'"
    }  # fmt: skip
    assert {"0.0", "0.1"} == {place.partition(" s ")[0] for place in places}


def test_a_kill_ends_all_that_a_run_has_started_in_sessions_of_its_own_too(tmp_path: Path) -> None:
    worker = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    begun = tmp_path / "worker"
    run = running(tmp_path, f"setsid {sys.executable} -c '{worker}' & echo $! > {begun}; wait")
    deadline = time.monotonic() + 30
    while not begun.exists() or not begun.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process = Path("/proc", begun.read_text().strip(), "stat")
    kill(run)
    assert run.end() < 0
    while process.exists() and " Z " not in process.read_text():
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.05)


def test_a_power_cut_empties_what_root_wrote_for_r1prov_and_nobody_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torn, "OWNER", os.geteuid())
    folder = tmp_path / "etc" / "r1prov"
    folder.mkdir(parents=True)
    (tmp_path / "etc" / "hosts").write_text("x")
    now = time.time()
    ages = {"old": 100, "before the sync": 20, "lost": 10, "kept": 10, "lost later": 5}
    for name, age in ages.items():
        (folder / name).write_text("x")
        os.utime(folder / name, (now, now - age))
    assert torn.tear(tmp_path) == [], "nobody took note"
    numbers = {name: (folder / name).stat().st_ino for name in ages}
    notes = tmp_path / torn.NOTES
    notes.parent.mkdir(parents=True)
    notes.write_text(f"sync {now - 15}\n{numbers['kept']} {now - 9}\n{numbers['lost later']} {now - 6}\n")
    assert {path.name for path in torn.tear(tmp_path)} == {"lost", "lost later"}
    assert {path.name for path in folder.iterdir() if path.stat().st_size} == {"old", "before the sync", "kept"}
