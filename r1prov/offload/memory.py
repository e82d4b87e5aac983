"""What llama-server takes on each device: weights, KV cache, compute buffer. Pure arithmetic, in bytes.

Each sum is the pinned engine's own (llama.cpp as of llama-cpp-python 0.3.36), not a fit of measurements:

- weights: where each tensor goes (src/llama-model.cpp, src/llama-model-loader.cpp), padded as the CUDA backend pads;
- KV cache: src/llama-kv-cache.cpp;
- compute: the graph of the largest batch is laid out as the engine lays it out, see `r1prov.offload.engine`.

Of models whose graph is not known (`graphs.known`) the cache and the compute buffers are upper bounds.

tests/data/engine_memory*.json hold what the engine says, tests/unit/test_memory.py the limits of the difference.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from r1prov.models.model import block, is_embedding, layer_of, row_bytes
from r1prov.offload.engine import buffers, presumed, schedule
from r1prov.offload.engine.builder import Batch
from r1prov.offload.engine.graphs import builder_of, known
from r1prov.offload.engine.numbered import CARD_ALIGNMENT, Numbered, row_padding
from r1prov.offload.setting import RefusedError, Setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.models.model import Model, Tensor

CELLS_MULTIPLE = 256
"""Caches are rounded up to a multiple of this many tokens (GGML_PAD(n_ctx, 256))."""


@dataclass(frozen=True)
class Use:
    """Bytes on one device."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.compute


@dataclass(frozen=True)
class Memory:
    """What llama-server takes: on each card, and in RAM."""

    cards: tuple[Use, ...]
    host: Use


@dataclass(frozen=True)
class Placement:
    """Where things lie; the number of cards stands for RAM.

    Attributes:
        tensors: device of each of the model's `weights`.
        layers: device of each layer.
        caches: device of each layer's cache.
        on_cards: all entries, the output included, are on cards.
    """

    tensors: dict[str, int]
    layers: tuple[int, ...]
    caches: tuple[int, ...]
    on_cards: bool


def memory(model: Model, setting: Setting, cards: Sequence[int]) -> Memory:
    """What `setting` takes on machines with `cards` (bytes of each), whether it fits or not.

    Raises:
        RefusedError: the engine would not start, with its reason.
    """
    return _memory(model, replace(setting, prompts=0), _shares(setting, cards))


@lru_cache(maxsize=16)
def _memory(model: Model, setting: Setting, shares: tuple[float, ...]) -> Memory:
    host = len(shares)
    where = _placement(model, setting, shares)
    flash, transposed_v = _attention(model, setting, layer_on_card=any(device < host for device in where.layers))
    weights = [0] * (host + 1)
    lying = {(tensor.name, where.tensors[name]): tensor for name, tensor in model.weights.items()}
    for (_, device), tensor in lying.items():
        weights[device] += weight_bytes(tensor, on_card=device < host)
    kv = [0] * (host + 1)
    for device in where.caches:
        kv[device] += cache_bytes(model, setting)
    compute = _compute(model, setting, where, host, flash=flash, transposed_v=transposed_v)
    uses = [Use(*figures) for figures in zip(weights, kv, compute, strict=True)]
    return Memory(tuple(uses[:host]), uses[host])


def placement(model: Model, setting: Setting, cards: Sequence[int]) -> Placement:
    """Where the engine puts tensors and caches.

    The last `gpu_layers` of the layers and the output after them are dealt out to the cards in order, by shares; the token embedding
    stays in RAM; overrides win, the first that matches.
    """
    return _placement(model, setting, _shares(setting, cards))


def _shares(setting: Setting, cards: Sequence[int]) -> tuple[float, ...]:
    """What part of the entries on the cards each card gets: all of what the placement has to know of them."""
    said = (*setting.split, *(0.0 for _ in cards))[: len(cards)]
    return said if any(said) else tuple(cards)


@lru_cache(maxsize=16)
def _placement(model: Model, setting: Setting, shares: tuple[float, ...]) -> Placement:
    host, entries = len(shares), model.entries
    wanted = entries if setting.gpu_layers is None else setting.gpu_layers
    taken = min(wanted, entries) if host else 0
    bounds = list(accumulate(shares))
    devices = [
        bisect_right([bound / bounds[-1] for bound in bounds], position / taken) if position >= 0 else host
        for position in range(taken - entries, taken)
    ]
    layers = tuple(devices[: model.layers])
    rules = [(re.compile(pattern), host if device is None else device) for pattern, device in setting.overrides]

    def device_of(name: str, tensor: Tensor) -> int:
        for pattern, device in rules:
            if pattern.search(tensor.name):
                return device
        if is_embedding(name):
            return host
        layer = layer_of(name)
        return devices[-1 if layer is None else layer]

    return Placement(
        tensors={name: device_of(name, tensor) for name, tensor in model.weights.items()},
        layers=layers,
        caches=layers if setting.cache_on_cards else (host,) * model.layers,
        on_cards=wanted >= entries and host > 0,
    )


def _attention(model: Model, setting: Setting, *, layer_on_card: bool) -> tuple[bool, bool]:
    """Whether attention is fused, and whether V lies transposed in the cache.

    Not said, the engine tries fused attention, and gives it up when a layer is on a card that has no kernel for it. The cache keeps
    the form it has by then.
    """
    type_k, type_v, flash = setting.type_k, setting.type_v, setting.flash
    if model.mla and type_k != type_v:
        raise RefusedError(
            f"model does not support different K ({type_k.lower()}) and V ({type_v.lower()}) cache types: its V is a part of K"
        )
    if _quantised(type_v):
        if flash is False:
            raise RefusedError("quantized V cache requires flash_attn to be enabled")
        flash = True
    if flash is not False:
        for name, kind, length in (("K", type_k, model.key_length), ("V", type_v, model.value_length)):
            if length % block(kind)[0]:
                raise RefusedError(
                    f"{name} cache type {kind.lower()} with block size {block(kind)[0]} does not divide {length}"
                )
    if flash is None:
        return flash_on_cards(model, type_k, type_v) or not layer_on_card, False
    return flash, not flash


def flash_on_cards(model: Model, *cache_types: str) -> bool:
    """The CUDA backend fuses attention for these heads and types of cache (ggml/src/ggml-cuda/fattn.cu), on RTX 20xx and newer."""
    if "IQ4_NL" in cache_types:
        return False
    group = model.heads // model.kv_heads
    match model.key_length, model.value_length:
        case (192, 128):
            return group % 8 == 0
        case (320, 256):
            return group % 32 == 0
        case (576, 512) | (512, 512):
            return group > 1
        case k, v:
            return k == v and k in {40, 64, 72, 80, 96, 112, 128, 256}


def v_type(model: Model, type_k: str) -> str:
    """V's type in the cache beside K's: the same, but F16 where a card could not fuse attention, for V is quantised only for that."""
    return type_k if model.mla or flash_on_cards(model) else "F16"


def _quantised(kind: str) -> bool:
    return block(kind)[0] > 1


def weight_bytes(tensor: Tensor, *, on_card: bool) -> int:
    """Bytes of a tensor where it lies, with the padding of a card."""
    if not on_card:
        return tensor.n_bytes
    size = tensor.n_bytes + row_padding(tensor.type, tensor.shape[0])
    return size + -size % CARD_ALIGNMENT


def context_of(model: Model, setting: Setting) -> int:
    """Tokens of the whole cache. Not said, `--fit` begins with as many for each stream as the model was trained for (common/fit.cpp)."""
    streams = setting.slots if setting.context is None and setting.fit and not setting.unified else 1
    return setting.context or model.context_length * streams


def context_of_stream(model: Model, setting: Setting) -> int:
    """Tokens that memory is taken for in the cache that a slot has: of a shared one all."""
    return context_of(model, setting) // (1 if setting.unified else setting.slots)


def context_per_slot(model: Model, setting: Setting) -> int:
    """Tokens that one slot can fill: no more than the model was trained for (tools/server)."""
    return min(context_of_stream(model, setting), model.context_length)


def _cells(model: Model, setting: Setting) -> tuple[int, int]:
    """Tokens of one stream's cache, and how many streams."""
    context = context_of(model, setting)
    context += -context % CELLS_MULTIPLE
    if setting.unified:
        return context, 1
    each = context // setting.slots
    return each + -each % CELLS_MULTIPLE, setting.slots


def cache_bytes(model: Model, setting: Setting) -> int:
    """The cache of one layer, for all slots."""
    cells, streams = _cells(model, setting)
    return cells * streams * cache_bytes_per_token(model, setting)


def cache_bytes_per_token(model: Model, setting: Setting) -> int:
    """Of one layer. With latent attention V is a part of K."""
    k = row_bytes(setting.type_k, model.kv_heads * model.key_length)
    return k if model.mla else k + row_bytes(setting.type_v, model.kv_heads * model.value_length)


def _compute(
    model: Model, setting: Setting, where: Placement, cards: int, *, flash: bool, transposed_v: bool
) -> list[int]:
    """The buffers for the largest batch (llama_context::sched_reserve)."""
    cells, streams = _cells(model, setting)
    context = context_of(model, setting)
    tokens = min(setting.micro_batch, setting.batch, context)
    batch = Batch(
        tokens=tokens + -tokens % setting.slots,
        outputs=tokens,
        cells=cells,
        streams=streams,
        type_k=setting.type_k,
        type_v=setting.type_v,
        flash=flash,
        transposed_v=transposed_v,
    )
    shared = tuple((name, where.tensors[name]) for name in model.shared)
    graph = _graph(model, batch, shared)
    homes = where.tensors | dict(enumerate(where.caches))
    pipeline = cards > 1 and where.on_cards and setting.cache_on_cards and not setting.overrides
    copies = schedule.PIPELINE_COPIES if pipeline else 1
    plan = schedule.schedule(graph, homes, cards, copies=copies, offload=setting.offload)
    sizes = buffers.sizes(graph, plan, cards)
    if known(model):
        return sizes
    in_ram = [t.n_bytes for name, t in model.weights.items() if where.tensors[name] == cards and not is_embedding(name)]
    return presumed.bounds(sizes, max(in_ram, default=0) if setting.offload else 0)


@lru_cache(maxsize=8)
def _graph(model: Model, batch: Batch, shared: tuple[tuple[str, int], ...]) -> Numbered:
    """The same wherever the model lies, but for the weights that are read under several names."""
    build = builder_of(model)
    return Numbered(
        build(model, batch, dict(shared), flash_on_cards=flash_on_cards(model, batch.type_k, batch.type_v)).build()
    )
