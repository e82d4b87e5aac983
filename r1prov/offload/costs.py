"""What a prompt and several answers at once cost, in seconds. It is pure arithmetic.

A device that works on a batch either waits for its memory or computes, whichever takes longer (the roofline model: Williams, Waterman,
Patterson, 2009). The devices work one after the other. So a step of the engine takes the sum of that over the devices.

- At the low speeds a card reads first and computes then, in batches of more than `MATRIX_VECTOR_TOKENS`. On a machine without cards so does
  the CPU, in batches of more than one token (tests/data/engine_order.json). Beside cards nobody has measured it.
- A batch reads an expert once, however many of its tokens choose it (`distinct`).
- Weights in RAM are copied to the first card for a batch of `OFFLOAD_TOKENS` or more (ggml_backend_cuda_device_offload_op), and of the
  experts those that a token has chosen (ggml-backend.cpp, llama.cpp #15346). The card computes after the copy. The CPU computes smaller
  batches, and all with `--no-op-offload`.
- A prompt is cut into logical batches, and each of these into micro-batches. The rest of each cut is a batch of its own.
- Attention multiplies each new token with all tokens before it.
- Where each slot has a cache of its own, a micro-batch takes neighbouring slots only (llama_batch_allocr::split_equal with `sequential`;
  llama.cpp #25840 measured 38 instead of 166 tokens/s). Who is answered at once may have slots that lie apart. At the low speeds any slots
  are as likely as others, and at the high ones they are neighbours.
- Where everything lies on several cards and no override says otherwise, the cards work on the micro-batches of a logical batch as a
  pipeline (llama_context, `pipeline_parallel`).
- Cards that other hosts lend (`--rpc`) are no pipeline, and each batch crosses the network (`speed.Crossing`).

All speeds are ranges (`Speeds`). `which` is 0 for the low speeds and 1 for the high ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from r1prov.models.model import is_embedding
from r1prov.offload.engine.schedule import PIPELINE_COPIES
from r1prov.offload.memory import cache_bytes_per_token, context_of, pipelined, placement
from r1prov.offload.speed import DEFAULT, Speeds, width_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1prov.models.model import Model, Tensor
    from r1prov.offload.memory import Placement
    from r1prov.offload.setting import Setting

OFFLOAD_TOKENS = 32
"""The tokens of the smallest batch for which weights in RAM are copied to a card (GGML_OP_OFFLOAD_MIN_BATCH, llama.cpp #18535)."""


MATRIX_VECTOR_TOKENS = 8
"""The tokens of the largest batch that a card multiplies vector by vector, which waits for memory alone (MMVQ_MAX_BATCH_SIZE)."""


def _sum(reading: float, computing: float) -> float:
    return reading + computing


def groups(users: int, slots: int) -> float:
    """The expected number of groups of neighbours that `users` make who have any of `slots`.

    The first slot begins a group with the chance u / s. Each of the s - 1 others does where it is busy, u / s, and the one before it is
    free, (s - u) / (s - 1). That comes to u (s - u + 1) / s.
    """
    return users * (slots - users + 1) / slots


def distinct(tokens: float, used: int, total: int) -> float:
    """The share of `total` experts that at least one of `tokens` chooses, where each chooses `used` of them.

    The expected share is 1 - (1 - used / total) ^ tokens, if tokens choose independently and all experts are chosen alike. Tokens that
    are related choose fewer, so this is an upper bound.
    """
    return float(1 - (1 - used / total) ** tokens)


@dataclass(frozen=True)
class Load:
    """What lies on one device.

    Attributes:
        always: The bytes that each batch reads.
        experts: The bytes of the routed experts.
        cache: The bytes of cache for each token of a slot.
        products: The operations of the matrix products for one token.
        scores: The operations of attention for one token and one token before it.
    """

    always: int = 0
    experts: int = 0
    cache: int = 0
    products: float = 0
    scores: int = 0


@dataclass(frozen=True)
class Costs:
    """The costs of a model with one setting.

    Attributes:
        cards: What lies on each card.
        host: What lies in RAM. The token embedding is not counted: a token reads one row of it.
        used, total: How many experts a token chooses, and of how many. A dense model has 1 of 1.
        batch, micro_batch: The tokens of a logical batch and of a micro-batch.
        copies: Whether large batches have weights copied to the first card.
        stages: The cards of a pipeline that work at once; 1 where there is none.
        unified: Whether all slots share one cache.
        speeds: How fast the machine is.
        width: The elements of a hidden state.
        layers: The layers on cards that other hosts lend.
    """

    cards: tuple[Load, ...]
    host: Load
    used: int
    total: int
    batch: int
    micro_batch: int
    copies: bool
    stages: int = 1
    unified: bool = False
    speeds: Speeds = DEFAULT
    width: int = 0
    layers: int = 0

    @property
    def whole(self) -> bool:
        """Whether all of the model lies on cards, but for the token embedding."""
        return not self.host.always and not self.host.experts

    def prompt_seconds(self, tokens: int, cached: int, users: int, which: int) -> float:
        """The seconds for the prompts of `users`, each of `tokens` behind `cached` ones. The prompts share batches."""
        pairs = tokens * users * (cached + tokens / 2)
        attention = self._attention_seconds(pairs, 0, which) / (tokens * users)  # of one token
        return sum(count * self._batch_seconds(size, attention, which) for size, count in self._cut(tokens * users))

    def copying_seconds(self, tokens: int, users: int, which: int) -> float:
        """The part of `prompt_seconds` in which weights are copied to the first card."""
        return sum(count * self._copy_seconds(size, which) for size, count in self.batches(tokens * users))

    def token_seconds(self, users: int, depth: float, which: int, slots: int = 1) -> float:
        """The seconds for one more token of each of `users`, whose slots hold `depth` tokens.

        Args:
            users: The people who are answered at once.
            depth: The tokens in the slot of each.
            which: The low speeds (0) or the high ones (1).
            slots: The number of slots, where there are more than users.
        """
        weights = sum(count * self._weights_seconds(size, which) for size, count in self._steps(users, slots, which))
        return weights + self._attention_seconds(users * depth, users * depth, which)

    def _steps(self, users: int, slots: int, which: int) -> Iterator[tuple[float, float]]:
        """The sizes of the micro-batches with one token of each user, and how many there are of each."""
        if which or self.unified or users >= slots:
            yield from self.batches(users)
        else:
            size = min(users / groups(users, slots), self.micro_batch)
            yield size, users / size

    def batches(self, tokens: int) -> Iterator[tuple[int, int]]:
        """The sizes of the micro-batches of so many tokens of prompt, and how many there are of each."""
        for batch, count in self._cut(tokens):
            full, left = divmod(batch, self.micro_batch)
            if full:
                yield self.micro_batch, count * full
            if left:
                yield left, count

    def _cut(self, tokens: int) -> Iterator[tuple[int, int]]:
        """The sizes of the logical batches of so many tokens of prompt, and how many there are of each."""
        whole, rest = divmod(tokens, self.batch)
        if whole:
            yield self.batch, whole
        if rest:
            yield rest, 1

    def _batch_seconds(self, tokens: int, attention: float, which: int) -> float:
        """The seconds of a logical batch. In a pipeline the last card waits until the first micro-batch has gone through the others."""
        seconds = [
            (self._weights_seconds(size, which) + size * attention, count) for size, count in self.batches(tokens)
        ]
        filling = max(each for each, _ in seconds) * (self.stages - 1)
        return (sum(each * count for each, count in seconds) + filling) / self.stages

    def _card(self, which: int) -> tuple[float, float]:
        """The speeds at which a card reads its memory, and computes."""
        return self.speeds.card_bytes_per_second.at(which), self.speeds.card_operations_per_second.at(which)

    def _cpu(self, which: int) -> tuple[float, float]:
        """The speeds at which the CPU reads the RAM, and computes."""
        return self.speeds.ram_bytes_per_second.at(which), self.speeds.cpu_operations_per_second.at(which)

    def _offloaded(self, tokens: float) -> bool:
        return self.copies and tokens >= OFFLOAD_TOKENS

    def _read(self, load: Load, tokens: float) -> float:
        return load.always + load.experts * distinct(tokens, self.used, self.total)

    def _copy_seconds(self, tokens: float, which: int) -> float:
        return (
            self._read(self.host, tokens) / self.speeds.link_bytes_per_second.at(which)
            if self._offloaded(tokens)
            else 0.0
        )

    def crossing_seconds(self, tokens: float, which: int) -> float:
        """The seconds in which a batch of so many tokens goes to cards of other hosts and comes back, without the mask of attention."""
        crossing = self.speeds.crossing
        return crossing.states_seconds(self.width * tokens, self.layers, which) if crossing and self.layers else 0.0

    def _mask_seconds(self, pairs: float) -> float:
        """The seconds in which the mask for so many pairs of tokens goes to each card of other hosts."""
        crossing = self.speeds.crossing
        return crossing.mask_seconds(pairs) if crossing and self.layers else 0.0

    def _weights_seconds(self, tokens: float, which: int) -> float:
        """The seconds in which all weights are read, and multiplied with a batch of so many tokens."""
        memory, computing = self._card(which)
        # At the low speeds a card does not read and compute at once.
        both = max if which or tokens <= MATRIX_VECTOR_TOKENS else _sum
        seconds = sum(
            both(self._read(load, tokens) / memory, load.products * tokens / computing) for load in self.cards
        ) + self.crossing_seconds(tokens, which)
        if self._offloaded(tokens):
            return seconds + self._copy_seconds(tokens, which) + self.host.products * tokens / computing
        ram, cpu = self._cpu(which)
        # Neither does a CPU that computes everything, for more than one token: an expert that few choose is multiplied row by row.
        both = max if which or tokens == 1 or self.cards else _sum
        return seconds + both(self._read(self.host, tokens) / ram, self.host.products * tokens / cpu)

    def _attention_seconds(self, pairs: float, read: float, which: int) -> float:
        """The seconds of attention over so many pairs of tokens, for which the cache of `read` tokens is read."""
        memory, computing = self._card(which)
        ram, cpu = self._cpu(which)
        on_cards = sum(max(load.cache * read / memory, load.scores * pairs / computing) for load in self.cards)
        return on_cards + max(self.host.cache * read / ram, self.host.scores * pairs / cpu) + self._mask_seconds(pairs)


@lru_cache(maxsize=64)
def costs(model: Model, setting: Setting, cards: tuple[int, ...], speeds: Speeds = DEFAULT) -> Costs:
    """The costs of `setting` on a machine with `cards` (bytes of each card) and these speeds."""
    where, host = placement(model, setting, cards), len(cards)
    loads = _loads(model, where, host, cache_bytes_per_token(model, setting))
    batch = min(setting.batch, context_of(model, setting))
    return Costs(
        cards=loads[:host],
        host=loads[host],
        used=model.experts_used or 1,
        total=_experts(model),
        batch=batch,
        micro_batch=min(setting.micro_batch, batch),
        copies=setting.offload and host > setting.lent,
        stages=min(host, PIPELINE_COPIES) if pipelined(setting, where, host) else 1,
        unified=setting.unified,
        speeds=speeds,
        width=width_of(model),
        layers=sum(device < setting.lent for device in where.layers),
    )


@lru_cache(maxsize=64)
def _loads(model: Model, where: Placement, host: int, cache: int) -> tuple[Load, ...]:
    """What lies on each card, then on the host, with `cache` bytes for each token and layer."""
    sums = [[0, 0, 0, 0.0, 0] for _ in range(host + 1)]
    for name, is_experts, n_bytes, products in _work(model):
        device = sums[where.tensors[name]]
        device[is_experts] += n_bytes
        device[3] += products
    # The scores of a query with a key, and the sum of the values: two operations for each element, in each head.
    scores = 2 * model.heads * (model.key_length + model.value_length)
    for device_of_cache in where.caches:
        sums[device_of_cache][2] += cache
        sums[device_of_cache][4] += scores
    return tuple(Load(int(a), int(e), int(c), p, int(s)) for a, e, c, p, s in sums)


@lru_cache(maxsize=16)
def _work(model: Model) -> tuple[tuple[str, bool, int, float], ...]:
    """For each of the weights but the token embedding: its name, whether it holds experts, its bytes, and its products for one token."""

    def products(name: str, tensor: Tensor) -> float:
        if tensor.is_experts:
            return 2 * math.prod(tensor.shape) * model.experts_used / tensor.shape[-1]
        # The engine computes the output for the last token of a prompt only.
        return 0 if name == "output.weight" else 2 * math.prod(tensor.shape)

    return tuple(
        (name, tensor.is_experts, tensor.n_bytes, products(name, tensor))
        for name, tensor in model.weights.items()
        if not is_embedding(name)
    )


def _experts(model: Model) -> int:
    """The number of experts of a layer; 1 for a dense model."""
    return next((tensor.shape[-1] for tensor in model.weights.values() if tensor.is_experts), 1)
