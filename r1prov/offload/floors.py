"""Says what a machine can do at best where no placement keeps the floors that the operator sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from r1prov.common.errors import Problem, SiteError
from r1prov.machines.workload import check_length
from r1prov.offload import search
from r1prov.offload.memory import CELLS_MULTIPLE, context_per_slot, memory
from r1prov.offload.setting import slots_in_words, with_slots
from r1prov.offload.slots import powers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model
    from r1prov.offload.outcome import Space
    from r1prov.offload.setting import Setting


Holds = Callable[..., bool]
"""Whether a plan fits and keeps what is asked for with other keys of `Serving`, which are given by name. It makes that plan."""

_FEW = 8
"""The contexts that are tried below the longest that fits."""


class FloorError(SiteError):
    """No placement keeps the floors."""


class UnmetError(Exception):
    """Something that the operator asks for is not met. What to do instead is not looked for yet.

    Attributes:
        refusal: Makes the error with what would hold. It asks whether that holds.
    """

    def __init__(self, refusal: Callable[[Holds], SiteError]) -> None:
        super().__init__()
        self.refusal = refusal


class SlotsUnmetError(UnmetError):
    """So many slots do not fit."""


def slots_fit(model: Model, wanted: Setting, space: Space, workload: Workload) -> bool:
    """Whether a placement with the slots and the context of `wanted` fits."""
    placed = search.best(model, wanted, space, workload) if space.cards else None
    return memory(model, placed or wanted, space.cards).host.total <= space.room_in_ram


def longest_context(model: Model, wanted: Setting, space: Space, workload: Workload, most: int) -> int:
    """The longest context of a slot, up to `most`, with which the slots of `wanted` fit; 0 where none does."""

    def with_context(steps: int) -> Setting:
        return replace(wanted, context=steps * CELLS_MULTIPLE * wanted.slots)

    return CELLS_MULTIPLE * search.most(
        lambda steps: slots_fit(model, with_context(steps), space, workload),
        most // CELLS_MULTIPLE,
        sketched=lambda steps: _sketched(model, with_context(steps), space, workload),
    )


def too_long(workload: Workload, context: int, model: Model, holds: Holds) -> SiteError:
    """The error about an exchange that the operator asks for and that is longer than the slot that the operator asks for."""
    try:
        check_length(workload, context, model.context_length, fits=lambda tokens: holds(context_per_slot=tokens))
    except SiteError as error:
        return error
    raise AssertionError(workload)  # pragma: no cover - whoever calls has looked


def too_many_slots(
    model: Model, wanted: Setting, space: Space, workload: Workload, holds: Holds, *, needed: int, named: bool
) -> FloorError:
    """The error about a floor of slots that do not fit, with the number and the context that do.

    Args:
        model: The model.
        wanted: The setting before the placement, with the shortest context that the operator accepts.
        space: The cards and the RAM.
        workload: What people ask for.
        holds: Whether something else would hold.
        needed: The tokens that the workload needs.
        named: The operator names the context.
    """
    context = context_per_slot(model, wanted)
    number = search.most(
        lambda slots: slots_fit(model, with_slots(wanted, slots), space, workload),
        wanted.slots - 1,
        sketched=lambda slots: _sketched(model, with_slots(wanted, slots), space, workload),
    )
    ways = [f"lower --parallel (slots) to `at least {number}`"] if number and holds(slots=f"at least {number}") else []
    if named and (shorter := longest_context(model, wanted, space, workload, context)) >= needed:
        # Past prompts and floors count, too, so what fits is tried as a whole.
        tried = range(shorter, max(needed, shorter - _FEW * CELLS_MULTIPLE) - 1, -CELLS_MULTIPLE)
        holding = (tokens for tokens in tried if holds(context_per_slot=tokens))
        ways += [f"lower --ctx-size (context_per_slot) to {tokens:,}" for tokens in islice(holding, 1)]
    most = f"the most are {number}" if number else "not even one does"
    why = "" if named else ", which the workload needs,"
    return FloorError(
        Problem(
            "slots",
            f"at least {wanted.slots} slots of {context:,} tokens{why} do not fit beside {model.name} on this machine: {most}",
            ", or ".join(ways) or "name a smaller quant: neither fewer slots nor a shorter context would hold",
        )
    )


def too_late(
    model: Model,
    wanted: Setting,
    space: Space,
    workload: Workload,
    holds: Holds,
    *,
    first_token: int,
    numbers: Sequence[int],
    fixed: bool,
) -> FloorError:
    """The error about a floor of the first token that no placement keeps, with the nearest one that is reached.

    Args:
        model: The model.
        wanted: The setting before the placement.
        space: The cards and the RAM.
        workload: What people ask for.
        holds: Whether something else would hold.
        first_token: The seconds that the operator allows.
        numbers: The numbers of slots that may be chosen.
        fixed: The operator names the number.
    """

    def reached(slots: int) -> tuple[float, Setting] | None:
        """The seconds until all answers have begun with so many slots, and the placement with which that is soonest."""
        more = with_slots(wanted, slots)
        placed = search.best(model, more, space, workload, goal=search.Goal.PROMPT) if space.cards else more
        if not placed or memory(model, placed, space.cards).host.total > space.room_in_ram:
            return None
        return search.means_of(model, placed, space, workload).longest_first_token, placed

    seconds, nearest = min((each for number in numbers if (each := reached(number))), key=lambda each: each[0])
    allowed = math.ceil(seconds)
    number = slots_in_words(nearest.slots)
    ways = []
    if fixed:
        others = (other for other in reversed(powers(workload.people)) if other not in numbers)
        early = (other for other in others if (found := reached(other)) and found[0] <= first_token)
        if other := next((other for other in early if holds(slots=other)), None):
            ways.append(f"name {other} slots (--parallel)")
    if holds(first_token=allowed):
        ways.append(f"raise --first-token (first_token) to {allowed}s")
    ways.append("name a workload with shorter prompts or fewer people at once")
    return FloorError(
        Problem(
            "first_token",
            f"no placement of {model.name}{f' with {number}' if fixed else ''} keeps {first_token} s:"
            f" the nearest has the first token of every exchange after {allowed:,} s, with {number}"
            f" and a micro-batch of {nearest.micro_batch:,} (at the low speeds, not measured)",
            ", or ".join(ways),
        )
    )


def _sketched(model: Model, wanted: Setting, space: Space, workload: Workload) -> bool:
    """Whether a sketch of a placement with the slots and the context of `wanted` fits."""
    if not space.cards:
        return slots_fit(model, wanted, space, workload)
    return search.nearest_sketch(model, wanted, space, workload) is not None
