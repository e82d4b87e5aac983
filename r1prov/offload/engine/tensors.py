"""The tensors of a compute graph as ggml lays them out: type, shape, strides and operands, without values.

The names are those of ggml. `ne` holds the elements and `nb` the stride in bytes of each dimension, fastest first. A view shares the
memory of its `base`.
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
"""Operations that may overwrite an operand that no other node needs (ggml_op_can_inplace)."""


class Node:
    """One tensor of a graph.

    Attributes:
        op: The operation that computes it; "" for weights, caches and inputs, which exist before the batch.
        size: The bytes from its first to its last element.
        base: The tensor whose memory it shares; None if it has memory of its own.
        home: What its memory holds before the batch: the name of a weight, or the layer of a cache.
        weight: Whether it is a weight.
        is_input: Whether the engine fills it before each batch.
        is_output: Whether it is read after the batch, so that its memory is never reused.
        host_only: Whether no CUDA kernel computes it.
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
        """The tensor that owns the memory of this one."""
        return self.base or self

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in order and without gaps."""
        elements, n_bytes = block(self.type)
        expected = n_bytes
        for dimension, (ne, nb) in enumerate(zip(self.ne, self.nb, strict=True)):
            if ne != 1 and nb != expected:
                return False
            expected = expected * ne // (elements if dimension == 0 else 1)
        return True


def view(source: Node, ne: Sequence[int], nb: Sequence[int]) -> Node:
    """A view of a part of `source`, or of its elements in another order. `ne` and `nb` have the same length."""
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
    """A view of the same elements in another shape."""
    node = Node(VIEW, source.type, ne, [source])
    node.base = source.root
    return node


def permute(source: Node, a: int, b: int, c: int, d: int) -> Node:
    """A view whose dimension `a` is dimension 0 of `source`, `b` is dimension 1, and so on."""
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
    """The tensors of a batch, in an order in which operands come before their readers.

    Attributes:
        numbers: The place of each tensor in that order.
        chains: Nodes that the CUDA backend computes together, see `Chain`.
        parts: The parts of the graph, in order. A layer may repeat the tensors of a layer that was built before.
    """

    def __init__(self) -> None:
        self.numbers: dict[Node, int] = {}
        self.chains: list[Chain] = []
        self.parts: list[Part] = []
        self._closed = Part(None, 0, 0, entry=0, output=0)

    def expand(self, node: Node) -> None:
        """Adds the operands of `node`, in order, then `node` itself (ggml_build_forward_expand)."""
        if node in self.numbers:
            return
        for source in node.src:
            self.expand(source)
        self.numbers[node] = len(self.numbers)

    def close(self, layer: int | None, output: Node) -> Part:
        """Makes a part of the tensors that were added since the last part.

        Of the part before it, the new part may read only the output and inputs.
        """
        before = self._closed
        self._closed = Part(layer, before.stop, len(self.numbers), entry=before.output, output=self.numbers[output])
        self.parts.append(self._closed)
        return self._closed


@dataclass(frozen=True)
class Part:
    """A part of a graph: a layer, or the tensors before or after all layers.

    Attributes:
        layer: The number of the layer; None for the other parts.
        start, stop: The range of the numbers of its tensors.
        entry: The number of the tensor of the part before that this part continues from.
        output: The number of the tensor that the next part continues from.
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
        nodes: The nodes in order.
        until: The node until which the memory that the kernel reads is kept.
        whole: Whether all tensors of the chain are kept until then, or only those that its first node reads.
    """

    nodes: tuple[Node, ...]
    until: Node
    whole: bool
