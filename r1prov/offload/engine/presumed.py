"""The graph that r1prov presumes, from the tensors of the file, for a model whose graph it does not know.

The names of tensors are the same in all architectures, and attention and feed-forward take memory in much the same way everywhere. The
memory of this graph is not the engine's own figure. With the margin of `bounds` it was more than the engine took, for all architectures
in tests/data/engine_memory_others.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.common.units import MIB
from r1prov.offload.engine.builder import binary
from r1prov.offload.engine.llama import Llama
from r1prov.offload.engine.tensors import Node, reshape, view

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.models.model import Model

MARGIN_PERCENT, MARGIN_BYTES = 25, 64 * MIB


def bounds(sizes: Sequence[int], copied: int) -> list[int]:
    """Upper bounds of the compute buffers, in bytes, of each card, then of the host.

    Args:
        sizes: The bytes that the presumed graph takes of each card, then of the host.
        copied: The bytes of the largest weight in RAM. With another order of nodes the first card may hold a copy of one more weight.
    """
    first, *others = sizes
    return [
        size + size * MARGIN_PERCENT // 100 + MARGIN_BYTES for size in (first + copied if others else first, *others)
    ]


def missing(model: Model) -> str | None:
    """Why no graph can be presumed; None if one can."""
    strange = sorted(model.kinds - Presumed.READS)
    if strange:
        return f"r1prov does not know how its tensor `{strange[0]}` is used"
    if model.architecture == "grok":
        return "llama.cpp never fuses its attention"
    return None


class Presumed(Llama):
    """Builds a graph with the norms, biases, fused matrices and gates of the file. Every second layer sees only a window of the cache."""

    READS = Llama.READS | {
        *("attn_qkv.weight", "attn_qkv.bias", "attn_sinks.weight", "ffn_gate_inp_shexp.weight", "exp_probs_b.bias"),
        *("attn_norm.bias", "ffn_norm.bias", "output_norm.bias", "attn_q_norm.bias", "attn_k_norm.bias"),
        *("post_attention_norm.weight", "post_ffw_norm.weight", "ffn_gate_up_exps.weight", "ffn_gate_inp.bias"),
        *(f"ffn_{name}_exps.bias" for name in ("gate", "up", "down", "gate_up")),
        *(f"ffn_{name}_shexp.weight" for name in ("gate", "up", "down")),
        *("rope_factors_long.weight", "rope_factors_short.weight"),
    }

    PERIOD = 2

    def make_inputs(self) -> None:
        """Adds a mask for a window of the cache, which is at most as large as the mask of the whole cache."""
        super().make_inputs()
        window = Node("", self.mask.type, self.mask.ne)
        window.is_input = True
        self.masks = (self.mask, window)

    def one_layer(self, hidden: Node) -> Node:
        """A layer with norms before or after its parts, or both. Without a norm between attention and feed-forward, they are parallel."""
        assert self.layer is not None  # noqa: S101 - for the type checker: it is one of the layers
        self.mask = self.masks[self.layer % self.PERIOD]
        normed = self.norm(hidden, "attn_norm")
        attention = self.attention(normed)
        if self.has("ffn_norm"):
            between = self.added(self.norm(attention, "post_attention_norm"), hidden)
            return binary("add", self.norm(self.forward(self.norm(between, "ffn_norm")), "post_ffw_norm"), between)
        between = self.added(attention, hidden)
        if self.has("post_attention_norm"):
            return binary("add", self.forward(self.norm(between, "post_attention_norm")), between)
        if between.ne != normed.ne:
            normed = Node("get_rows", "F32", between.ne, (normed, self.output_ids))
        return binary("add", self.forward(normed), between)

    def norm(self, operand: Node, name: str) -> Node:
        """The norm of `operand` with its bias, or `operand` itself if the file has no such norm."""
        if not self.has(name):
            return operand
        normed = super().norm(operand, name)
        return binary("add", normed, self.weight(name, "bias")) if self.has(name, "bias") else normed

    def attention(self, normed: Node) -> Node:
        """The attention of one layer. Q, K and V may come from one matrix, and V may come from the matrix of K."""
        model, tokens = self.model, self.batch.tokens
        if not self.has("attn_qkv"):
            key = self.turned("attn_k", model.kv_heads, normed)
            value = key
            if self.has("attn_v"):
                value = reshape(self.matmul("attn_v", normed), model.value_length, model.kv_heads, tokens)
            return self.attend(self.turned("attn_q", model.heads, normed), key, value)
        fused = self.matmul("attn_qkv", normed)
        query, key, value = (
            view(fused, (length, heads, tokens), (4, 4 * length, fused.nb[1]))
            for length, heads in (
                (model.key_length, model.heads),
                (model.key_length, model.kv_heads),
                (model.value_length, model.kv_heads),
            )
        )
        return self.attend(self.rope(self.norm(query, "attn_q_norm")), self.rope(self.norm(key, "attn_k_norm")), value)

    def gated(self, product: Callable[[str], Node], suffix: str) -> Node:
        """The input of `ffn_down`, with gate and up in one matrix or in two, or without a gate."""
        if self.has(f"ffn_gate{suffix}"):
            return super().gated(product, suffix)
        up = product(f"ffn_gate_up{suffix}" if self.has(f"ffn_gate_up{suffix}") else f"ffn_up{suffix}")
        inner = self.weight(f"ffn_down{suffix}").ne[0]
        return Node("unary" if up.ne[0] == inner else "glu", "F32", (inner, *up.ne[1:]), [up])

    def routed(self, name: str, operand: Node, chosen: Node) -> Node:
        """The products with the chosen experts, and their biases."""
        product = super().routed(name, operand, chosen)
        return binary("add", product, self.weight(name, "bias")) if self.has(name, "bias") else product
