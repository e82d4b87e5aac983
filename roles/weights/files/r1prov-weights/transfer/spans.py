"""Which bytes of a file are there, and which connection brings which others: arithmetic."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Span = tuple[int, int]  # from the first byte up to, and without, the second one

LEAST_SPLIT_BYTES = 256 << 10  # each half of a range that two connections share has as much at least
SOON_S = 3.0  # what will be there so soon is not split
STALLED_S = 5.0  # a connection that has brought nothing for so long loses all that it still was to bring


class Spans:
    """A set of bytes, as spans that neither touch nor overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.bytes = 0

    def __iter__(self) -> Iterator[Span]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def add(self, start: int, end: int) -> None:
        """Adds the bytes from `start` up to `end`."""
        if start >= end:
            return
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._put(first, last, [(start, end)])

    def remove(self, start: int, end: int) -> None:
        """Takes the bytes from `start` up to `end` away."""
        if start >= end:
            return
        first = bisect.bisect_right(self._ends, start)
        last = bisect.bisect_left(self._starts, end)
        if first >= last:
            return
        rest = [(self._starts[first], start), (end, self._ends[last - 1])]
        self._put(first, last, [(begin, stop) for begin, stop in rest if begin < stop])

    def _put(self, first: int, last: int, spans: list[Span]) -> None:
        for index in range(first, last):
            self.bytes -= self._ends[index] - self._starts[index]
        self._starts[first:last] = [start for start, _ in spans]
        self._ends[first:last] = [end for _, end in spans]
        self.bytes += sum(end - start for start, end in spans)

    @property
    def prefix(self) -> int:
        """How many bytes are there from the beginning on without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def within(self, start: int, end: int) -> list[Span]:
        """The bytes of a span that are there."""
        index, found = bisect.bisect_right(self._ends, start), []
        while index < len(self._starts) and self._starts[index] < end:
            found.append((max(start, self._starts[index]), min(end, self._ends[index])))
            index += 1
        return found

    def missing(self, start: int, end: int) -> list[Span]:
        """The bytes of a span that are not there."""
        found, position = [], start
        for begin, stop in self.within(start, end):
            if position < begin:
                found.append((position, begin))
            position = stop
        return [*found, (position, end)] if position < end else found


@dataclass(frozen=True)
class Held:
    """What a connection still has to bring, and how it gets on."""

    position: int
    end: int
    rate: float  # bytes per second, lately; without end where nothing is known yet
    silent_s: float  # since its last byte, or since it was asked

    @property
    def left_s(self) -> float:
        """How long it will still take."""
        return (self.end - self.position) / max(self.rate, 1)


def next_range(there: Spans, held: Sequence[Span], size: int, before: int, most: int) -> Span | None:
    """The first bytes that are neither there nor on their way, to be fetched next in one piece.

    Args:
        there: what is there.
        held: what connections are bringing.
        size: how many bytes the file has.
        before: where the look-ahead ends. What begins there or later has to wait.
        most: how many bytes one piece has. One that is a little longer is not split.
    """
    taken = Spans()
    for start, end in [*there, *held]:
        taken.add(start, end)
    gaps = taken.missing(0, min(before, size))
    if not gaps:
        return None
    start = gaps[0][0]
    # The look-ahead bounds where a piece begins, and not where it ends: else there would be a crumb at each of its moves.
    stop = taken.missing(start, min(start + 2 * most, size))[0][1]
    return start, stop if stop - start <= most * 3 // 2 else start + most


def split(held: Sequence[Held], rate: float) -> tuple[int, int] | None:
    """Which connection gives up a part of its range for one that has nothing to do, and from where on.

    Args:
        held: what the connections are bringing.
        rate: what the idle connection is expected to bring, in bytes per second.

    Returns:
        The number of the connection that takes longest, and where the other one begins: so that both end at the same time. None where it
        is not worth it.
    """
    rows = [(each.left_s, number) for number, each in enumerate(held) if each.end > each.position]
    if not rows:
        return None
    left_s, number = max(rows)
    victim = held[number]
    left = victim.end - victim.position
    if victim.silent_s >= STALLED_S:
        return number, victim.position
    if left_s < SOON_S or left < 2 * LEAST_SPLIT_BYTES:
        return None
    keeps = round(left * victim.rate / (victim.rate + max(rate, victim.rate, 1)))
    keeps = min(max(keeps, LEAST_SPLIT_BYTES), left - LEAST_SPLIT_BYTES)
    return number, victim.position + keeps
