"""Tests what the plan says about waiting: against published measurements, against simulations, and in what it prints."""

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median

import pytest
from called import document

from r1prov.cli import main
from r1prov.common.errors import Exit
from r1prov.common.units import GB, MIB
from r1prov.machines.workload import CHAT, DOCUMENTS, TEAM, WORKLOADS, Exchange, Workload, shortened
from r1prov.models import layout
from r1prov.offload import search, speed, waits
from r1prov.offload.arguments import parse
from r1prov.offload.costs import Costs, Load, costs, distinct, groups
from r1prov.offload.memory import context_per_slot
from r1prov.offload.outcome import Space, outcome
from r1prov.offload.setting import Setting
from tests.cuda.ask_memory import planned_settings

DATA = Path(__file__).parents[1] / "data"

R1 = layout.model("UD-IQ1_S", mla=True)
CARDS = (24564 * MIB,) * 4
EXPERTS_IN_RAM = Setting(
    context=32768, slots=1, unified=False, flash=True, micro_batch=512, overrides=(("exps", None),), prompts=0
)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert ended.value.code == Exit.SITE
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("micro_batch", "measured"),
    [(64, 2930.05), (128, 3694.61), (256, 5782.42), (512, 7999.83), (1024, 9559.98), (2048, 10026.03)],
)
def test_a_published_rate_of_prompts_lies_in_the_range(micro_batch: int, measured: float) -> None:
    """The rates are those of a mixture with 35 G weights, of which a token uses 3, in Q4_0 on one RTX 4090 (llama.cpp #22298)."""
    per_weight = 18 / 32  # bytes of Q4_0
    card = Load(always=int(2e9 * per_weight), experts=int(33e9 * per_weight), products=2 * 3e9)
    found = Costs((card,), Load(), used=8, total=256, batch=2048, micro_batch=micro_batch, copies=True)
    slow, fast = (2048 / found.prompt_seconds(2048, 0, 1, which) for which in (0, 1))
    assert slow <= measured <= fast


def test_published_rates_of_r1_lie_in_the_range() -> None:
    """UD-IQ1_S as published, on two H100: 276.56 tokens/s of a prompt of 512, and 11.89 of an answer (unslothai/unsloth #1591)."""
    setting = Setting(context=8192, slots=1, gpu_layers=62, type_k="Q4_0", flash=False)
    found = costs(layout.model("UD-IQ1_S"), setting, (81559 * MIB,) * 2)
    slow, fast = (512 / found.prompt_seconds(512, 0, 1, which) for which in (0, 1))
    assert slow <= 276.56 <= fast


def test_tokens_choose_so_many_experts_together() -> None:
    random = Random(16)
    for tokens in (1, 2, 8, 32, 100):
        chosen = [
            len({expert for _ in range(tokens) for expert in random.sample(range(256), 8)}) / 256 for _ in range(200)
        ]
        assert sum(chosen) / len(chosen) == pytest.approx(distinct(tokens, 8, 256), rel=0.02)


def cut(tokens: int, batch: int, micro_batch: int) -> list[int]:
    """The micro-batches as llama-server and llama_decode cut them, one after the other."""
    sizes = []
    while tokens:
        part = min(tokens, batch)
        tokens -= part
        while part:
            sizes.append(min(part, micro_batch))
            part -= sizes[-1]
    return sizes


@pytest.mark.parametrize(
    ("tokens", "batch", "micro_batch"),
    [(8000, 2048, 256), (8000, 2048, 1344), (8000, 1344, 1344), (31, 2048, 512), (2048, 2048, 512), (2049, 2048, 512)],
)
def test_a_prompt_is_cut_as_the_engine_cuts_it(tokens: int, batch: int, micro_batch: int) -> None:
    setting = replace(EXPERTS_IN_RAM, batch=batch, micro_batch=micro_batch)
    sizes = [size for size, count in costs(R1, setting, CARDS).batches(tokens) for _ in range(count)]
    assert sorted(sizes) == sorted(cut(tokens, batch, micro_batch))


def test_each_large_batch_waits_for_the_experts_in_ram_and_a_small_one_does_not() -> None:
    found = costs(R1, EXPERTS_IN_RAM, CARDS)
    experts = sum(tensor.n_bytes for tensor in R1.weights.values() if tensor.is_experts)
    assert found.host.experts == experts
    assert found.copying_seconds(8000, 1, 0) == pytest.approx(16 * experts / (20 * GB), rel=0.01)
    assert found.copying_seconds(31, 1, 0) == 0 < found.copying_seconds(32, 1, 0)
    alone = costs(R1, replace(EXPERTS_IN_RAM, offload=False), CARDS)
    assert alone.copying_seconds(8000, 1, 0) == 0
    assert alone.prompt_seconds(8000, 0, 1, 0) > found.prompt_seconds(8000, 0, 1, 0)  # the CPU is slower still


def test_two_answers_cost_less_than_twice_one_and_a_deep_slot_costs_more() -> None:
    found = costs(R1, EXPERTS_IN_RAM, CARDS)
    one, two, deep = (found.token_seconds(*asked, 0) for asked in ((1, 2000), (2, 2000), (1, 30000)))
    assert one < two < 2 * one
    assert one < deep


def test_idle_slots_between_busy_ones_cost_steps() -> None:
    """A micro-batch takes neighbouring slots only where each has a cache of its own (llama.cpp #25840)."""
    assert groups(16, 16) == groups(1, 16) == 1
    assert groups(2, 3) == pytest.approx(4 / 3)  # of three pairs one has a gap
    setting = replace(EXPERTS_IN_RAM, slots=8, context=8 * 32768)
    apart, shared = (costs(R1, replace(setting, unified=each), CARDS) for each in (False, True))
    for which, more in ((0, 1.02), (1, 0.999)):
        together = apart.token_seconds(4, 2000, which, 4)
        assert apart.token_seconds(4, 2000, which, 8) >= more * together
        assert shared.token_seconds(4, 2000, which, 8) == pytest.approx(together)
    assert apart.token_seconds(4, 2000, 1, 8) == pytest.approx(apart.token_seconds(4, 2000, 1, 4))


def test_people_beyond_the_slots_wait_for_those_before_them() -> None:
    rush = Workload(exchanges=(Exchange(prompt=300, answer=1000, at_once=16),))
    few, many = (
        waits.day(R1, replace(EXPERTS_IN_RAM, context=4096 * slots, slots=slots), CARDS, rush).waits[0]
        for slots in (4, 16)
    )
    assert few.first_token[0] > 3 * (few.end[0] - few.first_token[0])  # three groups end before the last one begins
    assert many.first_token[0] < few.first_token[0]
    assert many.together[0] > few.together[0]
    assert many.each[0] < few.each[0]


def test_the_mean_is_weighted_by_the_shares() -> None:
    parts = [Workload(exchanges=(exchange,)) for exchange in DOCUMENTS.exchanges]
    documents, question = (waits.day(R1, EXPERTS_IN_RAM, CARDS, part).mean[0] for part in parts)
    assert waits.day(R1, EXPERTS_IN_RAM, CARDS, DOCUMENTS).mean[0] == pytest.approx((2 * documents + question) / 3)
    assert waits.mean_seconds(R1, EXPERTS_IN_RAM, CARDS, DOCUMENTS) == pytest.approx((2 * documents + question) / 3)


def test_where_all_lies_on_the_cards_many_are_thought_of_first() -> None:
    whole = Setting(context=32768, slots=1, unified=False, gpu_layers=62)
    assert waits.day(R1, whole, (81559 * MIB,) * 4, None).workload == TEAM
    assert waits.day(R1, EXPERTS_IN_RAM, CARDS, None).workload == CHAT


def test_a_workload_that_nobody_asked_for_is_as_long_as_the_slot() -> None:
    assert shortened(CHAT, 32768) == CHAT
    for workload in WORKLOADS.values():
        assert max(exchange.tokens for exchange in shortened(workload, 512).exchanges) <= 512


def test_plan_and_explain_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "plan", "--workload", "documents", "--json")
    machine = ("explain", "--gpus", "4x24564MiB", "--ram", "480GB", "--attention", "mla", "--workload", "documents")
    again = document(capsys, *machine, "--json", "--", *told["arguments"])
    assert again["workload"] == told["workload"]
    first, _ = told["workload"]["exchanges"]
    assert first["copying_seconds"]["high"] < first["first_token_seconds"]["high"] < first["end_seconds"]["high"]
    assert first["tokens_per_second"]["low"] < told["decode_tokens_per_second"]["high"]


def test_figures_of_ones_own_come_from_a_file_or_a_profile(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text("exchanges: [{prompt: 700, answer: 300}]\n")
    told = document(capsys, "plan", "--workload", str(own), "--json")["workload"]
    assert [exchange["prompt"] for exchange in told["exchanges"]] == [700]
    profile = tmp_path / "profile.yml"
    text = (Path(__file__).parents[2] / "inventory" / "profiles" / "4x4090.yml").read_text()
    for written, prompt in (("documents", 8000), ("{exchanges: [{prompt: 900, answer: 300}]}", 900)):
        profile.write_text(text.replace("serving:\n", f"serving:\n  workload: {written}\n"))
        told = document(capsys, "plan", "--profile", str(profile), "--json")["workload"]
        assert told["exchanges"][0]["prompt"] == prompt


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("exchanges: []\n", ["exchanges"]),
        ("exchanges: [{share: 0, prompt: 1, answer: 1}, {prompt: 0, answer: 1}]\n", ["share", "prompt"]),
        ("exchanges: [{share: most, prompt: 1, answer: 1}]\n", ["share"]),
        ("exchanges: [{prompt: 1, reply: 1}]\n", ["reply", "answer"]),
        ("exchanges: [{share: .inf, prompt: 1, answer: 1}]\n", ["share", "is not a number"]),
        ("exchanges: [{share: .nan, prompt: 1, answer: 1}]\n", ["share", "is not a number"]),
        ("exchanges: [{share: 3 of 4, prompt: 1, answer: 1}]\n", ["share", "is not a number", "docs/workloads.md"]),
        ("", ["start from the example in", "docs/workloads.md"]),
        ("exchanges: [{share: 1.0e+308, prompt: 1, answer: 1}]\n", ["share"]),
        ("exchanges: [{share: yes, prompt: on, answer: 1}]\n", ["share", "prompt"]),
        ('exchanges: [{prompt: "100", answer: 1}]\n', ["prompt", "is text: write the number without quotes"]),
        ("exchanges: [{prompt: 100, answer: 1.5}]\n", ["answer", "is not a whole number"]),
        ("exchanges: [{prompt: 1, answer: 1,\n  prompt: 2}]\n", [":2: the key `prompt`", "after line 1"]),
        ("exchanges: [{prompt: 1, answer: 1}]\nexchanges: []\n", [":2: the key `exchanges`", "after line 1"]),
        ("exchanges: [{prompt: 163840, answer: 1}]\n", ["exchanges of 163,840 tokens at most"]),
    ],
)
def test_a_wrong_workload_is_refused_with_its_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, written: str, words: list[str]
) -> None:
    own = tmp_path / "own.yml"
    own.write_text(written)
    told = refused(capsys, "plan", "--workload", str(own))
    assert str(own) in told or "tokens at most" in told
    assert [word for word in words if word not in told] == []


def test_an_unknown_or_too_long_workload_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "did you mean documents?" in refused(capsys, "plan", "--workload", "document")
    told = refused(capsys, "plan", "--workload", "documents", "--ctx-size", "8192")
    assert "8,000 + 600 + 1,500 tokens does not fit in a slot of 8,192" in told
    assert "raise --ctx-size (context_per_slot) to 10,100" in told
    words = ("explain", "--gpus", "0", "--ram", "480GiB", "--workload", "chat", "--", "--parallel", "4", "--ctx-size")
    for shared, times in ((("--no-kv-unified",), 4), (("--kv-unified",), 1)):
        told = refused(capsys, *words, "2048", *shared)
        (most,) = {max(int(each.replace(",", "")) for each in re.findall(r"raise --ctx-size to ([\d,]+)", told))}
        assert most == 5000 * times
        with pytest.raises(SystemExit) as ended:  # With the context that the remedy names it is accepted.
            main([*words, str(most), *shared])
        assert not ended.value.code
    profile = tmp_path / "profile.yml"
    text = (Path(__file__).parents[2] / "inventory" / "profiles" / "4x4090.yml").read_text()
    profile.write_text(text.replace("serving:\n", "serving:\n  workload: office\n"))
    assert "there is no workload `office`" in refused(capsys, "plan", "--profile", str(profile))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("day.txt", "words", "day.txt: is not a mapping of keys and values"),
        ("day.YML", "exchanges: [{prompt: 5}]", "`exchanges.0.answer` is missing"),
        ("day.yml", f"exchanges: {'[' * 3000}", "day.yml: is nested too deeply to be read"),
        (
            "day.yml",
            "exchanges: [{prompt: 5, answer: 5}]\n# \x01",
            "day.yml:2: has the character U+0001, which no text has",
        ),
        ("day.yml", 'description: "a\\eb"\nexchanges: [{prompt: 5, answer: 5}]', "it says `a?b`"),
        ("day", None, "day: cannot be read: Is a directory"),
        ("gone/day", "", "gone/day: cannot be read: No such file or directory"),
    ],
)
def test_a_file_of_any_name_is_read_and_what_is_wrong_in_it_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, text: str | None, says: str
) -> None:
    path = tmp_path / name
    if text is None:
        path.mkdir()
    elif text:
        path.write_text(text)
    for option in ("--workload", "--profile"):
        told = refused(capsys, "plan", option, str(path))
        assert "\x1b" not in told
        assert says in told or option == "--profile", told


FITTED = [
    answer
    for answer in json.loads((DATA / "engine_fit.json").read_text())
    if answer["context"] >= 8192 and answer["slots"] == 1 and answer["arguments"]
]
"""The machines for which the engine's own `--fit` was asked, with contexts in which a workload is worth its name."""


@pytest.mark.parametrize("name", WORKLOADS)
def test_no_workload_waits_longer_than_with_fit_or_with_all_experts_in_ram(name: str) -> None:
    """The arithmetic is the same for all. `--fit` has its default micro-batch, and experts in RAM have one of 4,096."""
    gains = []
    for answer in FITTED[:9]:
        cards = tuple(mib * MIB for mib in answer["cards"])
        model, space = layout.model(answer["quant"], mla=answer["mla"]), Space(cards, 480 * GB)
        caches = ("-np", "1", "-ctk", answer["type_k"], "-ctv", answer["type_v"])
        theirs = parse([*answer["arguments"], *caches], cards=len(cards))
        unplaced = replace(theirs, gpu_layers=None, split=(), overrides=(), micro_batch=4096)
        in_ram = replace(unplaced, overrides=(("exps", None),), batch=4096)
        workload = shortened(WORKLOADS[name], context_per_slot(model, theirs))
        ours = search.best(model, replace(unplaced, gpu_layers=0), space, workload)
        assert ours
        assert outcome(model, ours, space).fits
        others = [setting for setting in (theirs, in_ram) if outcome(model, setting, space).fits]
        mean, *means = (waits.mean_seconds(model, setting, cards, workload) for setting in (ours, *others))
        assert mean <= min(means, default=mean) * 1.0001, answer
        gains += [each / mean for each in means]
    assert median(gains) > 1.01


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_4x4090_no_longer_waits_for_experts_at_every_256_tokens(name: str) -> None:
    """Before workloads counted, the plan had a micro-batch of 256, and a token read 1.437 GB from RAM."""
    wanted = replace(EXPERTS_IN_RAM, gpu_layers=0, overrides=())
    space, workload = Space(CARDS, 480 * GB), WORKLOADS[name]
    before = search.best(R1, wanted, space)
    ours = search.best(R1, replace(wanted, micro_batch=4096), space, workload)
    assert before
    assert ours
    assert before.micro_batch == 256
    old, new = (waits.day(R1, setting, CARDS, workload) for setting in (before, ours))
    assert new.mean[0] <= old.mean[0]
    if name == "documents":
        assert old.waits[0].copying[0] > 70
        assert new.waits[0].copying[0] < 15
        assert speed.reads(R1, ours, CARDS).host < 1.08 * 1.44 * GB


def test_what_is_planned_for_workloads_is_what_the_engine_was_asked_about() -> None:
    """tests/data/engine_memory_workloads.json has the engine's figures, with which each card keeps its reserve."""
    answers = json.loads((DATA / "engine_memory_workloads.json").read_text())["answers"]
    asked = [(each["quant"], tuple(each["cards"]), tuple(each["arguments"])) for each in answers]
    planned = [(each.model, each.cards, each.arguments) for each in planned_settings(0)]
    assert planned == asked, "ask anew: python -m tests.cuda.ask_memory PROGRAM workloads"
    for answer in answers:
        for card, parts in zip(answer["cards"], answer["mib"], strict=False):
            assert card - sum(parts) >= 1024 - 8  # the engine rounds each part


def test_4xh800_answers_sixteen_at_once_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """The engine's own figures for these slots are in engine_memory_workloads.json."""
    told = document(capsys, "plan", "--profile", "4xh800", "--json")
    assert told["slots"] == {"number": 16, "reason": "so many people ask at once"}
    assert told["fits"]
    few = document(capsys, "plan", "--profile", "4xh800", "--parallel", "4", "--json")
    assert few["slots"] == {"number": 4, "reason": ""}
    many, four = (each["workload"]["exchanges"][0] for each in (told, few))
    assert many["tokens_per_second_in_all"]["low"] > 2 * told["decode_tokens_per_second"]["low"]
    assert many["first_token_seconds"]["high"] < four["first_token_seconds"]["high"] / 4


def test_slots_are_as_many_as_help(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {
        name: document(capsys, "plan", "--workload", name, "--json")["slots"]["number"] for name in ("chat", "team")
    }
    assert numbers["chat"] == 1 < numbers["team"] < 16  # experts in RAM are read for each answer nearly anew
    told = document(capsys, "plan", "--profile", "4xh800", "--ctx-size", "163840", "--json")
    assert told["slots"]["number"] < 16  # more caches would push the model off the cards
    assert told["bytes_per_token"]["host"] < MIB
