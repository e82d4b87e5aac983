# ruff: noqa: RUF001 - R1 spells its special tokens with these bars
"""A tiny DeepSeek-R1 with random weights: nothing to talk to, but the real architecture in 12 MB.

Latent attention (MLA) with R1's own head sizes, routed and shared experts, YaRN, R1's special tokens: what only the
architecture `deepseek2` shows can be tried with it on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import quantize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Values: TypeAlias = npt.NDArray[np.float32]

LAYERS = 8
KV_RANK = 512
NOPE, ROPE, VALUE = 128, 64, 128
CONTEXT_LENGTH = 163840
RMS_EPSILON = 1e-6
EXPERT_SCALE = 2.5
ROPE_BASE = 10000.0
YARN_FACTOR, YARN_CONTEXT, YARN_LOG_MULTIPLIER = 40.0, 4096, 0.1

_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>")
_THINK = ("<think>", "</think>")
BOS = 0
_MERGES = ("Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he", "e r")
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>"
    "{% else %}<｜User｜>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """What a deepseek2 model has of what R1 has more of; the sizes of a head are always R1's own.

    Attributes:
        layers: blocks, of which the first is dense.
        width: elements of a token's vector.
        heads: of attention.
        q_rank: elements of the latent vector that queries are made from.
        dense_ff: elements inside the dense layer's network.
        expert_ff: inside an expert's.
        experts: routed ones of a layer; one more is shared.
        experts_used: for each token.
    """

    layers: int = LAYERS
    width: int = 256
    heads: int = 4
    q_rank: int = 128
    dense_ff: int = 512
    expert_ff: int = 64
    experts: int = 8
    experts_used: int = 2


TINY = Sizes()
_DENSE_LAYERS = 1


def write(
    path: Path,
    seed: int = 1,
    *,
    legacy: GGMLQuantizationType | None = None,
    others: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
) -> Path:
    """Writes the model to `path`; the same seed always gives the same bytes.

    Args:
        path: where to.
        seed: of its weights.
        legacy: the type of `attn_kv_b`, for the form in which R1 was published first; else the form is MLA.
        others: the type of the other matrices.

    Returns:
        `path`.
    """
    values = random_values(TINY, seed, mla=legacy is None)
    kinds = {name: legacy if legacy is not None and "attn_kv_b" in name else others for name in values}
    return save(path, TINY, values, kinds)


def random_values(sizes: Sizes, seed: int, *, mla: bool) -> dict[str, Values]:
    """The weights of a model that has learnt nothing, by tensor."""
    random = np.random.PCG64(seed)
    drawn = {name: _uniform(random, shape) for name, shape in _shapes(sizes, mla=mla).items()}
    return {name: values + 1 if "norm" in name else values for name, values in drawn.items()}


def save(path: Path, sizes: Sizes, values: Mapping[str, Values], kinds: Mapping[str, GGMLQuantizationType]) -> Path:
    """Writes a model to `path`, which it returns.

    Args:
        path: where to.
        sizes: of the model.
        values: by tensor, as `random_values` has them.
        kinds: the type of each tensor. Norms, biases and the router are F32 in every published file, and here.
    """
    mla = "blk.0.attn_k_b.weight" in values
    writer = gguf.GGUFWriter(path, "deepseek2")
    add_constants(writer)
    _add_hyperparameters(writer, sizes, mla=mla)
    _add_tokenizer(writer)
    for name, of_tensor in values.items():
        if of_tensor.ndim == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(name, of_tensor)
        else:
            writer.add_tensor(name, quantize(of_tensor, kinds[name]), raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokens(text: str) -> list[int]:
    """What llama.cpp makes of a text, less the token at its beginning.

    The merges are of letters, and of a space with one, which R1's rules for words never part. Each of them is applied to the whole
    text before the next: no later one makes a pair that an earlier one merges.
    """
    number = {token: position for position, token in enumerate(vocabulary())}
    of_byte = [number[character] for character in _byte_characters()]
    written = "".join(chr(of_byte[byte]) for byte in text.encode())
    for merge in _MERGES:
        pair = merge.split(" ")
        written = written.replace("".join(chr(number[half]) for half in pair), chr(number["".join(pair)]))
    return [ord(character) for character in written]


def add_constants(writer: gguf.GGUFWriter) -> None:
    """What a file of R1 says at any size: how experts are chosen and weighed, how positions are told, whose tokenizer it is."""
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_layer_norm_rms_eps(RMS_EPSILON)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(EXPERT_SCALE)
    writer.add_expert_weights_norm(value=True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(YARN_FACTOR)
    writer.add_rope_scaling_orig_ctx_len(YARN_CONTEXT)
    writer.add_rope_scaling_yarn_log_mul(YARN_LOG_MULTIPLIER)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(1)


def _add_hyperparameters(writer: gguf.GGUFWriter, sizes: Sizes, *, mla: bool) -> None:
    writer.add_name("Tiny R1")
    writer.add_block_count(sizes.layers)
    writer.add_embedding_length(sizes.width)
    writer.add_feed_forward_length(sizes.dense_ff)
    writer.add_leading_dense_block_count(_DENSE_LAYERS)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(1 if mla else sizes.heads)
    writer.add_q_lora_rank(sizes.q_rank)
    writer.add_kv_lora_rank(KV_RANK)
    writer.add_key_length(KV_RANK + ROPE if mla else NOPE + ROPE)
    writer.add_value_length(KV_RANK if mla else VALUE)
    if mla:
        writer.add_key_length_mla(NOPE + ROPE)
        writer.add_value_length_mla(VALUE)
    writer.add_expert_count(sizes.experts)
    writer.add_expert_used_count(sizes.experts_used)
    writer.add_expert_feed_forward_length(sizes.expert_ff)
    writer.add_rope_dimension_count(ROPE)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    words = vocabulary()
    control, normal, own = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED
    writer.add_vocab_size(len(words))
    writer.add_token_list(words)
    plain = len(words) - len(_SPECIAL) - len(_THINK)
    writer.add_token_types([control] * len(_SPECIAL) + [normal] * plain + [own] * len(_THINK))
    writer.add_token_merges(_MERGES)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(value=True)
    writer.add_add_eos_token(value=False)
    writer.add_chat_template(_TEMPLATE)


def vocabulary() -> list[str]:
    """The tokens, by number."""
    return [*_SPECIAL, *_byte_characters(), *(merge.replace(" ", "") for merge in _MERGES), *_THINK]


def _byte_characters() -> list[str]:
    """The characters by which a GPT-2 vocabulary writes the bytes 0 to 255: printable ones as they are, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _shapes(sizes: Sizes, *, mla: bool) -> dict[str, tuple[int, ...]]:
    """The tensors by name, in numpy's order of dimensions (GGUF's reversed)."""
    words = len(vocabulary())
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (words, sizes.width),
        "output_norm.weight": (sizes.width,),
        "output.weight": (words, sizes.width),
    }
    for layer in range(sizes.layers):
        network = _dense(sizes) if layer < _DENSE_LAYERS else _mixture(sizes)
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in (_attention(sizes, mla=mla) | network).items()}
    return shapes


def _attention(sizes: Sizes, *, mla: bool) -> dict[str, tuple[int, ...]]:
    up: dict[str, tuple[int, ...]] = {"attn_kv_b.weight": (sizes.heads * (NOPE + VALUE), KV_RANK)}
    if mla:
        up = {"attn_k_b.weight": (sizes.heads, KV_RANK, NOPE), "attn_v_b.weight": (sizes.heads, VALUE, KV_RANK)}
    return {
        "attn_norm.weight": (sizes.width,),
        "attn_q_a.weight": (sizes.q_rank, sizes.width),
        "attn_q_a_norm.weight": (sizes.q_rank,),
        "attn_q_b.weight": (sizes.heads * (NOPE + ROPE), sizes.q_rank),
        "attn_kv_a_mqa.weight": (KV_RANK + ROPE, sizes.width),
        "attn_kv_a_norm.weight": (KV_RANK,),
        **up,
        "attn_output.weight": (sizes.width, sizes.heads * VALUE),
        "ffn_norm.weight": (sizes.width,),
    }


def _dense(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return {
        "ffn_gate.weight": (sizes.dense_ff, sizes.width),
        "ffn_up.weight": (sizes.dense_ff, sizes.width),
        "ffn_down.weight": (sizes.width, sizes.dense_ff),
    }


def _mixture(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    return {
        "ffn_gate_inp.weight": (sizes.experts, sizes.width),
        "exp_probs_b.bias": (sizes.experts,),
        "ffn_gate_exps.weight": (sizes.experts, sizes.expert_ff, sizes.width),
        "ffn_up_exps.weight": (sizes.experts, sizes.expert_ff, sizes.width),
        "ffn_down_exps.weight": (sizes.experts, sizes.width, sizes.expert_ff),
        "ffn_gate_shexp.weight": (sizes.expert_ff, sizes.width),
        "ffn_up_shexp.weight": (sizes.expert_ff, sizes.width),
        "ffn_down_shexp.weight": (sizes.width, sizes.expert_ff),
    }


def _uniform(random: np.random.PCG64, shape: tuple[int, ...]) -> Values:
    """Values in [-0.1, 0.1) from the raw bits, which numpy promises never to change, as it does not for its distributions."""
    bits = random.random_raw(int(np.prod(shape))) >> np.uint64(40)
    return ((bits.astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)) * np.float32(0.2)).reshape(shape)
