"""How llama-server is started, as far as memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from r1prov.common.units import GIB

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""What `--cpu-moe` moves: llama.cpp's own pattern."""


class RefusedError(ValueError):
    """The engine would not start with these arguments; the message says why."""


class UnknownArgumentError(RefusedError):
    """What the engine takes with this argument cannot be told."""


@dataclass(frozen=True)
class Setting:
    """The arguments of llama-server that memory depends on. The defaults are the pinned engine's.

    Attributes:
        context: tokens of the whole cache; 0 for as many as the model was trained for, which None leaves to `fit`.
        batch: tokens that a client's prompt is cut into.
        micro_batch: tokens computed at once.
        slots: answers at once.
        unified: all slots share one cache.
        gpu_layers: entries on the cards, the output being the last; None for all.
        split: shares of the cards; empty for shares by their memory.
        overrides: patterns of tensor names and the device they go to: a card's number, or None for RAM. The first that matches wins.
        flash: flash attention; None where it is possible.
        cache_on_cards: a layer's cache lies with the layer, else in RAM.
        offload: large batches are computed on a card although their weights lie in RAM.
        prompts: bytes of RAM that the engine may fill with the caches of past prompts.
        fit: what is not said of context and placement, the engine may change at its start so that 1 GiB stays free on each card.
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
    fit: bool = True

    @property
    def placed(self) -> bool:
        """Where the model lies has been said, and the engine's `--fit` leaves it there."""
        return self.gpu_layers is not None or any(self.split) or bool(self.overrides)


def rules(setting: Setting, between: str) -> str:
    """The overrides as `--override-tensor` takes them, which llama-server parts by `,` and llama-bench by `;`."""
    return between.join(f"{pattern}={'CPU' if card is None else f'CUDA{card}'}" for pattern, card in setting.overrides)


CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1")
