"""Tensors of a compute graph as ggml lays them out: type, shape, strides, and what they are made from. No values.

The names are ggml's: `ne` elements and `nb` bytes by dimension, fastest first; a view shares the memory of its `base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1prov.models.model import block

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape = tuple[int, int, int, int]

VIEW = "view"
"""The operation of every view that moves no data: ggml's VIEW, RESHAPE, PERMUTE and TRANSPOSE."""

IN_PLACE = frozenset({"add", "mul", "div", "fill", "scale", "clamp", "unary", "rope", "rms_norm", "soft_max"})
"""Operations that may write over an operand nobody else needs (ggml_op_can_inplace)."""


class Node:
    """One tensor of a graph.

    Attributes:
        op: how it is computed; "" for what is there before: weights, cache, inputs.
        size: bytes from its first to its last element.
        base: the tensor whose memory it shares.
        home: what lies there before the graph runs: a weight, by its name, or a layer's cache, by its number.
        weight: it is a weight.
        is_input: it is filled by the engine before each batch.
        is_output: it is read after the batch, so nothing may take its place.
        host_only: no CUDA kernel computes it.
    """

    __slots__ = (
        *("base", "home", "host_only", "is_input", "is_output", "nb", "ne", "op", "size", "src", "type", "weight"),
    )

    def __init__(self, op: str, kind: str, ne: Sequence[int], src: Sequence[Node] = ()) -> None:
        self.op = op
        self.type = kind
        self.src = list(src)
        elements, n_bytes = block(kind)
        self.ne: Shape = (*ne, *(1 for _ in range(4 - len(ne))))  # type: ignore[assignment]
        row = self.ne[0] // elements * n_bytes
        self.nb: Shape = (n_bytes, row, row * self.ne[1], row * self.ne[1] * self.ne[2])
        self.size = row * self.ne[1] * self.ne[2] * self.ne[3]
        self.base: Node | None = None
        self.home: str | int | None = None
        self.weight = self.is_input = self.is_output = self.host_only = False

    @property
    def root(self) -> Node:
        """The tensor whose memory this is."""
        return self.base or self

    @property
    def contiguous(self) -> bool:
        """Its elements lie without gaps and in order."""
        elements, n_bytes = block(self.type)
        expected = n_bytes
        for dimension, (ne, nb) in enumerate(zip(self.ne, self.nb, strict=True)):
            if ne != 1 and nb != expected:
                return False
            expected = expected * ne // (elements if dimension == 0 else 1)
        return True


def view(source: Node, ne: Sequence[int], nb: Sequence[int]) -> Node:
    """A part or another order of `source`'s elements; `nb` as long as `ne`."""
    node = Node(VIEW, source.type, ne, [source])
    strides = list(nb)
    while len(strides) < 4:  # what ggml_view_impl leaves in the dimensions that were not given
        strides.append(strides[-1] * node.ne[len(strides) - 1])
    node.nb = (strides[0], strides[1], strides[2], strides[3])
    node.base = source.root
    elements, _ = block(node.type)
    first = node.nb[0] if elements == 1 else node.ne[0] // elements * node.nb[0]
    along = (node.ne[0] - 1) * node.nb[0] if elements == 1 else 0
    node.size = first + along + sum((n - 1) * b for n, b in zip(node.ne[1:], node.nb[1:], strict=True))
    return node


def reshape(source: Node, *ne: int) -> Node:
    """The same elements in another shape."""
    node = Node(VIEW, source.type, ne, [source])
    node.base = source.root
    return node


def permute(source: Node, a: int, b: int, c: int, d: int) -> Node:
    """Dimension 0 becomes dimension `a`, 1 `b`, and so on."""
    ne, nb = [0] * 4, [0] * 4
    for position, n, stride in zip((a, b, c, d), source.ne, source.nb, strict=True):
        ne[position], nb[position] = n, stride
    return _with_strides(source, ne, nb)


def _with_strides(source: Node, ne: Sequence[int], nb: Sequence[int]) -> Node:
    node = Node(VIEW, source.type, ne, [source])
    node.nb = (nb[0], nb[1], nb[2], nb[3])
    node.base = source.root
    node.size = source.size
    return node


class Graph:
    """Tensors in the order in which they are met, what each is made from before it.

    Attributes:
        numbers: the place of each tensor in that order.
        chains: runs of nodes that the CUDA backend computes as one, see `Chain`.
        parts: what the graph is put together from, in order; a layer may be one that was met before, once more.
    """

    def __init__(self) -> None:
        self.numbers: dict[Node, int] = {}
        self.chains: list[Chain] = []
        self.parts: list[Part] = []
        self._closed = Part(None, 0, 0, entry=0, output=0)

    def expand(self, node: Node) -> None:
        """Adds `node` after all that it needs, operand by operand (ggml_build_forward_expand)."""
        if node in self.numbers:
            return
        for source in node.src:
            self.expand(source)
        self.numbers[node] = len(self.numbers)

    def close(self, layer: int | None, output: Node) -> Part:
        """Makes a part of what was added since the last one, of which it reads nothing but its output, and inputs."""
        before = self._closed
        self._closed = Part(layer, before.stop, len(self.numbers), entry=before.output, output=self.numbers[output])
        self.parts.append(self._closed)
        return self._closed


@dataclass(frozen=True)
class Part:
    """A layer, or what is before or after all of them.

    Attributes:
        layer: which one.
        start, stop: the numbers of its tensors.
        entry: the number of the tensor before it that it goes on from.
        output: the number of the tensor that the part after it goes on from.
    """

    layer: int | None
    start: int
    stop: int
    entry: int
    output: int


@dataclass(frozen=True)
class Chain:
    """Nodes that one CUDA kernel computes together when they lie in one split.

    Attributes:
        nodes: in order.
        until: the node before which memory that the kernel reads is not given to others.
        whole: everything in the chain stays until then, else only what its first node reads.
    """

    nodes: tuple[Node, ...]
    until: Node
    whole: bool
