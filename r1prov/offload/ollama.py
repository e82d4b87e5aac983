"""Ollama's way to place a model: whole layers, dealt out by its own figures (llm/server.go, fs/ggml/ggml.go of 0.12.11).

It is told how many layers, and deals them out itself, so that the fullest card is as empty as can be. What computing takes it only guesses;
so a number of layers is good when the split that Ollama makes of it fits, as the engine would have it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from r1prov.common.units import MIB
from r1prov.models.model import layer_of
from r1prov.offload.memory import context_of, memory
from r1prov.offload.search import exchange_seconds, fits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.models.model import Model
    from r1prov.offload.outcome import Space
    from r1prov.offload.setting import Setting

BATCHES = (512, 256, 128, 64)
"""Tokens of a prompt that are computed at once (`num_batch`); the first is its default."""

OVERHEAD_BYTES = 457 * MIB
"""Of each card, for what the CUDA context takes (`MinimumMemory`)."""


@lru_cache(maxsize=64)
def best(model: Model, served: Setting, space: Space) -> Setting:
    """As many layers as fit as Ollama deals them out, with the batch with which an exchange is over first.

    Args:
        model: what is served.
        served: context and slots.
        space: equal cards, of which the reserve stays free.
    """
    # It fuses attention for a few kinds of model only, and its cache is F16.
    alike = replace(served, type_k="F16", type_v="F16", flash=False, overrides=(), offload=True)
    in_ram = replace(alike, micro_batch=BATCHES[0], batch=BATCHES[0], gpu_layers=0, split=())
    if not space.cards:
        return in_ram
    found, count = [], model.entries
    for batch in reversed(BATCHES):  # a larger one leaves less room
        placed = _most_layers(model, replace(in_ram, micro_batch=batch, batch=batch), space, count)
        count = placed.gpu_layers or 0
        found.append(placed)
    return min(reversed(found), key=lambda setting: exchange_seconds(model, setting, space.cards))


def _most_layers(model: Model, in_ram: Setting, space: Space, most: int) -> Setting:
    """The most layers that fit, `most` or fewer: one by one, for fewer layers may be dealt out to fewer cards."""
    sizes, computing = _sizes(model, in_ram), _computing(model, in_ram)
    rooms = [card - sizes[0] - OVERHEAD_BYTES - computing for card in space.cards]
    for count in range(most, 0, -1):
        if sum(sizes[-count:]) > sum(space.rooms):
            continue
        # The output is counted only where everything is on cards, though the engine puts it there before any layer.
        split = _split((sizes if count == model.entries else sizes[:-1])[-count:], rooms)
        if not any(split):  # it thinks that there is no room at all
            continue
        placed = replace(in_ram, gpu_layers=count, split=tuple(map(float, split)))
        if fits(memory(model, placed, space.cards), space.rooms):
            return placed
    return in_ram


def _sizes(model: Model, setting: Setting) -> list[int]:
    """Bytes of each layer with its cache, and of the output, as Ollama counts them."""
    sizes = [_cache(model, setting)] * (model.entries - 1) + [0]
    for tensor in model.tensors:
        layer = layer_of(tensor.name)
        if layer is not None:
            sizes[layer] += tensor.n_bytes
        elif tensor.name.startswith("output"):
            sizes[-1] += tensor.n_bytes
    return sizes


def _cache(model: Model, setting: Setting) -> int:
    """Of one layer, F16, with a V of its own also in MLA form."""
    return context_of(model, setting) * (model.key_length + model.value_length) * model.kv_heads * 2


def _computing(model: Model, setting: Setting) -> int:
    """What Ollama thinks that computing takes of each card (`GraphSize`), for DeepSeek's models and for those that it does not know."""
    context, batch, heads = context_of(model, setting), setting.micro_batch, model.kv_heads
    if model.architecture != "deepseek2":
        return model.heads // max(heads, 1) * _cache(model, setting) * (model.entries - 1) // 6
    width, keys = model.by_name["token_embd.weight"].shape[0], model.key_length * heads
    whole = 4 * batch * max(3 * width + model.vocabulary, 3 * width + 2 + context * (1 + heads) + 2 * keys)
    parts = (
        4 * batch * (3 * width + model.vocabulary) + width * model.vocabulary * 105 // 128,
        4 * batch * (2 * width + 1 + 2 * keys + context * (1 + heads)) + 4 * keys * context + width * keys * 9 // 16,
    )
    return max(whole, *parts)


def _split(sizes: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """How many of `sizes` each card gets, by Ollama's figures: on as few cards as hold them, as evenly as can be."""
    enough = (number for number in range(1, len(rooms)) if _dealt(sizes, rooms[:number], 1.0))
    number = next(enough, len(rooms))
    return [*_evenly(sizes, rooms[:number]), *[0] * (len(rooms) - number)]


def _evenly(sizes: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """The deal with the smallest part of each room, which may be more than all of it."""
    low, high = 0.0, 1000.0
    found = _dealt(sizes, rooms, high) or [0] * len(rooms)
    while high - low > 1e-6:
        middle = (low + high) / 2
        dealt = _dealt(sizes, rooms, middle)
        found, low, high = (dealt, low, middle) if dealt else (found, middle, high)
    return found


def _dealt(sizes: Sequence[int], rooms: Sequence[int], part: float) -> list[int] | None:
    """How many each card takes, the last ones by the last card, as far as `part` of its room goes; None where some are left over."""
    counts, left = [0] * len(rooms), list(sizes)
    for card in reversed(range(len(rooms))):
        room = rooms[card] * part
        while left and left[-1] <= room:
            room -= left.pop()
            counts[card] += 1
    return None if left else counts
