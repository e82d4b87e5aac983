"""Tests that every alternative to arguments that do not fit does fit, and that there is one wherever a placement fits."""

import random
import shlex
from dataclasses import replace

import pytest

from r1prov.common.units import GIB, MIB
from r1prov.models import layout
from r1prov.offload import search
from r1prov.offload.arguments import parse
from r1prov.offload.compare import PLACING_EXPERTS, Alternative
from r1prov.offload.foresight import foresee_arguments
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
            assert found.alternatives
            assert {"n_gpu_layers"} <= set(found.alternatives[-1].change)


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
    assert nearly.reasons[0].startswith("CUDA0 may keep less than 128 MiB free")
    hopeless = foresee_arguments(model, words, Space((8 * GIB,), 128 * GIB)).outcome
    assert hopeless
    assert (hopeless.fits, hopeless.sure) == (False, True)
    assert "runs out of memory" in hopeless.reasons[0]
