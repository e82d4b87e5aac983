"""Chooses how many slots there are, and of how many tokens each: the pair with which people wait least.

With as many slots as people ask at once, every answer begins at once. But each slot takes memory, and people who are served together wait
longer for the end. A longer slot takes memory, too. So the plan takes the pair with which people wait least for the first token and for the
end, both in the mean and together. It takes a longer context, and then more slots, where that costs less than a tenth.

Sketches say which pairs are worth a look. What the reasons say of a pair comes from its placement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from r1prov.offload import search
from r1prov.offload.costs import costs
from r1prov.offload.memory import CELLS_MULTIPLE, context_per_slot, memory
from r1prov.offload.search import SKETCH_ERROR
from r1prov.offload.setting import slots_in_words, with_slots
from r1prov.offload.waits import means

if TYPE_CHECKING:
    from r1prov.machines.workload import Workload
    from r1prov.models.model import Model
    from r1prov.offload.outcome import Space
    from r1prov.offload.setting import Setting
    from r1prov.offload.sketch import Sketch
    from r1prov.offload.waits import Means

HARDLY_LONGER = 1.1
"""A longer context or more slots are preferred where people wait longer by no more than this: the arithmetic is no more exact."""

_SURELY = 0.9
"""A sketch that takes no more than this part of the RAM tells of a placement that fits there."""

_STEP = 4096
"""The step, in tokens, between the contexts that are compared."""

WANTED = "you want so many at least"
"""The reason for slots of which the operator has named the fewest, in words that go on `because`."""

MOST_SLOTS = 64
"""The most slots that are chosen."""


@dataclass(frozen=True)
class Asked:
    """What the operator says of slots, and what people need.

    Attributes:
        needed: The fewest tokens of a slot.
        most: The most tokens of a slot. These are as many as `needed` where the operator names the number.
        slots: The number of slots that the operator names; None where the plan chooses it.
        least: The fewest slots that the operator accepts.
        first_token: The seconds after which every answer shall have begun, if some pair can do that.
        on_cards: Whether everything must lie on the cards.
    """

    needed: int
    most: int
    slots: int | None = None
    least: int = 1
    first_token: float = math.inf
    on_cards: bool = False


@dataclass(frozen=True)
class Pair:
    """A number of slots and their context.

    Attributes:
        setting: The setting with both, before the placement.
        slots_reason: Why there are so many slots, in words that go on `because`; empty where the operator has said the number.
        context_reason: Why a slot has fewer tokens than `Asked.most`, in such words; empty where it has as many.
    """

    setting: Setting
    slots_reason: str
    context_reason: str


def choose(model: Model, one: Setting, space: Space, workload: Workload, asked: Asked) -> Pair | None:
    """The slots and their context; None where no pair fits that the operator accepts.

    A floor changes as little as it must. Slots and context that are chosen without it stay where some micro-batch keeps it with them. There
    are fewer slots only where no more keep it.

    Args:
        model: The model that is served.
        one: The setting with one slot, before the placement.
        space: The cards and the RAM.
        workload: What people ask for.
        asked: What the operator says.
    """
    if asked.slots is None:
        free = replace(asked, least=1, first_token=math.inf)
        found = None if free == asked else Pairs(model, one, space, workload, free).chosen()
        if found and found.setting.slots >= asked.least and _in_time(model, found, space, workload, asked.first_token):
            return found
        if found and found.setting.slots > asked.least:
            # A floor shall not lead to fewer slots where as many or more keep it.
            more = Pairs(model, one, space, workload, replace(asked, least=found.setting.slots)).chosen()
            if more and _in_time(model, more, space, workload, asked.first_token):
                as_many = "as many are chosen without the floor of the first token"
                return replace(more, slots_reason=as_many) if more.slots_reason == WANTED else more
    return Pairs(model, one, space, workload, asked).chosen()


def _in_time(model: Model, pair: Pair, space: Space, workload: Workload, first_token: float) -> bool:
    """Whether every answer can begin in time."""
    placed = search.best(model, pair.setting, space, workload, first_token=first_token) or pair.setting
    return search.means_of(model, placed, space, workload).longest_first_token <= first_token


@dataclass(frozen=True)
class Pairs:
    """The pairs of a number of slots and a context. The attributes are the arguments of `choose`."""

    model: Model
    one: Setting
    space: Space
    workload: Workload
    asked: Asked

    @cached_property
    def _whole(self) -> bool:
        """Whether everything lies on the cards with the fewest slots of the most tokens; then it stays there."""
        first = self.at(self.asked.most, whole=False).sketch(self.least)
        return self.asked.on_cards or (first is not None and first.whole)

    @property
    def least(self) -> int:
        """The fewest slots."""
        return self.asked.slots or self.asked.least

    def at(self, context: int, *, whole: bool | None = None) -> Slots:
        """The numbers of slots of so many tokens."""
        return Slots(
            self.model,
            replace(self.one, context=context),
            self.space,
            self.workload,
            self.least,
            self.asked.first_token,
            self.asked.most,
            self._whole if whole is None else whole,
        )

    def longest(self) -> int:
        """The most tokens with which the fewest slots fit; 0 where none do."""
        if self._fits(self.asked.most):
            return self.asked.most
        return CELLS_MULTIPLE * search.most(
            lambda steps: self._fits(steps * CELLS_MULTIPLE),
            self.asked.most // CELLS_MULTIPLE,
            least=-(-self.asked.needed // CELLS_MULTIPLE),
            sketched=lambda steps: bool(self.at(steps * CELLS_MULTIPLE).sketched(self.least)),
        )

    def _fits(self, context: int) -> bool:
        """Whether the fewest slots of so many tokens fit. A sketch that leaves a tenth of the RAM tells it, too."""
        slots = self.at(context)
        sketch = slots.sketch(self.least)
        if sketch and sketch.whole >= slots.whole and sketch.in_ram <= _SURELY * self.space.room_in_ram:
            return True
        return slots.placed(self.least) is not None

    def chosen(self) -> Pair | None:
        """The pair with which people wait least; None where the fewest slots do not fit with the fewest tokens."""
        longest = self.longest()
        if not longest:
            return None
        context = self._context(longest)
        number, why = self._number(context, longest)
        setting = with_slots(replace(self.one, context=context), number)
        return Pair(setting, why, self._context_reason(context, longest))

    def _contexts(self, longest: int) -> list[int]:
        """The contexts that are compared, from the shortest on."""
        shortest = min(max(self.asked.needed, CELLS_MULTIPLE), longest)
        return sorted({shortest, *range(-(-shortest // _STEP) * _STEP, longest, _STEP), longest})

    def _context(self, longest: int) -> int:
        """The longest context up to `longest` with which people hardly wait longer than with the best."""
        contexts = self._contexts(longest)
        number, crowd = len(contexts), self.at(longest)
        # Where so many as can be of use lie on the cards, memory is not what people wait for.
        if number > 1 and not (self._whole and crowd.sketched(crowd.powers()[-1])):
            most_seconds = HARDLY_LONGER * min(self._best(contexts[0])[0], self._best(longest)[0])
            if self._best(longest)[0] > most_seconds:
                number = max(search.most(lambda n: self._within(most_seconds, contexts[n - 1], longest), number - 1), 1)
        while number > 1 and not self._early(contexts[number - 1]):
            number -= 1
        return contexts[number - 1]

    def _early(self, context: int) -> bool:
        """Whether every answer begins in time with some number of slots of so many tokens, or the operator has set no time."""
        if self.asked.first_token == math.inf:
            return True
        slots = self.at(context)
        numbers = [self.asked.slots] if self.asked.slots else slots.powers()
        if any(slots.early(number, found) for number in numbers if (found := slots.sketched(number))):
            return True
        if self.asked.slots:
            return False
        # The most that fit are placed, which takes long, only where their sketch promises something.
        largest = search.most(lambda number: bool(slots.sketched(number)), numbers[-1], least=self.least)
        promised = slots.sketched(largest) if largest else None
        if promised is None or promised.longest_first_token > self.asked.first_token * SKETCH_ERROR:
            return False
        return any(slots.early(number, found) for number in slots.numbers() if (found := slots.sketched(number)))

    def _within(self, seconds: float, context: int, longest: int) -> bool:
        """Whether people wait no longer with some number of slots of so many tokens, by sketches.

        With longer slots they wait no less. So numbers that are too slow with the shortest are not looked at, and those that are best with
        the longest are looked at first.
        """
        slots, numbers = self.at(context), self._numbers(self.at(longest))
        shortest = self.at(self._contexts(longest)[0])
        promising = (number for number in numbers if shortest.sketched_waiting(number) <= seconds * SKETCH_ERROR)
        return any(slots.sketched_waiting(number) <= seconds for number in promising)

    def _numbers(self, slots: Slots) -> list[int]:
        """The numbers that are compared by sketches, the best first."""
        numbers = [self.asked.slots] if self.asked.slots else slots.powers()
        return sorted(numbers, key=slots.sketched_waiting)

    def _best(self, context: int) -> tuple[float, int]:
        """How long people wait with the best number of slots of so many tokens, and that number, by sketches."""
        slots = self.at(context)
        number = self._numbers(slots)[0]
        return slots.sketched_waiting(number), number

    def _number(self, context: int, longest: int) -> tuple[int, str]:
        """The number of slots of so many tokens, and why. Where slots are shorter, people wait less than with the longest."""
        if self.asked.slots:
            return self.asked.slots, ""
        slots = self.at(context)
        if context == longest:
            return slots.chosen()
        number = self._best(longest)[1]
        return replace(
            slots, limit=self.at(longest).waiting(number), limited_by=f"{slots_in_words(number)} of {longest:,}"
        ).chosen()

    def _context_reason(self, context: int, longest: int) -> str:
        """Why a slot of so many tokens is not longer."""
        if context == longest:
            if longest == self.asked.most:
                return ""
            return f"with more, {slots_in_words(self.least)} would not fit{' on the cards' if self._whole else ''}"
        shortest = self._contexts(longest)[0]
        (_, more), (_, fewest) = self._best(longest), self._best(shortest)
        before, best = self.at(longest).placed(more), self.at(shortest).placed(fewest)
        if before is None or best is None or self.asked.first_token < before.longest_first_token:
            return "with more, some answers would begin later than you want"
        return _longer(
            f"with {slots_in_words(more)} of {longest:,}",
            before,
            f"with {slots_in_words(fewest)} of {shortest:,}",
            best,
        )


def powers(people: int) -> list[int]:
    """As many slots as people ask at once, up to the most that are chosen, and the powers of two below."""
    at_once = min(people, MOST_SLOTS)
    return sorted({at_once, *(2**power for power in range(at_once.bit_length()))})


@dataclass(frozen=True)
class Slots:
    """What people wait for with numbers of slots of one length.

    Attributes:
        model: The model that is served.
        wanted: The setting with one slot, before the placement.
        space: The cards and the RAM.
        workload: What people ask for.
        least: The fewest slots that the operator accepts.
        first_token: The seconds after which every answer shall have begun, if so many slots can do that.
        longest: The most tokens of a slot with which this length is compared.
        whole: Whether everything stays on the cards.
        limit: How long people may wait at most.
        limited_by: The slots with which they wait so long, in words that go on `with`.
    """

    model: Model
    wanted: Setting
    space: Space
    workload: Workload
    least: int
    first_token: float
    longest: int
    whole: bool = False
    limit: float = math.inf
    limited_by: str = ""

    def chosen(self) -> tuple[int, str]:
        """The number of slots, and the reason in words that go on `because`."""
        if min(self.workload.people, MOST_SLOTS) <= self.least:
            return self.least, WANTED if self.least > 1 else "one person asks at a time"
        numbers = self.numbers()
        if not numbers:
            return self.least, WANTED if self.least > 1 else "not even one fits"
        sketched = {number: found for number in numbers if (found := self.sketched(number) or self.placed(number))}
        prompt = [number for number, each in sketched.items() if self.early(number, each)]
        waits = {number: each.waiting for number, each in sketched.items() if number in prompt or not prompt}
        best_number = min(waits, key=lambda number: waits[number])
        most_seconds = max(min(HARDLY_LONGER * waits[best_number], self.limit), waits[best_number])
        chosen = max(number for number, waited in waits.items() if waited <= most_seconds)
        most_seconds = min(HARDLY_LONGER * self.waiting(best_number), self.limit)
        while chosen > best_number and self.waiting(chosen) > most_seconds:
            chosen = max(number for number in waits if number < chosen)
        for larger in (number for number in numbers if number > chosen):
            found = self.placed(larger)
            if found and prompt and found.longest_first_token > self.first_token:
                return chosen, f"with {larger} the first token would come after {found.longest_first_token:,.0f} s"
            if found and found.waiting > most_seconds:
                return chosen, self._too_long(larger, found, best_number)
            chosen = larger
        return chosen, self._all_that_fit(chosen)

    def _too_long(self, slots: int, found: Means, best_number: int) -> str:
        """Why there are not so many slots, with which people wait too long."""
        best = self.placed(best_number) or found
        if found.waiting <= HARDLY_LONGER * best.waiting:
            return (
                f"with {slots} people would wait longer than with {self.limited_by}:"
                f" {_seconds(found.waiting)} s in the mean, first token and end together, instead of {_seconds(self.limit)} s"
            )
        return _longer(f"with {slots}", found, f"with {best_number}", best)

    def _all_that_fit(self, chosen: int) -> str:
        """Why there are no more slots where more would not make people wait longer."""
        people, at_once = self.workload.people, min(self.workload.people, MOST_SLOTS)
        if chosen < at_once:
            on_cards = " on the cards" if self.whole else ""
            tokens = context_per_slot(self.model, self.wanted)
            return f"more slots of {tokens:,} tokens do not fit{on_cards} beside {self.model.name}"
        if people > at_once:
            return f"{people} people ask at once, and the plan chooses no more"
        return "so many people ask at once"

    def powers(self) -> list[int]:
        """The fewest slots, as many as people ask at once, and the powers of two between."""
        more = [number for number in powers(self.workload.people) if number > self.least]
        return [self.least, *more]

    def numbers(self) -> list[int]:
        """The numbers among which the plan chooses: of `powers` those that fit, and where memory decides, the most that fit."""
        numbers = self.powers()
        if self.sketched(numbers[-1]) and self.placed(numbers[-1]):
            return numbers
        largest = search.most(
            lambda number: bool(self.placed(number)), numbers[-1], sketched=lambda n: bool(self.sketched(n))
        )
        return sorted({number for number in (*numbers, largest) if self.least <= number <= largest})

    def sketch(self, slots: int) -> Sketch | None:
        """The sketch with which the exchanges are over first; None where none fits."""
        if not self.space.cards:
            return None
        wanted = with_slots(self.wanted, slots)
        return search.nearest_sketch(
            self.model, wanted, self.space, self.workload, self.first_token, longest=self.longest
        )

    def sketched(self, slots: int) -> Means | None:
        """What people wait for with a sketch; None where none fits."""
        if not self.space.cards:
            return self.placed(slots)
        found = self.sketch(slots)
        return means(found.costs, slots, self.workload) if found and found.whole >= self.whole else None

    def placed(self, slots: int) -> Means | None:
        """What people wait for with a placement; None where none fits."""
        setting: Setting | None = with_slots(self.wanted, slots)
        if setting and self.space.cards:
            setting = search.best(self.model, setting, self.space, self.workload, first_token=self.first_token)
        if setting is None or memory(self.model, setting, self.space.cards).host.total > self.space.room_in_ram:
            return None
        found = costs(self.model, setting, self.space.cards, self.space.speeds)
        return means(found, slots, self.workload) if found.whole >= self.whole else None

    def early(self, slots: int, sketched: Means) -> bool:
        """Whether every answer begins in time."""
        if self.first_token == math.inf:
            return True
        if sketched.longest_first_token > self.first_token * SKETCH_ERROR:
            return False
        found = self.placed(slots)
        return found is not None and found.longest_first_token <= self.first_token

    def sketched_waiting(self, slots: int) -> float:
        """How long people wait with a sketch; infinite where none fits, or where an answer begins too late."""
        found = self.sketched(slots)
        if found is None or found.longest_first_token > self.first_token * SKETCH_ERROR:
            return math.inf
        return found.waiting

    def waiting(self, slots: int) -> float:
        """How long people wait with a placement; infinite where none fits."""
        found = self.placed(slots)
        return found.waiting if found else math.inf


def _longer(what: str, found: Means, least: str, best: Means) -> str:
    """Why something is not chosen: how much longer people would wait than with what is best."""
    longer = found.waiting / best.waiting - 1
    return (
        f"{what} people would wait {longer:.0%} longer than {least}, where the plan accepts {HARDLY_LONGER - 1:.0%}:"
        f" in the mean {_seconds(found.first_token)} s for the first token and {_seconds(found.end)} s for the end of an answer,"
        f" instead of {_seconds(best.first_token)} s and {_seconds(best.end)} s (at the low speeds)"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2f}"
