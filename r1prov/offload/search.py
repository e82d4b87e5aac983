"""Where to put a model so that a token reads as little as possible from RAM.

Every token reads attention, dense layers, shared experts, output and cache whole, but only a few of the routed experts: a byte of
the former on a card saves thirty times what a byte of the latter does (R1 uses 8 experts of 256). So the cards take the former
first, then experts, those of its own layers before others, tensor by tensor, until each is full to its reserve. What is left stays in RAM.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from r1prov.models.model import is_embedding, layer_of
from r1prov.offload import speed
from r1prov.offload.memory import cache_bytes, context_per_slot, memory, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from r1prov.models.model import Model
    from r1prov.offload.memory import Memory
    from r1prov.offload.outcome import Space
    from r1prov.offload.setting import Setting

PROMPT_SHARE = 16
"""The micro-batch is chosen for an exchange that fills a slot, of which one part in this many is asked: R1 thinks for long, and what
was said before lies in the cache."""

SMALLEST_MICRO_BATCH = 64
_ROUNDS = 6
"""Compute buffers depend a little on what lies where, so placing is repeated until both agree; three rounds are the rule."""


@lru_cache(maxsize=64)
def best(model: Model, wanted: Setting, space: Space) -> Setting | None:
    """The placement with which an exchange is over first, of those whose rest the RAM holds.

    Where it holds none, the one with least in RAM; None when nothing of the model fits on the cards.

    Args:
        model: what is served.
        wanted: context, slots, cache types; `micro_batch` is the largest to try.
        space: the cards and the RAM, of which their reserves stay free.
    """
    entries, least, found = _entries(model, wanted), math.inf, None
    for setting in _fastest_first(model, wanted, entries, space.rooms):
        in_ram = memory(model, setting, space.cards).host.total
        if in_ram < least:
            least, found = in_ram, setting
        # However it is dealt out, what the cards cannot hold lies in RAM.
        if in_ram <= space.room_in_ram or sum(entry.whole for entry in entries) > sum(space.rooms) + space.room_in_ram:
            break
    return found


def _fastest_first(
    model: Model, wanted: Setting, entries: Sequence[_Entry], rooms: tuple[int, ...]
) -> Iterator[Setting]:
    """Placements that fit on the cards; the slower ones take less of them for compute buffers, and so leave less in RAM."""
    for micro_batch in _micro_batches(wanted):
        whole = _whole(model, replace(wanted, micro_batch=micro_batch), entries, rooms)
        if whole:
            yield whole
    # A first card too small for what large batches would copy to it need not keep the others idle: those batches stay in RAM.
    for offload in (True, False)[not wanted.offload :]:
        # Drafts are ranked before one is worked out, which takes as long as all of them.
        for draft in _drafts(model, replace(wanted, offload=offload), entries, rooms):
            found = _worked_out(model, draft, entries, rooms)
            if found:
                yield found


def _micro_batches(wanted: Setting) -> Iterator[int]:
    micro_batch = wanted.micro_batch
    yield micro_batch
    while (micro_batch := micro_batch // 2) >= SMALLEST_MICRO_BATCH:
        yield micro_batch


def exchange_seconds(model: Model, setting: Setting, cards: Sequence[int]) -> float:
    """A prompt and its answer that fill a slot, at the low speeds."""
    context = context_per_slot(model, setting)
    prompt = context // PROMPT_SHARE
    batches = math.ceil(prompt / setting.micro_batch)
    reads = speed.reads(model, setting, cards)
    return (context - prompt) * reads.seconds(0) + batches * speed.prompt_copies_seconds(model, setting, cards)


def fits(taken: Memory, rooms: Sequence[int]) -> bool:
    """No card takes more than its room."""
    return all(use.total <= room for use, room in zip(taken.cards, rooms, strict=True))


@dataclass(frozen=True)
class _Entry:
    """A layer, or the output after them. Bytes on a card.

    Attributes:
        always: what every token reads, the cache included.
        experts: the tensors of routed experts, by name.
    """

    always: int
    experts: dict[str, int]

    @property
    def whole(self) -> int:
        return self.always + sum(self.experts.values())


def _entries(model: Model, setting: Setting) -> list[_Entry]:
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
    return [_Entry(*both) for both in zip(always, experts, strict=True)]


def _whole(model: Model, wanted: Setting, entries: Sequence[_Entry], rooms: Sequence[int]) -> Setting | None:
    """Everything on the cards by layers, each with as much left as the others: then they work as a pipeline.

    Less and less is dealt out to each, until there is room for the compute buffers too.
    """
    sizes, compute = [entry.whole for entry in entries], [0] * len(rooms)
    for _ in range(_ROUNDS):
        counts = _deal_evenly(sizes, _less(rooms, compute))
        if not counts:
            return None
        setting = replace(wanted, gpu_layers=sum(counts), split=tuple(map(float, counts)))
        taken = memory(model, setting, rooms)
        if fits(taken, rooms):
            return setting
        compute = [max(before, use.compute) for before, use in zip(compute, taken.cards, strict=True)]
    return None


def _drafts(model: Model, wanted: Setting, entries: Sequence[_Entry], rooms: Sequence[int]) -> list[Setting]:
    """For each micro-batch a placement that is right but for what its last change changes in the compute buffers; the fastest first."""
    drafts = []
    before = _arranged(wanted, entries, rooms)
    if before is None:
        return []
    for micro_batch in _micro_batches(wanted):
        taken = memory(model, replace(before, micro_batch=micro_batch), rooms)
        free = _less(rooms, [use.compute for use in taken.cards])
        draft = _arranged(replace(wanted, micro_batch=micro_batch), entries, free)
        if draft:
            drafts.append(draft)
            before = draft
    return sorted(drafts, key=lambda draft: exchange_seconds(model, draft, rooms))


def _worked_out(model: Model, draft: Setting, entries: Sequence[_Entry], rooms: Sequence[int]) -> Setting | None:
    """The draft, placed anew with the compute buffers that it really has, until it fits and nothing is to be gained."""
    found, least = None, math.inf
    setting, worst = draft, [0] * len(rooms)
    for _ in range(_ROUNDS):
        taken = memory(model, setting, rooms)
        compute = [use.compute for use in taken.cards]
        worst = [max(both) for both in zip(worst, compute, strict=True)]
        if fits(taken, rooms):
            seconds = exchange_seconds(model, setting, rooms)
            if seconds >= least:
                break
            found, least = setting, seconds
        else:  # from here on be careful, or two placements could take turns for ever
            compute = worst
        following = _arranged(draft, entries, _less(rooms, compute))
        if following is None or following == setting:
            break
        setting = following
    return found


def _less(rooms: Sequence[int], taken: Sequence[int]) -> list[int]:
    return [room - bytes_ for room, bytes_ in zip(rooms, taken, strict=True)]


def _arranged(wanted: Setting, entries: Sequence[_Entry], rooms: Sequence[int]) -> Setting | None:
    """As many of the last entries as `rooms` hold without experts, and experts of theirs beside them."""
    if min(rooms) < 0:
        return None
    always = [entry.always for entry in entries]
    start = next((start for start in range(len(entries)) if _fill(always[start:], rooms)), len(entries))
    counts = _deal_for_experts(entries[start:], rooms)
    if not any(counts):
        return None
    return replace(
        wanted,
        gpu_layers=sum(counts),
        split=tuple(map(float, counts)),
        overrides=_rules(_away(entries, start, counts, rooms)),
    )


def _away(entries: Sequence[_Entry], start: int, counts: Sequence[int], rooms: Sequence[int]) -> dict[str, int | None]:
    """The expert tensors that do not lie with their layer: in RAM (None), or on a card that has all of its own and room for more.

    Of each size as many stay at home as fit best, whole layers together as far as that goes.
    """
    away: dict[str, int | None] = {}
    sizes: dict[str, int] = {}
    left = []
    for room, count in zip(rooms, counts, strict=True):
        own = entries[start : start + count]
        start += count
        room_for_experts = room - sum(entry.always for entry in own)
        supply = _supply(own)
        packed, counts_by_size = _packed(room_for_experts, supply)
        fitting = {size: count for (size, _), count in zip(supply, counts_by_size, strict=True)}
        left.append(room_for_experts - packed)
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


def _supply(entries: Iterable[_Entry]) -> tuple[tuple[int, int], ...]:
    """How many expert tensors of each size there are, smallest first."""
    return tuple(sorted(Counter(size for entry in entries for size in entry.experts.values()).items()))


def _deal_evenly(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """Entries dealt out in order so that the card with the least left has the most; None when they do not fit."""
    low, high, found = 0, max(rooms), _fill(sizes, rooms)
    while found and high - low > 2**20:
        middle = (low + high) // 2
        counts = _fill(sizes, [room - middle for room in rooms])
        found, low, high = (counts, middle, high) if counts else (found, low, middle)
    return found


def _fill(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """Fill cards in order, each as far as it goes; None when something is left over."""
    counts, position = [], 0
    for room in rooms:
        start = position
        while position < len(sizes) and (room := room - sizes[position]) >= 0:
            position += 1
        counts.append(position - start)
    return tuple(counts) if position == len(sizes) else None


def _deal_for_experts(entries: Sequence[_Entry], rooms: Sequence[int]) -> tuple[int, ...]:
    """Entries dealt out in order so that most bytes of experts fit beside them, evenly where that is the same.

    Card by card, for each number of entries dealt out so far, the best way to have done so. `rooms` hold them without experts.
    """
    always = [0, *accumulate(entry.always for entry in entries)]
    sizes = sorted({size for entry in entries for size in entry.experts.values()})
    experts = [Counter(entry.experts.values()) for entry in entries]
    supplies = [
        [0, *accumulate(counted[size] for counted in experts)] for size in sizes
    ]  # of each size, up to an entry
    bytes_ = [0, *accumulate(sum(entry.experts.values()) for entry in entries)]
    # entries -> (bytes of experts, evenness, counts)
    ways: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for card, room in enumerate(rooms):
        least = always[-1] - sum(rooms[card + 1 :])  # or the cards after this one could not take the rest
        following: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        # Those that have wasted least come first, so that most others need no closer look.
        for start, (packed, evenness, counts) in sorted(ways.items(), key=lambda way: -way[1][0] - always[way[0]]):
            for end in range(start, len(always)):
                left = room - (always[end] - always[start])
                if left < 0:
                    break
                more = min(left, bytes_[end] - bytes_[start])
                if always[end] < least or (end in following and packed + more < following[end][0]):
                    continue
                if more == left:  # not all
                    supply = [(size, upto[end] - upto[start]) for size, upto in zip(sizes, supplies, strict=True)]
                    more, _ = _packed(left, supply)
                way = packed + more, evenness - (end - start) ** 2, (*counts, end - start)
                if end not in following or way > following[end]:
                    following[end] = way
        ways = following
    return ways[len(entries)][2]


def _packed(room: int, supply: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, ...]]:
    """The most bytes of whole tensors that fit in `room`, and how many of each size.

    Args:
        room: bytes.
        supply: (size, how many there are), smallest first.
    """
    if not supply:
        return 0, ()
    *others, (size, available) = supply
    most = min(room // size, available)
    if not others:
        return most * size, (most,)
    best: tuple[int, tuple[int, ...]] = -1, ()
    for count in range(max(most - 3, 0), most + 1):  # fewer would leave room for more than three of these
        packed, counts = _packed(room - count * size, others)
        if packed + count * size > best[0]:
            best = packed + count * size, (*counts, count)
    return best


def _rules(away: dict[str, int | None]) -> tuple[tuple[str, int | None], ...]:
    """Patterns for tensors that do not lie with their layer, as few and short as they can be."""
    layers: dict[tuple[int | None, str], list[str]] = defaultdict(list)  # device and kind of tensor -> its layers
    for name, device in away.items():
        _, layer, kind, _ = name.split(".")
        layers[device, kind].append(layer)
    kinds: dict[tuple[int | None, tuple[str, ...]], list[str]] = defaultdict(
        list
    )  # kinds of the same layers share a pattern
    for (device, kind), numbers in layers.items():
        kinds[device, tuple(sorted(numbers, key=int))].append(kind)
    return tuple((_pattern(numbers, names), device) for (device, numbers), names in kinds.items())


def _pattern(layers: Sequence[str], kinds: Sequence[str]) -> str:
    """Dots in brackets, not behind backslashes, which every quoting on the way would have to preserve."""
    return f"blk[.]({'|'.join(layers)})[.]({'|'.join(kinds)})[.]"
