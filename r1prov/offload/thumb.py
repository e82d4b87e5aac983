"""The rule of thumb that people use, kept to be compared with: floor(VRAM / file size x 61) - 4."""

from __future__ import annotations

import math

from r1prov.layout import LAYERS

MARGIN_LAYERS = 4


def layers_on_gpu(vram_bytes: int, model_bytes: int) -> int:
    """Layers on the GPUs by the rule, 0 to 61. It knows neither KV cache nor compute buffers, so it can run out of memory."""
    return min(max(math.floor(vram_bytes / model_bytes * LAYERS) - MARGIN_LAYERS, 0), LAYERS)
