"""Tests of the roll-out itself: how many hosts go at once, and which go on when some of them do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fleet import NEW, Fleet, done, set_up
from hypothesis import given
from hypothesis import strategies as some

from r1prov.common.errors import Exit, Problem, R1provError, RunError, UnreachableError
from r1prov.common.units import share_of
from r1prov.runs.report import HostReport, RunReport
from r1prov.runs.rollout import RollOut, batches, roll_out
from r1prov.runs.run import Done
from r1prov.site import TESTED_OLLAMA, Host


@dataclass
class Conductor:
    """Ends runs as it is told, by the name of the host."""

    ends: dict[str, str]
    ends_back: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)
    falling: set[str] = field(default_factory=set)

    def bring(self, hosts: Sequence[Host]) -> Done:
        return self._done(hosts, self.ends)

    def stay_well(self, hosts: Sequence[Host]) -> dict[str, Problem]:
        return {host.name: Problem(host.name, "it ended", "") for host in hosts if host.name in self.falling}

    def keep(self, hosts: Sequence[Host]) -> None:
        self.kept.extend(host.name for host in hosts)

    def put_back(self, hosts: Sequence[Host], _error: R1provError) -> list[Done]:
        self.back.extend(host.name for host in hosts)
        return [self._done(hosts, self.ends_back)]

    def _done(self, hosts: Sequence[Host], ends: dict[str, str]) -> Done:
        results = {host.name: ends.get(host.name, "ok") for host in hosts}
        problems = {name: [Problem(name, end, "")] for name, end in results.items() if end != "ok"}
        reports = {
            name: HostReport(end, problems=[asdict(each) for each in problems.get(name, [])])
            for name, end in results.items()
        }
        kind = RunError if "failed" in results.values() else UnreachableError
        told = [each for found in problems.values() for each in found]
        nothing: Any = None
        return Done(nothing, RunReport("", "", "", "", "", reports), kind(*told) if told else None)


def fleet_of(n_hosts: int) -> list[Host]:
    return [Host(name=f"gpu{n}", address=f"gpu{n}") for n in range(n_hosts)]


def rolled(n_hosts: int, size: int, conductor: Conductor, **how: bool) -> RollOut:
    return roll_out(batches(fleet_of(n_hosts), size, lambda _: 0, by_itself), conductor, by_itself, **how)


def by_itself(host: Host) -> str:
    """The pool of a host that holds its model alone."""
    return host.name


def test_a_roll_out_stops_for_a_bad_version_and_not_for_a_dead_host() -> None:
    """Host 0 is lost in the middle. Hosts 1 to 3 go together: one is away, one fails."""
    conductor = Conductor({"gpu0": "unreachable"})
    assert rolled(2, 1, conductor).outcomes() == {"gpu0": "away", "gpu1": "done"}
    assert (conductor.kept, conductor.back) == (["gpu1"], [])
    conductor = Conductor({"gpu1": "unreachable", "gpu2": "failed"})
    result = rolled(6, 3, conductor)
    assert result.outcomes() == {
        "gpu0": "done",
        "gpu1": "away",
        "gpu2": "put back",
        **dict.fromkeys(("gpu3", "gpu4", "gpu5"), "not touched"),
    }
    assert (conductor.kept, conductor.back) == (["gpu0"], ["gpu2"])


def test_a_roll_out_that_keeps_going_comes_to_all_and_puts_back_each_that_failed() -> None:
    conductor = Conductor({"gpu1": "failed", "gpu2": "failed", "gpu4": "unreachable"})
    result = rolled(6, 2, conductor, keep_going=True)
    assert result.outcomes() == {
        **dict.fromkeys(("gpu0", "gpu3", "gpu5"), "done"),
        **dict.fromkeys(("gpu1", "gpu2"), "put back"),
        "gpu4": "away",
    }
    assert conductor.kept == ["gpu0", "gpu3", "gpu5"]
    assert [problem.where for error in result.errors for problem in error.problems] == ["gpu1", "gpu2"]


def test_it_ends_in_any_case_where_a_host_could_not_be_put_back() -> None:
    conductor = Conductor({"gpu0": "failed", "gpu1": "failed"}, {"gpu1": "failed"})
    result = rolled(4, 2, conductor, keep_going=True)
    assert result.outcomes() == {
        "gpu0": "put back",
        "gpu1": "not put back",
        **dict.fromkeys(("gpu2", "gpu3"), "not touched"),
    }
    assert [problem.where for error in result.errors_back for problem in error.problems] == ["gpu1"]


def test_hosts_of_a_batch_have_one_site() -> None:
    hosts = [Host(name=name, address=name) for name in ("a1", "a2", "a3", "b1", "b2", "a4")]
    made = batches(hosts, 2, lambda host: host.name[0], by_itself)
    assert [[host.name for host in each] for each in made] == [["a1", "a2"], ["a3"], ["b1", "b2"], ["a4"]]


@pytest.mark.parametrize(
    ("whole", "text", "comes_to"),
    [(10, "3", 3), (10, "25%", 2), (3, "25%", 1), (3, "1 %", 1), (7, "100%", 7), (7, " 50% ", 3), (2, "9", 9)],
)
def test_a_share_is_rounded_down_and_comes_to_one_at_least(whole: int, text: str, comes_to: int) -> None:
    assert share_of(whole, text) == comes_to


@given(whole=some.integers(1, 500), percent=some.integers(1, 100))
def test_a_share_is_never_more_than_what_was_asked_for_but_for_the_one(whole: int, percent: int) -> None:
    size = share_of(whole, f"{percent}%")
    assert 1 <= size <= whole
    assert size == 1 or size * 100 <= whole * percent < (size + 1) * 100


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-1", "2.5", "half", "", "%", "25%%", "٣"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a number from 1 on, or a share"):
        share_of(10, text)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Four hosts that `up` has set up."""
    made = set_up(tmp_path, monkeypatch)
    made.write("", hosts="gpu1, gpu2, gpu3, gpu4")
    done("up")
    made.called.clear()
    return made


def test_a_share_of_the_hosts_goes_at_once_and_the_others_go_on(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.broken = {("gpu1", NEW), ("gpu4", NEW)}
    capsys.readouterr()
    done("upgrade", "--ollama", NEW, "--batch", "50%", "--keep-going", "--json", code=Exit.RUN_FAILED)
    assert fleet.called == [["gpu1", "gpu2"], ["gpu1"], ["gpu3", "gpu4"], ["gpu4"]]
    assert fleet.versions() == [TESTED_OLLAMA, NEW, NEW, TESTED_OLLAMA]
    shown = capsys.readouterr()
    assert json.loads(shown.out)["hosts"] == {"gpu1": "put back", "gpu2": "done", "gpu3": "done", "gpu4": "put back"}
    assert "Put back, and as before: gpu1, gpu4\nDone: gpu2, gpu3\n" in shown.err
    done("rollback")
    assert fleet.versions() == [TESTED_OLLAMA] * 4


def test_a_share_is_one_of_the_hosts_that_are_meant(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "--ollama", NEW, "--batch", "50%", "gpu1", "gpu2")
    assert fleet.called == [["gpu1"], ["gpu2"]]
    done("upgrade", "--ollama", NEW, "--batch", "many", code=Exit.USAGE)
    assert "`many` is not so many at once: write a number from 1 on, or a share from `1%` to `100%`" in said()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What the operator was told since this was called last, on one line."""
    return lambda: " ".join(capsys.readouterr().err.split())


def test_hosts_that_hold_one_model_together_are_put_back_together() -> None:
    conductor, hosts = Conductor({"gpu2": "failed"}), fleet_of(4)

    def pairs(host: Host) -> str:
        return str(int(host.name[3:]) // 2)

    result = roll_out(batches(hosts, 4, lambda _: 0, pairs), conductor, pairs)
    assert (conductor.kept, conductor.back) == (["gpu0", "gpu1"], ["gpu2", "gpu3"])
    assert [host.name for host in result.failed] == ["gpu2", "gpu3"]


def test_a_host_that_falls_in_its_trial_is_put_back_and_the_next_is_not_touched() -> None:
    conductor = Conductor({}, falling={"gpu1"})
    result = rolled(4, 2, conductor)
    assert (conductor.kept, conductor.back) == (["gpu0"], ["gpu1"])
    assert [host.name for host in result.untouched] == ["gpu2", "gpu3"]
    assert [each.what for error in result.errors for each in error.problems] == ["it ended"]


def test_of_hosts_that_hold_one_model_together_all_are_put_back_where_one_falls() -> None:
    conductor, hosts = Conductor({}, falling={"gpu1"}), fleet_of(2)
    roll_out(batches(hosts, 1, lambda _: 0, lambda _: "pool"), conductor, lambda _: "pool")
    assert (conductor.kept, conductor.back) == ([], ["gpu0", "gpu1"])
