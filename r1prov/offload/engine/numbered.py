"""Turns a graph into lists of numbers for `schedule` and `buffers`. They are the same for every placement."""

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
"""A card pads the last row of a quantised tensor up to a multiple of this many elements (MATRIX_ROW_PADDING)."""

OFFLOAD_ROWS = 32
"""The fewest rows of an operation for which the engine copies its weights from RAM to a card (GGML_OP_OFFLOAD_MIN_BATCH)."""


class Link(NamedTuple):
    """The attributes of a `tensors.Node` that do not depend on sizes; `reads` and `root` are the numbers of other tensors."""

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
    """The part of a graph that does not depend on sizes. Most lists have one entry for each tensor; the attributes say which do not.

    Attributes:
        order: The number of the tensor in the built graph. Layers of the same kind repeat the numbers of one built layer.
        sources: The numbers of its operands.
        owners: The number of the tensor whose memory it shares; its own number if it has memory of its own.
        homes: A mapping from numbers to what the memory holds before the batch: the name of a weight, or the layer of a cache.
        own: Whether it takes memory when it is computed.
        views: The number of its views.
        leaves, nodes: The numbers of tensors that exist before the batch, and of tensors that are made in it.
        inputs: The numbers of leaves that the engine fills before each batch.
        computed, moved: The numbers of nodes that are computed, and of nodes that are views.
        in_place: The numbers of nodes that may overwrite an operand.
        host_only: The numbers of nodes that no card computes.
        weights: A mapping from nodes to the weights that they read, without nodes that read none.
        flash: A mapping from nodes of fused attention to their keys and values.
        anchors: Triples (leaf, node, stays): the node runs on the device of the leaf. Without `stays`, a large node may run on a card.
        lasting: The numbers of tensors that are read after the batch.
        chains: Triples (nodes, until, whole), see `tensors.Chain`.
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
        """The anchor of a node: it must run where its memory lies, and should run where its weights lie. None for other nodes."""
        if self.owners[n] in self.homes:
            return self.owners[n], n, True
        return (self.weights[n][0], n, False) if n in self.weights and op not in {"rope", "flash"} else None


class Numbered:
    """A graph as lists of numbers, each with one entry for each tensor, in order.

    Attributes:
        wiring: The part that is the same for batches of other sizes.
        layouts: A number for its layout; tensors of the same type, shape and strides share it.
        host_bytes, card_bytes: Its aligned bytes in RAM and on a card.
        large: Whether it has so many rows that a card computes it even with weights in RAM.
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
        self.large = tuple([large[n] for n in order])

    def flash_bytes(self, n: int, *, copied: bool) -> int:
        """The bytes of fused attention on a card: its result, then the F16 copies that the kernel makes of a quantised cache.

        The source is ggml_cuda_flash_attn_ext_get_f16_extra_data. If V is a part of K, it needs no copy of its own, unless both are
        `copied` from another device.
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
    """The bytes of padding behind a tensor on a card, whose rows have `elements` elements."""
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
