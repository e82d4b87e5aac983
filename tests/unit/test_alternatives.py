"""Tests that every alternative to arguments that do not fit does fit, and that there is one wherever a placement fits."""

import random
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from r1prov.cli import show_plan
from r1prov.common.units import GIB, MIB
from r1prov.machines.profile import Gpus, Machine, Serving
from r1prov.models import layout
from r1prov.models.model import Model
from r1prov.offload import search
from r1prov.offload.arguments import parse
from r1prov.offload.compare import PLACING_EXPERTS, Alternative
from r1prov.offload.foresight import foresee_arguments, foresee_plan
from r1prov.offload.memory import context_of
from r1prov.offload.outcome import Space, outcome
from tests.cuda import models


def applied(words: list[str], change: Alternative) -> list[str]:
    """The words with the change at their end, and without what must be taken out. Only options with a value are drawn here."""
    kept, rest = [], iter(words)
    for word in rest:
        if word in change.without:
            if word != "--cpu-moe":
                next(rest)
        else:
            kept.append(word)
    return [*kept, *change.arguments]


def test_what_fits_can_be_a_window() -> None:
    """45 and fewer layers fill the last card, and 58 overfill the RAM of a smaller machine."""
    model = layout.model("UD-IQ1_M", mla=True)
    words = shlex.split("-ngl 99 --n-cpu-moe 45 -c 8192 -fa on -np 1")
    found = foresee_arguments(model, words, Space((24 * GIB,) * 2, 150 * GIB))
    first = found.alternatives[0]
    assert (list(first.change), first.arguments[0]) == (["n_cpu_moe"], "--n-cpu-moe")
    assert "override_tensor" in found.alternatives[-1].change


def drawn(seed: int) -> tuple[object, Space, list[str]]:
    """A model, a machine and arguments that often do not fit."""
    dice = random.Random(seed)
    model = dice.choice(
        [
            *(
                layout.model(quant, mla=mla)
                for quant in ("UD-IQ1_S", "UD-IQ1_M", "Q4_K_M")
                for mla in (True, True, False)
            ),
            models.MODELS["qwen3-30b-a3b"]().model("qwen3-30b-a3b"),
            models.MODELS["llama-8b"]().model("llama-8b"),
        ]
    )
    cards = tuple(dice.choice([8, 16, 24, 48, 80]) * GIB for _ in range(dice.randrange(1, 5)))
    ram = round(model.n_bytes * dice.choice([0.3, 0.7, 1.0, 1.3])) + 12 * GIB
    words = ["-c", str(dice.choice([2048, 8192, 32_768])), "-np", dice.choice(["1", "2"])]
    words += dice.choice(
        [["-ngl", "99"], ["-ngl", "20"], ["-ngl", "99", "--n-cpu-moe", "30"], ["-ngl", "99", "--cpu-moe"]]
    )
    words += dice.choice([[], [], ["-ts", "3,1"], ["--override-tensor", r"blk\.[3-5]\.ffn_.*=CUDA0"], ["-ub", "2048"]])
    return model, Space(cards, ram), words


@pytest.mark.parametrize("seed", range(16))
def test_every_alternative_fits_and_there_is_one_where_a_placement_fits(seed: int) -> None:
    model, space, words = drawn(seed)
    found = foresee_arguments(model, words, space)
    assert found.outcome
    if found.outcome.fits:
        assert not found.alternatives
        return
    for change in found.alternatives:
        assert set(change.without) <= set(PLACING_EXPERTS)
        setting = parse(applied(words, change), cards=len(space.cards))
        assert outcome(model, setting, space).fits, (words, change)
    setting = parse(words, cards=len(space.cards))
    for context in (context_of(model, setting), 512):
        wanted = replace(setting, context=context, gpu_layers=0, split=(), overrides=(), prompts=0)
        placed = search.best(model, wanted, space)
        if placed and outcome(model, placed, space).fits:
            assert any("n_gpu_layers" in change.change for change in found.alternatives)
    if found.alternatives and getattr(model, "experts_used", 0):
        assert found.alternatives[0].change.keys() != {"n_gpu_layers"}


def found_for(model: Model, words: str, cards: Sequence[float], ram: float) -> list[dict[str, int | str]]:
    """The changes that are offered on cards and RAM of so many GiB. Each of them fits."""
    space = Space(tuple(round(card * GIB) for card in cards), round(ram * GIB))
    given = shlex.split(words)
    found = foresee_arguments(model, given, space)
    assert found.outcome
    assert not found.outcome.fits
    for change in found.alternatives:
        setting = parse(applied(given, change), cards=len(cards))
        assert outcome(model, setting, space).fits, change
    return [change.change for change in found.alternatives]


LLAMA, QWEN = (models.MODELS[name]().model(name) for name in ("llama-8b", "qwen2-32b"))


def test_a_smaller_cache_type_is_tried_before_fewer_layers() -> None:
    offered = found_for(LLAMA, "-c 131072 -np 1 -ngl 99 -fa on", [16], 64)
    assert offered[0] == {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    assert offered[1].keys() == {"n_gpu_layers"}
    assert len(offered) == len({tuple(change.items()) for change in offered})


def test_without_cards_a_smaller_batch_or_cache_can_fit() -> None:
    assert {"ubatch_size": 1024} in found_for(LLAMA, "-c 8192 -ub 4096 -b 4096 -np 1", [], 16.5)
    offered = found_for(LLAMA, "-c 131072 -np 1 -cram 0", [], 17)
    assert {"cache_type_k": "q8_0", "cache_type_v": "q8_0"} in offered


def test_everything_in_ram_is_tried_too() -> None:
    """The card has room for the compute buffer of a small batch only, and for no layer."""
    assert any(change.get("n_gpu_layers") == 0 for change in found_for(QWEN, "-c 8192 -np 1 -ngl 99", [1.3], 64))


@pytest.mark.parametrize(
    ("quant", "words", "cards", "ram", "first"),
    [
        ("Q4_K_M", "-c 4096 -np 4 -ngl 46 -ub 64", (8, 12), 454, "override_tensor"),
        ("UD-IQ1_M", "-c 8192 -np 4 -ngl 0 --n-cpu-moe 39 -fa on", (32,), 147, "n_cpu_moe"),
        ("UD-IQ2_XXS", "-c 8192 -np 2 -ngl 99 -ts 1,4 -ctk f32 -ctv f32", (40, 8), 225, "override_tensor"),
    ],
)
def test_the_first_help_for_a_model_with_experts_places_experts(
    quant: str, words: str, cards: tuple[int, ...], ram: int, first: str
) -> None:
    assert first in found_for(layout.model(quant, mla=True), words, cards, ram)[0]


def test_a_smaller_cache_type_and_another_placement_fit_together() -> None:
    """With legacy attention nothing fits beside an F16 cache, with no context."""
    (offered,) = found_for(layout.model("UD-IQ1_S"), "-c 512 -np 2 -ngl 0 -ts 1,0 -ub 64", [8, 40], 90.4)
    assert {"cache_type_k", "override_tensor"} <= offered.keys()


def machine(cards: int, card: float, ram: float) -> Machine:
    gpus = Gpus(count=cards, name="a card", memory=f"{card} GiB", compute_capability="8.9") if cards else None
    return Machine(gpus=gpus, ram=f"{ram} GiB", disk="2 TB")


@pytest.mark.parametrize(
    ("quant", "cards", "card", "ram", "serving", "together"),
    [
        ("UD-IQ2_XXS", 0, 0, 164, {"context_per_slot": 32_768, "slots": 4}, 2),
        ("UD-IQ1_M", 1, 12, 133, {"context_per_slot": 32_768, "kv_type_k": "q8_0"}, 2),
        ("UD-IQ1_S", 1, 12, 132, {"context_per_slot": 32_768, "slots": 4}, 1),
        ("UD-IQ1_M", 1, 24, 80, {"context_per_slot": 32_768}, 0),
    ],
)
def test_where_no_change_of_a_plan_fits_by_itself_the_fewest_together_do(
    quant: str, cards: int, card: float, ram: float, serving: dict[str, Any], together: int
) -> None:
    """Each change is applied, and its plan fits. Where there is none, the smallest quant with the smallest request fits neither."""
    asked = Serving(quant=quant, **{"attention": "legacy", "slots": 1, "micro_batch": 512, **serving})
    smaller = [layout.model(name) for name in ("UD-IQ1_M", "UD-IQ1_S")]
    model, room = layout.model(quant), machine(cards, card, ram)
    smaller = [other for other in smaller if other.n_bytes < model.n_bytes]
    found = foresee_plan(model, model.n_bytes, room, asked, reserve=GIB, smaller=lambda: smaller)
    assert not found.outcome.fits
    assert {len(change.change) for change in found.alternatives} == ({together} if together else set())
    keys = {"ctx_size": "context_per_slot", "parallel": "slots", "cache_type_k": "kv_type_k", "attention": "attention"}
    for change in (each.change for each in found.alternatives):
        other = layout.model(str(change.get("quant", quant)))
        new = asked.model_copy(update={keys[key]: value for key, value in change.items() if key in keys})
        reserve = int(change.get("reserve_bytes", GIB))
        assert foresee_plan(other, other.n_bytes, room, new, reserve=reserve, smaller=list).outcome.fits, change
    if not found.alternatives:
        least = asked.model_copy(update={"context_per_slot": 256, "attention": "mla", "kv_type_k": "q4_0"})
        assert not foresee_plan(smaller[-1], smaller[-1].n_bytes, room, least, reserve=0, smaller=list).outcome.fits


def test_bounds_do_not_prove_a_machine_too_small(capsys: pytest.CaptureFixture[str]) -> None:
    """The weights would fit, and only upper bounds of the rest do not. Of an exact model the sentence is said."""
    told = {}
    for name, size in (("gpt-oss-20b", 1.14), ("llama-8b", 1.05)):
        model = models.MODELS[name]().model(name)
        space = Space((3 * GIB,), int(size * model.n_bytes) - 2 * GIB)
        found = foresee_arguments(model, ["-ngl", "99", "-cram", "0", "-c", "4096"], space)
        assert found.outcome
        assert not found.alternatives
        assert found.day
        show_plan.explained(found, found.outcome, found.day)
        told[name] = "the machine is too small" in capsys.readouterr().out
    assert told == {"gpt-oss-20b": False, "llama-8b": True}


def test_an_upper_bound_is_no_fact() -> None:
    """The weights fit on the card, and their sum with the upper bounds does not."""
    model, words = models.MODELS["gpt-oss-20b"]().model("gpt-oss-20b"), shlex.split("-ngl 99 -np 1 -c 8192 -fit off")
    roomy = foresee_arguments(model, words, Space((80 * GIB,), 128 * GIB)).outcome
    assert roomy
    assert (roomy.fits, roomy.sure) == (True, True)
    (card,) = roomy.devices
    tight = foresee_arguments(model, words, Space((card.taken - 64 * MIB,), 128 * GIB, reserve=0)).outcome
    assert tight
    assert (tight.fits, tight.sure) == (False, False)
    assert tight.reasons[0].startswith("CUDA0 may run out of memory: it takes 20.1 GiB to ")
    nearly = foresee_arguments(model, words, Space((card.taken + 64 * MIB,), 128 * GIB, reserve=128 * MIB)).outcome
    assert nearly
    assert nearly.reasons[0].startswith("CUDA0 may keep less than the 128 MiB reserved")
    hopeless = foresee_arguments(model, words, Space((8 * GIB,), 128 * GIB)).outcome
    assert hopeless
    assert (hopeless.fits, hopeless.sure) == (False, True)
    assert "runs out of memory" in hopeless.reasons[0]
