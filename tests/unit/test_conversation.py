"""Tests of what a conversation costs: against what llama-server counted, and in what is chosen and shown."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from called import document

from r1prov.cli import main
from r1prov.common.units import GIB, MIB
from r1prov.machines import profile as machine
from r1prov.machines.workload import CHAT, WORKLOADS, Exchange, Workload
from r1prov.models import catalogue, layout
from r1prov.models.catalogue import Quant, ShardFile
from r1prov.offload.arguments import parse
from r1prov.offload.conversation import Kept, Talk, conversation, course, past_prompts, state_bytes, talk_of
from r1prov.offload.costs import costs
from r1prov.offload.memory import context_per_slot
from r1prov.offload.outcome import Space, outcome, remarks
from r1prov.offload.plan import plan
from r1prov.offload.setting import Setting

DATA = Path(__file__).parents[1] / "data"
R1 = layout.model("UD-IQ1_S", mla=True)
CARDS = (24564 * MIB,) * 4
SPACE = Space(CARDS, 480 * GIB)
ONE_SLOT = Setting(context=32768, slots=1, unified=False, flash=True, micro_batch=512, overrides=(("exps", None),))
PIECES = replace(ONE_SLOT, cache_reuse=16)
COSTS = costs(R1, ONE_SLOT, CARDS)


@pytest.mark.parametrize(
    ("talk", "kept", "setting", "counted"),
    [
        (Talk(40, 10, 30, 20), Kept.SLOT, ONE_SLOT, [40, *[30] * 9]),
        (Talk(40, 10, 30, 20), Kept.RAM, ONE_SLOT, [40, *[30] * 9]),
        (Talk(40, 10, 0, 20), Kept.SLOT, ONE_SLOT, [40, *[11] * 9]),
        (Talk(40, 10, 0, 20), Kept.RAM, ONE_SLOT, [40, *[11] * 9]),
        (Talk(40, 10, 30, 20), Kept.NOWHERE, ONE_SLOT, [40, 70, 100, 130, 160, 190, 220, 250, 280, 310]),
        (Talk(10, 6, 120, 20), Kept.SLOT, ONE_SLOT, [10, *[26] * 9]),
        (Talk(10, 6, 120, 20), Kept.RAM, ONE_SLOT, [10, 36, 62, *[26] * 7]),
        (Talk(10, 6, 120, 20), Kept.NOWHERE, ONE_SLOT, [10, 36, 62, 88, 114, 140, 166, 192, 218, 244]),
        (Talk(40, 10, 30, 20), Kept.SLOT, PIECES, [40, *[11] * 9]),
        (Talk(10, 6, 120, 20), Kept.SLOT, PIECES, [10, *[7] * 9]),
        (Talk(10, 6, 120, 20), Kept.RAM, PIECES, [10, 36, 62, *[7] * 7]),
    ],
)
def test_so_many_tokens_were_computed_by_the_engine(
    talk: Talk, kept: Kept, setting: Setting, counted: list[int]
) -> None:
    """These are `timings.prompt_n` of llama-server with a tiny R1; the role's scenario asks the engine anew."""
    assert [talk.computed(turn, kept, setting) for turn in range(10)] == counted
    assert list(course(R1, setting, COSTS, talk, kept).computed) == counted


@pytest.mark.parametrize("told", json.loads((DATA / "turns.json").read_text()))
def test_the_engine_is_asked_anew_about_these(told: dict[str, Any]) -> None:
    """roles/llama_server/molecule asks it. In the last conversation the engine ends at the second prompt."""
    setting = parse(told["arguments"], cards=0)
    talk = Talk(told["first"], told["question"], told["thought"], told["said"])
    if len(told["computed"]) == 1:
        assert any("would end" in note for note in remarks(R1, setting, outcome(R1, setting, Space((), 480 * GIB))))
        return
    assert [talk.computed(turn, Kept(told["kept"]), setting) for turn in range(10)] == told["computed"]


def test_a_copy_takes_as_many_bytes_as_the_engine_says() -> None:
    """It said 4.128 MiB for 469 tokens of a model in MLA form with 8 layers and R1's heads."""
    eight = replace(R1, layers=8)
    assert state_bytes(eight, Setting(), 469) / MIB == pytest.approx(4.128, abs=0.001)


def test_a_model_that_does_not_think_computes_only_its_questions() -> None:
    other = replace(R1, thinks=False)
    (slot, *_) = conversation(other, ONE_SLOT, CARDS, CHAT).courses
    assert slot.computed == (1000, *[501] * 9)
    (slot, *_) = conversation(R1, ONE_SLOT, CARDS, CHAT).courses
    assert slot.computed == (1000, *[500] * 9)


def test_a_conversation_has_as_many_turns_as_fit_in_a_slot() -> None:
    for workload in WORKLOADS.values():
        for context in (8192, 16384, 32768):
            talk = talk_of(workload, R1, context)
            whole = talk.prompt(talk.turns - 1) + talk.answer
            assert whole <= context or talk.turns == 1
            assert talk.turns == 10 or whole + talk.said + talk.question > context


def test_of_an_own_workload_the_exchanges_that_happen_most_make_the_conversation() -> None:
    rare = Exchange(share=1, prompt=9000, answer=10)
    own = Workload(
        exchanges=(
            rare,
            Exchange(share=3, cached=500, prompt=70, answer=300),
            Exchange(share=2, prompt=600, answer=900),
        )
    )
    assert talk_of(own, R1, 32768) == Talk(600, 70, 0, 300)
    assert talk_of(Workload(exchanges=(rare,)), replace(R1, thinks=False), 163840) == Talk(9000, 9000, 0, 10)


@pytest.mark.parametrize("workload", list(WORKLOADS.values()), ids=list(WORKLOADS))
def test_a_further_question_is_counted_with_the_tokens_that_the_engine_computes(workload: Workload) -> None:
    """So the exchanges and the conversation of a workload tell the same."""
    for exchange in workload.exchanges:
        if exchange.cached:
            talk = talk_of(Workload(exchanges=(exchange,)), R1, 163840)
            talk = replace(talk, first=exchange.cached)  # the prompt before
            assert talk.said == 400
            assert talk.computed(1, Kept.SLOT, ONE_SLOT) == exchange.prompt
            assert talk.prompt(1) == exchange.cached + exchange.prompt


def test_a_short_further_question_repeats_what_it_has_room_for() -> None:
    for prompt in (1, 2, 70, 400):
        short = Workload(exchanges=(Exchange(prompt=600, answer=900), Exchange(cached=500, prompt=prompt, answer=700)))
        talk = talk_of(short, R1, 32768)
        assert talk.question >= 1
        assert talk.thought >= 0
        assert talk.computed(1, Kept.SLOT, ONE_SLOT) == prompt


def test_a_copy_for_which_there_is_no_room_is_no_copy() -> None:
    talk = talk_of(CHAT, R1, 32768)
    one = state_bytes(R1, ONE_SLOT, talk.held(8))
    for prompts, sooner in ((2 * one, True), (2 * one - 1, False)):
        found = course(R1, replace(ONE_SLOT, prompts=prompts), COSTS, talk, Kept.RAM)
        assert (found.computed[9] < talk.prompt(9)) == sooner


def test_seconds_are_those_of_what_is_computed() -> None:
    slot, ram, nowhere = conversation(R1, ONE_SLOT, CARDS, CHAT).courses
    assert [each.kept for each in (slot, ram, nowhere)] == list(Kept)
    for which in (0, 1):
        assert slot.first_token[9][which] < ram.first_token[9][which] < nowhere.first_token[9][which]
        waited = nowhere.first_token[9][which] - slot.first_token[9][which]
        assert nowhere.end[9][which] - slot.end[9][which] == pytest.approx(waited)
        assert slot.whole[which] == pytest.approx(sum(end[which] for end in slot.end))


@pytest.mark.parametrize("name", ["4x4090", "4xh800", "cpu"])
@pytest.mark.parametrize("workload", list(WORKLOADS.values()), ids=list(WORKLOADS))
def test_past_prompts_have_room_beside_all_else(name: str, workload: Workload) -> None:
    kind = machine.load_profile(name)
    serving = kind.serving.model_copy(update={"workload": workload})
    found = plan(catalogue.quant("UD-IQ1_S"), kind.machine, serving)
    assert found.outcome
    assert found.outcome.host.free >= found.outcome.host.reserve
    assert found.setting.prompts > 0
    words = found.arguments
    assert int(words[words.index("--cache-ram") + 1]) * MIB == found.setting.prompts
    assert parse(words, cards=len(kind.machine.cards)).prompts == found.setting.prompts
    (number,) = map(int, re.findall(r"holds (\d+) conversations", found.prompts_reason))
    wanted = 8 * max(exchange.at_once for exchange in workload.exchanges)
    assert number == wanted or (number < wanted and found.prompts_reason.startswith("half of the RAM that is left"))
    talk = talk_of(workload, R1, context_per_slot(R1, found.setting))
    assert number * state_bytes(R1, found.setting, talk.held(talk.turns - 1)) <= found.setting.prompts


def test_no_ram_is_kept_where_it_would_not_help() -> None:
    talk = talk_of(CHAT, R1, 32768)
    two = 2 * state_bytes(R1, ONE_SLOT, talk.held(9))
    kept, why = past_prompts(R1, ONE_SLOT, SPACE, CHAT, 2 * two)
    assert kept == two // MIB * MIB
    assert why.startswith("half of the RAM that is left holds 2 conversations")
    for room in (2 * two - MIB, 0, -GIB):
        kept, why = past_prompts(R1, ONE_SLOT, SPACE, CHAT, room)
        assert not kept
        assert "2 conversations take 871 MiB" in why
    once = Workload(exchanges=(Exchange(prompt=30000, answer=2700),))
    assert past_prompts(R1, ONE_SLOT, SPACE, once, 400 * GIB) == (0, "a slot holds one question and its answer only")


def test_a_model_whose_layers_are_not_known_keeps_prompts_only_in_what_is_left() -> None:
    kind = machine.load_profile("cpu")
    for ram, kept in ((400 * GIB, 8 * GIB), (225 * GIB, GIB), (224 * GIB, 0), (100 * GIB, 0)):
        file = ShardFile(name="own.gguf", bytes=200 * GIB, sha256="0" * 64)
        quant = Quant(name="own", repo="own/own", files=(file,))
        found = plan(quant, kind.machine.model_copy(update={"ram": ram}), kind.serving)
        assert found.setting.prompts == kept, ram


def computed(told: dict, kept: str) -> int:
    return int(told["conversation"]["kept_in"][kept]["computed_in_all"])


EXPLAINED = ("explain", "--gpus", "4x24564MiB", "--ram", "480GB", "--attention", "mla", "--json", "--workload")
PLACED = ("-ngl", "99", "--cpu-moe", "-c", "32768", "-np", "1", "--fit", "off")


def test_explain_knows_what_reuses_prefixes(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*EXPLAINED, "documents", "--", *PLACED)
    told = document(capsys, *words)
    assert computed(told, "slot") == computed(told, "ram") == 8000 + 9 * 600
    assert computed(told, "nowhere") == sum(8000 + turn * 600 for turn in range(10))
    assert not told["notes"]
    assert "ram" not in document(capsys, *words, "--cache-ram", "0")["conversation"]["kept_in"]
    assert computed(document(capsys, *words, "--cache-ram", "100"), "ram") == computed(told, "nowhere")
    assert computed(document(capsys, *words, "--no-cache-prompt"), "slot") == computed(told, "nowhere")
    with_pieces = document(capsys, *words, "--cache-reuse", "256")
    assert computed(with_pieces, "slot") == 8000 + 9 * 201
    assert "further answers differ" in with_pieces["notes"][0]
    assert computed(document(capsys, *words, "--cache-reuse", "500"), "slot") == computed(told, "slot")
    for nothing in ("0", "-1"):
        assert not document(capsys, *words, "--cache-reuse", nothing)["notes"]


@pytest.mark.parametrize("option", [("--cache-reuse", "256"), ("--context-shift",)])
@pytest.mark.parametrize("kind", ["f16", "f32", "bf16", "q8_0", "q4_0"])
def test_explain_warns_of_a_cache_that_cannot_be_moved(
    capsys: pytest.CaptureFixture[str], option: tuple[str, ...], kind: str
) -> None:
    """llama-server ended at the first such move with these types, for R1 in both forms."""
    words = (*EXPLAINED, "chat", "--", *PLACED, "-ctk", kind, "-ctv", kind)
    ends = any("llama-server would end when" in note for note in document(capsys, *words, *option)["notes"])
    assert ends == (kind not in {"f16", "f32"})
    assert not document(capsys, *words)["notes"]


def test_plan_shows_ten_turns(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "plan", "--profile", "4x4090", "--workload", "thinking", "--json")
    talk = told["conversation"]
    assert (talk["turns"], talk["first"], talk["question"], talk["thought"], talk["said"]) == (10, 300, 300, 4600, 400)
    turns = talk["kept_in"]["ram"]["each_turn"]
    assert [turn["computed"] for turn in turns[:4]] == [300, 1000, 1700, 700]
    assert all(0 < turn["first_token_seconds"]["low"] < turn["end_seconds"]["low"] for turn in turns)
    assert told["cache_ram"]["bytes"] == int(told["arguments"][told["arguments"].index("--cache-ram") + 1]) * MIB
    with pytest.raises(SystemExit):
        main(["plan", "--profile", "4x4090", "--workload", "thinking"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "A conversation of 10 turns, where each answer has 4,600 tokens of thought and 400 said" in shown
    assert "comes back from RAM 7,900" in shown
    assert "of RAM for past prompts (--cache-ram), because it holds 8 conversations" in shown
