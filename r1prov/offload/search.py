"""Searches for the placement with which a token reads as little as possible from RAM.

Every token reads attention, dense layers, shared experts, output and cache as a whole, but only a few of the routed experts. R1 uses
8 experts of 256, so a byte of the always-read tensors on a card saves 32 times as much as a byte of experts. Therefore the cards take
the always-read tensors first. Then each card takes experts, tensor by tensor, until it is full to its reserve; the experts of its own
layers come before others. All other experts stay in RAM.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from r1prov.models.model import is_embedding, layer_of
from r1prov.offload.memory import cache_bytes, context_per_slot, matched, memory, placement, weight_bytes
from r1prov.offload.setting import Setting, with_slots
from r1prov.offload.waits import filling, mean_seconds, mean_waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model
    from r1prov.offload.memory import Memory
    from r1prov.offload.outcome import Space

SMALLEST_MICRO_BATCH = 64

_SIZE_STEP = 64
"""Micro-batches are multiples of this many tokens."""

_HARDLY_LONGER = 1.1
"""More slots are preferred where people wait longer by no more than this: the arithmetic is no more exact, and errs against many slots."""

MOST_SLOTS = 64
"""The most slots that are chosen."""

_MOST_CUTS = 4
"""The most ways to cut a prompt of the workload into equal parts that are tried."""

_ROUNDS = 6
"""The most rounds of placing. Compute buffers depend on the placement, so it is repeated until both agree, mostly three times."""


@lru_cache(maxsize=64)
def best(model: Model, wanted: Setting, space: Space, workload: Workload | None = None) -> Setting | None:
    """Finds the placement with which the exchanges of the workload are over first in the mean, and whose part in RAM fits there.

    If none fits, this is the placement with the fewest bytes in RAM. If nothing of the model fits on the cards, it is None.

    Args:
        model: The model that is served.
        wanted: The context, the slots and the cache types; `micro_batch` is the largest to try.
        space: The cards and the RAM, with the reserves that stay free.
        workload: What people ask for. Without it, one exchange that fills a slot counts, and the logical batch is not changed.
    """
    entries, least, chosen = _entries(model, wanted), math.inf, None
    for setting in _fastest_first(model, wanted, entries, space, workload):
        in_ram = memory(model, setting, space.cards).host.total
        if in_ram < least:
            least, chosen = in_ram, setting
        # A model that is larger than cards and RAM together fits in no placement.
        if in_ram <= space.room_in_ram or sum(entry.whole for entry in entries) > sum(space.rooms) + space.room_in_ram:
            break
    return chosen


def _fastest_first(
    model: Model, wanted: Setting, entries: Sequence[_Entry], space: Space, workload: Workload | None
) -> Iterator[Setting]:
    """Placements that fit on the cards, the fastest first.

    The slower ones need smaller compute buffers, so that more of the model lies on the cards and less in RAM.
    """
    asked, rooms = workload or filling(context_per_slot(model, wanted)), space.rooms

    def seconds(setting: Setting) -> float:
        return mean_seconds(model, setting, rooms, asked, space.speeds)

    def sized(size: int) -> Setting:
        return replace(wanted, micro_batch=size, batch=_batch(size) if workload else wanted.batch)

    halves = [sized(size) for size in micro_batches(wanted)]
    # Cards that hold everything copy nothing, so these few sizes show which is best.
    yield from sorted(filter(None, (_whole(model, half, entries, rooms) for half in halves)), key=seconds)
    # Large batches copy weights to the first card. If it is too small for them, the CPU computes these batches (offload=False).
    for offload in (True, False)[not wanted.offload :]:
        # The drafts are ranked first, because working out one of them takes as long as drafting all.
        drafts = _drafts(model, halves, entries, rooms, offload=offload)
        if workload and drafts:
            near = _equal_parts(workload, min(drafts, key=seconds), wanted.micro_batch)
            drafts += _drafts(model, [sized(size) for size in near], entries, rooms, offload=offload)
        for draft in sorted(drafts, key=seconds):
            setting = _worked_out(model, draft, entries, rooms, seconds)
            if setting:
                yield setting


def micro_batches(wanted: Setting) -> Iterator[int]:
    """The micro-batch that is asked for, then smaller ones."""
    micro_batch = wanted.micro_batch
    yield micro_batch
    while (micro_batch := micro_batch // 2) >= SMALLEST_MICRO_BATCH:
        yield micro_batch


def _equal_parts(workload: Workload, setting: Setting, largest: int) -> list[int]:
    """The micro-batches near that of `setting` which cut a prompt of the workload into equal parts, up to `largest`, largest first."""
    near = range(setting.micro_batch // 2 + 1, min(setting.micro_batch * 2, largest + 1))
    sizes = set()
    for exchange in workload.exchanges:
        tokens = exchange.prompt * min(exchange.at_once, setting.slots)
        cuts = range(-(-tokens // near[-1]), tokens // near[0] + 1)
        parts = (math.ceil(tokens / count / _SIZE_STEP) * _SIZE_STEP for count in cuts[:_MOST_CUTS] if count)
        sizes |= {size for size in parts if size in near and size != setting.micro_batch}
    return sorted(sizes, reverse=True)


def _batch(micro_batch: int) -> int:
    """The logical batch: the engine's default, or the micro-batch itself where the default would leave a rest in each batch."""
    return micro_batch if Setting.batch % micro_batch else Setting.batch


def slots_for(model: Model, wanted: Setting, space: Space, workload: Workload) -> tuple[int, str]:
    """The number of slots for a workload, and the reason in words that go on `because`.

    With as many slots as people ask at once, every answer begins at once. But each slot takes memory, and people who are served together
    wait longer for the end. So these are the most slots with which they wait at most `_HARDLY_LONGER` times the least for the first token
    and for the end, both together. What lies wholly on the cards stays there.

    Args:
        model: The model that is served.
        wanted: The setting with one slot, before the placement.
        space: The cards and the RAM.
        workload: What people ask for.
    """
    at_once = min(max(exchange.at_once for exchange in workload.exchanges), MOST_SLOTS)
    if at_once == 1:
        return 1, "one person asks at a time"
    waits: dict[int, float] = {}
    is_whole = whole(model, wanted, space) is not None
    for slots in sorted({at_once, *(2**power for power in range(at_once.bit_length()))}):
        more = with_slots(replace(wanted, micro_batch=min(wanted.micro_batch, Setting.micro_batch)), slots)
        setting = best(model, more, space)
        if setting is None or memory(model, setting, space.cards).host.total > space.room_in_ram:
            break
        if is_whole and whole(model, more, space) is None:
            break
        waits[slots] = mean_waiting(model, setting, space.cards, workload, space.speeds)
    least = min(waits.values(), default=0)
    chosen = max((slots for slots, waited in waits.items() if waited <= _HARDLY_LONGER * least), default=1)
    if chosen == at_once:
        return chosen, "so many people ask at once"
    larger = min((slots for slots in waits if slots > chosen), default=0)
    if not larger:
        return chosen, "more do not fit" + (" on the cards" if is_whole else "")
    longer = waits[larger] / least - 1
    return chosen, f"with {larger} people would wait {longer:.0%} longer in all"


def whole(model: Model, wanted: Setting, space: Space) -> Setting | None:
    """A placement of everything on the cards, with the smallest micro-batch; None where there is none."""
    if not space.cards:
        return None
    *_, smallest = micro_batches(wanted)
    return _whole(model, replace(wanted, micro_batch=smallest), _entries(model, wanted), space.rooms)


def fits(taken: Memory, rooms: Sequence[int]) -> bool:
    """Whether no card takes more than its room."""
    return all(use.total <= room for use, room in zip(taken.cards, rooms, strict=True))


@dataclass(frozen=True)
class _Entry:
    """A layer, or the output after the layers, with its bytes on a card.

    Attributes:
        always: The bytes that every token reads, including the cache.
        experts: The bytes of each tensor of routed experts, by its name.
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
    """A placement of all layers on the cards that leaves about the same room on each; the cards then work as a pipeline.

    Each round leaves more room for the compute buffers, until they fit too. None if they never fit.
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


def splits(model: Model, setting: Setting, space: Space, compute: Sequence[int]) -> Iterator[tuple[float, ...]]:
    """Splits that leave about the same room on each card, beside what the overrides put there.

    Args:
        model: The model.
        setting: The arguments, of which all but the split stay.
        space: The cards.
        compute: The bytes of the compute buffers of the cards with another split, as a beginning.
    """
    if len(space.cards) < 2 or setting.only is not None:
        return
    where = placement(model, setting, space.cards)
    taken = min(model.entries if setting.gpu_layers is None else setting.gpu_layers, model.entries)
    cache = cache_bytes(model, setting) if setting.cache_on_cards else 0
    sizes, pinned = [cache] * model.layers + [0] * (model.entries - model.layers), [0] * (len(space.cards) + 1)
    overridden = {name for pattern, _ in setting.overrides for name in matched(model, pattern)}
    for name, tensor in model.weights.items():
        size = weight_bytes(tensor, on_card=True)
        layer = layer_of(name)
        if name in overridden or is_embedding(name):
            pinned[where.tensors[name]] += size
        else:
            sizes[-1 if layer is None else layer] += size
    rooms, worst = _less(space.rooms, pinned[:-1]), list(compute)
    for _ in range(_ROUNDS):
        counts = _deal_evenly(sizes[model.entries - taken :], _less(rooms, worst))
        if not counts:
            return
        split = tuple(map(float, counts))
        yield split
        uses = memory(model, replace(setting, split=split), space.cards).cards
        worst = [max(before, use.compute) for before, use in zip(worst, uses, strict=True)]


def _drafts(
    model: Model, sizes: Sequence[Setting], entries: Sequence[_Entry], rooms: Sequence[int], *, offload: bool
) -> list[Setting]:
    """A draft of a placement for each of the settings that are asked for, which differ in their micro-batch.

    A draft uses the compute buffers of the placement before it, which may differ a little from its own.
    """
    drafts: list[Setting] = []
    before = _arranged(replace(sizes[0], offload=offload), entries, rooms) if sizes else None
    if before is None:
        return drafts
    for size in sizes:
        taken = memory(model, replace(before, micro_batch=size.micro_batch, batch=size.batch), rooms)
        free = _less(rooms, [use.compute for use in taken.cards])
        draft = _arranged(replace(size, offload=offload), entries, free)
        if draft:
            drafts.append(draft)
            before = draft
    return drafts


def _worked_out(
    model: Model,
    draft: Setting,
    entries: Sequence[_Entry],
    rooms: Sequence[int],
    seconds_of: Callable[[Setting], float],
) -> Setting | None:
    """Repeats the placement of a draft with its real compute buffers until it fits and gets no faster; None if it never fits."""
    fastest, least = None, math.inf
    setting, worst = draft, [0] * len(rooms)
    for _ in range(_ROUNDS):
        taken = memory(model, setting, rooms)
        compute = [use.compute for use in taken.cards]
        worst = [max(both) for both in zip(worst, compute, strict=True)]
        if fits(taken, rooms):
            seconds = seconds_of(setting)
            if seconds >= least:
                break
            fastest, least = setting, seconds
        else:  # the largest buffers so far keep two placements from alternating for ever
            compute = worst
        following = _arranged(draft, entries, _less(rooms, compute))
        if following is None or following == setting:
            break
        setting = following
    return fastest


def _less(rooms: Sequence[int], taken: Sequence[int]) -> list[int]:
    return [room - bytes_ for room, bytes_ in zip(rooms, taken, strict=True)]


def _arranged(wanted: Setting, entries: Sequence[_Entry], rooms: Sequence[int]) -> Setting | None:
    """The placement of as many last entries as `rooms` hold without experts, then of as many experts as fit beside them."""
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
    """The expert tensors that do not lie with their layer, and their device: RAM (None), or another card that has room left.

    For each size of tensors, as many stay with their layer as fill the card best, in the order of the layers.
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
    """Pairs of a size of expert tensors and their number, smallest size first."""
    return tuple(sorted(Counter(size for entry in entries for size in entry.experts.values()).items()))


def _deal_evenly(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """The number of entries for each card, in order, such that the fullest card has the most room left; None if they do not fit."""
    low, high, counts = 0, max(rooms), _fill(sizes, rooms)
    while counts and high - low > 2**20:
        middle = (low + high) // 2
        attempt = _fill(sizes, [room - middle for room in rooms])
        counts, low, high = (attempt, middle, high) if attempt else (counts, low, middle)
    return counts


def _fill(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """The number of entries for each card if each card in order is filled as far as possible; None if some do not fit."""
    counts, position = [], 0
    for room in rooms:
        start = position
        while position < len(sizes) and (room := room - sizes[position]) >= 0:
            position += 1
        counts.append(position - start)
    return tuple(counts) if position == len(sizes) else None


def _deal_for_experts(entries: Sequence[_Entry], rooms: Sequence[int]) -> tuple[int, ...]:
    """The number of entries for each card, in order, such that most bytes of experts fit beside them; ties go to the evenest.

    This is a dynamic program: card by card it keeps the best way to place each number of first entries. `rooms` hold all entries
    without their experts.
    """
    always = [0, *accumulate(entry.always for entry in entries)]
    sizes = sorted({size for entry in entries for size in entry.experts.values()})
    experts = [Counter(entry.experts.values()) for entry in entries]
    # For each size, the number of tensors in the entries before an entry.
    supplies = [[0, *accumulate(counted[size] for counted in experts)] for size in sizes]
    bytes_ = [0, *accumulate(sum(entry.experts.values()) for entry in entries)]
    # The best way for each number of entries: (bytes of experts, evenness, number of entries on each card).
    ways: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for card, room in enumerate(rooms):
        least = always[-1] - sum(
            rooms[card + 1 :]
        )  # with fewer bytes here, the cards after this one could not take the rest
        following: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        # The ways with the least waste come first, so that most others are discarded without packing.
        for start, (packed, evenness, counts) in sorted(ways.items(), key=lambda way: -way[1][0] - always[way[0]]):
            for end in range(start, len(always)):
                left = room - (always[end] - always[start])
                if left < 0:
                    break
                more = min(left, bytes_[end] - bytes_[start])
                if always[end] < least or (end in following and packed + more < following[end][0]):
                    continue
                if more == left:  # not all experts fit
                    supply = [(size, upto[end] - upto[start]) for size, upto in zip(sizes, supplies, strict=True)]
                    more, _ = _packed(left, supply)
                way = packed + more, evenness - (end - start) ** 2, (*counts, end - start)
                if end not in following or way > following[end]:
                    following[end] = way
        ways = following
    return ways[len(entries)][2]


def _packed(room: int, supply: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, ...]]:
    """The most bytes of whole tensors that fit in `room`, and the number of tensors of each size.

    Args:
        room: The bytes to fill.
        supply: Pairs of a size in bytes and the number of tensors, smallest size first.
    """
    if not supply:
        return 0, ()
    *others, (size, available) = supply
    most = min(room // size, available)
    if not others:
        return most * size, (most,)
    best: tuple[int, tuple[int, ...]] = -1, ()
    for count in range(max(most - 3, 0), most + 1):  # a smaller count would leave room for more than three more
        packed, counts = _packed(room - count * size, others)
        if packed + count * size > best[0]:
            best = packed + count * size, (*counts, count)
    return best


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
