"""Tests of the speeds of a machine: that they decide what is planned, and where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1prov.cli import main
from r1prov.common.errors import Exit
from r1prov.common.units import GB
from r1prov.machines.profile import Link, load_profile
from r1prov.models import catalogue
from r1prov.offload import plan
from r1prov.offload.speed import DEFAULT, Origin, Speed, linked, of_machine

PROFILES = Path(__file__).parents[2] / "inventory" / "profiles"


def profile_with(folder: Path, link: str) -> Path:
    """A profile like 4x4090 with this link."""
    path = folder / "profile.yml"
    path.write_text(
        (PROFILES / "4x4090.yml").read_text().replace("    count: 4\n", f"    count: 4\n    link: {link}\n")
    )
    return path


@pytest.mark.parametrize(
    ("generation", "width", "low", "high"), [(4, 16, 20, 25), (4, 8, 10, 12.5), (3, 16, 10, 12.5), (3, 4, 2.5, 3.13)]
)
def test_a_link_carries_what_its_lanes_carry(generation: int, width: int, low: float, high: float) -> None:
    told = linked(DEFAULT, Link(generation=generation, width=width), Origin.ASKED).link_bytes_per_second
    assert (told.low, told.high) == pytest.approx((low * GB, high * GB), rel=0.01)
    assert (told.origin, told.detail) == (Origin.ASKED, f"PCIe {generation}.0 x{width}")


def test_no_range_is_upside_down() -> None:
    for low, high in ((2, 1), (0, 1), (-1, 1)):
        with pytest.raises(ValueError, match="range"):
            Speed(low, high)


def test_what_the_host_tells_of_its_link_outranks_the_profile(tmp_path: Path) -> None:
    machine = load_profile(str(profile_with(tmp_path, "{generation: 3, width: 8}"))).machine
    assert of_machine(machine).link_bytes_per_second.origin is Origin.PROFILE
    assert of_machine(machine, Link(generation=4, width=16)).link_bytes_per_second.high == 25 * GB
    assert of_machine(load_profile("4x4090").machine) == DEFAULT


def test_a_slow_link_changes_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What a profile names reaches the search: prompts wait longer, so that more tokens share each copy."""
    told = []
    for profile in ("4x4090", str(profile_with(tmp_path, "{generation: 3, width: 4}"))):
        with pytest.raises(SystemExit) as ended:
            main(["plan", "--profile", profile, "--workload", "chat", "--json"])
        assert not ended.value.code
        told.append(json.loads(capsys.readouterr().out))
    fast, slow = (int(each["arguments"][each["arguments"].index("--ubatch-size") + 1]) for each in told)
    assert slow > fast
    waits = [each["workload"]["exchanges"][1]["first_token_seconds"]["high"] for each in told]
    assert waits[1] > 2 * waits[0]


def test_the_plan_of_a_site_uses_the_link_of_the_profile(tmp_path: Path) -> None:
    ours, theirs = load_profile("4x4090"), load_profile(str(profile_with(tmp_path, "{generation: 3, width: 4}")))
    quant = catalogue.quant("UD-IQ1_S")
    assert plan(quant, ours.machine, ours.serving).setting != plan(quant, theirs.machine, theirs.serving).setting


@pytest.mark.parametrize("link", ["{generation: 9, width: 16}", "{generation: 4, width: 3}", "fast", "{width: 16}"])
def test_a_link_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, link: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--profile", str(profile_with(tmp_path, link))])
    assert ended.value.code == Exit.SITE
    assert "machine.gpus.link" in capsys.readouterr().err
