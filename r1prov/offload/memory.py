"""What DeepSeek-R1 in the published legacy attention form takes on a device besides its weights. Bytes.

The KV cache follows from the model's shapes. The compute buffers were measured with llama.cpp's CUDA backend at full size
(llama-fit-params of the pinned version, UD-IQ1_S, contexts of 512 to 32,768 tokens, micro-batches of 64 to 1,024); the formulas below
are bounds of those figures, tests/unit/test_offload.py holds the figures.
"""

from __future__ import annotations

from r1prov.layout import HEADS, KEY_LENGTH, VALUE_LENGTH, block
from r1prov.units import KIB, MIB

RESERVE_BYTES = 1024 * MIB
"""What stays free on each card: the CUDA context and what no formula sees. llama.cpp's own `--fit` leaves as much."""


def kv_bytes_per_token(kv_type_k: str) -> int:
    """KV cache of one layer for one token: K in `kv_type_k`, V in F16 (it cannot be quantised without flash attention)."""
    block_elements, block_bytes = block(kv_type_k.upper())
    return HEADS * KEY_LENGTH // block_elements * block_bytes + HEADS * VALUE_LENGTH * 2


def compute_bytes(context_per_slot: int, slots: int, micro_batch: int) -> int:
    """Compute buffer of a card whose layers are all its own.

    Without flash attention the scores of a micro-batch against one slot's context lie in memory: heads x 4 bytes and 4 bytes of
    mask for every pair; V of the whole cache is copied transposed (F16); activations take 184 KiB per token of the micro-batch.
    32 bytes x heads and 192 MiB on top bound K in F16 and the copies of inputs when several cards work as a pipeline.
    """
    scores = context_per_slot * micro_batch * (HEADS * 4 + 4)
    transposed_v = context_per_slot * slots * HEADS * VALUE_LENGTH * 2
    return scores + transposed_v + micro_batch * 184 * KIB + 192 * MIB


def first_card_extra_bytes(context_per_slot: int, slots: int, kv_type_k: str) -> int:
    """What the first card takes on top when layers stay in RAM.

    For batches of 32 tokens and more llama.cpp computes those layers on the first card too: it copies a layer's KV cache there,
    and a layer's experts (1.0 GiB at the most for what was measured).
    """
    return context_per_slot * slots * kv_bytes_per_token(kv_type_k) + 1024 * MIB
