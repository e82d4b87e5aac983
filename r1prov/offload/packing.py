"""Deals the layers and the experts of a model to cards, so that they fill the room that is there. It is pure arithmetic."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import gcd
from typing import TYPE_CHECKING

from r1prov.models.model import is_embedding, layer_of
from r1prov.offload.memory import cache_bytes, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from r1prov.models.model import Model
    from r1prov.offload.setting import Setting


@dataclass(frozen=True)
class Entry:
    """A layer, or the output after the layers, with its bytes on a card.

    Attributes:
        always: The bytes that every token reads, including the cache.
        experts: The bytes of each tensor of routed experts, by its name.
    """

    always: int
    experts: dict[str, int]

    @property
    def whole(self) -> int:
        """All of its bytes."""
        return self.always + sum(self.experts.values())


def entries_of(model: Model, setting: Setting) -> list[Entry]:
    """The layers of a model, then the output, with the caches of a setting."""
    always = [cache_bytes(model, setting)] * model.layers + [0] * (model.entries - model.layers)
    experts: list[dict[str, int]] = [{} for _ in always]
    for name, tensor in model.weights.items():
        if is_embedding(name):
            continue
        layer = layer_of(name)
        number = -1 if layer is None else layer
        if tensor.is_experts:
            experts[number][tensor.name] = weight_bytes(tensor, on_card=True)
        else:
            always[number] += weight_bytes(tensor, on_card=True)
    return [Entry(*both) for both in zip(always, experts, strict=True)]


def less(rooms: Sequence[int], taken: Sequence[int]) -> list[int]:
    """The rooms without what is taken of each."""
    return [room - bytes_ for room, bytes_ in zip(rooms, taken, strict=True)]


def arranged(wanted: Setting, entries: Sequence[Entry], rooms: Sequence[int]) -> Setting | None:
    """The placement of as many last entries as `rooms` hold without experts, then of as many experts as fit beside them.

    There is none over several hosts. Each layer whose parts lie on two of them would cost a way there and back, and the engine crashes with
    some overrides there (llama.cpp #26151).
    """
    if min(rooms) < 0 or wanted.lent:
        return None
    always = [entry.always for entry in entries]
    start = next((start for start in range(len(entries)) if fill(always[start:], rooms)), len(entries))
    counts = _deal_for_experts(entries[start:], rooms)
    if not any(counts):
        return None
    return replace(
        wanted,
        gpu_layers=sum(counts),
        split=tuple(map(float, counts)),
        overrides=_rules(_away(entries, start, counts, rooms)),
    )


def _away(entries: Sequence[Entry], start: int, counts: Sequence[int], rooms: Sequence[int]) -> dict[str, int | None]:
    """The expert tensors that do not lie with their layer, and their device: RAM (None), or another card that has room left.

    For each size of tensors, as many stay with their layer as fill the card best, in the order of the layers.
    """
    away: dict[str, int | None] = {}
    sizes: dict[str, int] = {}
    left, sums = [], _sums(tuple(tuple(entry.experts.values()) for entry in entries[start:]))
    for room, count in zip(rooms, counts, strict=True):
        own = entries[start : start + count]
        start += count
        room_for_experts = room - sum(entry.always for entry in own)
        supply = _supply(own)
        counted = zip(supply, sums.counts(supply, room_for_experts), strict=True)
        fitting = {size: count for (size, _), count in counted}
        left.append(room_for_experts - sum(size * count for size, count in fitting.items()))
        waiting: dict[int, list[str]] = defaultdict(list)
        for entry in own:
            for name, size in entry.experts.items():
                waiting[size].append(name)
                sizes[name] = size
        for size, tensors in waiting.items():
            away |= dict.fromkeys(tensors[fitting.get(size, 0) :])
    for name in away:
        card = next((card for card, room in enumerate(left) if room >= sizes[name]), None)
        if card is not None:
            left[card] -= sizes[name]
            away[name] = card
    return away


def _supply(entries: Iterable[Entry]) -> tuple[tuple[int, int], ...]:
    """Pairs of a size of expert tensors and their number, smallest size first."""
    return tuple(sorted(Counter(size for entry in entries for size in entry.experts.values()).items()))


def deal_evenly(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """The number of entries for each card, in order, such that the fullest card has the most room left; None if they do not fit."""
    low, high, counts = 0, max(rooms), fill(sizes, rooms)
    while counts and high - low > 2**20:
        middle = (low + high) // 2
        attempt = fill(sizes, [room - middle for room in rooms])
        counts, low, high = (attempt, middle, high) if attempt else (counts, low, middle)
    return counts


def fill(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """The number of entries for each card if each card in order is filled as far as possible; None if some do not fit."""
    counts, position = [], 0
    for room in rooms:
        start = position
        while position < len(sizes) and (room := room - sizes[position]) >= 0:
            position += 1
        counts.append(position - start)
    return tuple(counts) if position == len(sizes) else None


def _deal_for_experts(entries: Sequence[Entry], rooms: Sequence[int]) -> tuple[int, ...]:
    """The number of entries for each card, in order, such that most bytes of experts fit beside them; ties go to the evenest.

    This is a dynamic program: card by card it keeps the best way to place each number of first entries. `rooms` hold all entries
    without their experts.
    """
    always = [0, *accumulate(entry.always for entry in entries)]
    sums = _sums(tuple(tuple(entry.experts.values()) for entry in entries))
    bytes_ = [0, *accumulate(sum(entry.experts.values()) for entry in entries)]
    # The best way for each number of entries: (bytes of experts, evenness, number of entries on each card).
    ways: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for card, room in enumerate(rooms):
        least = always[-1] - sum(
            rooms[card + 1 :]
        )  # with fewer bytes here, the cards after this one could not take the rest
        following: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        ends = [end for end, upto in enumerate(always) if upto >= least]
        # The ways with the least waste come first. What they reach without waste, the others need not try.
        for start, (packed, evenness, counts) in sorted(ways.items(), key=lambda way: -way[1][0] - always[way[0]]):
            most = packed + always[start] + room
            ends = [end for end in ends if end not in following or most - always[end] >= following[end][0]]
            for end in ends[bisect_left(ends, start) :]:
                left = room - (always[end] - always[start])
                if left < 0:
                    break
                more = min(left, bytes_[end] - bytes_[start])
                if end in following and packed + more < following[end][0]:
                    continue
                if more == left:  # not all experts fit
                    more = sums.most(start, end, left)
                way = packed + more, evenness - (end - start) ** 2, (*counts, end - start)
                if end not in following or way > following[end]:
                    following[end] = way
        ways = following
    return ways[len(entries)][2]


_FINEST = 2**16
"""Sums of bytes are counted in a unit of which all the tensors have so many at most."""


class _Sums:
    """The sums of bytes that tensors of neighbouring entries can have.

    The sums are the bits of one number: bit 3 is set where some of the tensors have 3 units together. A tensor more is a shift. The unit
    divides the sizes of all tensors if that is not too fine. Otherwise sizes are rounded up.

    Args:
        entries: The bytes of the tensors of each entry.
    """

    def __init__(self, entries: Sequence[Sequence[int]]) -> None:
        sizes = [size for entry in entries for size in entry]
        self._unit = max(gcd(*sizes), -(-sum(sizes) // _FINEST), 1)
        self._entries = [[-(-size // self._unit) for size in entry] for entry in entries]
        # For each first entry the sums of none, of one, of two entries from there on, as far as somebody has asked.
        self._found = [[1] for _ in entries]

    def most(self, start: int, end: int, room: int) -> int:
        """The most bytes, up to `room`, of tensors of the entries from `start` to before `end`."""
        found = self._found[start]
        for entry in self._entries[start + len(found) - 1 : end]:
            sums = found[-1]
            for size in entry:
                sums |= sums << size
            found.append(sums)
        return self._unit * _highest(found[end - start], room // self._unit)

    def counts(self, supply: Sequence[tuple[int, int]], room: int) -> list[int]:
        """Of each size the number of tensors that come to the most bytes in `room` together.

        Args:
            supply: Pairs of a size in bytes and the number of tensors.
            room: The bytes to fill.
        """
        units = [-(-size // self._unit) for size, _ in supply]
        found = [1]  # the sums of tensors of the first sizes
        for size, (_, available) in zip(units, supply, strict=True):
            sums = found[-1]
            for _ in range(available):
                sums |= sums << size
            found.append(sums)
        left, counts = _highest(found[-1], room // self._unit), []
        for size, before in zip(reversed(units), reversed(found[:-1]), strict=True):
            count = next(count for count in range(left // size + 1) if before >> left - count * size & 1)
            left -= count * size
            counts.append(count)
        return counts[::-1]


_sums = lru_cache(maxsize=8)(_Sums)


def _highest(sums: int, most: int) -> int:
    """The largest of `sums` up to `most`."""
    return (sums & (2 << min(most, sums.bit_length())) - 1).bit_length() - 1


def _rules(away: dict[str, int | None]) -> tuple[tuple[str, int | None], ...]:
    """The overrides for tensors that do not lie with their layer, with few and short patterns."""
    layers: dict[tuple[int | None, str], list[str]] = defaultdict(list)  # (device, kind of tensor) -> layers
    for name, device in away.items():
        _, layer, kind, _ = name.split(".")
        layers[device, kind].append(layer)
    # Kinds that move in the same layers share a pattern: (device, layers) -> kinds.
    kinds: dict[tuple[int | None, tuple[str, ...]], list[str]] = defaultdict(list)
    for (device, kind), numbers in layers.items():
        kinds[device, tuple(sorted(numbers, key=int))].append(kind)
    return tuple((_pattern(numbers, names), device) for (device, numbers), names in kinds.items())


def _pattern(layers: Sequence[str], kinds: Sequence[str]) -> str:
    """The pattern of these kinds of tensors in these layers. It writes a dot as `[.]`, because shells and files may drop a backslash."""
    return f"blk[.]({'|'.join(layers)})[.]({'|'.join(kinds)})[.]"
