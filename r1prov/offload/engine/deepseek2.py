"""The compute graph of the architecture `deepseek2`: DeepSeek V3 and R1 with legacy or latent attention, and the smaller V2 Lite.

It follows src/models/deepseek2.cpp in the pinned version.
"""

from __future__ import annotations

from r1prov.offload.engine.builder import Builder
from r1prov.offload.engine.tensors import Node, permute, reshape, view


class DeepSeek2(Builder):
    """Builds graphs whose queries, keys and values go through a small rank. A part of each head carries the position."""

    READS = Builder.READS | {
        *(
            f"attn_{name}.weight"
            for name in ("q", "q_a", "q_a_norm", "q_b", "kv_a_mqa", "kv_a_norm", "kv_b", "k_b", "v_b")
        ),
        *(f"ffn_{name}.weight" for name in ("gate", "up", "down", "gate_shexp", "up_shexp", "down_shexp")),
        *("attn_output.weight", "exp_probs_b.bias"),
    }

    def attention(self, normed: Node) -> Node:
        """The attention of one layer."""
        model, tokens = self.model, self.batch.tokens
        rank, rope, heads = self.model.by_name[self.named("attn_kv_a_norm")].shape[0], model.rope_length, model.heads
        length = model.head_key_length
        nope = length - rope
        if self.has("attn_q_a"):
            query = self.matmul("attn_q_b", self.norm(self.matmul("attn_q_a", normed), "attn_q_a_norm"))
        else:
            query = self.matmul("attn_q", normed)
        query = reshape(query, length, heads, tokens)
        latent_and_rope = self.matmul("attn_kv_a_mqa", normed)
        row = latent_and_rope.nb[1]
        latent = view(latent_and_rope, (rank, tokens), (4, row))
        k_rope = self.rope(view(latent_and_rope, (rope, 1, tokens), (4, row, row)))
        latent = self.norm(latent, "attn_kv_a_norm")
        if model.mla:
            return self.latent_attention(query, latent, k_rope, nope)
        pairs = self.matmul("attn_kv_b", latent)  # each head has its part of K without the position, then V
        value_length = model.value_length
        pair = 4 * (nope + value_length)
        k_nope = view(pairs, (nope, heads, tokens), (4, pair, pair * heads))
        value = Node("cont", "F32", (value_length, heads, tokens))
        value.src = [view(pairs, (value_length, heads, tokens), (4, pair, pair * heads))]
        query = self.rope(query)
        key = Node(
            "concat", "F32", (length, heads, tokens), (k_nope, Node("repeat", "F32", (rope, heads, tokens), [k_rope]))
        )
        return self.attend(query, key, value)

    def latent_attention(self, query: Node, latent: Node, k_rope: Node, nope: int) -> Node:
        """Attention in MLA form: the cache holds the latent values and one part with the position, as a single head for all queries."""
        model, tokens = self.model, self.batch.tokens
        rank, rope, heads = latent.ne[0], model.rope_length, model.heads
        q_nope = permute(view(query, (nope, heads, tokens), query.nb[:3]), 0, 2, 1, 3)
        q_rope = self.rope(view(query, (rope, heads, tokens), query.nb[:3]))
        absorbed = permute(Node("matmul", "F32", (rank, tokens, heads), (self.weight("attn_k_b"), q_nope)), 0, 2, 1, 3)
        query = Node("concat", "F32", (rank + rope, heads, tokens), (absorbed, q_rope))
        value = reshape(latent, rank, 1, tokens)
        key = Node("concat", "F32", (rank + rope, 1, tokens), (value, k_rope))
        for node in (query, value, key):
            self.graph.expand(node)
        cache = self.cache(self.batch.type_k, model.key_length)
        self.store(cache, key, self.k_cells)
        keys = self.cached(cache, model.key_length)
        values = view(keys, (rank, *keys.ne[1:]), keys.nb)
        return self.matmul("attn_output", self.heads_attend(query, keys, values, self.weight("attn_v_b")))
