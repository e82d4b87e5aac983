"""Tests of the speeds of a machine: that they decide what is planned, and where they come from."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils.llama_memory import misfits
from called import document, run

from r1prov import inventory
from r1prov.cli import main
from r1prov.common.errors import Exit
from r1prov.common.units import GB, MIB
from r1prov.machines.profile import Link, load_profile
from r1prov.models import catalogue
from r1prov.offload import plan
from r1prov.offload.arguments import parse
from r1prov.offload.costs import costs
from r1prov.offload.measured import Sample
from r1prov.offload.speed import DEFAULT, Origin, Speed, linked, of_machine
from r1prov.runs import modes, speeds
from r1prov.runs import tuning as tunings
from r1prov.runs.run import settle
from r1prov.site.select import wanted
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.decision import Decision

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


@pytest.mark.parametrize(
    ("threads", "share_low", "share_high"), [(None, 1, 1), (64, 1, 1), (128, 1, 1), (16, 16 / 48, 16 / 64)]
)
def test_few_threads_compute_as_much_less(threads: int | None, share_low: float, share_high: float) -> None:
    machine = load_profile("4x4090").machine.model_copy(update={"cpu_threads": threads})
    found, table = of_machine(machine).cpu_operations_per_second, DEFAULT.cpu_operations_per_second
    assert found.low == pytest.approx(table.low * share_low)
    assert found.high == pytest.approx(table.high * share_high)
    assert of_machine(machine).ram_bytes_per_second == DEFAULT.ram_bytes_per_second  # enough threads for the memory


def test_one_thread_is_planned_as_it_was_measured() -> None:
    """The demo's server decoded 32 to 41 tokens/s with one thread, and computed a prompt of 512 tokens in 6.5 to 7.4 s (2026-11-30)."""
    speeds = of_machine(load_profile("demo").machine)
    assert speeds.ram_bytes_per_second.low <= 5 * GB <= speeds.ram_bytes_per_second.high
    operations = 2 * 134.5e6 * 512  # of a model with so many weights
    seconds = [operations / speeds.cpu_operations_per_second.at(which) for which in (0, 1)]
    assert seconds[1] < 6.5 < 7.4 < seconds[0]
    assert speeds.cpu_operations_per_second.origin is Origin.PROFILE
    assert speeds.cpu_operations_per_second.detail == "1 thread"


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


def test_explain_says_of_the_planned_arguments_what_plan_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link of the first card counts too, from a profile and from what a host has told."""
    slow = profile_with(tmp_path, "{generation: 3, width: 4}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: 4x4090\nhosts: [gpu1]\nworkload: documents\n")
    SiteState.of(wanted(None, [])[0].path).acquaint("gpu1", facts(SLOW))
    told = []
    for machine in (("--profile", "4x4090"), ("--profile", str(slow)), ("--host", "gpu1"), ("--profile", "cpu")):
        planned = document(capsys, "plan", "--json", *machine)
        explained = document(capsys, "explain", "--json", *machine, "--", *planned["arguments"])
        same = ("model", "mla", "devices", "host", "workload", "decode_tokens_per_second", "conversation", "fits")
        assert [explained[key] for key in same] == [planned[key] for key in same]
        told.append(explained["workload"]["exchanges"][1]["first_token_seconds"]["high"])
    assert told[1] > 2 * told[0]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "Give --gpus and --ram, or --profile, or --host"),
        (("--gpus", "0"), "Give --gpus and --ram, or --profile, or --host"),
        (("--profile", "cpu", "--ram", "1GiB"), "give one of them"),
        (("--profile", "cpu", "--host", "gpu1"), "exclude each other"),
        (("--gpus", "0", "--ram", "1GiB", "--measured"), "--measured goes with --host"),
    ],
)
def test_explain_wants_one_machine(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], what: str) -> None:
    code, _, err = run(capsys, "explain", *words, "--", "-c", "512")
    assert code == 2
    assert what in " ".join(err.replace("│", " ").split())


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


FACTS = {
    "cpu": {"model": "Xeon", "cores": 64, "usable_threads": 64},
    "ram": {"total_bytes": 480 * GB},
    "gpu": {"on_bus": 4, "cards": [{"name": "RTX 4090", "memory_bytes": 24564 * MIB}] * 4, "link": None},
}
SLOW = {"generation": 3, "width": 8}
TRUTH = {
    "ram_bytes_per_second": 52 * GB,
    "card_bytes_per_second": 640 * GB,
    "link_bytes_per_second": 5.5 * GB,
    "card_operations_per_second": 40e12,
    "cpu_operations_per_second": 2e12,
}


def facts(link: dict[str, int] | None) -> dict[str, Any]:
    return FACTS | {"gpu": FACTS["gpu"] | {"link": link}}


@pytest.fixture
def decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decision:
    """The decision of a site whose host gpu1 has told of a slow link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: 4x4090\nhosts: [gpu1, gpu2]\nworkload: documents\n")
    chosen, _ = wanted(None, [])
    SiteState.of(chosen.path).acquaint("gpu1", facts(SLOW))
    SiteState.of(chosen.path).acquaint("gpu2", facts(None))
    return settle(chosen, lambda _: None)


@pytest.mark.parametrize(
    ("profile", "ram"), [("4x4090", 120), ("4x4090", 100), ("4x4090", 56), ("cpu", 200), ("cpu", 152)]
)
def test_past_prompts_take_what_ram_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, ram: int
) -> None:
    """What a host is refused for (`misfits`) is the model and the system's reserve, never the cache of past prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text(f"profile: {profile}\nhosts: [gpu1, gpu2]\nworkload: team\n")
    chosen, _ = wanted(None, [])
    there = facts(None) if profile == "4x4090" else facts(None) | {"gpu": {"on_bus": 0, "cards": [], "link": None}}
    kinds = {"gpu1": ram * GB + 5 * MIB, "gpu2": 480 * GB}
    for name, n_bytes in kinds.items():
        SiteState.of(chosen.path).acquaint(name, there | {"ram": {"total_bytes": n_bytes}})
    decision = settle(chosen, lambda _: None)
    small, large = decision.plan_for("gpu1"), decision.plan_for("gpu2")
    assert large == decision.plan
    assert small.setting.prompts < large.setting.prompts
    assert "RAM that is left" in small.prompts_reason
    variables = yaml.safe_load(inventory.rendered(decision)["hosts.yml"])["all"]["hosts"]["gpu1"]
    words = variables["llama_server_arguments"]
    assert int(words[words.index("--cache-ram") + 1]) * MIB == small.setting.prompts
    reserves = {device["name"]: 1024 * MIB for device in variables["llama_server_plan"]}
    rooms = {"host": kinds["gpu1"]} | {f"CUDA{number}": 24564 * MIB for number in range(4)}
    assert not misfits(
        variables["llama_server_plan"], rooms, reserves | {"host": variables["llama_server_host_reserve_bytes"]}
    )
    # Another kernel counts a little less.
    SiteState.of(chosen.path).acquaint("gpu1", there | {"ram": {"total_bytes": kinds["gpu1"] - 4 * MIB}})
    assert settle(chosen, lambda _: None).plan_for("gpu1") == small


def foreseen(decision: Decision, arguments: Sequence[str], *, prompt: int, depth: float) -> float:
    """The seconds on a machine with the speeds of `TRUTH`."""
    assert decision.model
    cards = decision.site.profile.machine.cards
    return Sample(costs(decision.model, parse(arguments, cards=4), cards), 1.0, prompt, depth).foreseen(TRUTH, 1)


def compared(decision: Decision) -> dict[str, Any]:
    """What `bench --modes` would say of the modes of gpu1, had it the speeds of `TRUTH`."""
    found = modes.servers(decision, "gpu1", ["cpu", "hybrid", "experts-in-ram", "fit"])
    each = []
    for server in found:
        rates = [
            {
                "users": 1,
                "depth_tokens": depth,
                "prompt_tokens": 512,
                "decode_tokens": 64,
                "prompt_tokens_per_second": 512 / foreseen(decision, server.arguments, prompt=512, depth=depth),
                "decode_tokens_per_second": 1 / foreseen(decision, server.arguments, prompt=0, depth=depth + 544),
                "decode_tokens_per_second_total": 1.0,
                "wall_s": 9.0,
            }
            for depth in (0, 16000)
        ]
        memory: dict[str, Any] = {"devices_bytes": [], "ram_bytes": 0, "ram_anonymous_bytes": 0}
        about: dict[str, Any] = {
            "memory": memory,
            "measured_unix_s": 1790000000,
            "load": {"foreign": False},
            "earlier": False,
        }
        each.append({"mode": server.mode, "load_s": 1.0, "seconds": 9.0, "rates": rates, **about})
    return modes.report(decision, "gpu1", found, 1200, {"modes": each, "untried": [], "state": "done"})


def told_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words, "--json"])
    assert not ended.value.code, capsys.readouterr().err
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_a_host_is_planned_with_its_own_link(decision: Decision, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (told_of(capsys, "--host", name) for name in ("gpu1", "gpu2"))
    assert one["speeds"]["link_bytes_per_second"] == {
        "low": pytest.approx(5 * GB, rel=0.01),
        "high": pytest.approx(6.25 * GB, rel=0.01),
        "origin": "asked",
        "detail": "PCIe 3.0 x8",
    }
    assert two["speeds"]["link_bytes_per_second"]["origin"] == "default"
    for name, told in (("gpu1", one), ("gpu2", two)):
        assert tuple(told["arguments"]) == decision.arguments(name)
        assert told["measured"] is None
    assert one["arguments"] != two["arguments"]


def test_what_was_measured_is_said_and_restarts_nothing(decision: Decision, capsys: pytest.CaptureFixture[str]) -> None:
    before = told_of(capsys, "--host", "gpu1")
    rendered = inventory.rendered(decision)
    speeds.of_modes(decision, "gpu1", compared(decision))
    after = told_of(capsys, "--host", "gpu1")
    assert inventory.rendered(settle(decision.site, lambda _: None)) == rendered
    measured = after.pop("measured")
    assert before.pop("measured") is None
    assert after == before
    ram = measured["speeds"]["ram_bytes_per_second"]
    assert ram["low"] < TRUTH["ram_bytes_per_second"] < ram["high"] < 1.15 * ram["low"]
    assert ram["origin"] == "measured"
    assert ram["detail"].startswith("bench --modes, 20")
    link = measured["speeds"]["link_bytes_per_second"]
    assert link["low"] <= TRUTH["link_bytes_per_second"] <= link["high"]
    exchange, planned = (each["workload"]["exchanges"][0] for each in (measured, before))
    rates, estimate = exchange["tokens_per_second"], planned["tokens_per_second"]
    depth = exchange["cached"] + exchange["prompt"] + exchange["answer"] / 2
    assert rates["low"] < 1 / foreseen(decision, before["arguments"], prompt=0, depth=depth) < rates["high"]
    assert rates["high"] / rates["low"] < estimate["high"] / estimate["low"]
    assert told_of(capsys, "--host", "gpu1", "--measured")["speeds"] == measured["speeds"]
    assert told_of(capsys, "--host", "gpu2")["measured"] is None


def test_another_machine_of_the_same_name_has_nothing_measured(decision: Decision) -> None:
    state = SiteState.of(decision.site.path)
    busy = compared(decision)
    for mode in busy["modes"]:
        if mode["measured"]:
            mode["measured"]["load"] = {"foreign": True}
    speeds.of_modes(decision, "gpu1", busy)
    before = state.known("gpu1")
    assert before
    assert before.measured == {}  # something else kept the host busy
    speeds.of_modes(decision, "gpu1", compared(decision))
    for found in (facts(None), facts(SLOW), {**facts(None), "gpu": {"on_bus": 4, "cards": [], "link": None}}):
        _, known = state.acquaint("gpu1", found)
        assert known
        assert known.measured
        assert known.link == Link(**SLOW)
    _, known = state.acquaint("gpu1", facts(None) | {"cpu": {"model": "EPYC", "cores": 96, "usable_threads": 96}})
    assert known
    assert (known.measured, known.link) == ({}, None)


def test_people_read_what_was_measured_beside_the_estimate(
    decision: Decision, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds.of_modes(decision, "gpu1", compared(decision))
    with pytest.raises(SystemExit):
        main(["plan", "--host", "gpu1"])
    text = " ".join(capsys.readouterr().out.split())
    assert "go from RAM to CUDA0 by PCIe 3.0 x8 (asked of the host)." in text
    assert "measured on gpu1" in text
    assert "from RAM, GB/s 35-60" in text
    assert "With these speeds the plan decodes" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "gpu9"], "has no such host"),
        (["--host", "gpu2", "--measured"], "nothing was measured there"),
        (["--measured"], "--measured goes with --host"),
        (["--host", "gpu1", "--profile", "cpu"], "exclude each other"),
    ],
)
def test_questions_about_a_host_that_have_no_answer(
    decision: Decision, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    assert ended.value.code in {Exit.SITE, Exit.USAGE}
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_benchmark_and_tuning_tell_too(decision: Decision) -> None:
    state = SiteState.of(decision.site.path)
    command = ["/opt/r1prov/llama.cpp/current/bin/llama-server", "--model", "/m.gguf", *decision.arguments("gpu1")]
    decode = 1 / foreseen(decision, decision.arguments("gpu1"), prompt=0, depth=192)
    alone = {"users": 1, "prompt_tokens": 160, "decode_tokens": 64, "prompt_tokens_per_second_each": 0}
    benchmark = {
        "measured_unix_s": 1764400000,
        "subject": {"engine": "llama-server", "command": shlex.join(command)},
        "sweep": [alone | {"decode_tokens_per_second_each": decode}],
        "load": {"foreign": True},
    }
    speeds.of_benchmark(decision, "gpu1", benchmark)
    known = state.known("gpu1")
    assert known
    assert known.measured == {}  # something else kept the host busy
    speeds.of_benchmark(decision, "gpu1", benchmark | {"load": {"foreign": False}})
    known = state.known("gpu1")
    assert known
    vague = known.measured["ram_bytes_per_second"]
    assert vague.low < TRUTH["ram_bytes_per_second"] < vague.high
    trial = tunings.trial(decision, "gpu1", facts(SLOW))
    own = {dimension.name: dimension.choices[0].label for dimension in trial.dimensions}
    point = {
        "users": 1,
        "prompt_tokens": 512,
        "decode_tokens": 32,
        "prompt_s": [foreseen(decision, trial.subject.plan, prompt=512, depth=0)],
        "token_s": [foreseen(decision, trial.subject.plan, prompt=0, depth=528)],
    }
    slow = point | {"prompt_s": [512.0], "token_s": [2.0]}
    rest = {"seconds": 9.0, "failed": "", "exchange_s": [1.0], "first_token_s": [1.0], "prompt": [1.0], "decode": [1.0]}
    found = [
        {"chosen": own, "points": [slow | {"users": 4}, point], **rest},
        {"chosen": own | {"threads": "16"}, "points": [slow], **rest},
    ]
    tuned = tunings.outcome(trial, {"chosen": own, "measured": found, "untried": [], "reason": ""})
    speeds.of_tuning(decision, "gpu1", trial, tuned)
    known = state.known("gpu1")
    assert known
    assert known.measured["ram_bytes_per_second"].by == "r1prov tune"
    assert vague.low <= known.measured["ram_bytes_per_second"].low < TRUTH["ram_bytes_per_second"]
    assert TRUTH["ram_bytes_per_second"] < known.measured["ram_bytes_per_second"].high <= vague.high
