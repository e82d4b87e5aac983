"""The guide's command lines, as `r1prov by-hand` prints them."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from r1prov.cli import main
from r1prov.common.errors import Exit
from r1prov.machines.profile import load_profile, source
from r1prov.offload import modes
from r1prov.offload.arguments import parse
from r1prov.offload.plan import DYNAMIC_QUANTS
from tests.golden import assert_golden

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "r1prov.yml"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(("by-hand", *words))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_each_mode_of_the_reference_machines_is_golden(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for profile in ("4x4090", "4xh800"):
        site.write_text(f"profile: {profile}\nhosts: [gpu1.example.com]\n")
        for mode in modes.BY_HAND:
            code, out, err = printed(capsys, "--mode", mode)
            reasons = [line for line in err.splitlines() if line.startswith("It does not fit")]
            assert code == (Exit.PREFLIGHT if reasons else Exit.OK)
            found[f"{profile}-{mode}.txt"] = "\n".join([*reasons, out])
    assert_golden(found, "by_hand")


def test_the_line_is_the_command_and_says_whether_it_fits(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_text("profile: 4x4090\nhosts: [gpu1.example.com, gpu2.example.com]\n")
    told = json.loads(printed(capsys, "--mode", "gpu", "gpu2.example.com", "--json")[1])
    assert (told["host"], told["mode"], told["fits"]) == ("gpu2.example.com", "gpu", False)
    assert told["reasons"][0].startswith("CUDA0 runs out of memory")
    words = shlex.split(told["line"])
    assert words == [*(f"{name}={value}" for name, value in told["environment"].items()), *told["command"]]
    assert json.loads(printed(capsys, "--json")[1])["fits"]


def test_a_mode_that_there_is_not_is_refused_before_anything_is_read(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write_text("profile: demo\nhosts: [gpu1.example.com]\n")
    monkeypatch.setattr("r1prov.cli.by_hand.last_applied", lambda *_: pytest.fail("the site was read"))
    code, _, err = printed(capsys, "--mode", "legacy")
    assert code == Exit.USAGE
    assert err.startswith("r1prov by-hand: ")
    assert "no mode `legacy` by hand" in err


def test_a_machine_without_cards_has_one_mode_and_says_so(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_text("profile: cpu\nhosts: [gpu1.example.com]\n")
    assert " --n-gpu-layers 0 " in printed(capsys)[1]
    code, out, err = printed(capsys, "--mode", "hybrid")
    assert (code, out) == (Exit.SITE, "")
    assert "the profile cpu has no cards" in err
    assert "did" not in err
    assert printed(capsys, "--mode", "rules")[0] == Exit.USAGE
    assert printed(capsys, "--mode", " CPU")[0] == 0
    code, out, err = printed(capsys, "--mode", "fit")
    assert (code, out) == (Exit.SITE, "")
    assert "the profile cpu has no cards" in err
    code, _, err = printed(capsys, "--mode", "legacy")
    assert code == Exit.USAGE
    assert "`r1prov bench --modes` knows it" in " ".join(err.split())


@pytest.mark.parametrize("mode", modes.BY_HAND)
def test_a_kind_of_server_needs_no_site_and_leaves_none(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    site.write_text("profile: 4x4090\nhosts: [gpu1.example.com]\n")
    on_host = json.loads(printed(capsys, "--mode", mode, "--json")[1])
    elsewhere = site.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("XDG_STATE_HOME", str(elsewhere / "state"))
    code, out, err = printed(capsys, "--profile", "4x4090", "--mode", mode.upper(), "--json")
    assert code == (Exit.PREFLIGHT if mode in (modes.GPU, modes.RULE) else Exit.OK), err
    assert json.loads(out) == on_host | {"host": "4x4090"}
    assert "/srv/r1prov/models/" in out
    assert "on such a server" in printed(capsys, "--profile", "4x4090", "--mode", mode)[2]
    assert not list(elsewhere.iterdir())
    code, _, err = printed(capsys)
    assert code == Exit.SITE
    assert "or name a kind of server, which need not be there: --profile 4x4090" in " ".join(err.split())


def test_a_kind_and_a_host_exclude_each_other(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_text("profile: cpu\nhosts: [gpu1.example.com]\n")
    assert printed(capsys, "--profile", "4x4090")[0] == 0  # The file of this folder is not named.
    for words in (["gpu1.example.com"], ["--site", str(site)]):
        code, _, err = printed(capsys, "--profile", "4x4090", *words)
        assert code == Exit.USAGE
        assert "exclude each other" in " ".join(err.split())
    assert printed(capsys, "--profile", "5x4090")[0] == Exit.SITE


def test_a_kind_in_a_file_of_ones_own_may_be_called_anything(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = site.with_name("_my box:1.yml")
    own.write_text(source("4x4090"))
    assert json.loads(printed(capsys, "--profile", own.name, "--json")[1])["host"] == "my-box-1"


@pytest.mark.parametrize("quant", DYNAMIC_QUANTS)
@pytest.mark.parametrize("profile", ["4x4090", "4xh800"])
def test_the_plan_by_hand_places_the_model_as_the_service_does(
    site: Path, capsys: pytest.CaptureFixture[str], profile: str, quant: str
) -> None:
    """What the engine is told of layers, cards and experts is the same, and a single user has the context of one slot."""
    site.write_text(f"profile: {profile}\nquant: {quant}\noverride: [fit]\nhosts: [gpu1.example.com]\n")
    command = json.loads(printed(capsys, "--mode", "hybrid", "--json")[1])["command"]
    machine = load_profile(profile)
    end = command.index("--prio")
    setting = parse(command[3:end], cards=len(machine.machine.cards))
    assert setting.context == 32_768
    assert setting.split or setting.overrides


def test_where_the_plan_does_not_fit_either_it_is_not_recommended(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.write_text("profile: cpu\nquant: Q4_K_M\noverride: [fit]\nhosts: [gpu1.example.com]\n")
    code, out, err = printed(capsys)
    assert (code, "llama-completion" in out) == (Exit.PREFLIGHT, True)
    assert "--mode hybrid" not in err
    assert "`r1prov plan` says what would fit" in err
