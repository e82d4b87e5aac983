"""A graph as lists of numbers: all that `schedule` and `buffers` ask of it, worked out once and the same for every placement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.model import block, row_bytes
from r1prov.offload.engine.tensors import VIEW

if TYPE_CHECKING:
    from r1prov.offload.engine.tensors import Graph, Node

CARD_ALIGNMENT, HOST_ALIGNMENT = 128, 32
CARD_ROW_ELEMENTS = 512
"""On a card a quantised row is followed by padding up to a multiple of this (MATRIX_ROW_PADDING)."""

OFFLOAD_ROWS = 32
"""With as many rows an operation on weights in RAM is worth copying them to a card (GGML_OP_OFFLOAD_MIN_BATCH)."""


class Numbered:
    """A graph's tensors by number, in order. A list has an entry for each of them, unless it says otherwise.

    Attributes:
        tensors: what each number stands for; those of layers of a kind are the same.
        sources: what a tensor is made from.
        owners: whose memory it shares, its own number if it has its own.
        homes: what lies there before: a weight's name, or the layer of a cache.
        own: it takes memory when it is computed.
        views: how many views it has.
        layouts: tensors of the same layout have the same number here.
        host_bytes, card_bytes: what it takes, before alignment.
        leaves, nodes: the numbers of what is there before, and of what is made from it.
        computed, moved: the numbers of nodes that are no views, and of those that are.
        anchors: (leaf, node, movable) where a leaf draws a node to its device; large batches of movable ones may be computed on the
            first card all the same.
        weights: node -> the weights that it reads, where it reads any.
        flash: fused attention -> its keys and values.
        lasting: the numbers of what is read after the batch.
        chains: (nodes, until, whole), see `tensors.Chain`.
    """

    def __init__(self, graph: Graph) -> None:
        tensors = list(graph.numbers)  # each part once
        reads = [[graph.numbers[source] for source in tensor.src] for tensor in tensors]
        roots = [graph.numbers[tensor.root] for tensor in tensors]
        chains = [
            ([graph.numbers[node] for node in chain.nodes], graph.numbers[chain.until], chain.whole)
            for chain in graph.chains
        ]
        self.sources: list[tuple[int, ...]] = []
        self.owners: list[int] = []
        self.homes: list[str | int | None] = []
        self.chains: list[tuple[tuple[int, ...], int, bool]] = []
        order: list[int] = []  # which of `tensors` each number here stands for
        here = list(range(len(tensors)))  # the last number here of each of `tensors`
        output = 0
        for part in graph.parts:
            span = range(part.start, part.stop)
            here[part.entry] = output
            here[part.start : part.stop] = range(len(order), len(order) + len(span))
            order += span
            self.sources += [tuple([here[source] for source in reads[n]]) for n in span]
            self.owners += [here[roots[n]] for n in span]
            self.homes += [_home(tensors[n].home, part.layer) for n in span]
            self.chains += [
                (tuple([here[n] for n in nodes]), here[until], whole) for nodes, until, whole in chains if until in span
            ]
            output = here[part.output]

        known: dict[object, int] = {}
        layouts = [known.setdefault((tensor.type, tensor.ne, tensor.nb), len(known)) for tensor in tensors]
        on_card = [tensor.size + row_padding(tensor.type, tensor.ne[0]) for tensor in tensors]
        own = [tensor.base is None and tensor.home is None for tensor in tensors]
        views = [0] * len(tensors)
        for n, tensor in enumerate(tensors):
            views[roots[n]] += tensor.base is not None
        self.tensors = [tensors[n] for n in order]
        self.layouts = [layouts[n] for n in order]
        self.card_bytes = [on_card[n] for n in order]
        self.host_bytes = [tensor.size for tensor in self.tensors]
        self.own = [own[n] for n in order]
        self.views = [views[n] for n in order]

        kinds = [tensor.op for tensor in self.tensors]
        self.leaves = [n for n, op in enumerate(kinds) if not op]
        self.moved = [n for n, op in enumerate(kinds) if op == VIEW]
        self.computed = [n for n, op in enumerate(kinds) if op and op != VIEW]
        self.nodes = [n for n, op in enumerate(kinds) if op]
        self.weights = {
            n: weights
            for n in self.computed
            if (weights := [source for source in self.sources[n] if self.tensors[source].weight])
        }
        self.flash = {n: self.sources[n][1:3] for n, op in enumerate(kinds) if op == "flash"}
        self.anchors = [anchor for n in self.computed if (anchor := self._anchor(n))]
        self.lasting = [n for n, tensor in enumerate(self.tensors) if tensor.is_output]

    def _anchor(self, n: int) -> tuple[int, int, bool] | None:
        """Where a node must be, for its memory is there, or should be, for its weights are."""
        if self.homes[self.owners[n]] is not None:
            return self.owners[n], n, False
        if self.tensors[n].op in {"rope", "flash"}:
            return None
        if n not in self.weights:
            return None
        return self.weights[n][0], n, _rows(self.tensors[n]) >= OFFLOAD_ROWS

    def flash_copies(self, n: int, *, copied: bool) -> int:
        """Bytes of the F16 copies of a quantised cache that the kernel keeps behind its result on a card.

        ggml_cuda_flash_attn_ext_get_f16_extra_data. V needs none where it is a part of K, unless both are `copied` from elsewhere.
        """
        keys, values = self.flash[n]
        end = self.host_bytes[n]
        for source in (keys, values) if copied or self.owners[keys] != self.owners[values] else (keys,):
            cache = self.tensors[source]
            if cache.type != "F16":
                end += -end % CARD_ALIGNMENT + 2 * cache.ne[0] * cache.ne[1] * cache.ne[2] * cache.ne[3]
        return end - self.host_bytes[n]


def row_padding(kind: str, elements: int) -> int:
    """Bytes behind a tensor on a card whose rows have so many elements."""
    missing = -elements % CARD_ROW_ELEMENTS
    return row_bytes(kind, missing) if missing and block(kind)[0] > 1 else 0


def _home(home: str | int | None, layer: int | None) -> str | int | None:
    """The home of a tensor in another layer of the same kind."""
    if layer is None or home is None:
        return home
    return layer if isinstance(home, int) else f"blk.{layer}.{home.split('.', 2)[2]}"


def _rows(node: Node) -> int:
    match node.op:
        case "get_rows":
            return 0
        case "matmul":
            return node.ne[1]
        case "matmul_id" | "rope":
            return node.ne[2]
        case _:
            return node.ne[1] * node.ne[2] * node.ne[3]
