"""The compute graph of the architectures `llama`, `qwen2`, `qwen3` and `qwen3moe`: grouped heads, dense layers or a mixture.

All of them share one graph. The tensors of the file tell which biases, norms of heads, rope factors and experts a model has. It
follows src/models/llama.cpp, qwen2.cpp, qwen3.cpp and qwen3moe.cpp in the pinned version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.offload.engine.builder import Builder
from r1prov.offload.engine.tensors import reshape

if TYPE_CHECKING:
    from r1prov.models.model import Model
    from r1prov.offload.engine.tensors import Node


class Llama(Builder):
    """Builds graphs whose heads have the same length in K and V, and whose whole heads carry the position."""

    READS = Builder.READS | {
        *(f"attn_{name}.{ending}" for name in ("q", "k", "v", "output") for ending in ("weight", "bias")),
        *(f"ffn_{name}.{ending}" for name in ("gate", "up", "down") for ending in ("weight", "bias")),
        *("attn_q_norm.weight", "attn_k_norm.weight", "rope_freqs.weight", "output.bias"),
    }

    @classmethod
    def shaped(cls, model: Model) -> bool:
        """Whether all layers have the same heads."""
        widths = {"attn_q": model.heads, "attn_k": model.kv_heads, "attn_v": model.kv_heads}
        return model.key_length == model.value_length and all(
            tensor.shape[-1] == heads * model.key_length
            for name, heads in widths.items()
            for tensor in model.of_kind(f"{name}.weight")
        )

    def attention(self, normed: Node) -> Node:
        """The attention of one layer."""
        model = self.model
        query = self.turned("attn_q", model.heads, normed)
        key = self.turned("attn_k", model.kv_heads, normed)
        value = reshape(self.matmul("attn_v", normed), model.value_length, model.kv_heads, self.batch.tokens)
        return self.attend(query, key, value)

    def turned(self, name: str, heads: int, normed: Node) -> Node:
        """Q or K as heads, with their norm if the model has one, and rotated by the position."""
        states = reshape(self.matmul(name, normed), self.model.key_length, heads, self.batch.tokens)
        if self.has(f"{name}_norm"):
            states = self.norm(states, f"{name}_norm")
        return self.rope(states)
