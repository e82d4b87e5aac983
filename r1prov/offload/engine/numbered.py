"""A graph as lists of numbers: all that `schedule` and `buffers` ask of it, the same for every placement."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from r1prov.models.model import block, row_bytes
from r1prov.offload.engine.tensors import IN_PLACE, VIEW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.offload.engine.tensors import Graph, Node, Part

CARD_ALIGNMENT, HOST_ALIGNMENT = 128, 32
CARD_ROW_ELEMENTS = 512
"""On a card a quantised row is followed by padding up to a multiple of this (MATRIX_ROW_PADDING)."""

OFFLOAD_ROWS = 32
"""With as many rows an operation on weights in RAM is worth copying them to a card (GGML_OP_OFFLOAD_MIN_BATCH)."""


class Link(NamedTuple):
    """What a tensor is to others of its graph, see `tensors.Node`; `reads` and `root` are numbers."""

    op: str
    reads: tuple[int, ...]
    root: int
    home: str | int | None
    weight: bool
    is_view: bool
    is_input: bool
    is_output: bool
    host_only: bool


class Wiring:
    """What of a graph does not depend on sizes. A list has an entry for each tensor, unless it says otherwise.

    Attributes:
        order: which of the graph's tensors it is; layers of a kind are made from the same.
        sources: what it is made from.
        owners: whose memory it shares, its own number if it has its own.
        homes: number -> what lies there before: a weight's name, or the layer of a cache.
        own: it takes memory when it is computed.
        views: how many views it has.
        leaves, nodes: the numbers of what is there before, and of what is made from it.
        inputs: the numbers of leaves that are filled before each batch.
        computed, moved: the numbers of nodes that are no views, and of those that are.
        in_place: the numbers of nodes that may be written over an operand.
        host_only: the numbers of nodes that no card computes.
        weights: node -> the weights that it reads, where it reads any.
        flash: fused attention -> its keys and values.
        anchors: (leaf, node, stays) where a leaf draws a node to its device; those that need not stay are movable where they are large.
        lasting: the numbers of what is read after the batch.
        chains: (nodes, until, whole), see `tensors.Chain`.
    """

    def __init__(
        self, links: Sequence[Link], parts: Sequence[Part], chains: Sequence[tuple[tuple[int, ...], int, bool]]
    ) -> None:
        self.order: list[int] = []
        self.sources: list[tuple[int, ...]] = []
        self.owners: list[int] = []
        self.homes: dict[int, str | int] = {}
        self.chains: list[tuple[tuple[int, ...], int, bool]] = []
        here = list(range(len(links)))  # the last number of each of `links`
        output = 0
        for part in parts:
            span = range(part.start, part.stop)
            here[part.entry] = output
            here[part.start : part.stop] = range(len(self.order), len(self.order) + len(span))
            self.order += span
            for n in span:
                link = links[n]
                self.sources.append(tuple([here[source] for source in link.reads]))
                self.owners.append(here[link.root])
                if link.home is not None:
                    self.homes[here[n]] = link.home if part.layer is None else _home(link.home, part.layer)
            self.chains += [
                (tuple([here[n] for n in nodes]), here[until], whole) for nodes, until, whole in chains if until in span
            ]
            output = here[part.output]

        views = [0] * len(links)
        for link in links:
            views[link.root] += link.is_view
        self.views = [views[n] for n in self.order]
        linked = [links[n] for n in self.order]
        self.own = [not link.is_view and link.home is None for link in linked]
        self.leaves = [n for n, link in enumerate(linked) if not link.op]
        self.inputs = [n for n in self.leaves if linked[n].is_input]
        self.nodes = [n for n, link in enumerate(linked) if link.op]
        self.moved = {n for n in self.nodes if linked[n].op == VIEW}
        self.computed = [n for n in self.nodes if n not in self.moved]
        self.in_place = {n for n in self.nodes if linked[n].op in IN_PLACE}
        self.host_only = {n for n in self.nodes if linked[n].host_only}
        self.weights = {
            n: weights for n in self.computed if (weights := [s for s in self.sources[n] if linked[s].weight])
        }
        self.flash = {n: self.sources[n][1:3] for n in self.nodes if linked[n].op == "flash"}
        self.anchors = [anchor for n in self.computed if (anchor := self._anchor(n, linked[n].op))]
        self.lasting = [n for n, link in enumerate(linked) if link.is_output]

    def _anchor(self, n: int, op: str) -> tuple[int, int, bool] | None:
        """Where a node must be, for its memory is there, or should be, for its weights are."""
        if self.owners[n] in self.homes:
            return self.owners[n], n, True
        return (self.weights[n][0], n, False) if n in self.weights and op not in {"rope", "flash"} else None


class Numbered:
    """A graph by numbers. A list has an entry for each tensor, in order.

    Attributes:
        wiring: which is the same for batches of other sizes.
        layouts: tensors of the same layout have the same number here.
        host_bytes, card_bytes: what it takes, aligned.
        large: it has so many rows that a card computes it although its weights lie in RAM.
    """

    def __init__(self, graph: Graph) -> None:
        self._tensors = list(graph.numbers)  # each part once
        self.wiring = _wiring(
            tuple([_link(tensor, graph.numbers) for tensor in self._tensors]),
            tuple(graph.parts),
            tuple(
                (tuple([graph.numbers[node] for node in chain.nodes]), graph.numbers[chain.until], chain.whole)
                for chain in graph.chains
            ),
        )
        known: dict[object, int] = {}
        layouts = [known.setdefault((tensor.type, tensor.ne, tensor.nb), len(known)) for tensor in self._tensors]
        in_ram = [_aligned(tensor.size, HOST_ALIGNMENT) for tensor in self._tensors]
        on_card = [
            _aligned(tensor.size + row_padding(tensor.type, tensor.ne[0]), CARD_ALIGNMENT) for tensor in self._tensors
        ]
        large = [_rows(tensor) >= OFFLOAD_ROWS for tensor in self._tensors]
        order = self.wiring.order
        self.layouts = [layouts[n] for n in order]
        self.host_bytes = [in_ram[n] for n in order]
        self.card_bytes = [on_card[n] for n in order]
        self.large = [large[n] for n in order]

    def flash_bytes(self, n: int, *, copied: bool) -> int:
        """What fused attention takes on a card: its result, and behind it the F16 copies that the kernel keeps of a quantised cache.

        ggml_cuda_flash_attn_ext_get_f16_extra_data. V needs none where it is a part of K, unless both are `copied` from elsewhere.
        """
        owners, order = self.wiring.owners, self.wiring.order
        keys, values = self.wiring.flash[n]
        end = self._tensors[order[n]].size
        for source in (keys, values) if copied or owners[keys] != owners[values] else (keys,):
            cache = self._tensors[order[source]]
            if cache.type != "F16":
                end = _aligned(end, CARD_ALIGNMENT) + 2 * cache.ne[0] * cache.ne[1] * cache.ne[2] * cache.ne[3]
        return _aligned(end, CARD_ALIGNMENT)


_wiring = lru_cache(maxsize=8)(Wiring)


def _link(node: Node, numbers: dict[Node, int]) -> Link:
    reads = tuple([numbers[source] for source in node.src])
    root, is_view = numbers[node.root], node.base is not None
    return Link(node.op, reads, root, node.home, node.weight, is_view, node.is_input, node.is_output, node.host_only)


def _aligned(size: int, alignment: int) -> int:
    return size + -size % alignment


@cache
def row_padding(kind: str, elements: int) -> int:
    """Bytes behind a tensor on a card whose rows have so many elements."""
    missing = -elements % CARD_ROW_ELEMENTS
    return row_bytes(kind, missing) if missing and block(kind)[0] > 1 else 0


def _home(home: str | int, layer: int) -> str | int:
    """The home of a tensor in another layer of the same kind."""
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
