"""Says what a machine can do at best where no placement keeps the floors that the operator sets."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError
from r1prov.offload import search
from r1prov.offload.memory import CELLS_MULTIPLE, context_per_slot, memory
from r1prov.offload.setting import with_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model
    from r1prov.offload.outcome import Space
    from r1prov.offload.setting import Setting


class FloorError(SiteError):
    """No placement keeps the floors."""


def slots_fit(model: Model, wanted: Setting, space: Space, workload: Workload) -> bool:
    """Whether a placement with the slots and the context of `wanted` fits."""
    if not space.cards:
        return memory(model, wanted, ()).host.total <= space.room_in_ram
    return search.nearest_sketch(model, wanted, space, workload) is not None


def longest_context(model: Model, wanted: Setting, space: Space, workload: Workload, most: int) -> int:
    """The longest context of a slot, up to `most`, with which the slots of `wanted` fit; 0 where none does."""

    def fits(steps: int) -> bool:
        return slots_fit(model, replace(wanted, context=steps * CELLS_MULTIPLE * wanted.slots), space, workload)

    return _most(fits, most // CELLS_MULTIPLE) * CELLS_MULTIPLE


def too_many_slots(model: Model, wanted: Setting, space: Space, workload: Workload) -> FloorError:
    """The error about a floor of slots that do not fit, with the number that does."""
    context = context_per_slot(model, wanted)
    number = _most(lambda slots: slots_fit(model, with_slots(wanted, slots), space, workload), wanted.slots)
    shorter = longest_context(model, wanted, space, workload, context)
    ways = [f"write `slots: at least {number}`"] if number else []
    ways += [f"lower --ctx-size (context_per_slot) to {shorter:,}"] if shorter else []
    most = f"the most are {number}" if number else "not even one does"
    return FloorError(
        Problem(
            "slots",
            f"at least {wanted.slots} slots of {context:,} tokens do not fit beside {model.name} on this machine: {most}",
            ", or ".join(ways) or "name a smaller quant",
        )
    )


def too_late(
    model: Model, wanted: Setting, space: Space, workload: Workload, *, first_token: int, numbers: Sequence[int]
) -> FloorError:
    """The error about a floor of the first token that no placement keeps, with the nearest one that is reached.

    Args:
        model: The model.
        wanted: The setting before the placement.
        space: The cards and the RAM.
        workload: What people ask for.
        first_token: The seconds that the operator allows.
        numbers: The numbers of slots that may be chosen.
    """
    reached = []
    for slots in numbers:
        more = with_slots(wanted, slots)
        placed = search.best(model, more, space, workload, goal=search.Goal.PROMPT) if space.cards else more
        if placed and memory(model, placed, space.cards).host.total <= space.room_in_ram:
            reached.append((search.means_of(model, placed, space, workload).longest_first_token, placed))
    seconds, nearest = min(reached, key=lambda each: each[0])
    allowed = math.ceil(seconds)
    number = "1 slot" if nearest.slots == 1 else f"{nearest.slots} slots"
    return FloorError(
        Problem(
            "first_token",
            f"no placement of {model.name} keeps {first_token} s: the nearest has the first token of every exchange"
            f" after {allowed:,} s, with {number} and a micro-batch of {nearest.micro_batch:,} (at the low speeds, not measured)",
            f"write `first_token: {allowed}s`, or name a workload with shorter prompts or fewer people at once",
        )
    )


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits; 0 where none does. Below a number that fits all fit."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
