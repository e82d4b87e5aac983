"""Tests of the settings for Ollama, and of how it distributes layers over the cards."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from r1prov.common.units import GIB, MIB
from r1prov.machines.profile import load_profile
from r1prov.models import layout
from r1prov.models.model import Model
from r1prov.offload import ollama, wanted
from r1prov.offload.memory import Memory, memory, placement, scores_bytes
from r1prov.offload.outcome import Space
from r1prov.offload.search import fits
from r1prov.offload.setting import Setting


@pytest.mark.parametrize(
    ("sizes", "rooms", "counts"),
    [
        ([10] * 6, [100] * 4, [6, 0, 0, 0]),  # it uses as few cards as hold the layers
        ([10] * 20, [60] * 4, [5, 5, 5, 5]),  # it distributes them as evenly as possible
        ([10] * 40, [60] * 4, [10, 10, 10, 10]),  # it does so even where they do not fit
        ([10, 10, 10, 30], [40, 40], [3, 1]),  # the last layers go to the last card
        ([10] * 4, [0, 0], [0, 0]),
    ],
)
def test_layers_are_dealt_out_as_ollama_does(sizes: list[int], rooms: list[int], counts: list[int]) -> None:
    assert ollama._split(sizes, rooms) == counts


@pytest.mark.parametrize("mla", [False, True])
@pytest.mark.parametrize("context", [2048, 32_768])
def test_it_is_told_the_most_layers_that_fit_with_its_batch(mla: bool, context: int) -> None:
    model, machine = layout.model("UD-IQ1_S", mla=mla), load_profile("4x4090").machine
    space = Space(machine.cards, machine.ram)
    serving = load_profile("4x4090").serving.model_copy(update={"context_per_slot": context})
    told = ollama.best(model, wanted(serving, model), space)
    assert told.gpu_layers
    assert fits(memory(model, told, space.cards), space.rooms)
    in_ram = replace(told, gpu_layers=0, split=())
    fewer = ollama._fewer_and_fewer(model, in_ram, space, model.entries)
    assert next(each for each in fewer if fits(memory(model, each, space.cards), space.rooms)) == told


@pytest.mark.parametrize("mla", [False, True])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("split", [(1, 1, 1, 1), (0, 3, 0, 9), (20, 1, 0, 1), (0, 0, 1, 0)])
def test_what_is_left_out_without_being_worked_out_does_not_fit(mla: bool, slots: int, split: tuple[int, ...]) -> None:
    """The buffer of a card with a layer is never smaller than the scores that it is taken for."""
    model = layout.model("UD-IQ1_S", mla=mla)
    for count, tokens in ((5, 64), (30, 512)):
        setting = replace(
            wanted(load_profile("4x4090").serving, model),
            slots=slots,
            context=8192 * slots,
            flash=False,
            micro_batch=tokens,
            gpu_layers=count,
            split=tuple(map(float, split)),
        )
        cards = (24_564 * MIB,) * 4
        uses = memory(model, setting, cards).cards
        for card in set(placement(model, setting, cards).layers) - {len(cards)}:
            assert uses[card].compute >= scores_bytes(model, setting)


def test_few_settings_are_worked_out_for_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all of the time of `r1prov plan` goes into memory that is worked out. It took 32 settings, and a second of `plan` in all."""
    worked_out = []

    def counted(model: Model, setting: Setting, cards: Sequence[int]) -> Memory:
        worked_out.append(setting)
        return memory(model, setting, cards)

    monkeypatch.setattr(ollama, "memory", counted)
    ollama.best.cache_clear()
    model, serving = layout.model("UD-IQ1_S", mla=True), load_profile("4x4090").serving
    assert ollama.best(model, wanted(serving, model), Space((24_564 * MIB,) * 4, 480 * GIB)).gpu_layers == 36
    assert len(worked_out) <= 8


def test_attention_that_is_not_fused_makes_the_batch_small() -> None:
    """With 128 heads, the scores of 512 tokens against 32,768 take 8 GiB of each card."""
    model, cards = layout.model("UD-IQ1_S", mla=True), (24_564 * MIB,) * 4
    serving = load_profile("4x4090").serving
    told = ollama.best(model, wanted(serving, model), Space(cards, 480 * GIB))
    usual = replace(told, batch=512, micro_batch=512)
    assert told.micro_batch < 512
    assert memory(model, usual, cards).cards[1].compute > 8 * GIB
    assert not fits(memory(model, usual, cards), Space(cards, 480 * GIB).rooms)


def test_without_cards_nothing_is_dealt_out() -> None:
    model = layout.model("UD-IQ1_S", mla=True)
    told = ollama.best(model, wanted(load_profile("cpu").serving, model), Space((), 256 * GIB))
    assert (told.gpu_layers, told.micro_batch) == (0, 512)
