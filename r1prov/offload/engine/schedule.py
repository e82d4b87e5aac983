"""Assigns nodes to devices and plans the copies between devices, like llama.cpp's scheduler (ggml/src/ggml-backend.cpp).

The cards are numbered from 0, and the host has the number after the last card. Tensors have the numbers of `Numbered`; copies follow
them, and waits follow the copies. A wait computes nothing, but the tensors that it reads are not freed before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from r1prov.offload.engine.numbered import Wiring

PIPELINE_COPIES = 4
"""Batches that several cards work on at once, each with its own copy of what goes between them (GGML_SCHED_MAX_COPIES)."""

NOWHERE = -1
"""The device of a tensor that has none yet."""


@dataclass
class Split:
    """Neighbouring nodes of one device. `inputs` are copied to it first: (original, its copies)."""

    device: int
    nodes: list[int] = field(default_factory=list)
    inputs: list[tuple[int, list[int]]] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """The order in which `buffers` allocates tensors.

    Attributes:
        devices: The device of each tensor, including the copies.
        originals: The tensor of which each copy is one.
        reads: The tensors that each node and each wait reads. If a tensor is on another device, its copy stands here.
        leaves: The numbers of the tensors that exist before the first step, in order.
        steps: The numbers of computed nodes, copies and waits, in order.
        lasting: The numbers of the tensors whose memory is never reused.
    """

    devices: list[int]
    originals: list[int]
    reads: list[tuple[int, ...]]
    leaves: list[int]
    steps: list[int]
    lasting: set[int]


def schedule(
    wiring: Wiring,
    large: Sequence[bool],
    homes: Mapping[str | int, int],
    cards: int,
    *,
    copies: int,
    copying: int | None,
) -> Schedule:
    """Places the nodes of a graph and plans the copies.

    Args:
        wiring: The part of the graph that does not depend on sizes.
        large: Whether each tensor has so many rows that a card computes it even with weights in RAM.
        homes: The device of each weight, by name, and of each layer's cache, by the number of the layer.
        cards: The number of cards.
        copies: PIPELINE_COPIES if the cards work as a pipeline, otherwise 1.
        copying: The card on which large operations on weights in RAM may run, to which these are copied; None where none does that. It is
            the first card of the engine's own host: other hosts' cards offer no such thing (ggml_backend_rpc_device_i).
    """
    devices = _placed(wiring, large, homes, cards, copying=copying)
    reads, originals = list(wiring.sources), list[int]()
    splits = _split(wiring, devices, reads, originals, copies)
    kept = _kept(wiring, splits, reads, cards)
    leaves, lasting = list[int](), set(wiring.lasting)
    if copies > 1:  # copies of a pipeline live all the time
        for leaf in wiring.inputs:
            leaves += [leaf, *_twins(leaf, cards, devices, originals, copies - 1)]
        leaves += [twin for split in splits for _, twins in split.inputs for twin in twins]
        lasting.update(leaves)
    reads += [()] * len(originals)
    steps: list[int] = []
    for split in splits:
        for original, twins in split.inputs:
            steps += (len(reads), twins[0])
            reads.append((original,))
        for node in split.nodes:
            steps.append(node)
            if node in kept:
                steps += range(len(reads), len(reads) + len(kept[node]))
                reads += kept[node]
    return Schedule(devices, originals, reads, leaves + wiring.leaves, steps, lasting)


def _placed(
    wiring: Wiring, large: Sequence[bool], homes: Mapping[str | int, int], host: int, *, copying: int | None
) -> list[int]:
    """The device of each tensor of the graph."""
    devices = [NOWHERE] * len(wiring.sources)
    for leaf in wiring.leaves:
        devices[leaf] = homes[wiring.homes[leaf]] if leaf in wiring.homes else host
    for leaf, node, stays in wiring.anchors:
        home = devices[leaf]
        devices[node] = copying if copying is not None and home == host and not stays and large[node] else home
    # Nodes on cards first give their device to their neighbours, downwards, then upwards. The host gets the other nodes.
    for cards_only in (True, False):
        _spread(wiring.computed, wiring, devices, host, cards_only=cards_only)
        _spread(reversed(wiring.computed), wiring, devices, host, cards_only=cards_only)
    for node in wiring.computed:
        if devices[node] == NOWHERE:
            devices[node] = host  # no card supports it
    for view in wiring.moved:
        devices[view] = devices[wiring.owners[view]]
    return devices


def _spread(nodes: Iterable[int], wiring: Wiring, devices: list[int], host: int, *, cards_only: bool) -> None:
    current = NOWHERE
    for node in nodes:
        device = devices[node]
        if device != NOWHERE:
            current = NOWHERE if cards_only and device == host else device
        elif current != NOWHERE and (current == host or node not in wiring.host_only):
            devices[node] = current


def _split(
    wiring: Wiring,
    devices: list[int],
    reads: list[tuple[int, ...]],
    originals: list[int],
    copies: int,
) -> list[Split]:
    """The splits in order. It adds the copies to `devices` and `originals`, and makes `reads` name the copies."""
    split = Split(NOWHERE)  # views before the first computed node belong to the first split
    splits: list[Split] = []
    twins: dict[tuple[int, int], list[int]] = {}
    moved, weights = wiring.moved, wiring.weights
    for node in wiring.nodes:
        if node in moved:
            split.nodes.append(node)
            continue
        device = devices[node]
        # A copied weight starts a new split, so that the memory of weights copied before can be reused.
        if split.device != device or (split.inputs and node in weights and _any_away(weights[node], device, devices)):
            split = Split(device, [] if splits else split.nodes)
            splits.append(split)
        split.nodes.append(node)
        if not _any_away(reads[node], device, devices):
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


def _any_away(tensors: Iterable[int], device: int, devices: list[int]) -> bool:
    for tensor in tensors:  # noqa: SIM110 - asked for each node, and quicker than `any`
        if devices[tensor] != device:
            return True
    return False


def _twins(source: int, device: int, devices: list[int], originals: list[int], count: int) -> list[int]:
    numbers = list(range(len(devices), len(devices) + count))
    devices += [device] * count
    originals += [source] * count
    return numbers


def _kept(
    wiring: Wiring, splits: list[Split], reads: list[tuple[int, ...]], host: int
) -> dict[int, list[tuple[int, ...]]]:
    """For a node, the tensors that a fused kernel needs until then. They come in groups of ten, as a node has at most ten operands."""
    where = {node: number for number, split in enumerate(splits) if split.device != host for node in split.nodes}
    kept: dict[int, list[tuple[int, ...]]] = {}
    for nodes, until, whole in wiring.chains:
        first = where.get(nodes[0])
        if first is not None and all(where.get(node) == first for node in nodes):
            stay = tuple(dict.fromkeys(n for node in nodes for n in (node, *reads[node]))) if whole else reads[nodes[0]]
            kept[until] = [stay[start : start + 10] for start in range(0, len(stay), 10)]
    return kept
