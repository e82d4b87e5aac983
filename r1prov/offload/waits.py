"""What people wait for: the first token and the end of each exchange of a workload, with one setting. It is pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1prov.machines.workload import CHAT, TEAM, Exchange, Workload, check_length, shortened
from r1prov.offload.costs import costs
from r1prov.offload.memory import context_per_slot
from r1prov.offload.speed import DEFAULT

if TYPE_CHECKING:
    from r1prov.models.model import Model
    from r1prov.offload.costs import Costs
    from r1prov.offload.setting import Setting
    from r1prov.offload.speed import Speeds

PROMPT_SHARE = 16
"""An exchange that fills a slot has a prompt of one part in this many."""

Range = tuple[float, float]
"""What comes out at the low and at the high speeds of the devices."""


@dataclass(frozen=True)
class Wait:
    """What an exchange comes to.

    Attributes:
        exchange: The exchange.
        first_token: The seconds until the last of those who ask at once sees a first token.
        copying: The seconds of these in which the engine copies weights from RAM to the first card.
        end: The seconds until the last of them has the whole answer.
        mean: The seconds until an answer is whole, as the mean of all who ask.
        each: The tokens per second that one person gets while the others get theirs.
        together: The tokens per second of all answers at once.
    """

    exchange: Exchange
    first_token: Range
    copying: Range
    end: Range
    mean: Range
    each: Range
    together: Range


@dataclass(frozen=True)
class Day:
    """What a workload comes to, in the mean of all who ask, weighted by the shares.

    Attributes:
        workload: The workload.
        waits: What each exchange comes to.
        mean: The seconds until an answer is whole.
        first_token: The seconds until an answer begins.
    """

    workload: Workload
    waits: tuple[Wait, ...]
    mean: Range
    first_token: Range


def workload_for(asked: Workload | None, model: Model, setting: Setting, cards: tuple[int, ...]) -> Workload:
    """The workload that is asked for, or the one that suits the machine, with exchanges as long as a slot at most.

    Args:
        asked: What the operator asks for, if anything.
        model: The model. Where all of it lies on the cards, one person gains little from that, and many gain much.
        setting: The arguments.
        cards: The bytes of each card.

    Raises:
        SiteError: An exchange that the operator asks for is longer than a slot.
    """
    context = context_per_slot(model, setting)
    if asked is None:
        return shortened(TEAM if costs(model, setting, cards).whole else CHAT, context)
    check_length(asked, context, model.context_length)
    return asked


def day(
    model: Model, setting: Setting, cards: tuple[int, ...], asked: Workload | None, speeds: Speeds = DEFAULT
) -> Day:
    """What the exchanges of the workload wait for with `setting`.

    Args:
        model: The model.
        setting: The arguments.
        cards: The bytes of each card.
        asked: The workload that the operator asks for; None for the one that suits the machine.
        speeds: How fast the machine is.

    Raises:
        SiteError: An exchange that the operator asks for is longer than a slot.
    """
    workload = workload_for(asked, model, setting, cards)
    found, slots = costs(model, setting, cards, speeds), setting.slots
    waits = tuple(_wait(found, exchange, slots) for exchange in workload.exchanges)
    slow, fast = (means(found, slots, workload, which) for which in (0, 1))
    return Day(workload, waits, (slow.end, fast.end), (slow.first_token, fast.first_token))


def filling(context: int) -> Workload:
    """One exchange that fills a slot, for those who look for a placement without a workload. R1 thinks for long, so most is answer."""
    prompt = max(context // PROMPT_SHARE, 1)
    return Workload(exchanges=(Exchange(prompt=prompt, answer=max(context - prompt, 1)),))


@dataclass(frozen=True)
class Means:
    """What a workload comes to, in seconds.

    Attributes:
        end: The mean until an answer is whole, weighted by the shares.
        first_token: The mean until an answer begins.
        longest_first_token: How long the last one waits for an answer to begin, in the exchange where that is longest.
    """

    end: float
    first_token: float
    longest_first_token: float

    @property
    def waiting(self) -> float:
        """The mean waits for the first token and for the end, both together.

        The end alone would speak for few slots: people who are served together get their answers later than those who come first in a
        queue.
        """
        return self.end + self.first_token


def means(found: Costs, slots: int, workload: Workload, which: int = 0) -> Means:
    """What a workload comes to with these costs and so many slots, at the low speeds (0) or at the high ones (1)."""
    waited = [(workload.weight(exchange), _seconds(found, exchange, slots, which)) for exchange in workload.exchanges]
    return Means(
        end=sum(weight * seconds[2] for weight, seconds in waited),
        first_token=sum(weight * seconds[4] for weight, seconds in waited),
        longest_first_token=max(seconds[0] for _, seconds in waited),
    )


def mean_seconds(
    model: Model, setting: Setting, cards: tuple[int, ...], workload: Workload, speeds: Speeds = DEFAULT
) -> float:
    """The mean seconds of an exchange, at the low speeds of the devices."""
    return means(costs(model, setting, cards, speeds), setting.slots, workload).end


def depth_of(workload: Workload) -> float:
    """The tokens that a slot holds half-way through an answer, in the mean."""
    return sum(workload.weight(exchange) * _depth(exchange) for exchange in workload.exchanges)


def _depth(exchange: Exchange) -> float:
    return exchange.cached + exchange.prompt + exchange.answer / 2


def _wait(found: Costs, exchange: Exchange, slots: int) -> Wait:
    slow, fast = (_seconds(found, exchange, slots, which) for which in (0, 1))
    first, end, mean, token, _ = zip(slow, fast, strict=True)
    users = min(exchange.at_once, slots)
    together = exchange.at_once % users or users  # of those who see their first token last
    copying = found.copying_seconds(exchange.prompt, together, 0), found.copying_seconds(exchange.prompt, together, 1)
    each = 1 / token[0], 1 / token[1]
    return Wait(exchange, first, copying, end, mean, each, (users * each[0], users * each[1]))


def _seconds(found: Costs, exchange: Exchange, slots: int, which: int) -> tuple[float, float, float, float, float]:
    """The seconds to the first token, to the end, to the end in the mean, for a token of each, and to the first in the mean.

    As many as there are slots are served at once. Whoever asks beyond that waits until those before have their answers.
    """
    depth, users = _depth(exchange), min(exchange.at_once, slots)
    rounds, rest = divmod(exchange.at_once, users)

    def served(now: int) -> tuple[float, float, float]:
        """For so many who are served together: the seconds until first tokens, for a token of each, and until they have their answers."""
        first = found.prompt_seconds(exchange.prompt, exchange.cached, now, which)
        token = found.token_seconds(now, depth, which, slots)
        return first, token, first + exchange.answer * token

    first, token, took = served(users)
    # Those of round k wait for the k rounds before.
    queued = users * took * rounds * (rounds - 1) / 2
    waited_first, waited = users * rounds * first + queued, users * rounds * took + queued
    last, end = (rounds - 1) * took + first, rounds * took
    if rest:
        first, _, took = served(rest)
        waited_first, waited = waited_first + rest * (end + first), waited + rest * (end + took)
        last, end = end + first, end + took
    return last, end, waited / exchange.at_once, token, waited_first / exchange.at_once
