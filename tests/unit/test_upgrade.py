"""Tests of `r1prov upgrade` and of the `up` after it. Its hosts are a table here; that real ones do the same is a test of tests/e2e."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import NEW, TESTED, Fleet, done, effective, set_up

from r1prov.cli import look
from r1prov.common.errors import Exit
from r1prov.site import TESTED_OLLAMA
from r1prov.site.state import SiteState


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Two hosts that `up` has set up."""
    return set_up(tmp_path, monkeypatch)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What the operator was told since this was called last, on one line."""
    return lambda: " ".join(capsys.readouterr().err.split())


def test_half_a_roll_out_is_remembered(fleet: Fleet, said: Callable[[], str]) -> None:
    fleet.broken = {("gpu2", NEW)}
    done("upgrade", "--ollama", NEW, code=Exit.RUN_FAILED)
    assert fleet.called == [["gpu1", "gpu2"], ["gpu1"], ["gpu2"], ["gpu2"]]
    assert fleet.versions() == [NEW, TESTED_OLLAMA]
    keeps = f"gpu1: keeps Ollama {NEW}, which was chosen for it; the site has {TESTED_OLLAMA}"
    talk = said()
    assert keeps in talk
    assert "gpu2: keeps" not in talk
    done("up")
    assert fleet.versions() == [NEW, TESTED_OLLAMA]
    assert keeps in said()
    fleet.broken = set()
    done("upgrade", "--ollama", NEW, "gpu2")
    done("up")
    assert fleet.versions() == [NEW, NEW]


def test_the_inventory_that_half_a_roll_out_leaves_says_what_each_host_has(fleet: Fleet) -> None:
    fleet.broken = {("gpu2", NEW)}
    done("upgrade", "--ollama", NEW, code=Exit.RUN_FAILED)
    folder = SiteState.of(fleet.file).inventory
    assert [effective(folder, host)["ollama_version"] for host in ("gpu1", "gpu2")] == [NEW, TESTED_OLLAMA]
    assert f"v{NEW}/" in effective(folder, "gpu1")["ollama_archive"]
    pins = [effective(folder, host)["ollama_archive_sha256"] for host in ("gpu1", "gpu2")]
    assert [f"pins/ollama-{version}.sha256" in pin for version, pin in zip((NEW, TESTED_OLLAMA), pins, strict=True)]


def test_a_named_host_does_not_pull_the_others_along(fleet: Fleet) -> None:
    done("upgrade", "gpu1", "--llama-cpp", "0.3.37")
    assert fleet.versions("llama_cpp") == ["0.3.37", TESTED["llama_cpp"]]
    done("up")
    done("up", "gpu2")
    assert fleet.versions("llama_cpp") == ["0.3.37", TESTED["llama_cpp"]]
    done("upgrade", "gpu2", "--open-webui", "0.12.5")
    done("up")
    assert fleet.versions("llama_cpp") == ["0.3.37", TESTED["llama_cpp"]]
    assert fleet.versions("open_webui") == [TESTED["open_webui"], "0.12.5"]


def test_a_host_goes_back_to_the_tested_version_while_others_have_another(fleet: Fleet) -> None:
    """What the tested version consists of is the role's default, which a variable of all hosts would hide."""
    fleet.write("versions: {llama_cpp: 0.3.37, open_webui: 0.12.5}")
    done("up")
    fleet.write("")
    done("upgrade", "gpu1")
    folder = SiteState.of(fleet.file).inventory
    assert "llama_cpp_archive_sha256" not in effective(folder, "gpu1")
    assert "open_webui_requirements" not in effective(folder, "gpu1")


def test_the_site_file_outranks_what_was_chosen(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "gpu1", "--ollama", NEW)
    fleet.write("versions: {ollama: 0.12.10}")
    done("up")
    assert fleet.versions() == ["0.12.10", "0.12.10"]
    done("upgrade", "gpu1", "--ollama", NEW, code=Exit.SITE)
    assert "it says `versions.ollama: 0.12.10`" in said()
    assert fleet.versions() == ["0.12.10", "0.12.10"]


@pytest.mark.parametrize("interrupted", [True, False], ids=["Ctrl-C", "away"])
def test_what_a_host_has_come_to_is_remembered_whatever_ends_the_roll_out(fleet: Fleet, *, interrupted: bool) -> None:
    if interrupted:
        fleet.stops_at = "gpu2"
    else:
        fleet.away = {"gpu2"}
    done("upgrade", "--ollama", NEW, code=Exit.INTERRUPTED if interrupted else Exit.UNREACHABLE)
    fleet.stops_at, fleet.away = "", set()
    done("up")
    assert fleet.versions() == [NEW, TESTED_OLLAMA]


def test_a_host_that_is_away_keeps_nobody_from_the_upgrade(fleet: Fleet, said: Callable[[], str]) -> None:
    fleet.away = {"gpu1"}
    done("upgrade", "--ollama", NEW, code=Exit.UNREACHABLE)
    assert fleet.versions() == [TESTED_OLLAMA, NEW]
    assert "gpu1: is away" in said()
    assert fleet.called[1:] == [["gpu1"], ["gpu2"]]  # nobody is put back


def test_of_hosts_that_were_upgraded_at_once_only_those_that_failed_are_put_back(fleet: Fleet) -> None:
    fleet.broken = {("gpu1", NEW)}
    done("upgrade", "--ollama", NEW, "--batch", "2", code=Exit.RUN_FAILED)
    assert fleet.called[1:] == [["gpu1", "gpu2"], ["gpu1"]]
    assert fleet.versions() == [TESTED_OLLAMA, NEW]


def test_without_a_version_hosts_come_to_what_the_site_file_says_now(fleet: Fleet, said: Callable[[], str]) -> None:
    done("upgrade", "gpu1", "--ollama", NEW)
    fleet.write("versions: {open_webui: 0.12.5}\ncontext_per_slot: 1024")
    said()
    done("upgrade")
    assert fleet.versions("open_webui") == ["0.12.5", "0.12.5"]
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]
    assert fleet.context == {"gpu1": "1024", "gpu2": "1024"}
    talk = said()
    assert f"gpu1: downgrade of Ollama from {NEW} to {TESTED_OLLAMA}" in talk
    assert "gpu2: the site file also says something else than before about context_per_slot" in talk
    done("up")
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]


def test_a_host_is_put_back_to_what_ran_there_whatever_was_applied_last(fleet: Fleet, said: Callable[[], str]) -> None:
    before = fleet.context["gpu2"]
    fleet.write("versions: {ollama: 0.17.4}\ncontext_per_slot: 1024")
    done("up", "gpu1")
    fleet.broken = {("gpu2", NEW)}
    done("upgrade", code=Exit.RUN_FAILED)
    assert fleet.versions() == [NEW, TESTED_OLLAMA]
    assert fleet.context == {"gpu1": "1024", "gpu2": before}
    assert f"gpu2: has Ollama {TESTED_OLLAMA}; `r1prov up` brings {NEW}" in said()


@pytest.mark.parametrize("verb", [("secrets", "rotate"), ("engine", "ollama")], ids=["rotate", "engine"])
def test_what_failed_on_one_host_is_not_brought_to_others_by_another_verb(fleet: Fleet, verb: tuple[str, ...]) -> None:
    fleet.write(f"versions: {{ollama: {NEW}}}")
    fleet.broken = {("gpu1", NEW)}
    done("upgrade", code=Exit.RUN_FAILED)
    done(*verb)
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]


def test_a_host_that_was_put_back_keeps_what_it_has_where_the_site_file_is_silent(fleet: Fleet) -> None:
    fleet.write("versions: {ollama: 0.12.10}")
    done("up")
    fleet.write("")
    fleet.broken = {("gpu2", TESTED_OLLAMA)}
    done("upgrade", code=Exit.RUN_FAILED)
    done("up")
    assert fleet.versions() == [TESTED_OLLAMA, "0.12.10"]


def test_a_host_that_joins_gets_what_the_site_has(fleet: Fleet, said: Callable[[], str]) -> None:
    fleet.write("", hosts="gpu1, gpu2, gpu3")
    done("upgrade", "--ollama", NEW, code=Exit.SITE)
    assert "gpu3: no run has set it up to the end yet" in said()
    assert fleet.versions() == [NEW, NEW]  # The others are not kept from it.
    done("upgrade", "--ollama", NEW, "gpu3", code=Exit.SITE)
    done("up")
    assert fleet.versions() == [NEW, NEW, TESTED_OLLAMA]


def test_a_site_without_a_file_remembers_too(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fleet.file.unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(fleet, "file", None)
    state = SiteState.of(None)
    state.pins.mkdir()
    (state.pins / f"ollama-{NEW}.sha256").write_text("0" * 64)
    done("up", "--profile", "cpu", "gpu1", "gpu2")
    fleet.broken = {("gpu2", NEW)}
    done("upgrade", "--ollama", NEW, code=Exit.RUN_FAILED)
    done("up", "--profile", "cpu", "gpu1", "gpu2")
    assert fleet.versions() == [NEW, TESTED_OLLAMA]
    done("upgrade")
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]


def test_status_shows_which_hosts_differ(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_hosts(*_: object) -> dict[str, dict[str, Any]]:
        healthy = dict.fromkeys(("props", "benchmark", "page", "document_search", "gateway", "weights", "data_disk"))
        healthy |= {"engine": "llama-server", "health": "ok", "tuned": "not tuned", "running": {"llama.cpp": []}}
        folders = {"llama_cpp": "llama.cpp", "ollama": "ollama", "open_webui": "open-webui"}
        return {
            name: {**healthy, "releases": {folders[key]: f"{runs[key]}-{'0' * 12}" for key in runs}}
            for name, runs in fleet.runs.items()
        }

    monkeypatch.setattr(look.visit, "statuses", of_hosts)
    capsys.readouterr()
    done("status")
    assert "differs" not in capsys.readouterr().out
    fleet.broken = {("gpu2", NEW)}
    done("upgrade", "--ollama", NEW, code=Exit.RUN_FAILED)
    capsys.readouterr()
    done("status", "--json")
    differs = {name: host["differs"] for name, host in json.loads(capsys.readouterr().out)["hosts"].items()}
    assert differs == {
        "gpu1": {"ollama": {"installed": NEW, "wanted": NEW, "site": TESTED_OLLAMA}},
        "gpu2": {},
    }
    fleet.write("versions: {ollama: 0.12.10}")
    done("status")
    shown = capsys.readouterr()
    assert "differs" in shown.out
    told = " ".join(shown.err.split())
    assert f"gpu1: has Ollama {NEW}; `r1prov up` brings 0.12.10" in told
    assert f"gpu2: has Ollama {TESTED_OLLAMA}; `r1prov up` brings 0.12.10" in told


def test_hosts_that_failed_together_are_put_back_together(fleet: Fleet) -> None:
    fleet.broken = {("gpu1", NEW), ("gpu2", NEW)}
    done("upgrade", "--ollama", NEW, "--batch", "2", code=Exit.RUN_FAILED)
    assert fleet.called[1:] == [["gpu1", "gpu2"], ["gpu1", "gpu2"]]
    assert fleet.versions() == [TESTED_OLLAMA, TESTED_OLLAMA]


def test_an_engine_that_does_not_stay_well_is_put_back_and_the_next_host_keeps_what_it_has(fleet: Fleet) -> None:
    fleet.write("engine: ollama")
    done("up")
    fleet.falling = {("gpu1", NEW)}
    done("upgrade", "--ollama", NEW, "--trial", "90s", code=Exit.RUN_FAILED)
    assert fleet.tried == [(["gpu1"], 90)]
    assert fleet.versions() == [TESTED_OLLAMA] * 2
    fleet.falling, fleet.tried = set(), []
    done("upgrade", "--ollama", NEW)
    assert fleet.tried == [(["gpu1"], 180), (["gpu2"], 180)]
    assert fleet.versions() == [NEW] * 2


def test_only_an_engine_with_another_version_is_on_trial(fleet: Fleet) -> None:
    done("upgrade", "--ollama", NEW)  # llama-server holds the model
    done("upgrade", "--open-webui", "0.12.5")
    assert fleet.tried == []
    done("upgrade", "--llama-cpp", "0.3.37", "gpu1")
    assert fleet.tried == [(["gpu1"], 180)]
