"""Searches for the placement with which people wait least: micro-batch, logical batch, and what lies where.

Every token reads attention, dense layers, shared experts, output and cache as a whole, but only a few of the routed experts. R1 uses
8 experts of 256, so a byte of the always-read tensors on a card saves 32 times as much as a byte of experts. Therefore the cards take
the always-read tensors first. Then each card takes experts, tensor by tensor, until it is full to its reserve; the experts of its own
layers come before others. All other experts stay in RAM.

All micro-batches are sketched (`sketch`). The most promising ones are dealt out (`packing`), and the best of these is worked out with its
real memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from r1prov.models.model import is_embedding, layer_of
from r1prov.offload.costs import costs
from r1prov.offload.memory import cache_bytes, context_per_slot, matched, memory, placement, weight_bytes
from r1prov.offload.packing import arranged, deal_evenly, entries_of, less
from r1prov.offload.setting import SMALLEST_MICRO_BATCH, Setting, with_slots
from r1prov.offload.sketch import Sketcher
from r1prov.offload.waits import Means, depth_of, filling, means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model
    from r1prov.offload.costs import Costs
    from r1prov.offload.memory import Memory
    from r1prov.offload.outcome import Space
    from r1prov.offload.packing import Entry
    from r1prov.offload.sketch import Sketch

_SIZE_STEP, _COARSE_FROM = 64, 2048
"""Micro-batches for a workload are multiples of 64 tokens, and of twice as many from 2,048 on, where each step is a smaller part."""

_LARGEST_BATCH = 4096
"""The most tokens of a logical batch that is larger than the engine's default. Others wait for their next token until it is over."""

_DEALT_OUT, _MOST_DEALT_OUT = 6, 24
"""The sketches that are dealt out before one of them is worked out, because what a card cannot fill differs from one to the next. There are
more where whole layers lie in RAM: sketches are less exact there."""

_NEARLY = 16
"""Micro-batches that differ by less than this part are nearly the same."""

_MORE, _MORE_IN_LAYERS = 1, 4
"""The most drafts that are worked out because they promise more than the best placement keeps. More of them hardly gain anything."""

_ATTEMPTS = 6
"""The most sketches that are worked out because those before kept the reserve but not the floor."""

SKETCH_ERROR = 1.03
"""A sketch may tell a time that is too long by this factor."""

_ROUNDS = 6
"""The most rounds of placing. Compute buffers depend on the placement, so it is repeated until both agree, mostly three times."""


class Goal(Enum):
    """What is to be over first."""

    END = "the exchanges, in the mean"
    PROMPT = "the longest wait for a first token"
    DECODING = "a token of somebody who is alone"


def best(
    model: Model,
    wanted: Setting,
    space: Space,
    workload: Workload | None = None,
    *,
    goal: Goal = Goal.END,
    first_token: float = math.inf,
) -> Setting | None:
    """Finds the placement with which the goal is reached first, and whose part in RAM fits there.

    If none fits, this is the placement with the fewest bytes in RAM. If nothing of the model fits on the cards, it is None.

    Args:
        model: The model that is served.
        wanted: The context, the slots and the cache types; `micro_batch` is the largest to try.
        space: The cards and the RAM, with the reserves that stay free.
        workload: What people ask for. Without it, one exchange that fills a slot counts, and the logical batch is not changed.
        goal: What is to be over first, at the low speeds.
        first_token: The seconds after which every answer shall have begun. Where no placement does that, they do not count.
    """
    # The cache would keep a call that names a default apart from one that leaves it out.
    return _best(model, wanted, space, workload, goal=goal, first_token=first_token)


@lru_cache(maxsize=64)
def _best(
    model: Model, wanted: Setting, space: Space, workload: Workload | None, *, goal: Goal, first_token: float
) -> Setting | None:
    asked = workload or filling(context_per_slot(model, wanted))
    chosen, least, attempts = None, math.inf, 0
    for setting in _fastest_first(
        model, wanted, space, asked, goal=goal, first_token=first_token, own=workload is not None
    ):
        in_ram = memory(model, setting, space.cards).host.total
        # What keeps the RAM is as good as what keeps it with more to spare.
        over = max(in_ram, space.room_in_ram)
        if over < least:
            chosen, least = setting, over
        if in_ram > space.room_in_ram:
            continue
        attempts += 1
        if means_of(model, setting, space, asked).longest_first_token <= first_token:
            return setting
        if attempts == _ATTEMPTS:
            break
    if attempts and goal is not Goal.PROMPT:  # Nothing is faster than the fastest prompt.
        return best(model, wanted, space, workload, goal=Goal.PROMPT) or chosen
    return chosen


def means_of(model: Model, setting: Setting, space: Space, workload: Workload) -> Means:
    """What people wait for with a setting."""
    return means(costs(model, setting, space.cards, space.speeds), setting.slots, workload)


def _seconds_of(goal: Goal, workload: Workload) -> Callable[[Costs, Means], tuple[float, float]]:
    """How long the goal takes with some costs and what they come to, at the low speeds; where that is the same, the end in the mean."""
    depth = depth_of(workload)

    def seconds(found: Costs, waited: Means) -> tuple[float, float]:
        match goal:
            case Goal.END:
                return waited.end, waited.end
            case Goal.PROMPT:
                return waited.longest_first_token, waited.end
            case Goal.DECODING:
                return round(found.token_seconds(1, depth, 0), 6), waited.end

    return seconds


def _fastest_first(
    model: Model, wanted: Setting, space: Space, workload: Workload, *, goal: Goal, first_token: float, own: bool
) -> Iterator[Setting]:
    """Placements that fit on the cards, those that keep the floor first, and of these the fastest first.

    After each the next has a smaller micro-batch, so that more of the model lies on the cards and less in RAM.
    """
    sketcher, entries = sketcher_for(model, with_slots(wanted, 1), space), entries_of(model, wanted)
    seconds_of = _seconds_of(goal, workload)

    def seconds(setting: Setting) -> tuple[float, float]:
        found = costs(model, setting, space.cards, space.speeds)
        return seconds_of(found, means(found, setting.slots, workload))

    def rank(sketch: Sketch, waited: Means) -> tuple[bool, bool, bool, tuple[float, float]]:
        late = waited.longest_first_token > first_token * SKETCH_ERROR
        return sketch.in_ram > space.room_in_ram, not sketch.whole, late, seconds_of(sketch.costs, waited)

    # Large batches copy weights to the first card. If it is too small for them, the CPU computes these batches (offload=False).
    for offload in (True, False)[not wanted.offload :]:
        sketches = sketches_of(sketcher, replace(wanted, offload=offload), workload, own=own)
        left = sorted(sketches, key=lambda sketch: rank(sketch, sketches[sketch]))
        while left:
            promised = {each: seconds_of(each.costs, sketches[each]) for each in left[:_MOST_DEALT_OUT]}
            found, tried = _worked_out(model, promised, entries, space, seconds)
            if found:
                yield found
            if found and first_token < math.inf:
                # A sketch that promises as much less as this placement is too late may keep the floor.
                late = means_of(model, found, space, workload).longest_first_token / first_token
                most_seconds = sketches[tried].longest_first_token / max(late, 1)
                early = [each for each in left if sketches[each].longest_first_token <= most_seconds]
                left = [each for each in early if each is not tried]
            else:  # A larger micro-batch does not fit either.
                most = tried.setting.micro_batch * 3 // 4
                left = [each for each in left if each.setting.micro_batch <= most or each.whole < tried.whole]


@lru_cache(maxsize=16)
def sketcher_for(model: Model, wanted: Setting, space: Space) -> Sketcher:
    """What sketches placements of a model with one context for each slot."""
    return Sketcher(model, wanted, space)


@lru_cache(maxsize=64)
def sketches_of(sketcher: Sketcher, wanted: Setting, workload: Workload, *, own: bool) -> Mapping[Sketch, Means]:
    """The sketches of all micro-batches up to the one that is asked for, with what people wait for.

    Of those whose part in RAM does not fit there it is the smallest only.

    Args:
        sketcher: What makes them.
        wanted: The setting before the placement.
        workload: What people ask for.
        own: The plan chooses the logical batch too. Otherwise it stays, and the micro-batch is halved from one to the next.
    """
    sketches, sizes = [], list(_multiples(wanted.micro_batch) if own else micro_batches(wanted))
    # With the smallest micro-batch the least lies in RAM.
    for size in sizes if sketcher.may_fit(wanted) else sizes[-1:]:
        setting = replace(wanted, micro_batch=size, batch=_batch(size) if own else wanted.batch)
        more = _LARGEST_BATCH // size * size
        # Only a pipeline gains from more micro-batches in a logical batch.
        larger = [replace(setting, batch=more)] if own and more > setting.batch else []
        whole = [found for each in (setting, *larger) if (found := sketcher.whole(each))]
        sketches += whole or [found for each in [setting] if (found := sketcher.hybrid(each))]
    room = sketcher.space.room_in_ram
    others = sorted((each for each in sketches if each.in_ram > room), key=lambda each: each.in_ram)
    counted = (*(each for each in sketches if each.in_ram <= room), *others[:1])
    return {each: means(each.costs, wanted.slots, workload) for each in counted}


def _multiples(largest: int) -> list[int]:
    fine, coarse = range(_SIZE_STEP, largest, _SIZE_STEP), range(_COARSE_FROM, largest, 2 * _SIZE_STEP)
    return sorted({largest, *fine[: _COARSE_FROM // _SIZE_STEP], *coarse}, reverse=True)


def micro_batches(wanted: Setting) -> Iterator[int]:
    """The micro-batch that is asked for, then smaller ones."""
    micro_batch = wanted.micro_batch
    yield micro_batch
    while (micro_batch := micro_batch // 2) >= SMALLEST_MICRO_BATCH:
        yield micro_batch


def _batch(micro_batch: int) -> int:
    """The logical batch: the engine's default, or the micro-batch itself where the default would leave a rest in each batch."""
    return micro_batch if Setting.batch % micro_batch else Setting.batch


def most(
    fits: Callable[[int], bool], largest: int, *, least: int = 1, sketched: Callable[[int], bool] | None = None
) -> int:
    """The largest number from `least` up to `largest` that fits; 0 where none does. Below a number that fits all fit.

    Args:
        fits: Whether a number fits.
        largest: The largest number.
        least: The smallest number.
        sketched: Whether a number fits in a sketch. `fits` may take long, so it is then asked near the number that the sketches find.
    """

    def between(low: int, high: int, fits: Callable[[int], bool]) -> int:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    if sketched is None:  # in most cases where no number fits, one attempt shows it
        return between(least, largest + 1, fits) if least <= largest and fits(least) else 0
    low, high, step = between(least - 1, largest + 1, sketched), largest + 1, 1
    while low >= least and not fits(low):
        low, high, step = max(low - step, least - 1), low, 2 * step
    step = 1
    while (number := min(low + step, high)) < high and fits(number):
        low, step = number, 2 * step
    low = between(low, min(low + step, high), fits)
    return low if low >= least else 0


@lru_cache(maxsize=256)
def nearest_sketch(
    model: Model,
    wanted: Setting,
    space: Space,
    workload: Workload,
    first_token: float = math.inf,
    *,
    longest: int = 0,
) -> Sketch | None:
    """The sketch with which the exchanges are over first, of those that keep the floor if there are any; None where none fits.

    Args:
        model: The model that is served.
        wanted: The setting before the placement.
        space: The cards and the RAM.
        workload: What people ask for.
        first_token: The seconds after which every answer shall have begun.
        longest: The most tokens of a slot in a comparison. With flash attention what was worked out for these serves all of it.
    """
    one, ranked = with_slots(wanted, 1), []
    sketcher = sketcher_for(model, replace(one, context=longest) if longest and wanted.flash else one, space)
    for sketch, waited in sketches_of(sketcher, wanted, workload, own=True).items():
        if sketch.in_ram <= space.room_in_ram:
            late = waited.longest_first_token if waited.longest_first_token > first_token else 0
            ranked.append((not sketch.whole, late, waited.end, sketch))
    return min(ranked, key=lambda each: each[:3])[-1] if ranked else None


def whole(model: Model, wanted: Setting, space: Space) -> Setting | None:
    """A placement of everything on the cards, with the smallest micro-batch; None where there is none."""
    if not space.cards:
        return None
    *_, smallest = micro_batches(wanted)
    return _whole(model, replace(wanted, micro_batch=smallest), entries_of(model, wanted), space)


def fits(taken: Memory, rooms: Sequence[int]) -> bool:
    """Whether no card takes more than its room."""
    return all(use.total <= room for use, room in zip(taken.cards, rooms, strict=True))


def _whole(model: Model, wanted: Setting, entries: Sequence[Entry], space: Space) -> Setting | None:
    """A placement of all layers on the cards that leaves about the same room on each; the cards then work as a pipeline.

    Where all cards are the RAM of other hosts, the engine's own host takes its part, too, and has the first layers. All take the same then,
    where they have room for that: equal hosts are equally fast.

    Each round leaves more room for the compute buffers, until they fit too. None if they never fit.
    """
    rooms, own = space.rooms, [space.room_in_ram] if space.is_in_ram else []
    sizes, compute = [entry.whole for entry in entries], [0] * len(rooms)
    for _ in range(_ROUNDS):
        left = [*own, *less(rooms, compute)]
        dealt = (own and deal_evenly(sizes, [min(left)] * len(left))) or deal_evenly(sizes, left)
        if not dealt:
            return None
        counts = dealt[len(own) :]
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
    rooms, worst = less(space.rooms, pinned[:-1]), list(compute)
    for _ in range(_ROUNDS):
        counts = deal_evenly(sizes[model.entries - taken :], less(rooms, worst))
        if not counts:
            return
        split = tuple(map(float, counts))
        yield split
        uses = memory(model, replace(setting, split=split), space.cards).cards
        worst = [max(before, use.compute) for before, use in zip(worst, uses, strict=True)]


def _worked_out(
    model: Model,
    promised: Mapping[Sketch, tuple[float, float]],
    entries: Sequence[Entry],
    space: Space,
    seconds_of: Callable[[Setting], tuple[float, float]],
) -> tuple[Setting | None, Sketch]:
    """Deals out some sketches, the first of which promises most, and works out the best of them.

    A sketch counts the cards as one room. So nothing that is dealt out is faster than its sketch, if the cards have all that every token
    reads, and the sketches that promise no more than a draft keeps are left out. Otherwise whole layers lie in RAM, and one more or less
    follows from a small difference of a buffer. So drafts are worked out there, the fastest first, until none promises more than a
    placement keeps.

    Returns:
        The placement, or None where the fastest draft never fits; and the sketch of it.
    """
    first = next(iter(promised))
    if first.whole:
        return _whole(model, first.setting, entries, space), first

    def worked_out(draft: _Draft) -> _Draft | None:
        found = _refined(model, draft.setting, entries, space.rooms, seconds_of)
        return _Draft(seconds_of(found), found, draft.sketch) if found else None

    in_layers = first.costs.host.always > 0
    some = islice(promised.items() if in_layers else _apart(promised), _MOST_DEALT_OUT if in_layers else _DEALT_OUT)
    rest = _drafts(some, entries, seconds_of)
    if not rest:
        return None, first
    fastest = rest.pop(0)
    best = worked_out(fastest)
    if not best:
        return None, fastest.sketch
    for _ in range(_MORE_IN_LAYERS if in_layers else _MORE):
        if not rest or rest[0].seconds >= best.seconds or not (found := worked_out(rest.pop(0))):
            break
        best = min(best, found, key=attrgetter("seconds"))
    if in_layers:
        # A draft that has a layer less may have room for it. The fastest of these tells of all.
        fewer = next((draft for draft in rest if draft.layers < best.layers), None)
        if fewer and (found := worked_out(fewer)):
            best = min(best, found, key=attrgetter("seconds"))
    return best.setting, best.sketch


def _apart(promised: Mapping[Sketch, tuple[float, float]]) -> Iterator[tuple[Sketch, tuple[float, float]]]:
    """The sketches whose micro-batch is not nearly that of one that promises more.

    Neighbours promise nearly the same. A prompt may be computed in five large micro-batches or in six smaller ones. Which is better shows
    only when both are dealt out.
    """
    sizes: list[int] = []
    for sketch, seconds in promised.items():
        size = sketch.setting.micro_batch
        if all(abs(size - other) * _NEARLY > other for other in sizes):
            sizes.append(size)
            yield sketch, seconds


@dataclass(frozen=True)
class _Draft:
    """A placement that a sketch was dealt out to.

    Attributes:
        seconds: How long the goal takes with it.
        setting: The placement.
        sketch: The sketch.
    """

    seconds: tuple[float, float]
    setting: Setting
    sketch: Sketch

    @property
    def layers(self) -> int:
        """The entries on the cards."""
        return self.setting.gpu_layers or 0


def _drafts(
    promised: Iterable[tuple[Sketch, tuple[float, float]]],
    entries: Sequence[Entry],
    seconds_of: Callable[[Setting], tuple[float, float]],
) -> list[_Draft]:
    """What sketches come to when they are dealt out with the compute buffers that they promise, the fastest first."""
    drafts, least = list[_Draft](), (math.inf, math.inf)
    for sketch, seconds in promised:
        if sketch.whole or (seconds >= least and not sketch.costs.host.always):
            continue
        if setting := arranged(sketch.setting, entries, sketch.rooms):
            drafts.append(_Draft(seconds_of(setting), setting, sketch))
            least = min(drafts[-1].seconds, least)
    return sorted(drafts, key=attrgetter("seconds"))


def _refined(
    model: Model,
    draft: Setting,
    entries: Sequence[Entry],
    rooms: Sequence[int],
    seconds_of: Callable[[Setting], tuple[float, float]],
) -> Setting | None:
    """Repeats the placement of a draft with its real compute buffers until it fits and gets no faster; None if it never fits."""
    fastest, least = None, (math.inf, math.inf)
    setting, worst = draft, [0] * len(rooms)
    for _ in range(_ROUNDS):
        taken = memory(model, setting, rooms)
        compute = [use.compute for use in taken.cards]
        worst = [max(both) for both in zip(worst, compute, strict=True)]
        if fits(taken, rooms):
            fastest, least = setting, seconds_of(setting)
        else:  # the largest buffers so far keep two placements from alternating for ever
            compute = worst
        following = arranged(draft, entries, less(rooms, compute))
        if following is None or following == setting or seconds_of(following) >= least:
            break
        setting = following
    return fastest
