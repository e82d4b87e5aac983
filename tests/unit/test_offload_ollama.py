"""Tests of the settings for Ollama, and of how it distributes layers over the cards."""

from dataclasses import replace

import pytest

from r1prov.common.units import GIB, MIB
from r1prov.machines.profile import load_profile
from r1prov.models import layout
from r1prov.offload import ollama, wanted
from r1prov.offload.memory import memory
from r1prov.offload.outcome import Space
from r1prov.offload.search import fits


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
    assert ollama._most_layers(model, in_ram, space, model.entries) == told


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
