"""Tests of the lock: what the host writes, and which holders count as dead. roles/preflight/molecule/lock tests whole runs that race."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from ansible_collections.r1.prov.plugins.action import host_lock as action
from ansible_collections.r1.prov.plugins.module_utils import lock_holder, run_history
from ansible_collections.r1.prov.plugins.modules import host_lock as module

if TYPE_CHECKING:
    from pathlib import Path


def holder(run: str, **changes) -> dict:
    return {
        "user": "ann",
        "controller": "laptop",
        "controller_id": "elsewhere",
        "pid": 4711,
        "pid_started": "boot/1",
        "stop": 4700,
        "command": "r1prov up",
        "r1prov": "0.1.0",
        "since": "2026-10-03T12:03:05+00:00",
        "run": run,
    } | changes


def test_one_run_takes_it_another_does_not_and_only_the_first_releases_it(tmp_path: Path):
    folder = tmp_path / "r1prov"
    assert module.take(folder, holder("a")) == (True, {})
    assert module.take(folder, holder("a")) == (True, holder("a"))
    assert module.take(folder, holder("b")) == (False, holder("a"))
    module.release(folder, "b")
    assert module.read(folder) == holder("a")
    module.release(folder, "a")
    assert not (folder / "lock.json").exists()
    module.take(folder, holder("dead"))
    module.release(folder, "b", "dead")  # on behalf of the dead one
    assert not (folder / "lock.json").exists()


def test_nothing_is_left_where_nothing_else_was(tmp_path: Path):
    folder = tmp_path / "r1prov"
    module.take(folder, holder("a"))
    module.release(folder, "a")
    assert not folder.exists()
    module.take(folder, holder("a"))
    (folder / "progress.json").touch()
    module.release(folder, "a")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "progress.json"]


def test_many_that_take_and_release_it_never_hold_it_together(tmp_path: Path):
    folder, inside, most = tmp_path / "r1prov", [], []

    def run(name: str) -> int:
        had = 0
        for _ in range(40):
            if module.take(folder, holder(name))[0]:
                inside.append(name)
                most.append(len(inside))
                inside.remove(name)
                module.release(folder, name)
                had += 1
        return had

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(run, "abcd")) > 0
    assert max(most) == 1


def test_it_is_readable_by_everyone(tmp_path: Path):
    before = os.umask(0o077)
    try:
        module.take(tmp_path, holder("a"))
    finally:
        os.umask(before)
    assert (tmp_path / "lock.json").stat().st_mode & 0o777 == 0o644


def test_it_is_taken_over_from_the_named_holder_only(tmp_path: Path):
    module.take(tmp_path, holder("dead"))
    assert module.take(tmp_path, holder("b"), replace="dead") == (True, holder("dead"))
    assert module.take(tmp_path, holder("c"), replace="dead") == (False, holder("b"))


def test_of_many_that_race_one_wins(tmp_path: Path):
    module.take(tmp_path, holder("dead"))
    with ThreadPoolExecutor(32) as pool:
        taken = list(pool.map(lambda n: module.take(tmp_path, holder(str(n)), replace="dead")[0], range(200)))
    assert taken.count(True) == 1


def test_releasing_where_nothing_is(tmp_path: Path):
    assert module.release(tmp_path / "none", "a") == {}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["{", "3", "[]", "null", "{}", '"run"'])
def test_a_damaged_lock_is_somebodys(tmp_path: Path, text: str):
    (tmp_path / "lock.json").write_text(text)
    taken, before = module.take(tmp_path, holder("a"))
    assert not taken
    assert not lock_holder.is_dead(before)
    assert "is damaged" in lock_holder.sentence(before)
    assert "r1prov_break_lock" in lock_holder.remedy(before)


def test_a_living_process_and_a_dead_one():
    me = {"controller_id": lock_holder.this_controller_id()}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        living = holder("a", **me, pid=process.pid, pid_started=lock_holder.process_started(process.pid))
        assert not lock_holder.is_dead(living)
        assert "`kill 4700`" in lock_holder.remedy(living)
        assert lock_holder.is_dead(living | {"pid_started": "another boot/1"})  # another process has this number by now
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert lock_holder.is_dead(living)  # its parent has not reaped it yet
    assert lock_holder.is_dead(living)


def test_of_another_controllers_process_nothing_is_certain():
    assert not lock_holder.is_dead(holder("a"))
    assert "r1prov_break_lock" in lock_holder.remedy(holder("a"))


def test_the_sentence_names_the_holder():
    text = lock_holder.sentence(holder("a"))
    assert re.fullmatch(
        r"is being changed by ann@laptop since 2026-10-0[234] \d\d:\d3 \(r1prov up, process 4700\)", text
    )


def test_who_takes_the_lock_is_in_the_history_of_a_host_that_has_one_or_gets_one(tmp_path: Path):
    history = tmp_path / "r1prov" / "history"
    module.remember(history, holder("a", record="1-a"), new=False)
    assert list(tmp_path.iterdir()) == [], "a host without r1prov is left as it is"
    module.remember(history, holder("a", record="1-a"), new=True)
    module.remember(history, holder("b", record="2-b", user="eve"), new=False)
    kept = run_history.read(history)
    assert [(each["run"], each["user"], each["begun"]) for each in kept] == [
        ("1-a", "ann", holder("a")["since"]),
        ("2-b", "eve", holder("b")["since"]),
    ]


def test_a_run_has_the_name_that_r1prov_gave_it(monkeypatch):
    monkeypatch.setenv("R1PROV_COMMAND", "r1prov up")
    monkeypatch.setenv("R1PROV_RUN", "20261129T080000.0-abc")
    assert action.this_run()["record"] == "20261129T080000.0-abc"
    monkeypatch.delenv("R1PROV_RUN")
    by_hand = action.this_run()  # of plain ansible-playbook
    assert re.fullmatch(r"\d{8}T\d{6}[.]\d{6}-[0-9a-f]{6}", by_hand["record"])
