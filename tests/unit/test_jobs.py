"""Tests of tests/jobs.py, which runs all other tests; a failure that it does not report would go unseen."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import run as tests_run
from tests.jobs import COMPILE, Crew, Job, Outcome
from tests.run import (
    ALWAYS,
    DRAWN_FROM,
    DRAWN_S,
    E2E,
    LINTERS,
    ROOT,
    STAGES,
    compilers,
    drawn,
    e2e,
    every_job,
    keep,
    kept,
    molecule,
)


def shell(tmp_path: Path, name: str, script: str, *, stage: str = "stage", **settings: object) -> Job:
    return Job(stage, name, ("sh", "-ec", script), tmp_path, **settings)  # type: ignore[arg-type]


def run(tmp_path: Path, *jobs: Job, at_once: int = 2) -> dict[str, Outcome]:
    return Crew(tmp_path / "logs").run(list(jobs), at_once)


def test_a_job_begins_when_what_it_waits_for_has_ended(tmp_path: Path) -> None:
    outcomes = run(
        tmp_path,
        shell(tmp_path, "engine", "sleep 0.3; echo engine >> order", stage=COMPILE),
        shell(tmp_path, "needs it", "echo needs it >> order", after=("engine",)),
        shell(tmp_path, "does not", "echo does not >> order"),
    )
    assert (tmp_path / "order").read_text().splitlines() == ["does not", "engine", "needs it"]
    assert {stage: outcome.passed for stage, outcome in outcomes.items()} == {COMPILE: 1, "stage": 2}


def test_what_is_waited_for_may_fail_or_not_run_at_all(tmp_path: Path) -> None:
    engine = shell(tmp_path, "engine", "exit 1", stage=COMPILE)
    waiting = shell(tmp_path, "waits", "true", after=("engine", "nobody runs this"))
    outcomes = run(tmp_path, engine, waiting)
    assert outcomes[COMPILE].failed == ["engine"]
    assert outcomes["stage"].passed == 1


def test_no_more_run_at_once_than_may(tmp_path: Path) -> None:
    count = "mkdir here-$$; sleep 0.1; ls -d here-* | wc -l > seen-$$; sleep 0.1; rmdir here-$$"
    run(tmp_path, *(shell(tmp_path, f"job {number}", count) for number in range(4)))
    assert len(seen := [int(path.read_text()) for path in tmp_path.glob("seen-*")]) == 4
    assert max(seen) <= 2


def test_a_compiler_runs_beside_as_many_as_may(tmp_path: Path) -> None:
    meet = "touch $0; until [ -e one ] && [ -e two ] && [ -e compiler ]; do sleep 0.02; done"
    jobs = [Job("stage", name, ("timeout", "60", "sh", "-ec", meet, name), tmp_path) for name in ("one", "two")]
    compiler = Job(COMPILE, "compiler", ("timeout", "60", "sh", "-ec", meet, "compiler"), tmp_path)
    outcomes = run(tmp_path, *jobs, compiler)
    assert [outcome.passed for outcome in outcomes.values()] == [2, 1]


def test_a_job_that_cannot_be_started_has_failed_and_holds_nobody_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Job(COMPILE, "missing", ("/nowhere/compiler",), tmp_path)
    outcomes = run(tmp_path, missing, shell(tmp_path, "waits", "true", after=("missing",)))
    assert (outcomes[COMPILE].failed, outcomes["stage"].passed) == (["missing"], 1)
    assert "/nowhere/compiler" in capsys.readouterr().out


@pytest.mark.parametrize("at_once", [pytest.param(1, id="at work"), pytest.param(5000, id="still starting workers")])
def test_who_is_ended_lets_its_commands_clean_up(tmp_path: Path, at_once: int) -> None:
    script = "trap 'sleep 0.2; echo cleaned > cleaned; exit 1' INT; touch began; while :; do sleep 0.05; done"
    program = f"""
import signal
from pathlib import Path
from tests.jobs import Crew, Job
for end in (signal.SIGINT, signal.SIGTERM):
    signal.signal(end, signal.default_int_handler)
try:
    Crew(Path({str(tmp_path / "logs")!r})).run([Job("stage", "long", ("sh", "-c", {script!r}), Path({str(tmp_path)!r}))], {at_once})
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    crew = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not (tmp_path / "began").exists():
        assert crew.poll() is None
        time.sleep(0.05)
    crew.terminate()
    assert crew.wait(60) == 130
    assert (tmp_path / "cleaned").read_text() == "cleaned\n"


def test_a_failure_is_shown_with_the_end_of_its_talk_and_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "journal"
    journal.write_text("of an earlier run")
    script = "seq 1000; echo it broke >&2; echo r1prov-engine.service: dumped core > journal; exit 3"
    quiet = shell(tmp_path, "fine", "echo nobody wants to read this")
    outcomes = run(tmp_path, shell(tmp_path, "breaks", script, afterwards=journal), quiet)
    assert outcomes["stage"].failed == ["breaks"]
    shown = capsys.readouterr().out
    assert "breaks: FAILED in" in shown
    assert "    | it broke" in shown
    assert "    | r1prov-engine.service: dumped core" in shown
    assert "    | 1\n" not in shown
    assert "earlier run" not in shown
    assert "nobody wants" not in shown
    assert (tmp_path / "logs/breaks.log").read_text().startswith("1\n2\n")


def test_tests_of_pytest_are_counted_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_some.py").write_text("""
import pytest
def test_good(): pass
def test_bad(): assert "left" == "right"
@pytest.mark.skip(reason="no host here")
def test_skipped(): pass
@pytest.fixture
def broken(): raise OSError("nothing to stand on")
def test_error(broken): pass
""")
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-n", "2", "test_some.py")
    outcome = run(tmp_path, Job("unit", "unit", command, tmp_path, pytest=True, tell_each=True))["unit"]
    assert (outcome.passed, sorted(outcome.failed)) == (1, ["test_some::test_bad", "test_some::test_error"])
    assert {reason.rpartition(": ")[2]: tests for reason, tests in outcome.skipped.items()} == {
        "no host here": ["test_some::test_skipped"]
    }
    assert len(outcome.times) == 4
    shown = capsys.readouterr().out
    assert "test_some.py::test_good PASSED" in shown
    assert "left" in shown
    assert "nothing to stand on" in shown


def test_a_pytest_that_runs_no_test_has_failed(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "nowhere.py")
    outcome = run(tmp_path, Job("unit", "unit", command, tmp_path, pytest=True))["unit"]
    assert (outcome.passed, outcome.failed) == (0, ["unit ended with status 4"])


def test_every_scenario_waits_for_compilers_that_there_are(tmp_path: Path) -> None:
    known = {job.name for job in compilers()}
    jobs = {job.name: job for job in molecule()}
    assert len(jobs) >= 16
    assert {name for job in jobs.values() for name in job.after if name not in jobs} <= known
    # It uses the same ports of this machine.
    assert "molecule embeddings" in jobs["molecule embeddings container"].after
    assert jobs["molecule measure"].after == ("engine on bookworm",)
    assert jobs["molecule rpc_server"].after == ("engine on bookworm",)  # on two hosts
    assert jobs["molecule gateway acme"].after == ("Pebble",)
    assert len(jobs["molecule ollama"].after) == 2
    assert jobs["molecule ollama container"].after == (*jobs["molecule ollama"].after, "molecule ollama")
    # It finds in the compiler's cache what the image's build has left there.
    assert jobs["molecule llama_cpp container"].after == ("engine on bookworm", "molecule llama_cpp")
    assert not jobs["molecule preflight"].after


def test_every_role_is_tried_on_both_kinds_of_host() -> None:
    names = {job.name for job in molecule()}
    roles = {path.parent.name for path in ROOT.glob("roles/*/tasks")}
    assert names >= {f"molecule {role}{kind}" for role in roles for kind in ("", " container")}


def test_every_test_of_the_whole_way_is_in_one_group() -> None:
    files = [file for group in E2E.values() for file in group]
    assert sorted(files) == sorted(path.name for path in (ROOT / "tests" / "e2e").glob("test_*.py"))
    assert [job.name for job in e2e()] == [f"e2e {group}" for group in E2E]


def test_quick_stages_go_first_and_then_the_longest_job() -> None:
    names = [job.name for job in every_job(STAGES)]
    assert names[: names.index("unit") + 1] == [*(" ".join(argv) for argv in LINTERS), "unit"]
    assert names[names.index("unit") + 1].startswith("e2e ")


def test_each_job_is_drawn_some_day_and_no_day_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = every_job(STAGES)
    every = {job.name for job in jobs if job.stage in DRAWN_FROM} - {*ALWAYS}
    monkeypatch.setattr(tests_run, "kept", lambda: {name: {"seconds": 400} for name in every})
    days = [drawn(jobs, seed) for seed in range(200)]
    assert set().union(*days) == every
    assert {len(names) for names in days} == {DRAWN_S // 400}
    assert drawn(jobs, 3) == days[3] != days[4]


def test_what_came_of_a_job_is_kept_beside_what_came_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests_run, "KEPT", tmp_path / "last.json")
    (tmp_path / "last.json").write_text('{"e2e tune": {"seconds": 9}}')
    crew = Crew(tmp_path, keep)
    job = shell(tmp_path, "molecule gateway", "exit 1", stage="molecule")
    crew.run([job, shell(tmp_path, "unit", "exit 0", stage="unit")], 1)
    assert set(kept()) == {"e2e tune", "molecule gateway"}
    assert kept()["molecule gateway"]["failed"] == ["molecule gateway"]
