"""Writes DeepSeek-R1 for `make test-gpu`: its own shapes, all of its layers or fewer, of zeros that take no disk or of random weights.

It needs nothing but r1prov's description of R1. `SMALL` has narrower layers, for machines on which nothing is measured.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from r1prov.common import paths
from r1prov.models import layout
from r1prov.models.model import Tensor
from tests.fixtures.letters import byte_characters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils import gguf_header
else:
    gguf_header = paths.module_util("gguf_header")

Value = bool | int | float | str | list[str]
_POOL_BYTES = 8 << 20
_SEED = 20261129


@dataclass(frozen=True)
class Sizes:
    """The sizes in which a model may be smaller than R1. Each head is as large as R1's."""

    width: int = layout.EMBEDDING
    dense_ff: int = 18432
    expert_ff: int = 2048
    experts: int = 256
    experts_used: int = 8
    q_rank: int = 1536
    heads: int = layout.HEADS
    vocabulary: int = layout.VOCABULARY


FULL = Sizes()
SMALL = Sizes(width=256, dense_ff=512, expert_ff=256, experts=8, experts_used=2, q_rank=256, heads=16, vocabulary=512)


def tensors(quant: str, *, mla: bool, layers: int, sizes: Sizes) -> list[Tensor]:
    """The tensors of the first layers of R1 as `quant`, with the output, in these sizes."""
    widths = {FULL.width: sizes.width, FULL.dense_ff: sizes.dense_ff, FULL.expert_ff: sizes.expert_ff}
    widths |= {FULL.q_rank: sizes.q_rank, FULL.vocabulary: sizes.vocabulary}
    key, value = layout.KEY_LENGTH, layout.VALUE_LENGTH
    for of_head in (key, value, key - layout.ROPE_LENGTH + value):
        widths[FULL.heads * of_head] = sizes.heads * of_head

    def resized(tensor: Tensor) -> Tensor:
        shape = [widths.get(length, length) for length in tensor.shape]
        if any(part in tensor.name for part in ("_exps.", "ffn_gate_inp.", "exp_probs_b.")):
            shape[-1] = sizes.experts
        if any(part in tensor.name for part in ("attn_k_b.", "attn_v_b.")):
            shape[-1] = sizes.heads
        return Tensor(tensor.name, tuple(shape), tensor.type)

    kept = (tensor for tensor in layout.tensors(quant, mla=mla) if tensor.layer is None or tensor.layer < layers)
    return [resized(tensor) for tensor in kept]


def write(
    path: Path, quant: str, *, mla: bool, layers: int = layout.LAYERS, sizes: Sizes = FULL, weights: str = "zeros"
) -> Path:
    """Writes the model, unless it is there. It appears whole.

    Args:
        path: The file.
        quant: The quant whose types it has.
        mla: Whether it has latent attention.
        layers: How many layers it has; the first three are dense.
        sizes: How wide it is.
        weights: `zeros`, which are a hole in the file, or `random`.

    Returns:
        `path`.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = tensors(quant, mla=mla, layers=layers, sizes=sizes)
    keys = {name: _raw(value) for name, value in _keys(mla=mla, layers=layers, sizes=sizes).items()}
    head = gguf_header.head(keys, [(each.name, each.shape, gguf_header.TYPE_NUMBERS[each.type]) for each in wanted])
    end = len(head) + sum(gguf_header.padded(each.n_bytes, gguf_header.DEFAULT_ALIGNMENT) for each in wanted)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(head)
        if weights == "random":
            _fill(file, wanted)
        file.truncate(end)
    part.rename(path)
    return path


def _fill(file: BinaryIO, wanted: Sequence[Tensor]) -> None:
    """Writes random weights. Each tensor begins somewhere else in a pool of its type, so that no two are alike."""
    dice, pools = random.Random(_SEED), {}
    for tensor in wanted:
        if tensor.type not in pools:
            pools[tensor.type] = memoryview(_pool(tensor.type, dice))
        pool = memoryview(struct.pack("<f", 1.0) * tensor.shape[0]) if "norm" in tensor.name else pools[tensor.type]
        block = _block(tensor.type)
        start = dice.randrange(len(pool) // block) * block
        left = tensor.n_bytes
        while left:
            piece = pool[start : start + left]
            file.write(piece)
            left, start = left - len(piece), 0
        file.write(bytes(-tensor.n_bytes % gguf_header.DEFAULT_ALIGNMENT))


_SCALES: dict[str, dict[int, float]] = {
    "Q4_K": {0: 1.5e-4, 2: 1.1e-3},
    "Q5_K": {0: 7e-5, 2: 1.1e-3},
    "Q6_K": {208: 1.5e-5},
    "IQ1_S": {0: 2.5e-3},
    "IQ2_XXS": {0: 4e-4},
    "Q8_0": {0: 2.7e-4},
}
"""The half floats of a block, by their place. All other bits of a block may be anything. With these, weights are about 0.02."""


def _pool(type_: str, dice: random.Random) -> bytes:
    if type_ == "F32":
        return struct.pack("<65536f", *(dice.gauss(0, 0.02) for _ in range(65536)))
    block = _block(type_)
    count = _POOL_BYTES // block
    pool = bytearray(dice.randbytes(count * block))
    for place, scale in _SCALES[type_].items():
        for byte, value in enumerate(struct.pack("<e", scale)):
            pool[place + byte :: block] = bytes([value]) * count
    return bytes(pool)


def _block(type_: str) -> int:
    """The bytes of a block of a type."""
    n_bytes: int = gguf_header.TYPES[gguf_header.TYPE_NUMBERS[type_]][2]
    return n_bytes


def _keys(*, mla: bool, layers: int, sizes: Sizes) -> dict[str, Value]:
    """The metadata of R1, with a vocabulary that can write any text."""
    latent = layout.LATENT + layout.ROPE_LENGTH
    own: dict[str, Value] = {
        "block_count": layers,
        "context_length": 163840,
        "embedding_length": sizes.width,
        "feed_forward_length": sizes.dense_ff,
        "leading_dense_block_count": layout.DENSE_LAYERS,
        "vocab_size": sizes.vocabulary,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": 1 if mla else sizes.heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.q_lora_rank": sizes.q_rank,
        "attention.kv_lora_rank": layout.LATENT,
        "attention.key_length": latent if mla else layout.KEY_LENGTH,
        "attention.value_length": layout.LATENT if mla else layout.VALUE_LENGTH,
        **({"attention.key_length_mla": layout.KEY_LENGTH} if mla else {}),
        **({"attention.value_length_mla": layout.VALUE_LENGTH} if mla else {}),
        "expert_count": sizes.experts,
        "expert_used_count": sizes.experts_used,
        "expert_feed_forward_length": sizes.expert_ff,
        "expert_shared_count": 1,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "rope.dimension_count": layout.ROPE_LENGTH,
        "rope.freq_base": 10000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 40.0,
        "rope.scaling.original_context_length": 4096,
        "rope.scaling.yarn_log_multiplier": 0.1,
    }
    return {
        "general.architecture": "deepseek2",
        "general.name": f"DeepSeek R1, {layers} of {layout.LAYERS} layers",
        "general.quantization_version": 2,
        **{f"deepseek2.{name}": value for name, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.tokens": list(_words(sizes.vocabulary)),
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def _words(vocabulary: int) -> Iterator[str]:
    yield from ("<begin>", "<end>", *byte_characters(), "th")
    yield from (f"<{number}>" for number in range(vocabulary - 259))


def _raw(value: Value) -> bytes:
    """A value as `gguf_header.Gguf.keys` holds it."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case _:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()
