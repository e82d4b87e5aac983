"""Which device computes each node, and what must be copied between them: llama.cpp's scheduler (ggml/src/ggml-backend.cpp).

Devices are numbered: the cards from 0, the host after the last card. Tensors are numbered as in `Numbered`, copies after them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from r1prov.offload.engine.numbered import Numbered

PIPELINE_COPIES = 4
"""Batches that several cards work on at once, each with its own copy of what goes between them (GGML_SCHED_MAX_COPIES)."""

NOTHING = -1
"""The number of a step that computes nothing: what it reads is not freed before it."""

NOWHERE = -1
"""The device of what has none yet."""


@dataclass
class Split:
    """Neighbouring nodes of one device. `inputs` are copied to it first: (original, its copies)."""

    device: int
    nodes: list[int] = field(default_factory=list)
    inputs: list[tuple[int, list[int]]] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """What `buffers` goes through.

    Attributes:
        devices: of each tensor, copies included.
        originals: what each copy is a copy of.
        reads: what each node reads, copies where that is on another device.
        leaves: numbers of what is there before the first step, in order.
        steps: (number, what it reads), in order.
        lasting: numbers of what nothing may take the place of.
    """

    devices: list[int]
    originals: list[int]
    reads: list[tuple[int, ...]]
    leaves: list[int]
    steps: list[tuple[int, tuple[int, ...]]]
    lasting: set[int]


def schedule(graph: Numbered, homes: Mapping[str | int, int], cards: int, *, copies: int, offload: bool) -> Schedule:
    """Places the nodes of `graph` and plans the copies.

    Args:
        graph: what is computed.
        homes: the device of each weight, by name, and of each layer's cache, by the layer's number.
        cards: how many.
        copies: PIPELINE_COPIES when the cards work as a pipeline, else 1.
        offload: operations on weights in RAM may run on a card.
    """
    devices = _placed(graph, homes, cards, offload=offload)
    reads, originals = list(graph.sources), list[int]()
    splits = _split(graph, devices, reads, originals, copies)
    kept = _kept(graph, splits, reads, cards)
    steps: list[tuple[int, tuple[int, ...]]] = []
    for split in splits:
        for original, twins in split.inputs:
            steps += [(NOTHING, (original,)), (twins[0], ())]
        for node in split.nodes:
            steps.append((node, reads[node]))
            if node in kept:
                steps += [(NOTHING, group) for group in kept[node]]
    leaves, lasting = list[int](), set(graph.lasting)
    if copies > 1:  # copies of a pipeline live all the time
        for leaf in graph.leaves:
            if graph.tensors[leaf].is_input:
                leaves += [leaf, *_twins(leaf, cards, devices, originals, copies - 1)]
        leaves += [twin for split in splits for _, twins in split.inputs for twin in twins]
        lasting.update(leaves)
    return Schedule(devices, originals, reads, leaves + graph.leaves, steps, lasting)


def _placed(graph: Numbered, homes: Mapping[str | int, int], host: int, *, offload: bool) -> list[int]:
    """The device of each tensor of the graph."""
    devices = [NOWHERE] * len(graph.sources)
    for leaf in graph.leaves:
        home = graph.homes[leaf]
        devices[leaf] = host if home is None else homes[home]
    for leaf, node, movable in graph.anchors:
        devices[node] = 0 if movable and offload and devices[leaf] == host > 0 else devices[leaf]
    # Cards spread to their neighbours first, down then up; the host gets what is left.
    for cards_only in (True, False):
        _spread(graph.computed, graph, devices, host, cards_only=cards_only)
        _spread(reversed(graph.computed), graph, devices, host, cards_only=cards_only)
    for node in graph.computed:
        if devices[node] == NOWHERE:
            devices[node] = host  # no card supports it
    for view in graph.moved:
        devices[view] = devices[graph.owners[view]]
    return devices


def _spread(nodes: Iterable[int], graph: Numbered, devices: list[int], host: int, *, cards_only: bool) -> None:
    current, tensors = NOWHERE, graph.tensors
    for node in nodes:
        device = devices[node]
        if device != NOWHERE:
            current = NOWHERE if cards_only and device == host else device
        elif current != NOWHERE and (current == host or not tensors[node].host_only):
            devices[node] = current


def _split(
    graph: Numbered,
    devices: list[int],
    reads: list[tuple[int, ...]],
    originals: list[int],
    copies: int,
) -> list[Split]:
    """The splits in order; `reads` of nodes become the copies that they read, which are added to `devices` and `originals`."""
    split = Split(NOWHERE)  # views before the first computed node belong to the first split
    splits: list[Split] = []
    twins: dict[tuple[int, int], list[int]] = {}
    moved = set(graph.moved)
    for node in graph.nodes:
        if node in moved:
            split.nodes.append(node)
            continue
        device = devices[node]
        # Weights are copied for each split anew, so that the memory of those before them can be used again.
        if split.device != device or (split.inputs and _brings_weights(graph, node, devices)):
            split = Split(device, [] if splits else split.nodes)
            splits.append(split)
        split.nodes.append(node)
        if all(devices[source] == device for source in reads[node]):
            continue
        sources = list(reads[node])
        for position, source in enumerate(sources):
            if devices[source] != device:
                key = source, device
                if key not in twins:
                    twins[key] = _twins(source, device, devices, originals, copies)
                    split.inputs.append((source, twins[key]))
                sources[position] = twins[key][0]
        reads[node] = tuple(sources)
    return splits


def _brings_weights(graph: Numbered, node: int, devices: list[int]) -> bool:
    return node in graph.weights and any(devices[weight] != devices[node] for weight in graph.weights[node])


def _twins(source: int, device: int, devices: list[int], originals: list[int], count: int) -> list[int]:
    numbers = list(range(len(devices), len(devices) + count))
    devices += [device] * count
    originals += [source] * count
    return numbers


def _kept(
    graph: Numbered, splits: list[Split], reads: list[tuple[int, ...]], host: int
) -> dict[int, list[tuple[int, ...]]]:
    """What fused kernels need to stay until a node is computed, in groups of ten, as a node has no more operands."""
    where = {node: number for number, split in enumerate(splits) if split.device != host for node in split.nodes}
    kept: dict[int, list[tuple[int, ...]]] = {}
    for nodes, until, whole in graph.chains:
        first = where.get(nodes[0])
        if first is not None and all(where.get(node) == first for node in nodes):
            stay = tuple(dict.fromkeys(n for node in nodes for n in (node, *reads[node]))) if whole else reads[nodes[0]]
            kept[until] = [stay[start : start + 10] for start in range(0, len(stay), 10)]
    return kept
