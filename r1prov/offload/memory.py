"""Calculates the bytes that llama-server takes on each device: weights, KV cache and compute buffer. It is pure arithmetic.

The formulas are those of the pinned engine (llama.cpp as of llama-cpp-python 0.3.36), not a fit of measurements:

- The weights follow src/llama-model.cpp and src/llama-model-loader.cpp, with the padding of the CUDA backend.
- The KV cache follows src/llama-kv-cache.cpp.
- The compute buffers come from a layout of the graph of the largest batch, see `r1prov.offload.engine`.

For models whose graph is not known (`graphs.known`), the cache and the compute buffers are upper bounds.

tests/data/engine_memory*.json hold the answers of the engine, and tests/unit/test_memory.py limits the difference to them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from r1prov.common.deadline import within
from r1prov.models.model import block, is_embedding, layer_of, row_bytes
from r1prov.offload.engine import buffers, presumed, schedule
from r1prov.offload.engine.builder import Batch
from r1prov.offload.engine.graphs import builder_of, known
from r1prov.offload.engine.numbered import CARD_ALIGNMENT, Numbered, row_padding
from r1prov.offload.pattern import compiled
from r1prov.offload.setting import RefusedError, Setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.models.model import Model, Tensor
    from r1prov.offload.engine.numbered import Wiring

CELLS_MULTIPLE = 256
"""The engine rounds a cache up to a multiple of this many tokens (GGML_PAD(n_ctx, 256))."""


@dataclass(frozen=True)
class Use:
    """The bytes that the engine takes of one device."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        """The sum of weights, KV cache and compute buffer."""
        return self.weights + self.kv + self.compute


@dataclass(frozen=True)
class Memory:
    """The bytes that llama-server takes of each card and of the host's RAM."""

    cards: tuple[Use, ...]
    host: Use


@dataclass(frozen=True, eq=False)
class Placement:
    """The device of each tensor, layer and cache. Cards are numbered from 0, and RAM has the number after the last card.

    A placement equals itself only, so that what follows from it can be kept with it as the key. The same arguments have the same one.

    Attributes:
        tensors: The device of each of the model's `weights`.
        layers: The device of each layer.
        caches: The device of each layer's cache.
        on_cards: Whether all entries, including the output, are on cards.
    """

    tensors: dict[str, int]
    layers: tuple[int, ...]
    caches: tuple[int, ...]
    on_cards: bool


def memory(model: Model, setting: Setting, cards: Sequence[int]) -> Memory:
    """Calculates what `setting` takes on a machine with `cards` (bytes of each card), even if it does not fit.

    Raises:
        RefusedError: The engine would not start; the message is its reason.
    """
    if setting.only is None:
        return _memory(model, replace(setting, prompts=0), _shares(setting, cards))
    moved = tuple((pattern, None if device is None else 0) for pattern, device in setting.overrides)
    alone = memory(model, replace(setting, only=None, split=(), overrides=moved), [cards[setting.only]])
    uses = tuple(alone.cards[0] if card == setting.only else Use(0, 0, 0) for card in range(len(cards)))
    return Memory(uses, alone.host)


@lru_cache(maxsize=64)
def _memory(model: Model, setting: Setting, shares: tuple[float, ...]) -> Memory:
    host = len(shares)
    where = _placed(model, setting, shares)
    flash, transposed_v = _attention(model, setting, layer_on_card=any(device < host for device in where.layers))
    weights, kv = _weights_and_cache(model, setting, where, host)
    compute = _compute(model, setting, where, host, flash=flash, transposed_v=transposed_v)
    uses = [Use(*figures) for figures in zip(weights, kv, compute, strict=True)]
    return Memory(tuple(uses[:host]), uses[host])


def least(model: Model, setting: Setting, cards: Sequence[int]) -> list[int]:
    """What `setting` takes at least of each card, then of the host: weights and KV cache, in bytes.

    It takes a hundredth of the time of `memory`, so it sorts out most settings that do not fit.
    """
    weights, kv = _weights_and_cache(model, setting, placement(model, setting, cards), len(cards))
    return [sum(both) for both in zip(weights, kv, strict=True)]


def _weights_and_cache(model: Model, setting: Setting, where: Placement, host: int) -> tuple[list[int], list[int]]:
    """The bytes of the weights and of the KV cache, of each card, then of the host."""
    cache, kv = cache_bytes(model, setting), [0] * (host + 1)
    for device in where.caches:
        kv[device] += cache
    return list(_weights(model, where, host)), kv


@lru_cache(maxsize=64)
def _weights(model: Model, where: Placement, host: int) -> tuple[int, ...]:
    """The bytes of the weights of each card, then of the host."""
    weights = [0] * (host + 1)
    lying = {(tensor.name, where.tensors[name]): tensor for name, tensor in model.weights.items()}
    for (_, device), tensor in lying.items():
        weights[device] += weight_bytes(tensor, on_card=device < host)
    return tuple(weights)


def placement(model: Model, setting: Setting, cards: Sequence[int]) -> Placement:
    """Determines where the engine puts tensors and caches.

    The engine gives the last `gpu_layers` entries (the layers, then the output) to the cards in order, by the cards' shares. The token
    embedding stays in RAM. The first override that matches a tensor takes precedence over that.
    """
    return _placed(model, setting, _shares(setting, cards))


def _placed(model: Model, setting: Setting, shares: tuple[float, ...]) -> Placement:
    return _placement(model, setting.gpu_layers, setting.overrides, shares, cache_on_cards=setting.cache_on_cards)


def _shares(setting: Setting, cards: Sequence[int]) -> tuple[float, ...]:
    """The share of the entries for each card; the placement depends on nothing else of the cards."""
    if setting.only is not None:
        return tuple(float(card == setting.only) for card in range(len(cards)))
    shares = (*setting.split, *(0.0 for _ in cards))[: len(cards)]
    return shares if any(shares) else tuple(cards)


@lru_cache(maxsize=64)
def _placement(
    model: Model,
    gpu_layers: int | None,
    overrides: tuple[tuple[str, int | None], ...],
    shares: tuple[float, ...],
    *,
    cache_on_cards: bool,
) -> Placement:
    host, entries = len(shares), model.entries
    gpu_layers = entries if gpu_layers is None else gpu_layers
    taken = min(gpu_layers, entries) if host else 0
    bounds = list(accumulate(shares))
    devices = [
        bisect_right([bound / bounds[-1] for bound in bounds], position / taken) if position >= 0 else host
        for position in range(taken - entries, taken)
    ]
    layers = tuple(devices[: model.layers])
    overridden: dict[str, int] = {}
    for pattern, device in reversed(overrides):  # the first pattern that matches decides
        overridden |= dict.fromkeys(matched(model, pattern), host if device is None else device)

    def device_of(name: str) -> int:
        if name in overridden:
            return overridden[name]
        if is_embedding(name):
            return host
        layer = layer_of(name)
        return devices[-1 if layer is None else layer]

    return Placement(
        tensors={name: device_of(name) for name in model.weights},
        layers=layers,
        caches=layers if cache_on_cards else (host,) * model.layers,
        on_cards=gpu_layers >= entries and host > 0,
    )


def matched(model: Model, pattern: str) -> tuple[str, ...]:
    """The names in `Model.weights` of the tensors that a pattern of `--override-tensor` matches.

    Raises:
        RefusedError: It takes too long to find out. The engine's std::regex tries one way after the other, too, and would hang.
    """
    found = _matched(model, pattern)
    if found is None:
        what = (
            f"after {_MATCHING_S:.0f} s it was not known which tensors it matches, and the engine would hang likewise"
        )
        raise RefusedError(f"cannot use the pattern `{pattern}`: {what}. Let no repetition hold another one")
    return found


_MATCHING_S = 1.0
"""How long the names of all tensors may be held against one pattern. It takes a millisecond, unless the pattern is made for no end."""


@lru_cache(maxsize=1024)
def _matched(model: Model, pattern: str) -> tuple[str, ...] | None:
    """What `matched` returns, or None where that takes too long."""
    search = compiled(pattern).search
    try:
        with within(_MATCHING_S):
            return tuple(name for name, tensor in model.weights.items() if search(tensor.name))
    except TimeoutError:
        return None


def _attention(model: Model, setting: Setting, *, layer_on_card: bool) -> tuple[bool, bool]:
    """Whether attention is fused, and whether V lies transposed in the cache.

    If `setting.flash` is None, the engine tries fused attention first. It gives that up if a layer is on a card without a kernel for it.
    By then the cache exists, and V stays untransposed.

    Raises:
        RefusedError: The engine does not support these cache types.
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
    """Whether the CUDA backend fuses attention for the model's heads and these cache types, on RTX 20xx and newer.

    The conditions are those of ggml/src/ggml-cuda/fattn.cu.
    """
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
    """The cache type for V beside `type_k` for K.

    It is the same type, or F16 where a card cannot fuse attention, because the engine quantises V only for fused attention.
    """
    return type_k if model.mla or flash_on_cards(model) else "F16"


def _quantised(kind: str) -> bool:
    return block(kind)[0] > 1


def weight_bytes(tensor: Tensor, *, on_card: bool) -> int:
    """The bytes of a tensor on its device; on a card they include the padding."""
    if not on_card:
        return tensor.n_bytes
    size = tensor.n_bytes + row_padding(tensor.type, tensor.shape[0])
    return size + -size % CARD_ALIGNMENT


def context_of(model: Model, setting: Setting) -> int:
    """The tokens of the whole cache.

    Without a context in the setting, `--fit` begins with the context that the model was trained for, once for each stream
    (common/fit.cpp).
    """
    streams = setting.slots if setting.context is None and setting.fit and not setting.unified else 1
    return setting.context or model.context_length * streams


def context_of_stream(model: Model, setting: Setting) -> int:
    """The tokens for which a slot's cache has memory. In a unified cache each slot can use all of them."""
    return context_of(model, setting) // (1 if setting.unified else setting.slots)


def context_per_slot(model: Model, setting: Setting) -> int:
    """The tokens that one slot can fill, which are at most those that the model was trained for (tools/server)."""
    return min(context_of_stream(model, setting), model.context_length)


def _cells(model: Model, setting: Setting) -> tuple[int, int]:
    """The tokens in the cache of one stream, and the number of streams."""
    context = context_of(model, setting)
    context += -context % CELLS_MULTIPLE
    if setting.unified:
        return context, 1
    per_slot = context // setting.slots
    return per_slot + -per_slot % CELLS_MULTIPLE, setting.slots


def cache_bytes(model: Model, setting: Setting) -> int:
    """The bytes of one layer's cache, for all slots."""
    cells, streams = _cells(model, setting)
    return cells * streams * cache_bytes_per_token(model, setting)


def cache_bytes_per_token(model: Model, setting: Setting) -> int:
    """The bytes of one layer's cache for one token. With latent attention V is a part of K and takes no bytes of its own."""
    k = row_bytes(setting.type_k, model.kv_heads * model.key_length)
    return k if model.mla else k + row_bytes(setting.type_v, model.kv_heads * model.value_length)


def scores_bytes(model: Model, setting: Setting) -> int:
    """The bytes of a batch's scores against a slot's cache, in F32.

    Without flash attention a device that has a layer holds them in its compute buffer, and other tensors beside them.
    """
    cells, _ = _cells(model, setting)
    return 4 * model.heads * cells * min(setting.micro_batch, setting.batch, context_of(model, setting))


def pipelined(setting: Setting, where: Placement, cards: int) -> bool:
    """Whether the cards work on several micro-batches at once, one after the other (llama_context). Cards of other hosts do not."""
    return cards > 1 and where.on_cards and setting.cache_on_cards and not setting.overrides and not setting.lent


def _compute(
    model: Model, setting: Setting, where: Placement, cards: int, *, flash: bool, transposed_v: bool
) -> list[int]:
    """The bytes of the compute buffers for the largest batch, of each card, then of the host (llama_context::sched_reserve)."""
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
    copies = schedule.PIPELINE_COPIES if pipelined(setting, where, cards) else 1
    copying = setting.lent if setting.offload and setting.lent < cards else None
    plan = _schedule(graph.wiring, graph.large, where, cards, copies=copies, copying=copying)
    sizes = buffers.sizes(graph, plan, cards)
    if known(model):
        return sizes
    in_ram = [t.n_bytes for name, t in model.weights.items() if where.tensors[name] == cards and not is_embedding(name)]
    return presumed.bounds(sizes, max(in_ram, default=0) if setting.offload else 0)


@lru_cache(maxsize=8)
def _schedule(
    wiring: Wiring, large: tuple[bool, ...], where: Placement, cards: int, *, copies: int, copying: int | None
) -> schedule.Schedule:
    """The schedule of a graph. It depends on the sizes of the batch only through the nodes that are large."""
    homes = where.tensors | dict(enumerate(where.caches))
    return schedule.schedule(wiring, large, homes, cards, copies=copies, copying=copying)


@lru_cache(maxsize=8)
def _graph(model: Model, batch: Batch, shared: tuple[tuple[str, int], ...]) -> Numbered:
    """The graph of a batch. It depends on the placement only through the weights that are read under several names."""
    build = builder_of(model)
    return Numbered(
        build(model, batch, dict(shared), flash_on_cards=flash_on_cards(model, batch.type_k, batch.type_v)).build()
    )
