"""Describes models of other architectures at full size: their metadata and tensors as in the published files, with usual types.

`fullsize` writes files without weights from these descriptions; the unit tests make an `r1prov.models.model.Model` from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from r1prov.models import gguf, layout
from r1prov.models.model import Model, Tensor


@dataclass(frozen=True)
class Description:
    """The content of a GGUF header.

    Attributes:
        metadata: The values by their keys.
        tensors: The tensors in the order of the file.
    """

    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def vocabulary(self) -> int:
        """The number of tokens in the vocabulary."""
        return next(tensor.shape[1] for tensor in self.tensors if tensor.name == "token_embd.weight")

    def model(self, name: str) -> Model:
        """The model that r1prov reads from this header."""
        return gguf.model(name, self.metadata, self.tensors)


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _grouped(
    architecture: str,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    inner: int,
    vocabulary: int,
    context: int,
    head: int = 128,
    types: tuple[str, str] = ("Q4_K", "Q6_K"),
    experts: int = 0,
    experts_used: int = 0,
    tied: bool = False,
    biases: bool = False,
    head_norms: bool = False,
    rope_factors: bool = False,
) -> Description:
    """A model with grouped-query attention.

    The first of `types` is the type of most matrices; the second is that of the matrices to which K-quant mixes give more bits.
    """
    usual, more = types

    def tensors() -> Iterator[Tensor]:
        if rope_factors:
            yield Tensor("rope_freqs.weight", (head // 2,), "F32")
        yield Tensor("token_embd.weight", (width, vocabulary), more if tied else usual)
        yield Tensor("output_norm.weight", (width,), "F32")
        if not tied:
            yield Tensor("output.weight", (width, vocabulary), more)
        for layer in range(layers):
            better = more if _more_bits(layer, layers) else usual
            yield from _layer(layer, better)

    def _layer(layer: int, better: str) -> Iterator[Tensor]:
        def tensor(name: str, shape: tuple[int, ...], kind: str = "F32") -> Tensor:
            return Tensor(f"blk.{layer}.{name}", shape, kind)

        yield tensor("attn_norm.weight", (width,))
        for name, number, kind in (("q", heads, usual), ("k", kv_heads, usual), ("v", kv_heads, better)):
            yield tensor(f"attn_{name}.weight", (width, number * head), kind)
            if biases:
                yield tensor(f"attn_{name}.bias", (number * head,))
            if head_norms and name != "v":
                yield tensor(f"attn_{name}_norm.weight", (head,))
        yield tensor("attn_output.weight", (heads * head, width), usual)
        yield tensor("ffn_norm.weight", (width,))
        ending, expert_axis = ("_exps", (experts,)) if experts else ("", ())
        if experts:
            yield tensor("ffn_gate_inp.weight", (width, experts))
        yield tensor(f"ffn_gate{ending}.weight", (width, inner, *expert_axis), usual)
        yield tensor(f"ffn_up{ending}.weight", (width, inner, *expert_axis), usual)
        yield tensor(f"ffn_down{ending}.weight", (inner, width, *expert_axis), better)

    metadata = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": head,
        "rope.freq_base": 1e6,
    }
    if experts:
        metadata |= {
            "expert_count": experts,
            "expert_used_count": experts_used,
            "expert_feed_forward_length": inner,
        }
    return Description(_keys(architecture, metadata), tuple(tensors()))


def _keys(architecture: str, metadata: dict[str, Any]) -> dict[str, Any]:
    return {"general.architecture": architecture} | {f"{architecture}.{key}": v for key, v in metadata.items()}


def _lite() -> Description:
    """DeepSeek V2 Lite, whose queries are not compressed and whose experts' weights are neither normed nor scaled."""
    layers, width, heads, latent, rope, nope, value, experts, inner = 27, 2048, 16, 512, 64, 128, 128, 64, 1408

    def tensors() -> Iterator[Tensor]:
        yield Tensor("token_embd.weight", (width, 102400), "Q4_K")
        yield Tensor("output_norm.weight", (width,), "F32")
        yield Tensor("output.weight", (width, 102400), "Q6_K")
        for layer in range(layers):
            for name, shape, kind in (
                ("attn_norm", (width,), "F32"),
                ("attn_q", (width, heads * (nope + rope)), "Q4_K"),
                ("attn_kv_a_mqa", (width, latent + rope), "Q4_K"),
                ("attn_kv_a_norm", (latent,), "F32"),
                ("attn_kv_b", (latent, heads * (nope + value)), "Q4_K"),
                ("attn_output", (heads * value, width), "Q4_K"),
                ("ffn_norm", (width,), "F32"),
                *(dense if layer == 0 else routed),
            ):
                yield Tensor(f"blk.{layer}.{name}.weight", shape, kind)

    dense = (
        ("ffn_gate", (width, 10944), "Q4_K"),
        ("ffn_up", (width, 10944), "Q4_K"),
        ("ffn_down", (10944, width), "Q8_0"),
    )
    routed = (
        ("ffn_gate_inp", (width, experts), "F32"),
        ("ffn_gate_exps", (width, inner, experts), "Q4_K"),
        ("ffn_up_exps", (width, inner, experts), "Q4_K"),
        ("ffn_down_exps", (inner, width, experts), "Q8_0"),
        ("ffn_gate_shexp", (width, 2 * inner), "Q4_K"),
        ("ffn_up_shexp", (width, 2 * inner), "Q4_K"),
        ("ffn_down_shexp", (2 * inner, width), "Q6_K"),
    )
    metadata = {
        "block_count": layers,
        "context_length": 163840,
        "embedding_length": width,
        "feed_forward_length": 10944,
        "leading_dense_block_count": 1,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.kv_lora_rank": latent,
        "attention.key_length": nope + rope,
        "attention.value_length": value,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": rope,
        "expert_count": experts,
        "expert_used_count": 6,
        "expert_shared_count": 2,
        "expert_feed_forward_length": inner,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": False,
        "expert_gating_func": 1,
    }
    return Description(_keys("deepseek2", metadata), tuple(tensors()))


def _grouped_r1() -> Description:
    """R1 as later converters write it, with latent attention and with experts chosen from the best 4 of 8 groups."""
    metadata = {
        "block_count": layout.LAYERS,
        "context_length": 163840,
        "embedding_length": layout.EMBEDDING,
        "feed_forward_length": 18432,
        "leading_dense_block_count": layout.DENSE_LAYERS,
        "attention.head_count": layout.HEADS,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": layout.LATENT,
        "attention.key_length": layout.LATENT + layout.ROPE_LENGTH,
        "attention.value_length": layout.LATENT,
        "attention.key_length_mla": layout.KEY_LENGTH,
        "attention.value_length_mla": layout.VALUE_LENGTH,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": layout.ROPE_LENGTH,
        "expert_count": 256,
        "expert_used_count": 8,
        "expert_shared_count": 1,
        "expert_group_count": 8,
        "expert_group_used_count": 4,
        "expert_feed_forward_length": 2048,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
    }
    return Description(_keys("deepseek2", metadata), layout.tensors("UD-IQ1_S", mla=True))


def _flat(
    architecture: str,
    *,
    layers: int,
    width: int,
    vocabulary: int,
    context: int,
    tensors: dict[str, tuple[int, ...]],
    metadata: dict[str, Any],
    tied: bool = False,
    norm_bias: bool = False,
) -> Description:
    """A model whose layers are all alike. The matrices are in Q8_0; the vectors and the router of the experts are in F32."""

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        small = len(shape) == 1 or name.endswith((".bias", "ffn_gate_inp.weight"))
        return Tensor(name, shape, "F32" if small else "Q8_0")

    outer = {"token_embd.weight": (width, vocabulary), "output_norm.weight": (width,)}
    if norm_bias:
        outer["output_norm.bias"] = (width,)
    if not tied:
        outer["output.weight"] = (width, vocabulary)
    common = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.layer_norm_epsilon": 1e-6,
    }
    return Description(
        _keys(architecture, common | metadata),
        (
            *(tensor(name, shape) for name, shape in outer.items()),
            *(
                tensor(f"blk.{layer}.{name}", shape)
                for layer in range(layers)
                for name, shape in ({"attn_norm.weight": (width,)} | tensors).items()
            ),
        ),
    )


def _gemma3() -> Description:
    """Gemma 3: five of six layers have a sliding window, norms stand before and after each block, and the embedding is tied."""
    width, heads, kv_heads, head, inner = 3840, 16, 8, 256, 15360
    return _flat(
        "gemma3",
        layers=48,
        width=width,
        vocabulary=262208,
        context=131072,
        tied=True,
        tensors={
            "attn_q.weight": (width, heads * head),
            "attn_k.weight": (width, kv_heads * head),
            "attn_v.weight": (width, kv_heads * head),
            "attn_q_norm.weight": (head,),
            "attn_k_norm.weight": (head,),
            "attn_output.weight": (heads * head, width),
            "post_attention_norm.weight": (width,),
            "ffn_norm.weight": (width,),
            "ffn_gate.weight": (width, inner),
            "ffn_up.weight": (width, inner),
            "ffn_down.weight": (inner, width),
            "post_ffw_norm.weight": (width,),
        },
        metadata={
            "feed_forward_length": inner,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.sliding_window": 1024,
        },
    )


def _gpt_oss() -> Description:
    """gpt-oss: every other layer has a sliding window, attention has sinks, and every matrix of a layer has a bias."""
    width, heads, kv_heads, head, inner, experts = 2880, 64, 8, 64, 2880, 32
    return _flat(
        "gpt-oss",
        layers=24,
        width=width,
        vocabulary=201088,
        context=131072,
        tensors={
            "attn_q.weight": (width, heads * head),
            "attn_q.bias": (heads * head,),
            "attn_k.weight": (width, kv_heads * head),
            "attn_k.bias": (kv_heads * head,),
            "attn_v.weight": (width, kv_heads * head),
            "attn_v.bias": (kv_heads * head,),
            "attn_output.weight": (heads * head, width),
            "attn_output.bias": (width,),
            "attn_sinks.weight": (heads,),
            "post_attention_norm.weight": (width,),
            "ffn_gate_inp.weight": (width, experts),
            "ffn_gate_inp.bias": (experts,),
            "ffn_gate_exps.weight": (width, inner, experts),
            "ffn_gate_exps.bias": (inner, experts),
            "ffn_up_exps.weight": (width, inner, experts),
            "ffn_up_exps.bias": (inner, experts),
            "ffn_down_exps.weight": (inner, width, experts),
            "ffn_down_exps.bias": (width, experts),
        },
        metadata={
            "feed_forward_length": inner,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.sliding_window": 128,
            "expert_count": experts,
            "expert_used_count": 4,
            "expert_feed_forward_length": inner,
            "rope.freq_base": 150000.0,
        },
    )


def _phi3() -> Description:
    """Phi-3: one matrix holds Q, K and V, and another holds gate and up."""
    width, heads, kv_heads, head, inner = 5120, 40, 10, 128, 17920
    return _flat(
        "phi3",
        layers=40,
        width=width,
        vocabulary=32064,
        context=4096,
        tensors={
            "attn_qkv.weight": (width, (heads + 2 * kv_heads) * head),
            "attn_output.weight": (heads * head, width),
            "ffn_norm.weight": (width,),
            "ffn_up.weight": (width, 2 * inner),
            "ffn_down.weight": (inner, width),
        },
        metadata={
            "feed_forward_length": inner,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "rope.dimension_count": head,
            "rope.scaling.original_context_length": 4096,
        },
    )


def _starcoder2() -> Description:
    """StarCoder 2: norms and matrices have biases, and the feed-forward network has no gate."""
    width, heads, kv_heads, head, inner = 4608, 36, 4, 128, 18432
    return _flat(
        "starcoder2",
        layers=32,
        width=width,
        vocabulary=49152,
        context=16384,
        norm_bias=True,
        tensors={
            "attn_norm.bias": (width,),
            "attn_q.weight": (width, heads * head),
            "attn_q.bias": (heads * head,),
            "attn_k.weight": (width, kv_heads * head),
            "attn_k.bias": (kv_heads * head,),
            "attn_v.weight": (width, kv_heads * head),
            "attn_v.bias": (kv_heads * head,),
            "attn_output.weight": (heads * head, width),
            "attn_output.bias": (width,),
            "ffn_norm.weight": (width,),
            "ffn_norm.bias": (width,),
            "ffn_up.weight": (width, inner),
            "ffn_up.bias": (inner,),
            "ffn_down.weight": (inner, width),
            "ffn_down.bias": (width,),
        },
        metadata={
            "feed_forward_length": inner,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "rope.dimension_count": head,
        },
    )


def _command_r() -> Description:
    """Command R: attention and the feed-forward network work in parallel."""
    width, heads, head, inner = 8192, 64, 128, 22528
    return _flat(
        "command-r",
        layers=40,
        width=width,
        vocabulary=256000,
        context=131072,
        tied=True,
        tensors={
            "attn_q.weight": (width, heads * head),
            "attn_k.weight": (width, heads * head),
            "attn_v.weight": (width, heads * head),
            "attn_output.weight": (heads * head, width),
            "ffn_gate.weight": (width, inner),
            "ffn_up.weight": (width, inner),
            "ffn_down.weight": (inner, width),
        },
        metadata={
            "feed_forward_length": inner,
            "attention.head_count": heads,
            "attention.head_count_kv": heads,
            "logit_scale": 0.0625,
        },
    )


def _glm4moe() -> Description:
    """GLM-4 MoE: the first layer is dense, and a layer after the last one only predicts further tokens."""
    width, heads, kv_heads, head, inner, experts = 4096, 96, 8, 128, 1408, 128
    attention = {
        "attn_q.weight": (width, heads * head),
        "attn_q.bias": (heads * head,),
        "attn_k.weight": (width, kv_heads * head),
        "attn_k.bias": (kv_heads * head,),
        "attn_v.weight": (width, kv_heads * head),
        "attn_v.bias": (kv_heads * head,),
        "attn_output.weight": (heads * head, width),
        "post_attention_norm.weight": (width,),
        "ffn_gate_inp.weight": (width, experts),
        "exp_probs_b.bias": (experts,),
        "ffn_gate_exps.weight": (width, inner, experts),
        "ffn_up_exps.weight": (width, inner, experts),
        "ffn_down_exps.weight": (inner, width, experts),
        "ffn_gate_shexp.weight": (width, inner),
        "ffn_up_shexp.weight": (width, inner),
        "ffn_down_shexp.weight": (inner, width),
    }
    whole = _flat(
        "glm4moe",
        layers=47,
        width=width,
        vocabulary=151552,
        context=131072,
        tensors=attention,
        metadata={
            "feed_forward_length": 10944,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head,
            "attention.value_length": head,
            "rope.dimension_count": 64,
            "leading_dense_block_count": 1,
            "nextn_predict_layers": 1,
            "expert_count": experts,
            "expert_used_count": 8,
            "expert_shared_count": 1,
            "expert_feed_forward_length": inner,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.0,
            "expert_gating_func": 2,
        },
    )
    first = ("ffn_gate", (width, 10944)), ("ffn_up", (width, 10944)), ("ffn_down", (10944, width))
    beyond = (
        Tensor("blk.46.nextn.eh_proj.weight", (2 * width, width), "Q8_0"),
        *(Tensor(f"blk.46.nextn.{name}.weight", (width,), "F32") for name in ("enorm", "hnorm", "shared_head_norm")),
    )
    others = (t for t in whole.tensors if not t.name.startswith(("blk.0.ffn_", "blk.0.exp_")))
    dense = (Tensor(f"blk.0.{name}.weight", shape, "Q8_0") for name, shape in first)
    return Description(whole.metadata, (*others, *dense, *beyond))


PRESUMED: dict[str, Callable[[], Description]] = {
    "gemma3-12b": _gemma3,
    "gpt-oss-20b": _gpt_oss,
    "phi3-14b": _phi3,
    "starcoder2-15b": _starcoder2,
    "command-r-35b": _command_r,
    "glm4-air": _glm4moe,
    # Every fourth layer of SmolLM3 has no position embedding.
    "smollm3-3b": lambda: _grouped(
        "smollm3",
        layers=36,
        width=2048,
        heads=16,
        kv_heads=4,
        inner=11008,
        vocabulary=128256,
        context=65536,
        tied=True,
    ),
}
"""Models whose graph r1prov does not know. Their compute buffers must not be larger than r1prov's estimate."""

MODELS: dict[str, Callable[[], Description]] = {
    "llama-70b": lambda: _grouped(
        "llama",
        layers=80,
        width=8192,
        heads=64,
        kv_heads=8,
        inner=28672,
        vocabulary=128256,
        context=131072,
        rope_factors=True,
    ),
    "llama-8b": lambda: _grouped(
        "llama",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        inner=14336,
        vocabulary=128256,
        context=131072,
        rope_factors=True,
    ),
    "smollm2-135m": lambda: _grouped(
        "llama",
        layers=30,
        width=576,
        heads=9,
        kv_heads=3,
        head=64,
        inner=1536,
        vocabulary=49152,
        context=8192,
        types=("Q4_1", "Q8_0"),
        tied=True,
    ),
    "mixtral-8x7b": lambda: _grouped(
        "llama",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        inner=14336,
        vocabulary=32000,
        context=32768,
        experts=8,
        experts_used=2,
    ),
    "qwen2-32b": lambda: _grouped(
        "qwen2",
        layers=64,
        width=5120,
        heads=40,
        kv_heads=8,
        inner=27648,
        vocabulary=152064,
        context=131072,
        biases=True,
    ),
    "qwen2-1.5b": lambda: _grouped(
        "qwen2",
        layers=28,
        width=1536,
        heads=12,
        kv_heads=2,
        inner=8960,
        vocabulary=151936,
        context=131072,
        biases=True,
        tied=True,
    ),
    "qwen3-8b": lambda: _grouped(
        "qwen3",
        layers=36,
        width=4096,
        heads=32,
        kv_heads=8,
        inner=12288,
        vocabulary=151936,
        context=131072,
        head_norms=True,
    ),
    "qwen3-30b-a3b": lambda: _grouped(
        "qwen3moe",
        layers=48,
        width=2048,
        heads=32,
        kv_heads=4,
        inner=768,
        vocabulary=151936,
        context=262144,
        experts=128,
        experts_used=8,
        head_norms=True,
    ),
    "deepseek-v2-lite": _lite,
    "r1-grouped": _grouped_r1,
    **PRESUMED,
}
