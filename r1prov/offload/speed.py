"""The bytes that a decoded token reads from each device, and how long reading them takes. Here stand all speeds that plans count with.

Decoding is limited by the speed of memory: each token uses every weight that it reads only once.
"""

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
"""The low and the high speed at which decoding reads the RAM of a two-socket server.

Others measured 5.78 tokens/s with 35 of 62 entries of UD-IQ1_S on four RTX 4090, where a token reads 6.4 GB from RAM. They measured 3 to
4 tokens/s without a GPU, where a token reads 14.7 GB (docs/guide.md).
"""

CARD_BYTES_PER_SECOND = (400 * GB, 800 * GB)
"""The low and the high speed at which decoding reads a card. Each layer waits for the one before it, so both are below the card's data
sheet."""

LINK_BYTES_PER_SECOND = (20 * GB, 25 * GB)
"""The low and the high speed at which weights go from RAM to the first card, which computes large batches with them: PCIe 4.0 x16, pinned
memory."""

CARD_OPERATIONS_PER_SECOND = (19e12, 65e12)
"""The low and the high speed at which a card computes matrix products of quantised weights with a batch, experts included.

Others measured 277 tokens/s of prompt for UD-IQ1_S on two H100 in January 2025 (unslothai/unsloth #1591): 71 GFLOP for each token. They
measured 10,026 tokens/s for a mixture with 3 G active weights on an RTX 4090 in 2026, in micro-batches of 2,048 (llama.cpp #22298).
"""

CPU_OPERATIONS_PER_SECOND = (0.7e12, 4.6e12)
"""The same for the CPU. Others measured 10 tokens/s of prompt for R1 on 48 older cores (ik_llama.cpp #282), and 65 on 64 cores of an
Ice Lake Xeon (ktransformers #527)."""


@dataclass(frozen=True)
class Reads:
    """The bytes of weights and of the full cache of one slot that a decoded token reads, from each card and from the host's RAM."""

    cards: tuple[int, ...]
    host: int

    def seconds(self, which: int) -> float:
        """Seconds per token. `which` is 0 for the low speeds and 1 for the high ones. The devices work one after the other."""
        return self.host / RAM_BYTES_PER_SECOND[which] + sum(self.cards) / CARD_BYTES_PER_SECOND[which]


def weight_bytes_per_token(model: Model, name: str, tensor: Tensor) -> int:
    """The bytes that one token reads of a tensor.

    A token reads the experts that it is routed to, one row of the embedding, and every other tensor as a whole.

    Args:
        model: The model.
        name: The name under which the graph reads the tensor, see `Model.weights`.
        tensor: The tensor.
    """
    if tensor.is_experts:
        return tensor.n_bytes * model.experts_used // tensor.shape[-1]
    return tensor.n_bytes // tensor.shape[-1] if is_embedding(name) else tensor.n_bytes


def reads(model: Model, setting: Setting, cards: Sequence[int]) -> Reads:
    """The bytes that a decoded token reads from each device with this setting."""
    where = placement(model, setting, cards)
    sums = [0] * (len(cards) + 1)
    for name, tensor in model.weights.items():
        sums[where.tensors[name]] += weight_bytes_per_token(model, name, tensor)
    for device in where.caches:
        sums[device] += context_per_slot(model, setting) * cache_bytes_per_token(model, setting)
    return Reads(tuple(sums[:-1]), sums[-1])


def prompt_copies_seconds(model: Model, setting: Setting, cards: Sequence[int]) -> float:
    """The seconds that each micro-batch of a prompt waits while weights are copied from RAM to the first card."""
    if not cards or not setting.offload:
        return 0.0
    tensors = placement(model, setting, cards).tensors
    in_ram = sum(
        tensor.n_bytes
        for name, tensor in model.weights.items()
        if tensors[name] == len(cards) and not is_embedding(name)
    )
    return in_ram / LINK_BYTES_PER_SECOND[0]
