"""Tests of what is said about the end of a run: only what earlier runs or the pace of the work tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1prov.common.errors import Exit
from r1prov.output.outlook import about, outlook
from r1prov.runs.past import Expected, PastRun, expected, past_runs
from r1prov.runs.report import HostReport, RunReport

STEPS = ("preflight", "weights", "llama_cpp", "weights", "smoke_bench")


def ran(day: str, *seconds: float, changed: str = "") -> PastRun:
    return PastRun(day, tuple(zip(STEPS, seconds, strict=True)), frozenset(changed.split()))


FIRST = ran("2026-11-20", 5, 1, 400, 900, 60, changed="weights llama_cpp smoke_bench")
QUIET = ran("2026-11-21", 5, 1, 2, 3, 1)


def after(found: Expected | None) -> float | None:
    return found and sum(seconds for _, seconds in found.after)


def test_a_run_is_compared_with_one_that_did_the_same_so_far() -> None:
    past = [QUIET, FIRST]
    assert after(expected(past, STEPS[:1], set())) == 7
    # The compiler has begun: the quiet run tells nothing any more.
    assert after(expected(past, STEPS[:3], {"weights", "llama_cpp"})) == 960
    # Nothing was compiled here, so this is not like the first run, and `weights` changed, so it is not like the quiet one.
    assert expected(past, STEPS[:4], {"weights"}) is None
    assert expected([], STEPS[:1], set()) is None


def test_a_step_that_comes_twice_is_known_by_its_turn() -> None:
    assert expected([QUIET], STEPS[:2], set()) == Expected("2026-11-21", 1, QUIET.steps[2:])
    assert expected([QUIET], STEPS[:4], set()) == Expected("2026-11-21", 3, QUIET.steps[4:])
    assert expected([QUIET], ["weights", "weights", "weights"], set()) is None


def test_only_reports_of_runs_that_went_well_count(tmp_path: Path) -> None:
    def report(minute: int, result: str, *, check: bool = False, kind: str = "up") -> None:
        host = HostReport(result, changes=["weights: Fetch"], steps=[("weights", float(minute))])
        started = f"2026-11-20T10:{minute:02}:00+00:00"
        RunReport("r1prov up", "s", "demo", "q", started, {"gpu1": host}, check=check, exit=Exit.OK).write(
            tmp_path, kind
        )

    report(1, "ok")
    report(2, "ok")
    report(3, "failed")
    report(4, "ok", check=True)
    report(5, "ok", kind="down")
    found = past_runs(tmp_path, "up", "gpu1", check=False)
    assert [run.steps for run in found] == [(("weights", 2.0),), (("weights", 1.0),)]
    assert found[0].changed == {"weights"}
    assert len(past_runs(tmp_path, "up", "gpu1", check=True)) == 1
    assert past_runs(tmp_path, "up", "gpu2", check=False) == []


KNOWN = Expected("2026-11-20", 400, (("weights", 900), ("smoke_bench", 60)))


@pytest.mark.parametrize(
    ("known", "elapsed_s", "moving", "text"),
    [
        (None, 10, {}, ""),  # a first run, of which nothing is known
        (None, 10, {"weights": 10800}, "weights: about 3 h more at this rate"),
        (None, 10, {"llama_cpp": 20}, ""),
        (KNOWN, 100, {}, "about 21 min left"),
        (KNOWN, 500, {}, "about 16 min left"),  # it takes a little longer than it did
        (KNOWN, 900, {}, ""),  # it takes so long that it is not what it was
        (KNOWN, 900, {"llama_cpp": 300}, "about 21 min left"),  # but its own pace tells
        (KNOWN, 100, {"weights": 10800}, "at least 3 h left"),
        (KNOWN, 100, {"weights": 100}, "at least 6 min left"),  # the wait for it was longer then, which tells nothing
    ],
)
def test_nothing_is_claimed_that_is_not_known(
    known: Expected | None, elapsed_s: float, moving: dict[str, float], text: str
) -> None:
    assert outlook(known, step="llama_cpp", elapsed_s=elapsed_s, moving=moving).text == text


def test_durations_as_people_say_them() -> None:
    said = [about(seconds) for seconds in (3, 27, 50, 61, 3000, 5300, 5400, 12600, 40000)]
    assert said == ["10 s", "30 s", "1 min", "1 min", "50 min", "88 min", "1.5 h", "3.5 h", "11 h"]
