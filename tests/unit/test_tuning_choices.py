"""Properties of what `r1prov tune` tries around a plan, on many machines, for many workloads and wishes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from measuring.settings import is_better

from r1prov.common.errors import SiteError
from r1prov.machines.profile import Gpus, Machine, Serving, load_profile
from r1prov.machines.tuned import Hardware, Subject
from r1prov.machines.workload import CHAT, DOCUMENTS, WORKLOADS
from r1prov.models import catalogue, layout
from r1prov.models.model import Model
from r1prov.offload import Plan, plan, search, tuning
from r1prov.offload.arguments import parse
from r1prov.offload.outcome import Space, outcome
from r1prov.offload.setting import Setting
from r1prov.offload.speed import of_machine
from r1prov.offload.tuning import SMALLER_RESERVE_BYTES, Trial
from r1prov.offload.waits import Means

MORE = "a tensor more per card"


@dataclass(frozen=True, repr=False)
class Case:
    """A trial, with what it was made from."""

    model: Model
    machine: Machine
    serving: Serving
    plan: Plan
    trial: Trial

    def setting(self, label: str) -> Setting:
        """The setting that llama-server would serve with if this placement was kept."""
        return parse(self.trial.arguments(self.own | {"placement": label}), cards=len(self.machine.cards))

    def arguments(self, label: str) -> dict[str, Any]:
        words = iter(self.trial.arguments(self.own | {"placement": label}))
        flags = {"--no-op-offload", "--no-kv-unified", "--no-repack"}
        return {word: None if word in flags else next(words) for word in words}

    def space(self, label: str) -> Space:
        reserve = {"reserve": SMALLER_RESERVE_BYTES} if label == MORE else {}
        return Space(self.machine.cards, self.machine.ram, speeds=of_machine(self.machine), **reserve)

    def waits(self, label: str) -> Means:
        return search.means_of(self.model, self.setting(label), self.space(label), self.plan.workload)

    def measured(self, label: str) -> dict[str, Any]:
        """What the measuring program would find on a host that is as the arithmetic says."""
        setting, waits = self.setting(label), self.waits(label)
        slots = [(setting.context or 0) // setting.slots, setting.slots]
        return {"slots": slots, "exchange_s": [waits.end], "first_token_s": [waits.first_token]}

    @property
    def own(self) -> dict[str, str]:
        return {dimension.name: dimension.choices[0].label for dimension in self.trial.dimensions}

    @property
    def labels(self) -> list[str]:
        """The labels of all placements, the plan's first."""
        found = [each for each in self.trial.dimensions if each.name == "placement"]
        return [choice.label for each in found for choice in each.choices]


def case(machine: Machine, quant: str = "UD-IQ1_S", **wishes: Any) -> Case:
    serving = Serving(quant=quant, micro_batch=4096).model_copy(update=wishes)
    found = plan(catalogue.quant(quant), machine, serving)
    assert found.outcome
    hardware = Hardware(cpu="", cores=32, threads=64, ram=machine.ram, cards=())
    of = Subject(hardware=hardware, engine=(), model=(), plan=found.arguments, workload=found.workload)
    model = layout.model(quant, mla=serving.attention == "mla")
    return Case(model, machine, serving, found, tuning.trial(found, model, machine, serving, of))


def on(profile: str, **wishes: Any) -> Case:
    quant = "UD-IQ1_S" if profile == "4x4090" else "UD-Q2_K_XL"
    return case(load_profile(profile).machine, quant, **wishes)


def machine(cards: int, memory: int, ram: int) -> Machine:
    gpus = Gpus(count=cards, name="some", memory=f"{memory} MiB", compute_capability="8.9") if cards else None
    return Machine(gpus=gpus, cpu_threads=64, ram=f"{ram} GB", disk="2 TB")


@st.composite
def wanted(draw: st.DrawFn) -> tuple[Machine, str, dict[str, Any]]:
    """A machine, a quant and wishes. The test makes the plan, because Hypothesis minds where it takes long to draw something."""
    there = machine(
        draw(st.sampled_from((0, 1, 2, 4, 8))),
        draw(st.sampled_from((16000, 24564, 49140, 81559))),
        draw(st.sampled_from((60, 150, 160, 256, 480))),
    )
    wishes: dict[str, Any] = {
        "workload": draw(st.sampled_from((None, *WORKLOADS.values()))),
        "slots": draw(st.sampled_from((None, None, 1, 4, "at least 4", "at least 12"))),
        "context_per_slot": draw(st.sampled_from((None, None, None, 16384))),
        "first_token": draw(st.sampled_from((None, None, 30, 120))),
        "attention": draw(st.sampled_from(("mla", "mla", "legacy"))),
    }
    return there, draw(st.sampled_from(("UD-IQ1_S", "UD-Q2_K_XL"))), wishes


@given(wanted())
@settings(max_examples=25)
def test_every_placement_is_one_that_the_operator_would_accept(asked: tuple[Machine, str, dict[str, Any]]) -> None:
    """It fits as llama-server would be told of it, holds the workload, keeps the floors, and is like no other.

    On a host that is as the arithmetic says, no slots are better that serve less than those of the plan.
    """
    there, quant, wished = asked
    try:
        found = case(there, quant, **wished)
    except SiteError:
        reject()
    assume(found.plan.outcome is not None and found.plan.outcome.fits)
    wishes, before = found.serving, found.plan
    arguments = [found.arguments(label) for label in found.labels]
    assert len(set(found.labels)) == len(found.labels)
    assert not any(one == other for place, one in enumerate(arguments) for other in arguments[:place])
    for label in found.labels[1:]:
        setting = found.setting(label)
        done = outcome(found.model, setting, found.space(label))
        assert done.fits, (label, done.reasons)
        context = (setting.context or 0) // setting.slots
        assert context >= before.workload.tokens, label
        assert context == before.context_per_slot or not wishes.context_per_slot, label
        assert setting.slots == before.slots or not wishes.fixed_slots, label
        assert setting.slots >= wishes.least_slots, label
        assert setting.micro_batch <= max(4096, before.setting.micro_batch), label
        assert setting.batch % setting.micro_batch == 0 or not found.machine.cards, label
        if wishes.first_token:
            assert found.waits(label).longest_first_token <= wishes.first_token, label
        new, own = found.measured(label), found.measured(found.labels[0])
        assert new["slots"] >= own["slots"] or not is_better(new, own), label


def test_a_longer_context_is_tried_where_the_plan_has_shortened_it_for_those_who_wait() -> None:
    team = on("4x4090", workload=WORKLOADS["team"])
    assert (team.plan.slots, team.plan.context_per_slot) == (8, 24576)
    assert "8 slots of 32,768 tokens" in team.labels
    assert not any("32,768" in label for label in on("4x4090", workload=CHAT).labels)  # nobody asks for more


def test_a_shorter_context_is_tried_where_people_would_wait_noticeably_less() -> None:
    found = on("4x4090", workload=DOCUMENTS, attention="legacy", kv_type_k="q4_0")
    assert found.plan.context_per_slot == 12288
    assert "1 slot of 10,240 tokens" in found.labels
    assert found.waits("1 slot of 10,240 tokens").waiting < found.waits(found.labels[0]).waiting / 1.05
    # 2 GiB of 131 are not worth minutes of measuring.
    assert not any("tokens" in label for label in on("4x4090", workload=CHAT).labels)


@pytest.mark.parametrize("context", [12288, 24576])
def test_a_context_that_the_operator_has_named_stays(context: int) -> None:
    found = on("4x4090", workload=DOCUMENTS, attention="legacy", kv_type_k="q4_0", context_per_slot=context)
    assert not any("tokens" in label for label in found.labels)


def test_fewer_slots_than_the_operator_accepts_are_not_tried() -> None:
    wish: dict[str, Any] = {"workload": WORKLOADS["team"]}
    assert "4 slots" in on("4x4090", **wish).labels
    assert "4 slots" not in on("4x4090", **wish, slots="at least 8").labels


def test_a_smaller_logical_batch_is_tried_where_the_cards_are_a_pipeline_and_it_matters() -> None:
    team = on("4xh800")
    assert (team.plan.setting.micro_batch, team.plan.setting.batch) == (448, 4032)
    assert "batch 1792" in team.labels
    assert team.setting("batch 1792") == replace(team.plan.setting, batch=1792)
    for other in (on("4xh800", workload=CHAT), on("4x4090", workload=DOCUMENTS)):
        assert not any(label.startswith("batch") for label in other.labels)


def test_a_larger_micro_batch_of_a_pipeline_leaves_no_rest_in_its_logical_batch() -> None:
    larger = on("4xh800").setting("micro-batch 896")
    assert (larger.micro_batch, larger.batch) == (896, 3584)


def test_no_more_is_tried_than_twenty_minutes_can_measure() -> None:
    """A setting of R1 takes some two to three minutes."""
    for profile in ("4x4090", "4xh800"):
        for workload in (None, *WORKLOADS.values()):
            assert on(profile, workload=workload).trial.settings <= 10, (profile, workload)


def test_past_prompts_take_no_more_ram_than_another_placement_leaves() -> None:
    """What a card holds no longer lies in RAM then, of which the plan has promised half of what was left to past prompts."""
    tight = case(machine(4, 24564, 60), workload=DOCUMENTS)
    assert 0 < tight.setting("a tensor less per card").prompts < tight.plan.setting.prompts
    choices = [choice for each in tight.trial.named_dimensions for choice in each["choices"]]
    assert not any("--cache-ram" in choice["arguments"] for choice in choices)  # llama-batched-bench has none
