"""Tests of `r1prov rollback`, and of what other verbs keep for it. That real hosts do the same is a test of tests/e2e."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import NEW, TESTED, Fleet, done, set_up

from r1prov.common.errors import Exit
from r1prov.hosts import Releases
from r1prov.runs.going_back import step_back
from r1prov.site import TESTED_OLLAMA, load
from r1prov.site.state import SiteState

OLDER = "0.12.10"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Two hosts that `up` has set up."""
    return set_up(tmp_path, monkeypatch)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What the operator was told since this was called last, on one line."""
    return lambda: " ".join(capsys.readouterr().err.split())


def test_an_upgrade_is_taken_back_on_all_hosts_and_the_next_up_keeps_that(
    fleet: Fleet, said: Callable[[], str]
) -> None:
    fleet.write("context_per_slot: 1024")  # nobody has applied this yet
    done("upgrade", "--ollama", OLDER)
    fleet.write("context_per_slot: 2048")
    done("upgrade", "--ollama", NEW, "--llama-cpp", "0.3.37")
    fleet.write("context_per_slot: 4096")
    said()
    done("rollback")
    assert (fleet.versions(), fleet.versions("llama_cpp")) == ([OLDER] * 2, [TESTED["llama_cpp"]] * 2)
    assert fleet.context == {"gpu1": "2048", "gpu2": "2048"}  # Versions alone go back, and what was not applied is not.
    assert fleet.asked[-1] == {"smoke_bench_force": True}
    assert fleet.called[-2:] == [["gpu1"], ["gpu2"]]
    talk = said()
    assert f"gpu1: downgrade of llama.cpp from 0.3.37 to {TESTED['llama_cpp']}, downgrade of Ollama from {NEW}" in talk
    assert "gpu2: the release before lies there still, so nothing is fetched or built" in talk
    assert "says something else of `context_per_slot` than what was last applied" in talk
    for verb in (("engine", "ollama"), ("up",)):
        done(*verb)
        assert (fleet.versions(), fleet.versions("llama_cpp")) == ([OLDER] * 2, [TESTED["llama_cpp"]] * 2)


def test_a_second_rollback_goes_neither_further_back_nor_forth(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "--ollama", OLDER)
    done("upgrade", "--ollama", NEW)
    done("rollback", "gpu1")
    assert fleet.versions() == [OLDER, NEW]
    said()
    done("rollback")
    assert fleet.called[-1] == ["gpu2"]
    assert "gpu1: there is nothing before the versions that it has" in said()
    done("rollback", code=Exit.SITE)
    assert "-> name a version to bring it to another: `r1prov upgrade --llama-cpp VERSION gpu2`" in said()
    assert fleet.versions() == [OLDER, OLDER]
    done("upgrade", "--ollama", NEW)
    assert fleet.versions() == [NEW, NEW]
    done("rollback")
    assert fleet.versions() == [OLDER, OLDER]


def test_after_half_a_roll_out_only_what_it_has_brought_is_taken_back(fleet: Fleet, said: Callable[[], str]) -> None:
    """What the other host had before an earlier upgrade is not what somebody means who takes this one back."""
    done("upgrade", "--ollama", OLDER)
    fleet.broken = {("gpu2", NEW)}
    done("upgrade", "--ollama", NEW, code=Exit.RUN_FAILED)
    assert fleet.versions() == [NEW, OLDER]
    fleet.broken = set()
    done("rollback")
    assert fleet.versions() == [OLDER, OLDER]
    done("rollback", code=Exit.SITE)


def test_a_roll_out_in_two_halves_is_taken_back_whole(fleet: Fleet) -> None:
    fleet.broken = {("gpu2", NEW)}
    done("upgrade", "--ollama", NEW, code=Exit.RUN_FAILED)
    fleet.broken = set()
    done("upgrade", "--ollama", NEW)
    done("rollback")
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]


def test_what_was_upgraded_alone_is_no_reason_to_take_others_further_back(
    fleet: Fleet, said: Callable[[], str]
) -> None:
    done("upgrade", "--ollama", OLDER)
    done("upgrade", "--ollama", NEW, "gpu1")
    called = len(fleet.called)
    done("rollback", code=Exit.SITE)
    talk = said()
    ways = f"gpu1: downgrade of Ollama from {NEW} to {OLDER}; gpu2: upgrade of Ollama from {OLDER} to {TESTED_OLLAMA}"
    assert f"the hosts would go different ways ({ways}) -> name the hosts that shall go back" in talk
    assert len(fleet.called) == called
    done("rollback", "gpu1")
    assert fleet.versions() == [OLDER, OLDER]


def test_an_upgrade_that_was_cut_off_is_taken_back_once(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "--ollama", OLDER)
    fleet.stops_at = "gpu1"
    done("upgrade", "--ollama", NEW, code=Exit.INTERRUPTED)
    assert fleet.versions() == [NEW, OLDER]
    fleet.stops_at = ""
    done("rollback")
    assert fleet.versions() == [OLDER, OLDER]
    done("rollback", code=Exit.SITE)


def test_what_an_up_that_was_cut_off_has_brought_is_taken_back_once(fleet: Fleet) -> None:
    """Such an `up` marks nothing. What was kept before it must not come next."""
    done("upgrade", "--ollama", OLDER)
    fleet.write(f"versions: {{ollama: {NEW}}}")
    fleet.stops_at = "gpu1"
    done("up", "gpu1", code=Exit.INTERRUPTED)
    fleet.stops_at = ""
    fleet.write("")
    done("rollback", "gpu1")
    assert fleet.versions() == [OLDER, OLDER]
    done("rollback", "gpu1", code=Exit.SITE)


def test_what_an_up_has_brought_is_taken_back_unless_the_site_file_writes_it(
    fleet: Fleet, said: Callable[[], str]
) -> None:
    fleet.write(f"versions: {{ollama: {NEW}}}")
    done("up")
    said()
    done("rollback", code=Exit.SITE)
    assert f"it says `versions.ollama: {NEW}` -> change it there, or take the line out" in said()
    assert fleet.versions() == [NEW, NEW]
    fleet.write(f"versions: {{ollama: {TESTED_OLLAMA}}}")
    done("rollback")
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]
    done("up")
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]


def test_a_host_that_cannot_go_back_is_put_back_and_may_try_again(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "--ollama", NEW)
    fleet.broken = {("gpu1", TESTED_OLLAMA)}
    done("rollback", code=Exit.RUN_FAILED)
    assert fleet.versions() == [NEW, NEW]
    assert "Put back, and as before: gpu1 Not touched: gpu2" in said()
    fleet.broken = set()
    done("rollback")
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]


def test_the_others_go_back_after_one_that_cannot(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "--ollama", NEW)
    fleet.broken = {("gpu1", TESTED_OLLAMA)}
    done("rollback", "--keep-going", "--batch", "50%", code=Exit.RUN_FAILED)
    assert fleet.versions() == [NEW, TESTED_OLLAMA]
    assert "Put back, and as before: gpu1 Done: gpu2" in said()


def test_a_host_that_is_away_goes_back_later(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "--ollama", NEW)
    fleet.away = {"gpu1"}
    done("rollback", code=Exit.UNREACHABLE)
    assert fleet.versions() == [NEW, TESTED_OLLAMA]
    assert "gpu1: is away" in said()
    done("rollback", code=Exit.UNREACHABLE)
    fleet.away = set()
    done("rollback")
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]


def test_that_a_release_has_to_be_made_again_is_said_before(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "--ollama", NEW)
    fleet.lying["gpu2"]["ollama"].remove(TESTED_OLLAMA)
    said()
    done("rollback")
    talk = said()
    assert f"gpu2: Ollama {TESTED_OLLAMA} does not lie there any more, so it is fetched and made again" in talk
    assert "gpu1: the release before lies there still" in talk


def test_what_becomes_of_the_pages_data_is_said_before_an_older_page_starts(
    fleet: Fleet, said: Callable[[], str]
) -> None:
    keeps = "the chat page keeps the data that it has now, of which a copy is made first"
    done("upgrade", "--open-webui", "0.12.5")
    assert keeps not in said()
    done("rollback")
    assert f"gpu2: {keeps}. If Open-WebUI {TESTED['open_webui']} cannot use it, 0.12.5 comes back" in said()


def test_what_becomes_of_the_data_of_a_page_that_was_an_attempt_is_another_thing(
    fleet: Fleet, said: Callable[[], str]
) -> None:
    fleet.stops_at = "gpu1"
    done("upgrade", "--open-webui", "0.12.5", code=Exit.INTERRUPTED)
    fleet.stops_at = ""
    done("rollback")
    talk = said()
    assert (
        "gpu1: the chat page's data comes back as it was before Open-WebUI 0.12.5, unless that has served well" in talk
    )
    assert "the chat page keeps" not in talk


def test_the_runs_are_a_document(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    done("upgrade", "--ollama", NEW)
    capsys.readouterr()
    done("rollback", "--batch", "2", "--json")
    told = json.loads(capsys.readouterr().out)
    assert [list(run["hosts"]) for run in told["runs"]] == [["gpu1", "gpu2"]]
    assert told["hosts"] == {"gpu1": "done", "gpu2": "done"}
    done("rollback", "--json", code=Exit.SITE)
    told = json.loads(capsys.readouterr().out)
    assert [problem["where"] for problem in told["problems"]] == ["gpu1", "gpu2"]


def test_a_host_that_was_never_well_is_named(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "--ollama", NEW)
    fleet.write("", hosts="gpu1, gpu2, gpu3")
    done("rollback", code=Exit.SITE)
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]
    assert "gpu3: no run has set it up to the end yet" in said()


def test_a_removal_leaves_nothing_to_go_back_to(fleet: Fleet) -> None:
    done("upgrade", "--ollama", NEW)
    state = SiteState.of(fleet.file)
    assert state.before("gpu1") == TESTED
    state.forget_settled("gpu1")
    done("up")
    assert state.before("gpu1") == {}


def test_what_was_before_is_kept_however_keeping_it_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files cannot be written at once. Whichever is the only one, no host goes back to where it never was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: cpu\nhosts: [gpu1]\n")
    site, state = load(tmp_path / "r1prov.yml"), SiteState.of(tmp_path / "r1prov.yml")

    def at(version: str) -> None:
        state.keep_settled("gpu1", site.model_copy(update={"chosen": {"gpu1": {"ollama": version}}}).of("gpu1"))

    at("0.12.1")
    at("0.12.2")
    assert state.before("gpu1")["ollama"] == "0.12.1"
    with monkeypatch.context() as cut:
        cut.setattr("r1prov.site.state.write_whole", cut_off(after=1))
        with pytest.raises(KeyboardInterrupt):
            at("0.12.3")
    assert state.before("gpu1") == {}
    at("0.12.3")
    assert state.before("gpu1")["ollama"] == "0.12.2"
    at("0.12.2")
    assert state.before("gpu1") == {}


def cut_off(after: int) -> Callable[..., Path]:
    """Writes so many files, and is killed at the next."""
    left = [after]

    def write(path: Path, text: str) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        path.write_text(text)
        return path

    return write


def test_a_program_that_the_site_has_no_more_goes_nowhere() -> None:
    there = Releases({"llama.cpp": f"2-cpu-{'0' * 12}"}, {"llama.cpp": [f"1-cpu-{'0' * 12}", f"2-cpu-{'0' * 12}"]})
    step = step_back({"llama_cpp": "2"}, {"llama_cpp": "1", "open_webui": "5"}, there)
    assert step
    assert (step.to, step.moved, step.missing) == ({"llama_cpp": "1"}, ["llama_cpp"], [])
    assert step_back({"llama_cpp": "2"}, {}, there) is None
    assert step_back({"llama_cpp": "2", "ollama": "3"}, {"llama_cpp": "2"}, there) is None
