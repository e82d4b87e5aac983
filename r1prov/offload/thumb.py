"""The common rule of thumb for `--n-gpu-layers`, as a baseline: floor(VRAM / file size x layers) - 4, and the published table for R1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from r1prov.common.units import GIB
from r1prov.models.layout import LAYERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.models.model import Model

MARGIN_LAYERS = 4

PUBLISHED = {
    "UD-IQ1_S": {(1, 24): 7, (1, 80): 33, (2, 80): 61, (4, 24): 39},
    "UD-IQ1_M": {(1, 24): 5, (1, 80): 26, (2, 80): 57},
    "UD-IQ2_XXS": {(1, 24): 4, (1, 80): 22, (2, 80): 49},
    "UD-Q2_K_XL": {(1, 24): 2, (1, 80): 19, (2, 80): 32},
}
"""The published layers on the GPUs: quant -> (number of cards, GB of each) -> layers. Not all of them follow from the formula."""


def layers_on_gpu(vram_bytes: int, model_bytes: int, layers: int = LAYERS) -> int:
    """The layers on the GPUs by the formula, from 0 to `layers`.

    The formula ignores the KV cache and the compute buffers, so the engine can run out of memory.
    """
    return min(max(math.floor(vram_bytes / model_bytes * layers) - MARGIN_LAYERS, 0), layers)


def entries(layers: int, model: Model) -> int:
    """The value of `--n-gpu-layers` for so many layers of the rule. All layers of the rule include the output, which is one more entry."""
    return model.entries if layers == model.layers else layers


def published(quant: str, cards: Sequence[int]) -> int | None:
    """The layers on the GPUs by the published table; None for a quant or cards that it does not list."""
    if len(set(cards)) != 1:
        return None
    near = {gigabytes: abs(cards[0] / GIB - gigabytes) for gigabytes in (24, 80)}
    size = min(near, key=lambda gigabytes: near[gigabytes])
    return PUBLISHED.get(quant, {}).get((len(cards), size)) if near[size] < 2 else None
