"""Calculates the size of each device's compute buffer, like llama.cpp's graph allocator (ggml/src/ggml-alloc.c).

The allocator goes through the steps once. It puts each tensor in the smallest gap that holds it, or at the end. It frees the memory of
a tensor after its last reader. The highest address is the size of the buffer.
"""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r1prov.offload.engine.numbered import Numbered
    from r1prov.offload.engine.schedule import Schedule

_ENDLESS = 1 << 62
_NOWHERE = -1


def sizes(graph: Numbered, plan: Schedule, cards: int) -> list[int]:
    """The bytes of the compute buffers, of each card, then of the host."""
    wiring = graph.wiring
    pools = [Pool() for _ in range(cards + 1)]
    devices, reads, lasting, bytes_ = plan.devices, plan.reads, plan.lasting, _bytes(graph, plan, cards)
    copies, waits = range(len(wiring.sources), len(devices)), len(reads) - len(devices)
    own, owners = wiring.own + [True] * len(copies) + [False] * waits, [*wiring.owners, *copies]
    layouts = graph.layouts + [graph.layouts[original] for original in plan.originals]
    offsets = [_NOWHERE] * len(devices)
    views, children = wiring.views + [0] * len(copies), [0] * len(devices)  # the views and readers still to come
    for step in plan.steps:
        for source in reads[step]:
            children[source] += 1

    def overwritten(node: int) -> int | None:
        """The operand that `node` may overwrite: it has the same layout and no other reader. None if there is none."""
        for parent in reads[node]:
            if (
                offsets[parent] != _NOWHERE
                and children[parent] == 1
                and not views[parent]
                and layouts[parent] == layouts[node]
                and parent not in lasting
            ):
                return parent
        return None

    for leaf in plan.leaves:
        if own[leaf] and offsets[leaf] == _NOWHERE:
            offsets[leaf] = pools[devices[leaf]].take(bytes_[leaf])
    for step in plan.steps:
        if own[step] and offsets[step] == _NOWHERE:
            pool = pools[devices[step]]
            parent = overwritten(step) if step in wiring.in_place else None
            if parent is None:
                offsets[step] = pool.take(bytes_[step])
            else:
                offsets[step], offsets[parent] = offsets[parent], _NOWHERE
                pool.give(offsets[step] + bytes_[step], bytes_[parent] - bytes_[step])
        for source in reads[step]:
            children[source] -= 1
            if children[source] or views[source]:
                continue
            owner = owners[source]
            if owner != source:
                views[owner] -= 1
            if not (views[owner] or children[owner]) and offsets[owner] != _NOWHERE and owner not in lasting:
                pools[devices[owner]].give(offsets[owner], bytes_[owner])
                offsets[owner] = _NOWHERE
    return [pool.highest for pool in pools]


def _bytes(graph: Numbered, plan: Schedule, cards: int) -> list[int]:
    """The bytes of each tensor on its device, including the copies."""
    wiring = graph.wiring
    count = len(wiring.sources)
    bytes_ = [
        host if device == cards else card
        for device, host, card in zip(plan.devices, graph.host_bytes, graph.card_bytes, strict=False)
    ]
    for original, device in zip(plan.originals, plan.devices[count:], strict=True):
        bytes_.append(graph.host_bytes[original] if device == cards else graph.card_bytes[original])
    for node in wiring.flash:
        if plan.devices[node] != cards:
            bytes_[node] = graph.flash_bytes(node, copied=plan.reads[node][1:3] != wiring.flash[node])
    return bytes_


class Pool:
    """The addresses of one buffer, as a list of gaps in order, of which the last has no end. All sizes are aligned."""

    def __init__(self) -> None:
        self.highest = 0
        self.offsets, self.rooms = [0], [_ENDLESS]

    def take(self, size: int) -> int:
        """Takes `size` bytes from the smallest gap that holds them (the last one of equal gaps), and returns their offset."""
        best, least = 0, _ENDLESS
        for number, room in enumerate(self.rooms):
            if size <= room <= least:
                best, least = number, room
        offset = self.offsets[best]
        if least == size:
            del self.offsets[best], self.rooms[best]
        else:
            self.offsets[best] += size
            self.rooms[best] -= size
        self.highest = max(self.highest, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Frees bytes that `take` gave, and joins them with the gaps beside them."""
        if not size:
            return
        offsets, rooms = self.offsets, self.rooms
        number = bisect(offsets, offset)
        before = number and offsets[number - 1] + rooms[number - 1] == offset
        if offsets[number] == offset + size:
            if before:
                rooms[number - 1] += size + rooms[number]
                del offsets[number], rooms[number]
            else:
                offsets[number] = offset
                rooms[number] += size
        elif before:
            rooms[number - 1] += size
        else:
            offsets.insert(number, offset)
            rooms.insert(number, size)
