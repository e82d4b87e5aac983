"""The trade: placements from the fastest prompt to the fastest decoding, and from one user to many, with what each comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1prov.common.units import MIB
from r1prov.offload import search, speed
from r1prov.offload.costs import costs
from r1prov.offload.memory import memory
from r1prov.offload.search import Goal
from r1prov.offload.setting import with_slots
from r1prov.offload.slots import MOST_SLOTS
from r1prov.offload.waits import depth_of, means

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model
    from r1prov.offload.outcome import Space
    from r1prov.offload.setting import Setting
    from r1prov.offload.waits import Range

CHOSEN = "this plan"

_LEAST = 3
"""The fewest placements that are shown, where there are so many."""

_HARDLY = 1.005
"""A placement that is better by less than this factor is no other one for people."""


@dataclass(frozen=True)
class Choice:
    """A placement that fits.

    Attributes:
        names: What it is best for: `fastest prompt`, `fastest decode`, `one user`, `fewer users`, `more users` or `most users`. The
            chosen one is called `this plan`, too.
        setting: The setting.
        first_token: The seconds until the first token, in the exchange of the workload where that is longest.
        mean: The seconds of an exchange in the mean.
        alone: The tokens per second of a person who is alone.
        together: The tokens per second in all, with a person at each slot.
        from_ram: The bytes that a token of somebody who is alone reads from RAM.
    """

    names: tuple[str, ...]
    setting: Setting
    first_token: Range
    mean: Range
    alone: Range
    together: Range
    from_ram: int

    @property
    def chosen(self) -> bool:
        """Whether it is the plan's."""
        return CHOSEN in self.names


def trade(model: Model, chosen: Setting, one: Setting, space: Space, workload: Workload) -> tuple[Choice, ...]:
    """The placements among which the plan chose. Floors do not limit the others, so that people see what they cost.

    Args:
        model: The model.
        chosen: The placement of the plan, which fits.
        one: The setting before the placement, with one slot.
        space: The cards, at least one, and the RAM.
        workload: What people ask for.
    """
    most = _most_users(model, one, space, workload, chosen)

    def placed(slots: int, goal: Goal = Goal.END) -> Setting | None:
        found = search.best(model, with_slots(one, slots), space, workload, goal=goal)
        left = space.room_in_ram - memory(model, found, space.cards).host.total if found else -1
        if not found or left < 0:
            return None
        return replace(found, prompts=min(chosen.prompts, left // MIB * MIB))

    ways = (
        placed(chosen.slots, Goal.PROMPT),
        chosen,
        placed(chosen.slots, Goal.DECODING),
        placed(1),
        placed(most),
    )
    different = dict.fromkeys(setting for setting in ways if setting)
    found = _named([_choice(model, setting, space, workload) for setting in different], chosen)
    name, other = ("more users", most) if most > chosen.slots else ("fewer users", 1)
    if len(found) < _LEAST and chosen.slots != other:
        halfway = placed(2 ** round(math.log2(chosen.slots * other) / 2))
        if halfway and all(halfway != choice.setting for choice in found):
            found.append(replace(_choice(model, halfway, space, workload), names=(name,)))
    return tuple(found)


def _named(choices: Sequence[Choice], chosen: Setting) -> list[Choice]:
    """The choices, each with what it is the best of these for. One that is best for nothing is left out.

    Searches and sketches have promised what each would be best for, and what counts here is what it came to. The plan has a name where no
    other is better by more than the arithmetic is exact.
    """
    ours = next(choice for choice in choices if choice.setting == chosen)
    alike = [choice for choice in choices if choice.setting.slots == chosen.slots]

    def best(those: Sequence[Choice], value: Callable[[Choice], float]) -> Choice:
        found = min(those, key=value)
        return ours if value(ours) <= value(found) * _HARDLY else found

    alone = next((choice for choice in (ours, *choices) if choice.setting.slots == 1), None)
    crowd = best(choices, lambda choice: 1 / choice.together[0])
    names = {
        CHOSEN: ours,
        "fastest prompt": best(alike, lambda choice: choice.first_token[0]),
        "fastest decode": best(alike, lambda choice: 1 / choice.alone[0]),
        "one user": alone,
        "most users": crowd if crowd.setting.slots > 1 else None,
    }
    told = [replace(each, names=tuple(name for name, its in names.items() if its is each)) for each in choices]
    return [choice for choice in told if choice.names]


def _most_users(model: Model, one: Setting, space: Space, workload: Workload, chosen: Setting) -> int:
    """The number of slots, as many as are chosen or more, with which most tokens come in all. What lies wholly on the cards stays there."""
    depth, rates = depth_of(workload), {chosen.slots: 0.0}
    whole = costs(model, chosen, space.cards, space.speeds).whole
    for slots in (chosen.slots, *(2**power for power in range(MOST_SLOTS.bit_length()) if 2**power > chosen.slots)):
        sketch = search.nearest_sketch(model, with_slots(one, slots), space, workload)
        if sketch is None or sketch.whole < whole:
            break
        rates[slots] = slots / sketch.costs.token_seconds(slots, depth, 0)
    return max(rates, key=lambda slots: (rates[slots], -slots))


def _choice(model: Model, setting: Setting, space: Space, workload: Workload) -> Choice:
    found, depth = costs(model, setting, space.cards, space.speeds), depth_of(workload)
    slow, fast = (means(found, setting.slots, workload, which) for which in (0, 1))
    alone, each = (
        tuple(1 / found.token_seconds(users, depth, which) for which in (0, 1)) for users in (1, setting.slots)
    )
    return Choice(
        names=(),
        setting=setting,
        first_token=(slow.longest_first_token, fast.longest_first_token),
        mean=(slow.end, fast.end),
        alone=(alone[0], alone[1]),
        together=(setting.slots * each[0], setting.slots * each[1]),
        from_ram=speed.reads(model, setting, space.cards).host,
    )
