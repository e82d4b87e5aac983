"""Chooses the number of layers for Ollama, and predicts how Ollama distributes them (llm/server.go, fs/ggml/ggml.go of 0.12.11).

Ollama is given a number of layers (`num_gpu`). It distributes whole layers itself, so that the fullest card keeps as much room as
possible. It only estimates the compute buffers. So this module takes the largest number of layers for which Ollama's own split fits by
the engine's arithmetic (`memory`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from r1prov.common.units import MIB
from r1prov.models.model import layer_of
from r1prov.offload.memory import context_of, context_per_slot, least, memory, placement, scores_bytes
from r1prov.offload.search import fits
from r1prov.offload.waits import filling, mean_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from r1prov.models.model import Model
    from r1prov.offload.outcome import Space
    from r1prov.offload.plan import Plan
    from r1prov.offload.setting import Setting

BATCHES = (512, 256, 128, 64)
"""The tokens of a prompt that are computed at once (`num_batch`). The first is Ollama's default."""

OVERHEAD_BYTES = 457 * MIB
"""The bytes of each card that Ollama leaves to the CUDA context (`MinimumMemory`)."""


def parameters(plan: Plan) -> dict[str, int | None]:
    """What Ollama is told in its Modelfile of a plan."""
    return {
        "num_gpu": plan.ollama.gpu_layers,
        "num_ctx": plan.context_per_slot,
        "num_batch": plan.ollama.micro_batch,
    }


@lru_cache(maxsize=64)
def best(model: Model, served: Setting, space: Space) -> Setting:
    """Chooses the batch with which an exchange is fastest, and for it the most layers that fit when Ollama distributes them.

    Args:
        model: The model that is served.
        served: The setting of the plan, of which context and slots are kept.
        space: The cards, which are equal, and their reserve.
    """
    # Ollama fuses attention for few kinds of models only, and its cache is F16.
    alike = replace(served, type_k="F16", type_v="F16", flash=False, overrides=(), offload=True)
    in_ram = replace(alike, micro_batch=BATCHES[0], batch=BATCHES[0], gpu_layers=0, split=())
    if not space.cards:
        return in_ram
    exchange = filling(context_per_slot(model, served))

    def seconds(setting: Setting) -> float:
        return mean_seconds(model, setting, space.cards, exchange, space.speeds)

    chosen, most = in_ram, model.entries
    least_seconds = math.inf
    for batch in reversed(BATCHES):  # a larger one leaves less room
        for setting in _fewer_and_fewer(model, replace(in_ram, micro_batch=batch, batch=batch), space, most):
            most, taken = setting.gpu_layers or 0, seconds(setting)
            if taken > least_seconds:  # and with fewer layers it would take longer
                break
            if not most or fits(memory(model, setting, space.cards), space.rooms):
                chosen, least_seconds = setting, taken
                break
    return chosen


def _fewer_and_fewer(model: Model, in_ram: Setting, space: Space, most: int) -> Iterator[Setting]:
    """The settings with `most` layers and fewer that may fit, down to none.

    Each number is tried, because Ollama may put fewer layers on fewer cards, where they do not fit.
    """
    sizes, computing = _sizes(model, in_ram), _computing(model, in_ram)
    rooms = [card - sizes[0] - OVERHEAD_BYTES - computing for card in space.cards]
    scores = scores_bytes(model, in_ram)
    for count in range(most, 0, -1):
        if sum(sizes[-count:]) > sum(space.rooms):
            continue
        # Ollama counts the output only if everything is on cards, although the engine puts the output there before any layer.
        split = _split((sizes if count == model.entries else sizes[:-1])[-count:], rooms)
        if not any(split):  # by its own figures Ollama has no room for them
            continue
        placed = replace(in_ram, gpu_layers=count, split=tuple(map(float, split)))
        lying, layers = least(model, placed, space.cards), placement(model, placed, space.cards).layers
        # The whole compute buffer takes a hundred times as long to work out as its largest tensor.
        if any(lying[card] + scores > space.rooms[card] for card in set(layers) if card < len(space.cards)):
            continue
        yield placed
    yield in_ram


def _sizes(model: Model, setting: Setting) -> list[int]:
    """The bytes of each layer with its cache, then of the output, as Ollama counts them."""
    sizes = [_cache(model, setting)] * (model.entries - 1) + [0]
    for tensor in model.tensors:
        layer = layer_of(tensor.name)
        if layer is not None:
            sizes[layer] += tensor.n_bytes
        elif tensor.name.startswith("output"):
            sizes[-1] += tensor.n_bytes
    return sizes


def _cache(model: Model, setting: Setting) -> int:
    """The bytes of one layer's F16 cache as Ollama counts them. In MLA form it counts a V that the cache does not have."""
    return context_of(model, setting) * (model.key_length + model.value_length) * model.kv_heads * 2


def _computing(model: Model, setting: Setting) -> int:
    """Ollama's estimate of the compute buffer of a card (`GraphSize`), for DeepSeek's models and for models that it does not know."""
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
    """The number of `sizes` for each card. Like Ollama, it uses the fewest cards that hold them and fills those evenly."""
    enough = (number for number in range(1, len(rooms)) if _dealt(sizes, rooms[:number], 1.0))
    number = next(enough, len(rooms))
    return [*_evenly(sizes, rooms[:number]), *[0] * (len(rooms) - number)]


def _evenly(sizes: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """The distribution that fills the smallest part of each room. That part may be larger than the room."""
    low, high = 0.0, 1000.0
    counts = _dealt(sizes, rooms, high) or [0] * len(rooms)
    while high - low > 1e-6:
        middle = (low + high) / 2
        dealt = _dealt(sizes, rooms, middle)
        counts, low, high = (dealt, low, middle) if dealt else (counts, middle, high)
    return counts


def _dealt(sizes: Sequence[int], rooms: Sequence[int], part: float) -> list[int] | None:
    """The number of `sizes` for each card, if each is filled up to `part` of its room; None if some do not fit.

    The last card is filled first, with the last sizes.
    """
    counts, left = [0] * len(rooms), list(sizes)
    for card in reversed(range(len(rooms))):
        room = rooms[card] * part
        while left and left[-1] <= room:
            room -= left.pop()
            counts[card] += 1
    return None if left else counts
