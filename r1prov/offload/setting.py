"""The arguments of llama-server on which memory and prefixes of prompts depend, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1prov.common.units import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALLEST_MICRO_BATCH, LARGEST_MICRO_BATCH = 64, 4096
"""The smallest and the largest micro-batch that is tried for a placement."""

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The pattern of the tensors that `--cpu-moe` moves to RAM, as llama.cpp has it."""


DENSE = r"\.ffn_(up|down|gate)\."
"""The pattern of the tensors that `--n-cpu-ffn` moves to RAM."""


class RefusedError(ValueError):
    """An error that says why the engine would not start with some arguments."""


class ReplacedError(RefusedError):
    """An error about words for which there are others that the engine takes.

    Attributes:
        places: The places of these words among the arguments.
        others: The words that mean the same.
    """

    def __init__(self, what: str, places: Sequence[int], others: tuple[str, ...]) -> None:
        super().__init__(what)
        self.places, self.others = places, others


class UnknownArgumentError(RefusedError):
    """An error about an argument whose effect on memory r1prov does not know."""


@dataclass(frozen=True)
class Setting:
    """The arguments of llama-server on which memory and the reuse of prompts depend. The defaults are those of the pinned engine.

    Attributes:
        context: The tokens of the whole cache. 0 means the context that the model was trained for; None leaves the choice to `fit`.
        batch: The tokens of the batches into which a prompt is cut.
        micro_batch: The tokens that are computed at once.
        slots: The number of answers at once.
        unified: All slots share one cache.
        gpu_layers: The number of last entries on the cards, where the output is the last entry. None means all entries.
        split: The share of each card. Without any, the shares follow from the memory of the cards.
        overrides: Pairs of a pattern of tensor names and a device, which is the number of a card or None for RAM. The first pattern that
            matches decides.
        flash: Whether flash attention is used. None means that it is used where it is possible.
        cache_on_cards: The cache of a layer lies on the device of the layer; otherwise all caches lie in RAM.
        offload: A card computes large batches even with weights that lie in RAM.
        prompts: The bytes of RAM that the engine may fill with the caches of past prompts.
        cache_prompt: What a slot holds is used for the next prompt that begins alike.
        cache_reuse: The fewest tokens of a piece in the cache that is moved to another place; 0 means that none is.
        context_shift: Where an answer fills the slot, the cache is moved, and the oldest tokens are forgotten.
        fit: At its start the engine may choose the context and the placement, as far as no argument sets them, so that 1 GiB stays free
            on each card.
        only: The one card that is used; None where all are (`--split-mode none`).
        lent: How many of the cards other hosts lend (`--rpc`). They are the first ones.
    """

    context: int | None = None
    batch: int = 2048
    micro_batch: int = 512
    slots: int = 4
    unified: bool = True
    type_k: str = "F16"
    type_v: str = "F16"
    gpu_layers: int | None = None
    split: tuple[float, ...] = ()
    overrides: tuple[tuple[str, int | None], ...] = ()
    flash: bool | None = None
    cache_on_cards: bool = True
    offload: bool = True
    prompts: int = 8 * GIB
    cache_prompt: bool = True
    cache_reuse: int = 0
    context_shift: bool = False
    fit: bool = True
    only: int | None = None
    lent: int = 0

    @property
    def placed(self) -> bool:
        """Whether an argument sets the placement; the engine's `--fit` does not change it then."""
        return self.gpu_layers is not None or any(self.split) or bool(self.overrides)


def first_experts(layers: int) -> tuple[tuple[str, int | None], ...]:
    """The overrides of `--n-cpu-moe`: the experts of the first layers lie in RAM."""
    return tuple((rf"blk\.{layer}{EXPERTS}", None) for layer in range(layers))


def rules(setting: Setting) -> str:
    """The overrides as the value of `--override-tensor`."""
    return ",".join(f"{pattern}={'CPU' if card is None else f'CUDA{card}'}" for pattern, card in setting.overrides)


def card_name(card: int, lent: int) -> str:
    """The engine's name of a card, of which the first are lent by other hosts."""
    return f"RPC{card}" if card < lent else f"CUDA{card - lent}"


def slots_in_words(number: int) -> str:
    """A number of slots for people."""
    return "1 slot" if number == 1 else f"{number} slots"


def with_slots(setting: Setting, slots: int) -> Setting:
    """The setting with another number of slots, each with the context that one has now."""
    return replace(setting, slots=slots, context=(setting.context or 0) // setting.slots * slots)


def batches(setting: Setting) -> tuple[str, ...]:
    """The arguments for the logical batch, where it is not the engine's default, and for the micro-batch."""
    logical = () if setting.batch == Setting.batch else ("--batch-size", str(setting.batch))
    return *logical, "--ubatch-size", str(setting.micro_batch)


CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1")
"""The types that the engine offers for the KV cache."""
