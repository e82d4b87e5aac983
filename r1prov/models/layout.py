"""Describes the tensors of DeepSeek-R1 671B in Unsloth's published quants (name, shape, type, bytes) without a file.

The files are published with legacy attention: each layer has one `attn_kv_b`, and the cache holds K and V of 128 heads. The same
weights can be stored for latent attention (MLA). `attn_kv_b` is then cut into two tensors: `attn_v_b` keeps its bytes as they are,
and `attn_k_b` is transposed. The rows of `attn_k_b` have 128 values, which no K-quant can hold, so its type is Q8_0.

The shapes follow from the model's parameters. The types follow from the loader logs and the exact sizes of the published files.
A test checks that the tensors of a quant and its known header together have as many bytes as its files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from r1prov.models.model import Model, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYERS = 61
DENSE_LAYERS = 3
HEADS = 128
KEY_LENGTH = 192
VALUE_LENGTH = 128
ROPE_LENGTH = 64
LATENT = 512
EMBEDDING = 7168
VOCABULARY = 129280


Rule = Callable[[int], str]
"""A function that returns the type of a tensor for the number of its layer."""


@dataclass(frozen=True)
class Types:
    """The types of a quant's tensors. Norms, the router of the experts and its bias are F32 in every quant.

    Attributes:
        attention: The type of `attn_q_a` and `attn_q_b`.
        kv: The type of `attn_kv_a_mqa` and `attn_kv_b`.
        dense_gate_up: The type of `ffn_gate` and `ffn_up` in the first three layers, which have no experts.
    """

    embedding: str
    attention: str
    attention_output: str
    kv: str
    dense_gate_up: str
    dense_down: Rule
    expert_gate_up: str
    expert_down: Rule
    shared_gate_up: str
    shared_down: Rule


def _always(name: str) -> Rule:
    return lambda _layer: name


def _before(end: int, first_type: str, other: str) -> Rule:
    return lambda layer: first_type if layer < end else other


def _more_bits(other: str) -> Rule:
    """llama.cpp's `use_more_bits(i, 61)`: Q6_K goes to the first and last eighth of the layers and to every third one between."""
    return lambda layer: "Q6_K" if layer < 7 or layer >= 53 or (layer - 7) % 3 == 2 else other


def _dynamic(experts: str, expert_down: Rule, shared: str) -> Types:
    """The types of Unsloth's dynamic quants, which give few bits to the experts and more to the tensors that every token reads."""
    return Types(
        embedding="Q4_K",
        attention="Q4_K",
        attention_output="Q4_K",
        kv="Q6_K",
        dense_gate_up="Q4_K",
        dense_down=_always("Q6_K"),
        expert_gate_up=experts,
        expert_down=expert_down,
        shared_gate_up=shared,
        shared_down=_always("Q6_K"),
    )


def _static(most: str, down: Rule | None = None, attention_output: str = "", embedding: str = "") -> Types:
    """The types of llama.cpp's own mixes, which use the type `most` for all but a few tensors.

    The source is `llama_tensor_get_type` in llama.cpp's src/llama-quant.cpp.
    """
    down = down or _always(most)
    return Types(
        embedding=embedding or most,
        attention=most,
        attention_output=attention_output or most,
        kv=most,
        dense_gate_up=most,
        dense_down=down,
        expert_gate_up=most,
        expert_down=down,
        shared_gate_up=most,
        shared_down=down,
    )


TYPES = {
    "UD-IQ1_S": _dynamic("IQ1_S", _before(9, "IQ2_XXS", "IQ1_S"), "Q5_K"),
    "UD-IQ1_M": _dynamic("IQ1_S", _before(6, "Q3_K", "Q2_K"), "Q5_K"),
    "UD-IQ2_XXS": _dynamic("IQ2_XXS", _before(6, "Q3_K", "Q2_K"), "Q5_K"),
    "UD-Q2_K_XL": _dynamic("Q2_K", _before(6, "Q3_K", "Q2_K"), "Q4_K"),
    "Q2_K": _static("Q2_K", _always("Q3_K"), attention_output="Q3_K"),
    "Q2_K_L": _static("Q2_K", _always("Q3_K"), attention_output="Q3_K", embedding="Q4_K"),
    "Q3_K_M": _static("Q3_K", _before(3, "Q5_K", "Q4_K"), attention_output="Q4_K"),
    "Q4_K_M": _static("Q4_K", _more_bits("Q4_K")),
    "Q5_K_M": _static("Q5_K", _more_bits("Q5_K")),
    "Q6_K": _static("Q6_K"),
}
"""The types of each quant of the catalogue, by the quant's name."""


@cache
def tensors(quant: str, *, mla: bool = False) -> tuple[Tensor, ...]:
    """All tensors of `quant`: 1025 in the legacy form in which the files are published, 1086 with latent attention.

    Raises:
        KeyError: The catalogue has no such quant.
    """
    types = TYPES[quant]
    return (
        Tensor("token_embd.weight", (EMBEDDING, VOCABULARY), types.embedding),
        Tensor("output_norm.weight", (EMBEDDING,), "F32"),
        Tensor("output.weight", (EMBEDDING, VOCABULARY), "Q6_K"),
        *(tensor for layer in range(LAYERS) for tensor in _layer(layer, types, mla=mla)),
    )


@cache
def model(quant: str, *, mla: bool = False) -> Model:
    """DeepSeek-R1 as `quant`, in the published legacy form or with latent attention.

    Raises:
        KeyError: The catalogue has no such quant.
    """
    return Model(
        name=quant,
        architecture="deepseek2",
        layers=LAYERS,
        idle_layers=0,
        heads=HEADS,
        kv_heads=1 if mla else HEADS,
        key_length=LATENT + ROPE_LENGTH if mla else KEY_LENGTH,
        value_length=LATENT if mla else VALUE_LENGTH,
        mla=mla,
        head_key_length=KEY_LENGTH,
        rope_length=ROPE_LENGTH,
        vocabulary=VOCABULARY,
        experts_used=8,
        expert_weights_normed=True,
        expert_weights_scaled=True,
        expert_groups=1,
        expert_groups_used=1,
        context_length=163840,
        tensors=tensors(quant, mla=mla),
        thinks=True,
    )


def _layer(layer: int, types: Types, *, mla: bool) -> Iterator[Tensor]:
    def tensor(name: str, shape: tuple[int, ...], type_: str) -> Tensor:
        return Tensor(f"blk.{layer}.{name}", shape, type_)

    yield tensor("attn_norm.weight", (EMBEDDING,), "F32")
    yield tensor("attn_q_a.weight", (EMBEDDING, 1536), types.attention)
    yield tensor("attn_q_a_norm.weight", (1536,), "F32")
    yield tensor("attn_q_b.weight", (1536, HEADS * KEY_LENGTH), types.attention)
    yield tensor("attn_kv_a_mqa.weight", (EMBEDDING, LATENT + ROPE_LENGTH), types.kv)
    yield tensor("attn_kv_a_norm.weight", (LATENT,), "F32")
    if mla:
        yield tensor("attn_k_b.weight", (KEY_LENGTH - ROPE_LENGTH, LATENT, HEADS), "Q8_0")
        yield tensor("attn_v_b.weight", (LATENT, VALUE_LENGTH, HEADS), types.kv)
    else:
        yield tensor("attn_kv_b.weight", (LATENT, HEADS * (KEY_LENGTH - ROPE_LENGTH + VALUE_LENGTH)), types.kv)
    yield tensor("attn_output.weight", (HEADS * VALUE_LENGTH, EMBEDDING), types.attention_output)
    yield tensor("ffn_norm.weight", (EMBEDDING,), "F32")
    if layer < DENSE_LAYERS:
        yield tensor("ffn_gate.weight", (EMBEDDING, 18432), types.dense_gate_up)
        yield tensor("ffn_up.weight", (EMBEDDING, 18432), types.dense_gate_up)
        yield tensor("ffn_down.weight", (18432, EMBEDDING), types.dense_down(layer))
        return
    yield tensor("ffn_gate_inp.weight", (EMBEDDING, 256), "F32")
    yield tensor("exp_probs_b.bias", (256,), "F32")
    yield tensor("ffn_gate_exps.weight", (EMBEDDING, 2048, 256), types.expert_gate_up)
    yield tensor("ffn_up_exps.weight", (EMBEDDING, 2048, 256), types.expert_gate_up)
    yield tensor("ffn_down_exps.weight", (2048, EMBEDDING, 256), types.expert_down(layer))
    yield tensor("ffn_gate_shexp.weight", (EMBEDDING, 2048), types.shared_gate_up)
    yield tensor("ffn_up_shexp.weight", (EMBEDDING, 2048), types.shared_gate_up)
    yield tensor("ffn_down_shexp.weight", (2048, EMBEDDING), types.shared_down(layer))
