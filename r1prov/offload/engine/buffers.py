"""How large the compute buffer of each device becomes: llama.cpp's graph allocator (ggml/src/ggml-alloc.c).

It goes through the steps once, gives each tensor the smallest gap that holds it, or the end, and takes memory back when nothing
reads it any more. The highest address is the size of the buffer.
"""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

from r1prov.offload.engine.numbered import CARD_ALIGNMENT, HOST_ALIGNMENT
from r1prov.offload.engine.schedule import NOTHING
from r1prov.offload.engine.tensors import IN_PLACE

if TYPE_CHECKING:
    from r1prov.offload.engine.numbered import Numbered
    from r1prov.offload.engine.schedule import Schedule

_ENDLESS = 1 << 62
_NOWHERE = -1


def sizes(graph: Numbered, plan: Schedule, cards: int) -> list[int]:
    """Bytes of the compute buffers: of each card, then of the host."""
    pools = [Pool(CARD_ALIGNMENT) for _ in range(cards)] + [Pool(HOST_ALIGNMENT)]
    devices, bytes_ = plan.devices, _bytes(graph, plan, cards)
    copies = range(len(graph.sources), len(devices))
    own, owners = graph.own + [True] * len(copies), [*graph.owners, *copies]
    layouts = graph.layouts + [graph.layouts[original] for original in plan.originals]
    offsets = [_NOWHERE] * len(devices)
    views, children = graph.views + [0] * len(copies), [0] * len(devices)  # that are still to come
    for _, reads in plan.steps:
        for source in reads:
            children[source] += 1

    def overwritten(node: int, reads: tuple[int, ...]) -> int | None:
        """What `node` may be written over: what has its layout and nobody else reads."""
        for parent in reads:
            if (
                offsets[parent] != _NOWHERE
                and children[parent] == 1
                and not views[parent]
                and layouts[parent] == layouts[node]
                and parent not in plan.lasting
            ):
                return parent
        return None

    def freed(source: int) -> None:
        """Nobody reads `source` any more, nor any view of it."""
        owner = owners[source]
        if owner != source:
            views[owner] -= 1
            if views[owner] or children[owner]:
                return
        if offsets[owner] != _NOWHERE and owner not in plan.lasting:
            pools[devices[owner]].give(offsets[owner], bytes_[owner])
            offsets[owner] = _NOWHERE

    for leaf in plan.leaves:
        if own[leaf] and offsets[leaf] == _NOWHERE:
            offsets[leaf] = pools[devices[leaf]].take(bytes_[leaf])
    for node, reads in plan.steps:
        if node != NOTHING and own[node] and offsets[node] == _NOWHERE:
            pool = pools[devices[node]]
            parent = overwritten(node, reads) if reads and graph.tensors[node].op in IN_PLACE else None
            if parent is None:
                offsets[node] = pool.take(bytes_[node])
            else:
                offsets[node], offsets[parent] = offsets[parent], _NOWHERE
                mine = pool.padded(bytes_[node])
                pool.give(offsets[node] + mine, pool.padded(bytes_[parent]) - mine)
        for source in reads:
            children[source] -= 1
            if not (children[source] or views[source]):
                freed(source)
    return [pool.highest for pool in pools]


def _bytes(graph: Numbered, plan: Schedule, cards: int) -> list[int]:
    """Of each tensor where it is, copies included."""
    count = len(graph.sources)
    bytes_ = [
        host if device == cards else card
        for device, host, card in zip(plan.devices, graph.host_bytes, graph.card_bytes, strict=False)
    ]
    for original, device in zip(plan.originals, plan.devices[count:], strict=True):
        bytes_.append(graph.host_bytes[original] if device == cards else graph.card_bytes[original])
    for node in graph.flash:
        if plan.devices[node] != cards:
            bytes_[node] += graph.flash_copies(node, copied=plan.reads[node][1:3] != graph.flash[node])
    return bytes_


class Pool:
    """Addresses of one buffer: gaps by offset, the last of which has no end."""

    def __init__(self, alignment: int) -> None:
        self.alignment, self.highest = alignment, 0
        self.gaps = [(0, _ENDLESS)]

    def padded(self, size: int) -> int:
        """`size` up to the next aligned address."""
        return size + -size % self.alignment

    def take(self, size: int) -> int:
        """The offset of `size` bytes, from the smallest gap that holds them, the last of such."""
        size = self.padded(size)
        best, least = 0, _ENDLESS
        for number, (_, room) in enumerate(self.gaps):
            if size <= room <= least:
                best, least = number, room
        offset, room = self.gaps[best]
        if room == size:
            del self.gaps[best]
        else:
            self.gaps[best] = offset + size, room - size
        self.highest = max(self.highest, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Takes back what `take` gave, and joins it with the gaps beside it."""
        size = self.padded(size)
        if not size:
            return
        gaps, end = self.gaps, offset + size
        number = bisect(gaps, (offset, 0))
        if gaps[number][0] == end:
            end += gaps[number][1]
            del gaps[number]
        if number and sum(gaps[number - 1]) == offset:
            number -= 1
            offset = gaps[number][0]
            del gaps[number]
        gaps.insert(number, (offset, end - offset))
