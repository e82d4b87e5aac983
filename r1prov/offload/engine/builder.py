"""Builds what all compute graphs share: embedding, inputs, attention over a cache, feed-forward, mixture of experts, and output.

It repeats src/llama-graph.cpp and src/llama-kv-cache.cpp of the pinned version node by node: the same operations, order and shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from r1prov.models.model import layer_of
from r1prov.offload.engine.tensors import Chain, Graph, Node, permute, reshape, view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from r1prov.models.model import Model
    from r1prov.offload.engine.tensors import Part

CHOSEN_FROM = frozenset({1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 288, 576})
"""The numbers of experts for which one CUDA kernel chooses the experts of a token (ggml_cuda_should_use_topk_moe)."""

SUMMED = range(2, 16)
"""The numbers of experts whose results one CUDA kernel weighs and adds (MOE_WEIGHTED_REDUCTION_MAX_EXPERTS)."""


@dataclass(frozen=True)
class Batch:
    """The largest batch for which the engine reserves memory, and the cache that the batch reads.

    Attributes:
        tokens: The tokens of the micro-batch, a multiple of `streams`.
        outputs: The number of tokens whose logits are computed.
        cells: The tokens in the cache of one stream.
        streams: The number of separate caches; 1 if all slots share one.
        type_k, type_v: The types of the cache.
        flash: Whether attention is one fused operation.
        transposed_v: Whether V lies transposed in the cache, as it does if flash attention was off from the start.
    """

    tokens: int
    outputs: int
    cells: int
    streams: int
    type_k: str
    type_v: str
    flash: bool
    transposed_v: bool


class Builder(ABC):
    """Builds the graph of one batch.

    `READS` are the kinds of tensors that the graph reads, see `Model.kinds`. `PERIOD` is the number of layers after which they repeat.

    Args:
        model: The model of the graph.
        batch: The batch to compute.
        shared: The device of each name in `Model.shared`.
        flash_on_cards: Whether the CUDA backend has a flash attention kernel for these heads.
    """

    PERIOD: ClassVar[int] = 1
    READS: ClassVar[frozenset[str]] = frozenset(
        {
            *("token_embd.weight", "output_norm.weight", "output.weight", "attn_norm.weight", "ffn_norm.weight"),
            *(f"ffn_{name}.weight" for name in ("gate_inp", "gate_exps", "up_exps", "down_exps")),
        }
    )

    def __init__(
        self,
        model: Model,
        batch: Batch,
        shared: Mapping[str, int],
        *,
        flash_on_cards: bool,
    ) -> None:
        self.model, self.batch, self.graph = model, batch, Graph()
        self.shared = shared
        self.flash_on_cards = flash_on_cards
        self.width = model.by_name["token_embd.weight"].shape[0]
        self.layer: int | None = None
        self._weights: dict[tuple[str, int | None], Node] = {}

    @classmethod
    def shaped(cls, model: Model) -> bool:
        """Whether the tensors have the shapes that the graph assumes."""
        return True

    @abstractmethod
    def attention(self, normed: Node) -> Node:
        """The attention of `self.layer`, its output matrix included."""

    def build(self) -> Graph:
        """The whole graph."""
        tokens, graph = self.batch.tokens, self.graph
        hidden = Node("get_rows", "F32", (self.width, tokens), (self.weight("token_embd"), _input("I32", tokens)))
        graph.expand(hidden)
        graph.expand(_input("F32", self.width, tokens))  # embeddings given in place of tokens: room is made for both
        graph.close(None, hidden)
        self.make_inputs()
        built: dict[int, list[Part]] = {}
        for layer, kind in enumerate(_kinds(self.model, self.PERIOD, tuple(self.shared.items()))):
            like = built.setdefault(kind, [])
            if len(like) > 1:  # the first of a kind may have met inputs that the others share
                graph.parts.append(replace(like[1], layer=layer))
                continue
            self.layer = layer
            hidden = self.one_layer(hidden)
            graph.expand(hidden)
            like.append(graph.close(layer, hidden))
        self.layer = None
        normed = self.norm(hidden, "output_norm")
        normed.is_output = True
        logits = self.matmul("output", normed)
        logits.is_output = True
        graph.expand(logits)
        graph.close(None, logits)
        return graph

    def make_inputs(self) -> None:
        """Makes the leaves that the engine fills before each batch. The graph meets each of them at its first use."""
        model, batch = self.model, self.batch
        self.positions = _input("I32", batch.tokens)
        self.output_ids = _input("I32", batch.outputs)
        self.k_cells = _input("I64", batch.tokens)
        rows = model.kv_heads * model.value_length if batch.transposed_v else 1
        self.v_cells = _input("I64", batch.tokens * rows)
        mask_type = "F16" if batch.flash else "F32"
        self.mask = _input(mask_type, batch.cells, batch.tokens // batch.streams, 1, batch.streams)
        self.k_rotation = self._rotation(batch.type_k, model.key_length, largest=True)
        self.v_rotation = self._rotation(batch.type_v, model.value_length, largest=False)

    def _rotation(self, kind: str, length: int, *, largest: bool) -> Node | None:
        """The Hadamard matrix that a quantised cache is multiplied with; the largest power of two that divides a head, or 64."""
        if self.model.mla or kind in {"F32", "F16", "BF16"} or length % 64:
            return None
        side = 64
        while largest and length % (2 * side) == 0:
            side *= 2
        return _input("F32", side, side)

    def one_layer(self, hidden: Node) -> Node:
        """Attention and feed-forward, each added to what came in."""
        between = self.added(self.attention(self.norm(hidden, "attn_norm")), hidden)
        normed = self.norm(between, "ffn_norm")
        return binary("add", self.forward(normed), between)

    def forward(self, normed: Node) -> Node:
        """The feed-forward part of a layer, which is a mixture of experts or dense."""
        return self.mixture(normed) if self.has("ffn_down_exps") else self.dense(normed)

    def added(self, attention: Node, hidden: Node) -> Node:
        """The sum of both. The last layer continues only with the tokens whose logits are computed."""
        if self.layer == self.model.layers - 1:
            attention, hidden = (
                Node("get_rows", "F32", (self.width, self.batch.outputs), (rows, self.output_ids))
                for rows in (attention, hidden)
            )
        return binary("add", attention, hidden)

    # attention

    def attend(self, query: Node, key: Node, value: Node) -> Node:
        """Heads over a cache of K and V: length x heads x tokens each (build_attn)."""
        model, batch = self.model, self.batch
        if self.k_rotation:
            query, key = self.rotate(query, self.k_rotation), self.rotate(key, self.k_rotation)
        if self.v_rotation:
            value = self.rotate(value, self.v_rotation)
        for node in (query, value, key):
            self.graph.expand(node)
        k_cache = self.cache(batch.type_k, model.kv_heads * model.key_length)
        v_cache = self.cache(batch.type_v, model.kv_heads * model.value_length)
        self.store(k_cache, key, self.k_cells)
        self.store(v_cache, value, self.v_cells, transposed=batch.transposed_v)
        out = self.heads_attend(query, self.cached(k_cache, model.key_length), self.cached_v(v_cache), None)
        if self.v_rotation:
            out = self.rotate(out, self.v_rotation)
        return self.matmul("attn_output", out)

    def heads_attend(self, query: Node, keys: Node, values: Node, decompress: Node | None) -> Node:
        """Scores, softmax and weighted values (build_attn_mha); `decompress` brings latent values back to heads."""
        batch, streams = self.batch, self.batch.streams
        each = batch.tokens // streams
        transposed = values.nb[1] > values.nb[2]
        query = view(query, (*query.ne[:2], each, streams), (*query.nb[:3], query.nb[2] * each))
        query, keys, values = (permute(node, 0, 2, 1, 3) for node in (query, keys, values))
        if batch.flash:
            if transposed:
                values = permute(values, 1, 0, 2, 3)
            keys, values = _as_f16(keys), _as_f16(values)
            out = Node(
                "flash", "F32", (values.ne[0], query.ne[2], query.ne[1], query.ne[3]), (query, keys, values, self.mask)
            )
            out.host_only = not self.flash_on_cards
            if decompress:
                out = Node(
                    "matmul",
                    "F32",
                    (decompress.ne[1], out.ne[2], out.ne[1], out.ne[3]),
                    (decompress, permute(out, 0, 2, 1, 3)),
                )
                swapped = permute(out, 0, 2, 1, 3)
                out = Node("cont", "F32", swapped.ne, [swapped])
            out = reshape(out, out.ne[0] * out.ne[1], out.ne[2] * out.ne[3])
        else:
            scores = Node("matmul", "F32", (keys.ne[1], *query.ne[1:]), (keys, query))
            scores = Node("soft_max", "F32", scores.ne, (scores, self.mask))
            if not transposed:
                turned = permute(values, 1, 0, 2, 3)
                values = Node("cont", values.type, turned.ne, [turned])
            out = Node("matmul", "F32", (values.ne[1], *scores.ne[1:]), (values, scores))
            if decompress:
                out = Node("matmul", "F32", (decompress.ne[1], *out.ne[1:]), (decompress, out))
            swapped = permute(out, 0, 2, 1, 3)
            out = Node("cont", "F32", (swapped.ne[0] * swapped.ne[1], swapped.ne[2] * swapped.ne[3]), [swapped])
        self.graph.expand(out)
        return out

    def dense(self, cur: Node, suffix: str = "") -> Node:
        """Gate, up and down (build_ffn)."""
        return self.matmul(f"ffn_down{suffix}", self.gated(lambda name: self.matmul(name, cur), suffix))

    def gated(self, product: Callable[[str], Node], suffix: str) -> Node:
        """The input of `ffn_down`. `product` multiplies with a matrix, or with its chosen experts."""
        return binary("glu", product(f"ffn_gate{suffix}"), product(f"ffn_up{suffix}"))

    def mixture(self, cur: Node) -> Node:
        """Routed experts, and the shared one where there is one (build_moe_ffn)."""
        tokens, used, graph = cur.ne[1], self.model.experts_used, self.graph
        logits = self.matmul("ffn_gate_inp", cur)
        graph.expand(logits)
        start = len(graph.numbers)
        chosen, weights = self.choice(logits)
        graph.expand(weights)
        cur3 = reshape(cur, self.width, 1, tokens)
        if logits.ne[0] in CHOSEN_FROM and self.model.expert_groups < 2:
            choice = tuple(node for node in islice(graph.numbers, start, None) if node.op)
            graph.chains.append(Chain(choice, until=cur3, whole=True))
        inner = self.gated(lambda name: self.routed(name, cur3, chosen), "_exps")
        down = self.routed("ffn_down_exps", inner, chosen)
        weighted = binary("mul", down, weights)
        graph.expand(weighted)
        parts = [view(weighted, (self.width, tokens), (weighted.nb[0], weighted.nb[2])) for _ in range(used)]
        for part in parts:
            graph.expand(part)
        out, sums = parts[0], []
        for part in parts[1:]:
            out = binary("add", out, part)
            sums.append(out)
            graph.expand(out)
        if used in SUMMED:
            graph.chains.append(Chain((weighted, *parts, *sums), until=out, whole=False))
        if not sums:
            out = Node("cont", "F32", out.ne, [out])
        return binary("add", out, self.dense(cur, "_shexp")) if self.has("ffn_gate_shexp") else out

    def choice(self, logits: Node) -> tuple[Node, Node]:
        """The experts that each token goes to, and the weights of their results."""
        model, (experts, tokens), used = self.model, logits.ne[:2], self.model.experts_used
        probabilities = Node("unary", "F32", logits.ne, [logits])  # a softmax lies in memory as a sigmoid does
        biased = probabilities
        if self.has("exp_probs_b", "bias"):
            biased = binary("add", probabilities, self.weight("exp_probs_b", "bias"))
        if model.expert_groups > 1:
            biased = self.best_groups(biased)
        chosen = _top(biased, used)
        column = reshape(probabilities, 1, experts, tokens)
        weights = Node("get_rows", "F32", (1, used, tokens), (column, chosen))
        if model.expert_weights_normed:
            flat = reshape(weights, used, tokens)
            total = Node("sum_rows", "F32", (1, tokens), [flat])
            clamped = Node("clamp", "F32", total.ne, [total])
            weights = reshape(binary("div", flat, clamped), 1, used, tokens)
        if model.expert_weights_scaled:
            weights = Node("scale", "F32", weights.ne, [weights])
        return chosen, weights

    def best_groups(self, biased: Node) -> Node:
        """The scores with all experts masked, except in the best groups. A group is rated by its two best experts."""
        experts, tokens = biased.ne[:2]
        groups, used = self.model.expert_groups, self.model.expert_groups_used
        each = experts // groups
        grouped = reshape(biased, each, groups, tokens)
        two = Node(
            "get_rows", "F32", (1, 2, groups, tokens), (reshape(grouped, 1, each, groups, tokens), _top(grouped, 2))
        )
        scores = Node("sum_rows", "F32", (1, groups, tokens), [reshape(two, 2, groups, tokens)])
        best = _top(reshape(scores, groups, tokens), used)
        picked = Node("get_rows", "F32", (each, used, tokens), (grouped, best))
        nothing = Node("fill", "F32", grouped.ne, [grouped])
        return reshape(_written("F32", nothing, picked, best), experts, tokens)

    # the pieces

    def named(self, name: str, ending: str = "weight") -> str:
        """The full name of a weight of the current layer, or of a weight outside the layers."""
        return f"blk.{self.layer}.{name}.{ending}" if self.layer is not None else f"{name}.{ending}"

    def has(self, name: str, ending: str = "weight") -> bool:
        """Whether the model has the weight."""
        return self.named(name, ending) in self.model.weights

    def weight(self, name: str, ending: str = "weight") -> Node:
        """The node of a weight. A tensor with several names has one node on each device."""
        named = self.named(name, ending)
        tensor, device = self.model.weights[named], self.shared.get(named)
        node = self._weights.get((tensor.name, device))
        if node is None:
            node = self._weights[tensor.name, device] = Node("", tensor.type, tensor.shape)
            node.size, node.home, node.weight = tensor.n_bytes, named, True
        return node

    def matmul(self, name: str, operand: Node) -> Node:
        """The product with a matrix, and its bias where it has one."""
        weight = self.weight(name)
        product = Node("matmul", "F32", (weight.ne[1], *operand.ne[1:]), (weight, operand))
        return binary("add", product, self.weight(name, "bias")) if self.has(name, "bias") else product

    def routed(self, name: str, operand: Node, chosen: Node) -> Node:
        """The products with the experts that each token goes to."""
        weight = self.weight(name)
        return Node(
            "matmul_id", "F32", (weight.ne[1], self.model.experts_used, operand.ne[2]), (weight, operand, chosen)
        )

    def norm(self, operand: Node, name: str) -> Node:
        """The norm by the root mean square, and its weights."""
        norm = Node("rms_norm", "F32", operand.ne, [operand])
        return binary("mul", norm, self.weight(name))

    def rope(self, operand: Node) -> Node:
        """The position turned into heads, by the model's factors where it has some."""
        factors = [self.weight("rope_freqs")] if self.has("rope_freqs") else []
        return Node("rope", "F32", operand.ne, (operand, self.positions, *factors))

    def rotate(self, operand: Node, matrix: Node) -> Node:
        """Heads times a Hadamard matrix (llama_mul_mat_hadamard)."""
        side = matrix.ne[0]
        rows = operand.ne[0] * operand.ne[1] * operand.ne[2] * operand.ne[3] // side
        flat = reshape(operand, side, rows) if operand.contiguous else Node("cont", "F32", (side, rows), [operand])
        return reshape(Node("matmul", "F32", (side, rows), (matrix, flat)), *operand.ne)

    def cache(self, kind: str, width: int) -> Node:
        """The cache of the current layer: width x cells x streams."""
        node = Node("", kind, (width, self.batch.cells, self.batch.streams))
        assert self.layer is not None  # noqa: S101 - for the type checker: only layers have a cache
        node.home = self.layer
        return node

    def cached(self, cache: Node, length: int) -> Node:
        """The cache as heads: length x heads x cells x streams."""
        head = cache.nb[1] * length // cache.ne[0]
        return view(cache, (length, cache.ne[0] // length, *cache.ne[1:3]), (cache.nb[0], head, *cache.nb[1:3]))

    def cached_v(self, cache: Node) -> Node:
        """The cache of V as heads."""
        length = self.model.value_length
        if not self.batch.transposed_v:
            return self.cached(cache, length)
        element, cells = cache.nb[0], cache.ne[1]
        return view(
            cache,
            (cells, self.model.kv_heads, length, cache.ne[2]),
            (element, element * cells * length, element * cells, element * cells * cache.ne[0]),
        )

    def store(self, cache: Node, current: Node, cells: Node, *, transposed: bool = False) -> None:
        """The new tokens go into the cache (cpy_k, cpy_v)."""
        width, tokens = cache.ne[0], current.ne[2]
        elements = width * cache.ne[1] * cache.ne[2]
        if transposed:
            flat = reshape(reshape(current, width, tokens), 1, width * tokens)
            target = reshape(cache, 1, elements)
        else:
            flat = view(current, (width, tokens), (current.nb[0], current.nb[2]))
            target = reshape(cache, width, cache.ne[1] * cache.ne[2]) if cache.ne[2] > 1 else cache
        self.graph.expand(_written(cache.type, target, flat, cells))


@lru_cache(maxsize=8)
def _kinds(model: Model, period: int, shared: tuple[tuple[str, int], ...]) -> list[int]:
    """A number for each layer, which it shares with all layers whose graph is the same."""
    weights: list[list[object]] = [[] for _ in range(model.layers)]
    devices = dict(shared)
    for named, tensor in model.weights.items():
        layer = layer_of(named)
        if layer is not None:
            ending = named.split(".", 2)[2]
            weights[layer].append((ending, tensor.type, tensor.shape, tensor.n_bytes, devices.get(named)))
    last = model.layers - 1
    known: dict[object, int] = {}
    return [
        known.setdefault((layer == last, layer % period, tuple(of_layer)), len(known))
        for layer, of_layer in enumerate(weights)
    ]


def _input(kind: str, *ne: int) -> Node:
    node = Node("", kind, ne)
    node.is_input = True
    return node


def binary(op: str, a: Node, b: Node) -> Node:
    """An operation on two tensors, element by element; its result lies as `a` does."""
    return Node(op, "F32", a.ne, (a, b))


def _as_f16(cached: Node) -> Node:
    """A cache in F32 as an F16 copy, because fused attention does not read F32 (ggml_cast); a cache of another type as it is."""
    return Node("cpy", "F16", cached.ne, [cached]) if cached.type == "F32" else cached


def _top(values: Node, count: int) -> Node:
    """The numbers of the `count` largest in each row (ggml_argsort_top_k)."""
    order = Node("argsort", "I32", values.ne, [values])
    return view(order, (count, *values.ne[1:]), order.nb)


def _written(kind: str, target: Node, rows: Node, numbers: Node) -> Node:
    """`target` once `rows` are written into it; it takes no memory of its own."""
    written = Node("set_rows", kind, target.ne, (rows, numbers, target))
    written.base, written.size = target.root, 0
    return written
