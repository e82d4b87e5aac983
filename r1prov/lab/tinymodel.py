# ruff: noqa: RUF001 - R1 spells its special tokens with these bars
"""A tiny DeepSeek-R1 with random weights: nothing to talk to, but the real architecture in 12 MB.

Latent attention (MLA) with R1's own head sizes, routed and shared experts, YaRN, R1's special tokens: what only the
architecture `deepseek2` shows can be tried with it on any machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
from gguf.quants import quantize

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

LAYERS = 8
_DENSE_LAYERS = 1
_WIDTH = 256
_HEADS = 4
_Q_RANK, _KV_RANK = 128, 512
_NOPE, _ROPE, _VALUE = 128, 64, 128
_DENSE_FF, _EXPERT_FF = 512, 64
_EXPERTS, _EXPERTS_USED = 8, 2

_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>")
_MERGES = ("Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he", "e r")
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>"
    "{% else %}<｜User｜>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def write(path: Path, seed: int = 1, *, legacy: gguf.GGMLQuantizationType | None = None) -> Path:
    """Writes the model to `path`; the same seed always gives the same bytes.

    Args:
        path: where to.
        seed: of its weights.
        legacy: the type of `attn_kv_b`, for the form in which R1 was published first; else the form is MLA.

    Returns:
        `path`.
    """
    writer = gguf.GGUFWriter(path, "deepseek2")
    add_constants(writer)
    _add_hyperparameters(writer, mla=legacy is None)
    _add_tokenizer(writer)
    random = np.random.PCG64(seed)
    for name, shape in _shapes(mla=legacy is None).items():
        values = _uniform(random, shape)
        if len(shape) == 1 or "ffn_gate_inp" in name:  # norms, biases and the router are F32 in every published file
            writer.add_tensor(name, values + 1 if "norm" in name else values)
        else:
            kind = legacy if legacy is not None and "attn_kv_b" in name else gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_constants(writer: gguf.GGUFWriter) -> None:
    """What a file of R1 says at any size: how experts are chosen and weighed, how positions are told, whose tokenizer it is."""
    writer.add_context_length(163840)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(2.5)
    writer.add_expert_weights_norm(value=True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(40.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_yarn_log_mul(0.1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _add_hyperparameters(writer: gguf.GGUFWriter, *, mla: bool) -> None:
    writer.add_name("Tiny R1 with random weights")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_DENSE_FF)
    writer.add_leading_dense_block_count(_DENSE_LAYERS)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(1 if mla else _HEADS)
    writer.add_q_lora_rank(_Q_RANK)
    writer.add_kv_lora_rank(_KV_RANK)
    writer.add_key_length(_KV_RANK + _ROPE if mla else _NOPE + _ROPE)
    writer.add_value_length(_KV_RANK if mla else _VALUE)
    if mla:
        writer.add_key_length_mla(_NOPE + _ROPE)
        writer.add_value_length_mla(_VALUE)
    writer.add_expert_count(_EXPERTS)
    writer.add_expert_used_count(_EXPERTS_USED)
    writer.add_expert_feed_forward_length(_EXPERT_FF)
    writer.add_rope_dimension_count(_ROPE)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    plain = [*_byte_characters(), *(merge.replace(" ", "") for merge in _MERGES)]
    tokens = [*_SPECIAL, *plain, "<think>", "</think>"]
    control, normal, own = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types([control] * len(_SPECIAL) + [normal] * len(plain) + [own] * 2)
    writer.add_token_merges(_MERGES)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(value=True)
    writer.add_add_eos_token(value=False)
    writer.add_chat_template(_TEMPLATE)


def _byte_characters() -> list[str]:
    """The 256 characters by which a GPT-2 vocabulary writes bytes: printable ones as they are, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(0x100 + position) for position in range(len(others))]


def _shapes(*, mla: bool) -> dict[str, tuple[int, ...]]:
    """The tensors by name, in numpy's order of dimensions (GGUF's reversed)."""
    vocabulary = len(_SPECIAL) + 256 + len(_MERGES) + 2
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, _WIDTH),
        "output_norm.weight": (_WIDTH,),
        "output.weight": (vocabulary, _WIDTH),
    }
    for layer in range(LAYERS):
        of_layer = _attention(mla=mla) | (_DENSE if layer < _DENSE_LAYERS else _MIXTURE)
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    return shapes


def _attention(*, mla: bool) -> dict[str, tuple[int, ...]]:
    up: dict[str, tuple[int, ...]] = {"attn_kv_b.weight": (_HEADS * (_NOPE + _VALUE), _KV_RANK)}
    if mla:
        up = {"attn_k_b.weight": (_HEADS, _KV_RANK, _NOPE), "attn_v_b.weight": (_HEADS, _VALUE, _KV_RANK)}
    return {
        "attn_norm.weight": (_WIDTH,),
        "attn_q_a.weight": (_Q_RANK, _WIDTH),
        "attn_q_a_norm.weight": (_Q_RANK,),
        "attn_q_b.weight": (_HEADS * (_NOPE + _ROPE), _Q_RANK),
        "attn_kv_a_mqa.weight": (_KV_RANK + _ROPE, _WIDTH),
        "attn_kv_a_norm.weight": (_KV_RANK,),
        **up,
        "attn_output.weight": (_WIDTH, _HEADS * _VALUE),
        "ffn_norm.weight": (_WIDTH,),
    }


_DENSE: dict[str, tuple[int, ...]] = {
    "ffn_gate.weight": (_DENSE_FF, _WIDTH),
    "ffn_up.weight": (_DENSE_FF, _WIDTH),
    "ffn_down.weight": (_WIDTH, _DENSE_FF),
}
_MIXTURE: dict[str, tuple[int, ...]] = {
    "ffn_gate_inp.weight": (_EXPERTS, _WIDTH),
    "exp_probs_b.bias": (_EXPERTS,),
    "ffn_gate_exps.weight": (_EXPERTS, _EXPERT_FF, _WIDTH),
    "ffn_up_exps.weight": (_EXPERTS, _EXPERT_FF, _WIDTH),
    "ffn_down_exps.weight": (_EXPERTS, _WIDTH, _EXPERT_FF),
    "ffn_gate_shexp.weight": (_EXPERT_FF, _WIDTH),
    "ffn_up_shexp.weight": (_EXPERT_FF, _WIDTH),
    "ffn_down_shexp.weight": (_WIDTH, _EXPERT_FF),
}


def _uniform(random: np.random.PCG64, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Values in [-0.1, 0.1) from the raw bits, which numpy promises never to change, as it does not for its distributions."""
    bits = random.random_raw(int(np.prod(shape))) >> np.uint64(40)
    return ((bits.astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)) * np.float32(0.2)).reshape(shape)
