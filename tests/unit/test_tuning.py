"""Tests of what `r1prov tune` tries around a plan, of when a result holds, and of the measuring program with a fake llama-batched-bench."""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils.http_api import Api, ApiError
from ansible_collections.r1.prov.plugins.modules import measurement
from measuring import settings, work

from r1prov import inventory, site
from r1prov.cli import main
from r1prov.common.errors import Exit
from r1prov.common.units import GIB
from r1prov.decision import decide
from r1prov.machines import profile as machine
from r1prov.machines import tuned
from r1prov.machines.tuned import Hardware, Subject, Tuned
from r1prov.machines.workload import CHAT, DOCUMENTS, TEAM, Workload, shortened
from r1prov.models import catalogue
from r1prov.offload import Plan, model_of, plan, tuning
from r1prov.offload.arguments import parse
from r1prov.offload.outcome import RESERVE_BYTES, Space, outcome
from r1prov.offload.tuning import Choice, Trial
from r1prov.runs import tuning as tunings
from r1prov.site.state import SiteState

FACTS = {
    "cpu": {"model": "Xeon 8352V", "cores": 32, "usable_threads": 64},
    "ram": {"total_bytes": 480 * 10**9},
    "gpu": {"cards": [{"name": "RTX 4090", "memory_bytes": 24564 * 2**20}] * 4},
}


LEGACY = {"attention": "legacy", "context_per_slot": 8192, "kv_type_k": "q4_0"}
"""Settings whose KV cache is large. Where memory is short, tuning has the most to try."""


@functools.cache
def planned(profile: str, reserve: int = RESERVE_BYTES) -> tuple[Plan, Trial]:
    kind = machine.load_profile(profile)
    quant = catalogue.quant(kind.serving.quant)
    serving = kind.serving.model_copy(update=LEGACY)
    found = plan(quant, kind.machine, serving, reserve)
    return found, tuning.trial(found, model_of(quant), kind.machine, serving, subject(found, CHAT))


def subject(found: Plan, workload: Workload) -> Subject:
    return Subject(hardware=Hardware.of(FACTS), engine=("1",), model=("a",), plan=found.arguments, workload=workload)


def own(trial: Trial) -> dict[str, str]:
    return {dimension.name: dimension.choices[0].label for dimension in trial.dimensions}


def labels(trial: Trial) -> dict[str, list[str]]:
    return {dimension.name: [choice.label for choice in dimension.choices] for dimension in trial.dimensions}


def test_what_is_tried_on_a_4x4090() -> None:
    _, trial = planned("4x4090")
    assert labels(trial) == {
        "threads": ["64", "32", "24", "16"],
        "placement": ["micro-batch 512", "micro-batch 256", "a tensor less per card"],
        "repack": ["on", "off"],
    }
    assert trial.settings == 7


@pytest.mark.parametrize("profile", ["4x4090", "cpu"])
def test_the_plans_own_choices_are_the_plan(profile: str) -> None:
    found, trial = planned(profile)
    arguments = trial.arguments(own(trial))
    assert sorted(arguments) == sorted(found.arguments)
    assert "--cache-ram" not in tuning.for_bench((*arguments, "--cache-ram", "100"))
    assert tuning.for_bench((*arguments, "--cache-ram", "100")) == tuning.for_bench(arguments)


def test_every_placement_fits_and_one_with_a_tensor_less_reads_more_from_ram() -> None:
    found, trial = planned("4x4090")
    kind = machine.load_profile("4x4090")
    model = model_of(catalogue.quant(kind.serving.quant))
    assert model
    reads = {}
    for choice in trial.dimensions[1].choices:
        arguments = trial.arguments(own(trial) | {"placement": choice.label})
        done = outcome(model, parse(arguments, cards=4), Space(kind.machine.cards, kind.machine.ram))
        assert done.fits, choice.label
        reads[choice.label] = done.reads.host
    assert found.outcome
    assert reads["micro-batch 512"] == found.outcome.reads.host
    assert reads["micro-batch 256"] < found.outcome.reads.host  # what the smaller buffers leave free holds experts
    assert reads["a tensor less per card"] > found.outcome.reads.host


def test_a_tensor_more_goes_where_half_of_the_reserve_stays_free() -> None:
    _, trial = planned("4x4090", reserve=2 * GIB)
    kind = machine.load_profile("4x4090")
    model = model_of(catalogue.quant(kind.serving.quant))
    assert model
    arguments = trial.arguments(own(trial) | {"placement": "a tensor more per card"})
    more, before = (
        outcome(model, parse(each, cards=4), Space(kind.machine.cards, kind.machine.ram))
        for each in (arguments, trial.arguments(own(trial)))
    )
    assert more.reads.host < before.reads.host
    assert all(device.free >= tuning.SMALLER_RESERVE_BYTES for device in more.devices)
    assert [before.free > after.free for before, after in zip(before.devices, more.devices, strict=True)] == [True] * 4


def test_of_a_model_wholly_on_the_cards_no_tensor_is_moved_to_ram() -> None:
    kind = machine.load_profile("4xh800")
    quant = catalogue.quant("UD-Q2_K_XL")
    serving = kind.serving.model_copy(update=LEGACY | {"slots": 4})
    found = plan(quant, kind.machine, serving)
    trial = tuning.trial(found, model_of(quant), kind.machine, serving, subject(found, shortened(TEAM, 8192)))
    assert labels(trial) == {"placement": ["micro-batch 448", "micro-batch 224"]}
    assert not any("CPU" in word for dim in trial.dimensions for choice in dim.choices for word in choice.arguments)


def test_a_plan_without_repacking_is_tried_with_it() -> None:
    _, trial = planned("cpu")
    assert trial.dimensions[-1].choices == (Choice("on"), Choice("off", ("--no-repack",)))
    assert trial.arguments(own(trial) | {"repack": "off"})[-1] == "--no-repack"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"ram": 481 * 10**9}, ""),  # another kernel shows a little more RAM
        ({"ram": 960 * 10**9}, "other hardware"),
        ({"cards": (("RTX 4090", 48 * GIB),)}, "other hardware"),
        ({"threads": 32}, "other hardware"),
    ],
)
def test_hardware_that_changed(change: dict[str, Any], why: str) -> None:
    found = result().subject
    now = found.model_copy(update={"hardware": found.hardware.model_copy(update=change)})
    assert result().lapsed(now) == why


NONE = {"points": [], "failed": "", "first_token_s": [2.0]}


@functools.cache
def result() -> Tuned:
    """The result of tuning a 4x4090, which is faster with half of its threads."""
    trial = tunings.trial(decide(site.load(None, profile="4x4090", hosts=["gpu1"])), "gpu1", FACTS)
    first = own(trial)
    best = first | {"threads": "32"}
    measured = [
        {"chosen": first, "exchange_s": [90.0, 91.0], "prompt": [21.0], "decode": [5.1], "seconds": 60.0} | NONE,
        {"chosen": best, "exchange_s": [80.0], "prompt": [24.0, 25.0, 26.0], "decode": [6.1], "seconds": 61.0} | NONE,
    ]
    return tunings.outcome(
        trial, {"chosen": best, "measured": measured, "untried": ["repack off"], "reason": "it is faster"}
    )


@pytest.fixture
def gpu1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> site.Site:
    """A site without a file, with the tuned host gpu1 and the host gpu2, which is not tuned."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    chosen = site.load(None, profile="4x4090", hosts=["gpu1", "gpu2"])
    SiteState.of(None).keep_tuned("gpu1", result())
    return chosen


def kept() -> dict[str, Tuned]:
    return SiteState.of(None).all_tuned(site.load(None, profile="4x4090", hosts=["gpu1", "gpu2"]).hosts)


def test_a_tuned_host_serves_with_what_was_found(gpu1: site.Site) -> None:
    decision, remarks = decide(gpu1).with_tuned(kept(), {"gpu1": FACTS, "gpu2": FACTS})
    assert ({*decision.tuned}, remarks) == ({"gpu1"}, {})
    hosts = yaml.safe_load(inventory.rendered(decision)["hosts.yml"])["all"]["hosts"]
    arguments = hosts["gpu1"]["llama_server_arguments"]
    assert arguments[arguments.index("--threads") + 1] == "32"
    assert sorted(arguments) == sorted("32" if word == "64" else word for word in decision.plan.arguments)
    assert "32" in hosts["gpu1"]["measure_arguments"]
    assert "llama_server_arguments" not in hosts["gpu2"]
    assert tuned.in_words(kept()["gpu1"]) == "tuned: threads 32 (it is faster)"
    assert tuned.in_words(kept().get("gpu2")) == "not tuned: run `r1prov tune`"


@pytest.mark.parametrize(
    ("flags", "facts", "why"),
    [
        ({}, FACTS | {"cpu": FACTS["cpu"] | {"model": "EPYC"}}, "other hardware"),
        ({"versions": {"llama_cpp": "0.3.37"}}, FACTS, "another engine"),
        ({"quant": "UD-IQ1_M"}, FACTS, "another model"),
        ({"context_per_slot": 4096}, FACTS, "another plan"),
        ({"workload": DOCUMENTS}, FACTS, "another plan"),
    ],
)
def test_what_changed_since_lets_the_plan_serve_again(gpu1: site.Site, flags: Any, facts: Any, why: str) -> None:
    now = decide(site.load(None, profile="4x4090", hosts=["gpu1"], **flags))
    decision, remarks = now.with_tuned(kept(), {"gpu1": facts})
    assert decision.tuned == {}
    assert remarks == {"gpu1": f"is tuned for {why}, so the plan's own setting serves: run `r1prov tune`"}
    assert tuned.in_words(kept()["gpu1"], why).startswith(f"tuned for {why}")


def test_what_was_judged_by_a_full_slot_gives_way_with_one_sentence(gpu1: site.Site) -> None:
    """Versions before 0.1 did that, and kept neither the workload nor the seconds of an exchange."""
    path = SiteState.of(None).root / "tuned" / "gpu1.json"
    old = json.loads(path.read_text())
    del old["subject"]["workload"]
    for measured in old["measured"]:
        del measured["exchange_s"], measured["points"]
    path.write_text(json.dumps(old))
    decision, remarks = decide(gpu1).with_tuned(kept(), {"gpu1": FACTS})
    assert decision.tuned == {}
    assert remarks == {
        "gpu1": "is tuned for a full slot, not for a workload, so the plan's own setting serves: run `r1prov tune`"
    }


def test_another_workload_for_which_the_plan_is_the_same(gpu1: site.Site) -> None:
    found = result().subject
    other = found.model_copy(update={"workload": shortened(DOCUMENTS, 4096)})
    assert result().lapsed(other) == "another workload"


def test_a_host_that_was_not_met_is_taken_to_be_the_same(gpu1: site.Site) -> None:
    assert {*decide(gpu1).with_tuned(kept(), {})[0].tuned} == {"gpu1"}


def test_what_another_version_kept_in_its_own_way_is_as_nothing(gpu1: site.Site) -> None:
    state = SiteState.of(None)
    (state.root / "tuned" / "gpu1.json").write_text('{"subject": 1}')
    assert state.tuned("gpu1") is None
    state.forget_tuned("gpu1")
    state.forget_tuned("gpu1")
    assert state.tuned("gpu1") is None


def test_where_the_plan_stays_best_not_even_the_order_of_its_arguments_changes() -> None:
    trial = planned("4x4090")[1]
    measured = [{"chosen": own(trial), "exchange_s": [1.0], "prompt": [1.0], "decode": [1.0], "seconds": 1.0} | NONE]
    found = tunings.outcome(trial, {"chosen": own(trial), "measured": measured, "untried": [], "reason": ""})
    assert found.arguments == trial.subject.plan
    assert found.what == "the plan's own setting"


def test_the_table_of_what_was_measured() -> None:
    assert tuned.rows(result()) == [
        ("the plan's own", "2.00", "90.50", "21.00", "5.10", ""),
        ("threads 32", "2.00", "80.00", "25.00", "6.10", "kept"),
        ("repack off", "", "", "", "", "no time was left for it"),
    ]


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(("tune", *words))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a site."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_would_be_tried_on_a_kind_of_server(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capsys, "--check", "--profile", "4x4090", "--workload", "team", "--limit", "1h")
    assert code == Exit.OK
    assert out.startswith("4x4090: 9 settings to measure, within 1h\n  threads: 64 as planned, 48, 32\n")
    assert "4 slots, 8 slots of 32,768 tokens, a tensor" in " ".join(out.split())
    code, out, _ = ran(capsys, "--check", "--profile", "4xh800", "--json")
    told = json.loads(out)
    assert (code, told["hosts"], told["problems"]) == (Exit.OK, {}, [])
    placements, judged = told["to_measure"]["4xh800"]
    assert placements.startswith("placement: micro-batch 448 as planned, ")
    assert "team: sixteen people at once" in judged


def test_a_kind_that_is_too_small_is_told_so(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = machine.load_profile("4x4090").model_dump(mode="json", exclude_unset=True)
    small["machine"]["ram"] = "32 GB"
    (elsewhere / "small.yml").write_text(yaml.safe_dump(small))
    code, out, err = ran(capsys, "--check", "--profile", "small.yml")
    assert (code, out) == (Exit.PREFLIGHT, "")
    assert "`r1prov plan --profile` says what would fit there" in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profile", "4x4090"], "--profile goes with --check"),
        (["--check", "--workload", "team"], "--workload goes with --profile"),
        (["--check", "--profile", "4x4090", "gpu1"], "--profile and a host (gpu1) exclude each other"),
    ],
)
def test_a_kind_of_server_cannot_be_measured(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, out, err = ran(capsys, *words)
    assert (code, out) == (Exit.USAGE, "")
    assert said in " ".join(err.split())


# --- the program on the host ---

BENCH = """#!{python}
import json, sys, time
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1] if name in words else ""
time.sleep(float(value("--sleep") or 0))
if "--out-of-memory" in words:
    sys.exit("cudaMalloc failed: out of memory")
users, answer = int(value("-npl")), int(value("-ntg"))
token = {{"4": 1 / 6, "8": 1 / 5, "7": 1 / 5.04, "5": 1 / 5.3}}[value("--threads") or "8"] / (1.5 if "--no-repack" in words else 1)
token *= {{1: 1, 2: 1.2, 4: 3}}[users]
open({calls!r}, "a").write(" ".join(words) + "\\n")
asked = [*map(int, value("-npp").split(","))]
for place, length in enumerate(asked):
    later = 1 + place // (len(asked) // 3) / 50  # each repetition is a little slower
    prompt = length * users / (400 if value("--ubatch-size") == "1024" else 40)
    test = {{"pp": length, "tg": answer, "pl": users, "t_pp": prompt * later, "t_tg": token * answer * later}}
    if place < len(asked) - 1:  # The real one loses its last line in one run of ten.
        print(json.dumps(test))
"""


def dimension(name: str, **choices: str) -> dict[str, Any]:
    return {
        "name": name,
        "choices": [{"label": label.strip("_"), "arguments": words.split()} for label, words in choices.items()],
    }


THREADS = dimension("threads", _8="--threads 8", _7="--threads 7", _4="--threads 4")
REPACK = dimension("repack", on="", off="--no-repack")
PLACEMENT = dimension("placement", plan="", more="--out-of-memory")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a llama-bench, and with what a run of the program leaves: progress.json, and result.json."""
    monkeypatch.setattr(work, "PROGRESS", tmp_path / "progress.json")
    (tmp_path / "calls").touch()
    bench = tmp_path / "llama-batched-bench"
    bench.write_text(BENCH.format(python=sys.executable, calls=str(tmp_path / "calls")))
    bench.chmod(0o755)
    return tmp_path


ANSWERS = ({"share": 1, "prompt": 40, "cached": 0, "answer": 600, "at_once": 1},)


def run(
    folder: Path,
    *dimensions: dict[str, Any],
    fixed: str = "",
    limit_s: float = 60,
    exchanges: tuple[dict[str, Any], ...] = ANSWERS,
) -> dict[str, Any]:
    """Runs a job as systemd would, and returns its result."""
    job = {
        "kind": "settings",
        "program": str(folder / "llama-batched-bench"),
        "fixed": fixed.split(),
        "dimensions": [*dimensions],
        "exchanges": [*exchanges],
        "decode_tokens": 32,
        "repetitions": 3,
        "limit_s": limit_s,
        "result": str(folder / "result.json"),
    }
    code = settings.run(job)
    result = folder / "result.json"
    return {**json.loads(result.read_text()), "code": code} if result.is_file() else {"code": code}


def test_one_dimension_after_the_other_keeps_its_best(folder: Path) -> None:
    found = run(folder, THREADS, REPACK)
    assert (found["code"], found["state"], found["untried"]) == (0, "done", [])
    assert found["chosen"] == {"threads": "4", "repack": "off"}
    assert [each["chosen"]["threads"] for each in found["measured"]] == ["8", "7", "4", "4"]
    assert "% sooner" in found["reason"]
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["state"]) == (4, 4, "done")


def test_a_difference_within_the_noise_keeps_the_plans_own(folder: Path) -> None:
    found = run(folder, dimension("threads", _8="--threads 8", _7="--threads 7"))
    assert found["chosen"] == {"threads": "8"}
    assert found["reason"] == "none of 1 others was faster by more than the noise"


def test_what_runs_out_of_memory_is_told_and_the_rest_goes_on(folder: Path) -> None:
    found = run(folder, PLACEMENT, THREADS)
    assert "out of memory" in found["measured"][1]["failed"]
    assert found["chosen"] == {"placement": "plan", "threads": "4"}


def test_where_the_plans_own_setting_fails_nothing_is_measured(folder: Path, capsys: Any) -> None:
    assert run(folder, THREADS, fixed="--out-of-memory") == {"code": 1}
    assert "the setting of the plan cannot be measured" in capsys.readouterr().err
    assert json.loads((folder / "progress.json").read_text())["state"] == "failed"


def test_no_time_is_begun_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the clock of this test, each measurement takes ten seconds."""
    now, bench = [0.0], settings.Tuning.bench

    def ten_seconds_later(self: Any, chosen: dict[str, str]) -> Any:
        found = bench(self, chosen)
        now[0] += 10
        return found

    for module in (settings, work):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    monkeypatch.setattr(settings.Tuning, "bench", ten_seconds_later)
    found = run(folder, THREADS, REPACK, limit_s=39)
    assert (found["state"], len(found["measured"]), found["untried"]) == ("done", 3, ["repack off"])
    assert len(run(folder, THREADS, REPACK, limit_s=40)["measured"]) == 4


def test_one_that_hangs_ends_with_the_limit(folder: Path) -> None:
    found = run(folder, THREADS, fixed="--sleep 30", limit_s=1)
    assert found["code"] == 1
    assert json.loads((folder / "progress.json").read_text())["label"].startswith(
        "was not over within the time limit; a longer --limit"
    )


def test_one_that_was_stopped_goes_on_where_it_was(folder: Path) -> None:
    whole = run(folder, THREADS, REPACK)
    calls = folder / "calls"
    whole.pop("code")
    whole["job"]["limit_s"] = 30  # the run before may have had less time
    (folder / "result.json").write_text(json.dumps(whole | {"state": "running", "measured": whole["measured"][:2]}))
    calls.write_text("")
    again = run(folder, THREADS, REPACK)
    assert len(calls.read_text().splitlines()) == 2
    assert again["chosen"] == whole["chosen"]
    assert len(run(folder, THREADS)["measured"]) == 3  # another job starts from the beginning
    assert len(calls.read_text().splitlines()) == 5


MICRO_BATCH = dimension("placement", small="--ubatch-size 256", large="--ubatch-size 1024 --threads 7")
SLOTS = dimension("placement", _2="--parallel 2", _4="--parallel 4")


def test_the_workload_decides_and_not_the_tokens_of_a_second(folder: Path) -> None:
    """With a large micro-batch prompts are ten times faster, and each token of an answer is slower."""
    threads = dimension("threads", _4="--threads 4")
    for prompt, answer, best in ((4000, 100, "large"), (40, 4000, "small")):
        asked = {"share": 1, "prompt": prompt, "cached": 0, "answer": answer, "at_once": 1}
        assert run(folder, threads, MICRO_BATCH, exchanges=(asked,))["chosen"]["placement"] == best


def test_slots_are_judged_by_all_who_ask_at_once(folder: Path) -> None:
    """Two are served together in 1.2 times the time of one, and four in three times. So the four end later together than in two pairs."""
    four = {"share": 1, "prompt": 10, "cached": 0, "answer": 600, "at_once": 4}
    found = run(folder, SLOTS, exchanges=(four,))
    assert found["chosen"] == {"placement": "2"}
    two, together = (each["exchange_s"][0] for each in found["measured"])
    assert two == pytest.approx((1 + 2) / 2 * (0.5 + 600 * 1.2 / 5))
    assert together == pytest.approx(1 + 600 * 3 / 5)


SHORT, LONG = "--ctx-size 8192 --parallel 2", "--ctx-size 16384 --parallel 2"


@pytest.mark.parametrize(
    ("threads", "own", "other", "best", "reason"),
    [
        (
            7,
            SHORT,
            LONG,
            "other",
            "2 slots of 8,192 tokens instead of 2 slots of 4,096 tokens, and people wait 1% less",
        ),
        (
            8,
            SHORT,
            LONG,
            "other",
            "2 slots of 8,192 tokens instead of 2 slots of 4,096 tokens, and people wait as long",
        ),
        (5, LONG, SHORT, "own", "none of 1 others was so much faster that shorter or fewer slots are worth it"),
        (
            4,
            LONG,
            SHORT,
            "other",
            "2 slots of 4,096 tokens instead of 2 slots of 8,192 tokens, and people wait 16% less",
        ),
    ],
)
def test_longer_slots_are_better_where_they_cost_nothing_and_shorter_ones_where_they_gain_a_tenth(
    folder: Path, threads: int, own: str, other: str, best: str, reason: str
) -> None:
    placement = dimension("placement", own=f"{own} --threads 8", other=f"{other} --threads {threads}")
    found = run(folder, placement)
    assert (found["chosen"], found["reason"]) == ({"placement": best}, reason)


def test_longer_slots_that_cost_more_than_the_noise_are_not_taken(folder: Path) -> None:
    placement = dimension("placement", own=f"{SHORT} --threads 5", other=f"{LONG} --threads 8")
    found = run(folder, placement)
    assert found["chosen"] == {"placement": "own"}
    assert found["reason"] == "none of 1 others was faster by more than the noise"


def test_repetitions_that_differ_much_excuse_no_more_than_a_tenth() -> None:
    def measured(tokens: int, *seconds: float) -> dict[str, Any]:
        return {"slots": [tokens, 1], "exchange_s": seconds, "first_token_s": [0.0] * 3}

    own = measured(4096, 60.0, 100.0, 140.0)
    assert settings.is_better(measured(8192, 109.0, 109.0, 109.0), own)
    assert not settings.is_better(measured(8192, 130.0, 130.0, 130.0), own)


def test_more_slots_count_by_the_first_token_too(folder: Path) -> None:
    """Four wait for an answer as long in one turn as in two, in the mean. But in one turn every answer begins at once."""
    four = {"share": 1, "prompt": 10, "cached": 0, "answer": 600, "at_once": 4}
    slots = dimension("placement", _4="--parallel 4 --threads 4", _2="--parallel 2 --threads 8")
    found = run(folder, slots, exchanges=(four,))
    together, two = found["measured"]
    assert together["exchange_s"][0] > 1.1 * two["exchange_s"][0]
    assert two["first_token_s"][0] == pytest.approx(0.5 + (0.5 + 600 * 1.2 / 5) / 2)
    assert together["first_token_s"][0] == pytest.approx(1)
    assert found["chosen"] == {"placement": "4"}


def test_the_mean_is_weighted_and_what_is_too_long_is_taken_for_as_much_longer(folder: Path) -> None:
    exchanges = (
        {"share": 3, "prompt": 40, "cached": 100, "answer": 100, "at_once": 1},
        {"share": 1, "prompt": 16384, "cached": 0, "answer": 100, "at_once": 1},
    )
    (found,) = run(folder, exchanges=exchanges)["measured"]
    assert found["exchange_s"][0] == pytest.approx((3 * (1 + 20) + 16384 / 40 + 20) / 4)
    assert max(point["prompt_tokens"] for point in found["points"]) == settings.MOST_TOKENS


def test_an_answer_begins_where_its_slot_is_filled_to() -> None:
    found = [(100.0, 1.0), (1100.0, 2.0)]
    assert [settings.between(found, at) for at in (0, 100, 600, 1100, 5000)] == [1.0, 1.0, 1.5, 2.0, 2.0]
    assert settings.between(found[:1], 7) == 1.0


@pytest.mark.parametrize("said", ["", "[]", "{}", '{"pp": 1, "tg": 1, "t_pp": 1, "t_tg": 0}', '{"pp": 1}', "{"])
def test_what_holds_no_rates(said: str) -> None:
    with pytest.raises(work.FailedError, match="no rates"):
        settings.points(said, 1, 1)


# --- the module ---


def test_somebody_listens_until_the_pipe_is_closed() -> None:
    reads, writes = os.pipe()
    assert measurement.heard(writes)
    os.close(reads)
    assert not measurement.heard(writes)
    os.close(writes)


@pytest.mark.parametrize(
    ("found", "job", "done"),
    [
        ({"job": {"a": 1}, "state": "done"}, {"a": 1}, True),
        ({"job": {"a": 1}, "state": "running"}, {"a": 1}, False),
        ({"job": {"a": 1}, "state": "done"}, {"a": 2}, False),
        ({}, {}, False),
    ],
)
def test_a_job_is_done_when_all_of_it_was_measured(found: dict[str, Any], job: dict[str, Any], done: bool) -> None:
    assert measurement.is_done(found, job) is done


def test_an_engine_that_is_too_busy_to_say_so_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "Api", functools.partial(Api, timeout_s=0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        module: Any = SimpleNamespace(params={"engine": "r1prov-llama-server", "engine_url": url, "api_key_file": ""})
        assert "too busy" in measurement.answers(module)
    assert measurement.answers(module) == ""  # nobody listens there any more
    module.params["api_key_file"] = "/none"
    with pytest.raises(ApiError, match="key cannot be read"):
        measurement.answers(module)
