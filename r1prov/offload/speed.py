"""What a token reads, and how long that takes. Reading weights is what decoding waits for: a token multiplies each of them once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1prov.common.units import GB
from r1prov.models.model import is_embedding
from r1prov.offload.memory import cache_bytes_per_token, context_per_slot, placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.models.model import Model, Tensor
    from r1prov.offload.setting import Setting

RAM_BYTES_PER_SECOND = (35 * GB, 60 * GB)
"""What decoding gets out of the RAM of a two-socket server: 5.78 tokens/s with 35 of 62 entries of UD-IQ1_S on four RTX 4090, which
is 6.4 GB per token from RAM, and 3 to 4 tokens/s without GPU, 14.7 GB (figures of others, docs/guide.md)."""

CARD_BYTES_PER_SECOND = (400 * GB, 800 * GB)
"""The same of a card: under its memory's figure, for each of 61 layers waits for the one before it."""

LINK_BYTES_PER_SECOND = 20 * GB
"""To the first card, for weights in RAM that a large batch is computed with: PCIe 4.0 x16, pinned memory."""


@dataclass(frozen=True)
class Reads:
    """Bytes that a decoded token reads, of weights and of the full cache of one slot."""

    cards: tuple[int, ...]
    host: int

    def seconds(self, which: int) -> float:
        """Per token; `which` 0 for the low speeds, 1 for the high ones. Devices take turns."""
        return self.host / RAM_BYTES_PER_SECOND[which] + sum(self.cards) / CARD_BYTES_PER_SECOND[which]


def weight_bytes_per_token(model: Model, name: str, tensor: Tensor) -> int:
    """Of routed experts those that a token is sent to, of the embedding one row, of the rest everything; `name` is the graph's."""
    if tensor.is_experts:
        return tensor.n_bytes * model.experts_used // tensor.shape[-1]
    return tensor.n_bytes // tensor.shape[-1] if is_embedding(name) else tensor.n_bytes


def reads(model: Model, setting: Setting, cards: Sequence[int]) -> Reads:
    """What a token reads from each device."""
    where = placement(model, setting, cards)
    sums = [0] * (len(cards) + 1)
    for name, tensor in model.weights.items():
        sums[where.tensors[name]] += weight_bytes_per_token(model, name, tensor)
    for device in where.caches:
        sums[device] += context_per_slot(model, setting) * cache_bytes_per_token(model, setting)
    return Reads(tuple(sums[:-1]), sums[-1])


def prompt_copies_seconds(model: Model, setting: Setting, cards: Sequence[int]) -> float:
    """What each micro-batch of a prompt waits for weights to come from RAM to the first card."""
    if not cards or not setting.offload:
        return 0.0
    tensors = placement(model, setting, cards).tensors
    in_ram = sum(
        tensor.n_bytes
        for name, tensor in model.weights.items()
        if tensors[name] == len(cards) and not is_embedding(name)
    )
    return in_ram / LINK_BYTES_PER_SECOND
