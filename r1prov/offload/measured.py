"""The speeds of a machine that follow from rates which were measured on it. It is pure arithmetic.

Each rate is an equation: the formulas of `costs`, with the bytes and operations of the setting that was measured, must come to the
measured time. One equation tells about one speed, that on which the time depends most. The others count as the ranges in which they are
known, so a speed comes out as a range, too. The equations that tell most come first, and narrow what the next ones count with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1prov.offload.speed import RANGES, Speed, with_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from r1prov.offload.costs import Costs
    from r1prov.offload.speed import Speeds

    Ranges = dict[str, tuple[float, float]]

NAMES = RANGES

NOISE = 0.03
"""Two measurements of the same differ by about this share."""

_VAGUE = math.log(2)
"""The logarithm of the widest range, high by low, that is taken for a measured speed."""

_UNKNOWN = math.log(100)
"""The logarithm of the range in which a speed lies before anything was measured. The defaults are no bounds, for machines differ."""

_STEP = 1.01
_FARTHEST = 1000.0
"""How many times as fast or slow as by default a speed may come out."""

SMALLEST_BYTES = 10**9
"""A token that reads less tells nothing about memory: the caches of a server's processors hold up to so much."""


@dataclass(frozen=True)
class Sample:
    """A time that was measured.

    Attributes:
        costs: The bytes and operations of the setting that was measured.
        seconds: For the whole prompt, or for a token of the answer of one user.
        prompt: The tokens of the prompt; 0 where a token of an answer was measured.
        depth: The tokens that were in the slot before.
    """

    costs: Costs
    seconds: float
    prompt: int
    depth: float

    def foreseen(self, values: Mapping[str, float], which: int) -> float:
        """The seconds by the formulas for the low (0) or the high (1) speeds, where the speeds have these values."""
        speeds = with_ranges(self.costs.speeds, {name: Speed(value, value) for name, value in values.items()})
        costs = replace(self.costs, speeds=speeds)
        if self.prompt:
            return costs.prompt_seconds(self.prompt, int(self.depth), 1, which)
        return costs.token_seconds(1, self.depth, which)

    @property
    def tells(self) -> bool:
        """Whether a token reads enough for the memory to matter."""
        each = self.costs.used / self.costs.total
        read = sum(load.always + load.experts * each for load in (*self.costs.cards, self.costs.host))
        return self.seconds > 0 and read >= SMALLEST_BYTES


def speeds(samples: Sequence[Sample], known: Speeds) -> Ranges:
    """The speeds about which measurements tell something, as ranges, by the names of the attributes of `Speeds`.

    Args:
        samples: What was measured on one machine.
        known: The speeds with which its plan counts.
    """
    ranges = {name: (speed.low, speed.high) for name in NAMES for speed in [getattr(known, name)]}
    found: Ranges = {}
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    left = [sample for sample in samples if sample.tells]
    while left:
        judged = [(sample, name, _error(sample, name, ranges)) for sample in left for name in NAMES]
        width = {name: _width(found[name]) if name in found else _UNKNOWN for name in NAMES}
        sample, name, error = max(judged, key=lambda each: width[each[1]] - each[2])
        left.remove(sample)
        if width[name] <= error:  # It tells nothing new of any speed, but may contradict what is known of one.
            _, name, error = min((each for each in judged if each[0] is sample), key=lambda each: each[2])
        span = _span(sample, name, ranges) if error <= _VAGUE else None
        if span:
            found[name] = ranges[name] = _both(found.get(name, span), span)
            spans[name].append(span)
    return {name: _narrowed(getattr(known, name), each, spans[name]) for name, each in found.items()}


def _narrowed(known: Speed, found: tuple[float, float], spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range that was found. Where the known one is narrower, and the measurements agree, it is what the two ranges share."""
    agree = max(low for low, _ in spans) <= min(high for _, high in spans)
    low, high = max(known.low, found[0]), min(known.high, found[1])
    return (low, high) if agree and low <= high and _width(found) > math.log(known.high / known.low) else found


def _middle(ranges: Ranges) -> dict[str, float]:
    return {name: math.sqrt(low * high) for name, (low, high) in ranges.items()}


def _width(found: tuple[float, float]) -> float:
    low, high = found
    return math.log(high / low)


def _share(sample: Sample, name: str, middle: dict[str, float]) -> float:
    """By how many per cent the time becomes shorter where a speed is one per cent higher."""
    slow, fast = (sample.foreseen(middle | {name: middle[name] * step}, 0) for step in (1 / _STEP, _STEP))
    return math.log(slow / fast) / (2 * math.log(_STEP))


def _error(sample: Sample, name: str, ranges: Ranges) -> float:
    """The logarithm of the range in which a speed comes out of a measurement, about; infinite where it does not matter."""
    middle = _middle(ranges)
    shares = {each: _share(sample, each, middle) for each in NAMES}
    if shares[name] < NOISE:
        return math.inf
    others = sum(share * _width(ranges[each]) for each, share in shares.items() if each != name)
    formulas = math.log(sample.foreseen(middle, 0) / sample.foreseen(middle, 1))
    return (2 * NOISE + others + formulas) / shares[name]


def _span(sample: Sample, name: str, ranges: Ranges) -> tuple[float, float] | None:
    """The range in which a speed must lie; None where no value of it explains the time."""
    low = _solved(sample, name, {each: high for each, (_, high) in ranges.items()}, 1)
    high = _solved(sample, name, {each: low for each, (low, _) in ranges.items()}, 0)
    if high is None:  # At their low ends the other speeds alone take longer than the whole.
        high = _solved(sample, name, _middle(ranges), 0)
    return (low, high) if low and high and low <= high else None


def _solved(sample: Sample, name: str, others: dict[str, float], which: int) -> float | None:
    """The value of a speed with which the formulas come to the measured time, beside these values of the others."""
    wanted = sample.seconds * (1 - NOISE if which == 0 else 1 + NOISE)

    def is_slow(value: float) -> bool:
        return sample.foreseen(others | {name: value}, which) > wanted

    low, high = others[name] / _FARTHEST, others[name] * _FARTHEST
    if not is_slow(low) or is_slow(high):
        return None
    while high / low > 1 + NOISE / 100:
        value = math.sqrt(low * high)
        low, high = (value, high) if is_slow(value) else (low, value)
    return math.sqrt(low * high)


def _both(before: tuple[float, float], span: tuple[float, float]) -> tuple[float, float]:
    """What two ranges for the same speed share; all that both cover where they contradict each other."""
    low, high = max(before[0], span[0]), min(before[1], span[1])
    return (low, high) if low <= high else (min(before[0], span[0]), max(before[1], span[1]))
