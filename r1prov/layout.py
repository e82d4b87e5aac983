"""The tensors of DeepSeek-R1 671B in Unsloth's published quants: name, shape, type, bytes, without a file.

Shapes follow from the model's parameters, types from the loader logs and the exact sizes of the published files; the sum of a
quant's tensors and its known header equals the bytes of its files (tested). Only quants whose types are known are here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYERS = 61
DENSE_LAYERS = 3
HEADS = 128
KEY_LENGTH = 192
VALUE_LENGTH = 128
EMBEDDING = 7168


@cache
def block(type_: str) -> tuple[int, int]:
    """(elements, bytes) of a block of a ggml type, by the table of the `gguf` package.

    Raises:
        KeyError: no such type.
    """
    # Imported late: it brings numpy, half of the time that `r1prov --help` would take.
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    return GGML_QUANT_SIZES[GGMLQuantizationType[type_]]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a GGUF file. `shape` is in GGUF's order, fastest first; `type` a ggml type as `IQ1_S`."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def layer(self) -> int | None:
        """The layer it belongs to; None for embedding and output."""
        return int(self.name.split(".")[1]) if self.name.startswith("blk.") else None

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, without padding."""
        block_elements, block_bytes = block(self.type)
        return math.prod(self.shape) // block_elements * block_bytes


@dataclass(frozen=True)
class Types:
    """What a quant uses where. `expert_down` by layer; the rest is the same in every layer."""

    expert_gate_up: str
    expert_down: Callable[[int], str]
    shared_gate_up: str
    shared_down: Callable[[int], str]
    kv: str


def _up_to(last: int, first_type: str, other: str) -> Callable[[int], str]:
    return lambda layer: first_type if layer <= last else other


def _more_bits(layer: int) -> str:
    """llama.cpp's `use_more_bits(i, 61)`: the first and last eighth and every third layer between get Q6_K."""
    return "Q6_K" if layer < 7 or layer >= 53 or (layer - 7) % 3 == 2 else "Q4_K"


def _always(name: str) -> Callable[[int], str]:
    return lambda _layer: name


TYPES: dict[str, Types] = {
    "UD-IQ1_S": Types("IQ1_S", _up_to(8, "IQ2_XXS", "IQ1_S"), "Q5_K", _always("Q6_K"), "Q6_K"),
    "UD-IQ1_M": Types("IQ1_S", _up_to(5, "Q3_K", "Q2_K"), "Q5_K", _always("Q6_K"), "Q6_K"),
    "UD-IQ2_XXS": Types("IQ2_XXS", _up_to(5, "Q3_K", "Q2_K"), "Q5_K", _always("Q6_K"), "Q6_K"),
    "UD-Q2_K_XL": Types("Q2_K", _up_to(5, "Q3_K", "Q2_K"), "Q4_K", _always("Q6_K"), "Q6_K"),
    "Q4_K_M": Types("Q4_K", _more_bits, "Q4_K", _more_bits, "Q4_K"),
}


@cache
def tensors(quant: str) -> tuple[Tensor, ...]:
    """All 1025 tensors of `quant`, in the legacy attention form in which the files are published.

    Raises:
        KeyError: the types of this quant are not known.
    """
    types = TYPES[quant]
    return (
        Tensor("token_embd.weight", (EMBEDDING, 129280), "Q4_K"),
        Tensor("output_norm.weight", (EMBEDDING,), "F32"),
        Tensor("output.weight", (EMBEDDING, 129280), "Q6_K"),
        *(tensor for layer in range(LAYERS) for tensor in _layer(layer, types)),
    )


def _layer(layer: int, types: Types) -> Iterator[Tensor]:
    def tensor(name: str, shape: tuple[int, ...], type_: str) -> Tensor:
        return Tensor(f"blk.{layer}.{name}", shape, type_)

    yield tensor("attn_norm.weight", (EMBEDDING,), "F32")
    yield tensor("attn_q_a.weight", (EMBEDDING, 1536), "Q4_K")
    yield tensor("attn_q_a_norm.weight", (1536,), "F32")
    yield tensor("attn_q_b.weight", (1536, HEADS * KEY_LENGTH), "Q4_K")
    yield tensor("attn_kv_a_mqa.weight", (EMBEDDING, 576), types.kv)
    yield tensor("attn_kv_a_norm.weight", (512,), "F32")
    yield tensor("attn_kv_b.weight", (512, HEADS * 256), types.kv)
    yield tensor("attn_output.weight", (HEADS * VALUE_LENGTH, EMBEDDING), "Q4_K")
    yield tensor("ffn_norm.weight", (EMBEDDING,), "F32")
    if layer < DENSE_LAYERS:
        yield tensor("ffn_gate.weight", (EMBEDDING, 18432), "Q4_K")
        yield tensor("ffn_up.weight", (EMBEDDING, 18432), "Q4_K")
        yield tensor("ffn_down.weight", (18432, EMBEDDING), "Q6_K")
        return
    yield tensor("ffn_gate_inp.weight", (EMBEDDING, 256), "F32")
    yield tensor("exp_probs_b.bias", (256,), "F32")
    yield tensor("ffn_gate_exps.weight", (EMBEDDING, 2048, 256), types.expert_gate_up)
    yield tensor("ffn_up_exps.weight", (EMBEDDING, 2048, 256), types.expert_gate_up)
    yield tensor("ffn_down_exps.weight", (2048, EMBEDDING, 256), types.expert_down(layer))
    yield tensor("ffn_gate_shexp.weight", (EMBEDDING, 2048), types.shared_gate_up)
    yield tensor("ffn_up_shexp.weight", (EMBEDDING, 2048), types.shared_gate_up)
    yield tensor("ffn_down_shexp.weight", (2048, EMBEDDING), types.shared_down(layer))
